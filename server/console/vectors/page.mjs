import { html } from "../html.mjs";

export function VectorsPage() {
  return html`<div class="page"><h1>Vectors</h1></div>`;
}
