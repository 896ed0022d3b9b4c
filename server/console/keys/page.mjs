import { html } from "../html.mjs";

export function KeysPage() {
  return html`<div class="page"><h1>Keys</h1></div>`;
}
