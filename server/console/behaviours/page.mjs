import { html } from "../html.mjs";

export function BehavioursPage() {
  return html`<div class="page"><h1>Behaviours</h1></div>`;
}
