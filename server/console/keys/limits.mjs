// Limits of keys, where the server has some to set.

import { patch } from "../api.mjs";
import { html, useState } from "../html.mjs";
import { useAction } from "../loading.mjs";
import { NumberField } from "../parts/field.mjs";
import { Problem } from "../parts/notice.mjs";
import { count } from "../words.mjs";

const LIMITS = [
  ["requests_per_minute", "Requests/min"],
  ["tokens_per_minute", "Tokens/min"],
  ["concurrent_requests", "At once"],
];

/** Whether this server tells of limits at all. */
export const hasLimits = (keys) => keys.some((key) => LIMITS.some(([name]) => name in key));

const told = (limit) => (limit === null ? "default" : limit === 0 ? "none" : count(limit));

export const limitColumns = (keys) =>
  hasLimits(keys) ? LIMITS.map(([name, title]) => ({ name: title, number: true, cell: (key) => told(key[name]) })) : [];

/** Empty: the server's default; 0: no limit. */
export function LimitFields({ limits, onChange }) {
  return html`<div class="pair">${LIMITS.map(
    ([name, label]) => html`<${NumberField} label=${label} hint="empty: the default; 0: none" min=${0} value=${limits[name] ?? null} onChange=${(value) => onChange({ ...limits, [name]: value })} />`,
  )}</div>`;
}

export function EditLimits({ apiKey, onDone }) {
  const [limits, setLimits] = useState(Object.fromEntries(LIMITS.map(([name]) => [name, apiKey[name]])));
  const [save, busy, error] = useAction(async () => {
    await patch(`/auth/api-keys/${encodeURIComponent(apiKey.id)}`, limits);
    onDone();
  });
  return html`<form class="pairs" aria-label=${`Limits of ${apiKey.name ?? apiKey.masked}`} onSubmit=${(event) => {
    event.preventDefault();
    save();
  }}>
    <h3>Limits of ${apiKey.name ?? apiKey.masked}</h3>
    <${LimitFields} limits=${limits} onChange=${setLimits} />
    <div class="row"><button class="primary" disabled=${busy}>Set the limits</button><button type="button" class="quiet" onClick=${onDone}>Leave them</button></div>
    <${Problem} error=${error} />
  </form>`;
}
