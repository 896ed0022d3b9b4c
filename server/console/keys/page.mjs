import { get } from "../api.mjs";
import { html } from "../html.mjs";
import { useLoaded } from "../loading.mjs";
import { Empty, Problem } from "../parts/notice.mjs";
import { count, plural } from "../words.mjs";
import { KeyList } from "./list.mjs";

export function KeysPage({ facts }) {
  return html`<div class="page">
    <div class="page-head"><h1>Keys and usage</h1><p>Who may call this server, and how much they do.</p></div>
    <div class="split">
      <${KeyList} facts=${facts} />
      <${Usage} facts=${facts} />
    </div>
  </div>`;
}

function Usage({ facts }) {
  const { value: total, error } = useLoaded((signal) => get("/auth/api-keys/balance", { signal }));
  const { value: kept, error: wrong } = useLoaded((signal) => (facts.observes ? get("/observability/usage", { signal }) : { days: [] }));
  return html`<section class="card" aria-label="Usage">
    <h2>Usage</h2>
    <${Problem} error=${error ?? wrong} />
    ${total && html`<dl>
      <dt>This key</dt><dd>${count(total.requests)} requests</dd>
      <dt>Tokens read</dt><dd>${count(total.prompt_tokens)}</dd>
      <dt>Tokens written</dt><dd>${count(total.completion_tokens)}</dd>
    </dl>`}
    <h3>Tokens per day</h3>
    ${kept && (kept.days.length ? html`<${Days} days=${kept.days} />` : html`<${Empty} title="No call is kept">${facts.observes ? "Days appear as calls are made." : "This server keeps no calls."}<//>`)}
  </section>`;
}

const WEEK = 7;
const DAY = 24 * 3600 * 1000;

/** The last week, days without calls included. */
function Days({ days }) {
  const known = new Map(days.map((day) => [day.day, day]));
  const shown = Array.from({ length: WEEK }, (_, back) => new Date(Date.now() - (WEEK - 1 - back) * DAY).toISOString().slice(0, 10)).map(
    (day) => known.get(day) ?? { day, requests: 0, failed: 0, prompt_tokens: 0, completion_tokens: 0 },
  );
  const most = Math.max(1, ...shown.map(({ prompt_tokens: read, completion_tokens: written }) => read + written));
  return html`<div class="bars">
      ${shown.map(({ day, requests, failed, prompt_tokens: read, completion_tokens: written }) => html`
        <span>${day.slice(5)}</span>
        <div style=${{ width: `${((read + written) / most) * 100}%` }}></div>
        <span class="number">${count(read + written)} · ${plural(requests, "call")}${failed ? html`, <span class="bad">${count(failed)} failed</span>` : ""}</span>`)}
    </div>
    <p class="hint">Of this project, by UTC days, as far back as calls are kept.</p>`;
}
