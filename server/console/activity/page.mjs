import { html } from "../html.mjs";

export function ActivityPage() {
  return html`<div class="page"><h1>Activity</h1></div>`;
}
