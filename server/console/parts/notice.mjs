import { html } from "../html.mjs";

/** `kind`: bad, warn, good or none. Bad news interrupts, other news waits its turn. */
export function Notice({ kind = "", children }) {
  return html`<div class=${`notice ${kind}`} role=${kind === "bad" ? "alert" : "status"}>${children}</div>`;
}

/** What went wrong, with the field that the server names. */
export function Problem({ error }) {
  if (!error) return null;
  const field = error.param && !error.message.includes(error.param) ? html`<code>${error.param}</code>: ` : null;
  return html`<${Notice} kind="bad">${field}${error.message}<//>`;
}

export function Empty({ title, children }) {
  return html`<div class="empty"><strong>${title}</strong><p>${children}</p></div>`;
}
