// Answers that were stored, with the scores that people gave them.

import { get, post } from "../api.mjs";
import { html, useState } from "../html.mjs";
import { useAction, useLoaded } from "../loading.mjs";
import { Empty, Problem } from "../parts/notice.mjs";
import { fixed, time } from "../words.mjs";

const SHOWN = 20;

export function StoredAnswers() {
  const [open, setOpen] = useState(false);
  return html`<details onToggle=${(event) => setOpen(event.currentTarget.open)}>
    <summary>Stored answers and feedback</summary>
    <div class="inside">${open && html`<${List} />`}</div>
  </details>`;
}

function List() {
  const { value, error } = useLoaded((signal) => get(`/v1/chat/completions?order=desc&limit=${SHOWN}`, { signal }));
  if (error) return html`<${Problem} error=${error} />`;
  if (!value) return html`<p role="status">Asking…</p>`;
  if (!value.data.length) return html`<${Empty} title="Nothing is stored">Requests with <code>store: true</code> are kept here; the playground has it under Details.<//>`;
  return html`<ul class="trace">${value.data.map((stored) => html`<${Stored} key=${stored.id} stored=${stored} />`)}</ul>`;
}

function Stored({ stored }) {
  const path = `/v1/chat/completions/${encodeURIComponent(stored.id)}/feedback`;
  const { value, reload } = useLoaded((signal) => get(path, { signal }), [stored.id]);
  const [rate, busy, error] = useAction(async (signal, score) => {
    await post(path, { metric: "rating", value: score }, { signal });
    reload();
  });
  const text = stored.choices[0]?.message?.content ?? "";
  return html`<li>
    <div class="hint">${time(stored.created * 1000)} · ${stored.model}${Object.entries(stored.metadata ?? {}).map(([key, label]) => ` · ${key}: ${label}`)}</div>
    <div class="said">${text}</div>
    <div class="row">
      ${(value?.data ?? []).map((each) => html`<span class="badge">${each.metric}: ${typeof each.value === "number" ? fixed(each.value) : String(each.value)}</span>`)}
      <button class="quiet" disabled=${busy} onClick=${() => rate(1)}>Good</button>
      <button class="quiet" disabled=${busy} onClick=${() => rate(0)}>Bad</button>
    </div>
    <${Problem} error=${error} />
  </li>`;
}
