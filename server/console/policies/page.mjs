import { html } from "../html.mjs";

export function PoliciesPage() {
  return html`<div class="page"><h1>Policies</h1></div>`;
}
