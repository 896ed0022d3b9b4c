import { get } from "../api.mjs";
import { html, useEffect, useState } from "../html.mjs";
import { useLoaded } from "../loading.mjs";
import { Check, Choice, TextField } from "../parts/field.mjs";
import { Empty, Notice, Problem } from "../parts/notice.mjs";
import { Table } from "../parts/table.mjs";
import { go } from "../place.mjs";
import { count, duration, time } from "../words.mjs";
import { AbTests } from "./abtests.mjs";
import { CallView } from "./call.mjs";
import { StoredAnswers } from "./stored.mjs";

const PAGE = 50;
const PAUSE = 300; // milliseconds between a keystroke and the search
const SNIPPET = 60; // characters

const cut = (text) => (text && text.length > SNIPPET ? `${text.slice(0, SNIPPET)}…` : (text ?? "–"));

const COLUMNS = [
  { name: "When", cell: (call) => time(call.created_at) },
  { name: "Prompt", cell: (call) => cut(call.prompt_snippet) },
  { name: "Route", cell: (call) => call.route },
  { name: "Status", cell: (call) => html`<span class=${`badge ${call.status < 400 ? "good" : "bad"}`}>${call.status}</span>` },
  { name: "Seen", cell: (call) => html`${call.steering && html`<span class="badge">steered</span>`} ${(call.behaviors ?? []).some((each) => each.drifted) ? html`<span class="badge warn">drift</span>` : call.behaviors && html`<span class="badge">watched</span>`} ${call.policies && html`<span class="badge">policy</span>`}` },
  { name: "Tokens", number: true, cell: (call) => count(call.completion_tokens) },
  { name: "Took", number: true, cell: (call) => duration(call.latency_ms) },
];

export function ActivityPage({ facts, id }) {
  const [typed, setTyped] = useState("");
  const [search, setSearch] = useState("");
  const [watched, setWatched] = useState(false);
  const [status, setStatus] = useState("");
  const [offset, setOffset] = useState(0);
  useEffect(() => {
    const later = setTimeout(() => {
      setSearch(typed);
      setOffset(0);
    }, PAUSE);
    return () => clearTimeout(later);
  }, [typed]);
  const query = new URLSearchParams({ limit: PAGE, offset, ...(watched ? { sae_only: true } : {}), ...(status ? { status } : {}) });
  const { value, error, reload } = useLoaded(
    (signal) => (facts.observes ? get(`/observability/requests?${query}${search ? `&search=${encodeURIComponent(search)}` : ""}`, { signal }) : null),
    [search, watched, status, offset],
  );
  if (!facts.observes) return html`<div class="page"><h1>Activity</h1><${Notice}>This server keeps no calls: it was started with --observe-requests 0.<//></div>`;
  return html`<div class="page">
    <div class="page-head"><h1>Activity</h1><p>Recent calls of this project, newest first.</p><span class="spread"></span><button onClick=${reload}>Refresh</button></div>
    <form class="card" role="search" onSubmit=${(event) => event.preventDefault()}>
      <div class="pair">
        <${TextField} label="Search" value=${typed} onChange=${setTyped} placeholder="prompt, route or model" />
        <${Choice} label="Status" value=${status} onChange=${(value) => { setStatus(value); setOffset(0); }} options=${[["", "any"], ["200", "200, answered"], ["400", "400, refused"], ["499", "499, client left"], ["500", "500, failed"], ["503", "503, unavailable"]]} />
      </div>
      <${Check} label="Only those watched for behaviours" checked=${watched} onChange=${(on) => { setWatched(on); setOffset(0); }} />
    </form>
    <${Problem} error=${error} />
    ${id && html`<${CallView} key=${id} id=${id} onClose=${() => go("activity")} />`}
    <section class="card" aria-label="Calls">
      ${value && (value.requests.length
        ? html`<${Table} caption="Recent calls" columns=${COLUMNS} rows=${value.requests} keyOf=${(call) => call.id} chosen=${id} onOpen=${(call) => go("activity", call.id)} />`
        : html`<${Empty} title="Nothing here">${search || watched || status ? "No call fits; ask for less." : "Calls appear a second after they end."}<//>`)}
      ${value && value.total > PAGE && html`<div class="row">
        <button disabled=${offset === 0} onClick=${() => setOffset(offset - PAGE)}>Newer</button>
        <span class="hint">${offset + 1} to ${Math.min(offset + PAGE, value.total)} of ${count(value.total)}</span>
        <button disabled=${offset + PAGE >= value.total} onClick=${() => setOffset(offset + PAGE)}>Older</button>
      </div>`}
    </section>
    <${StoredAnswers} />
    <${AbTests} />
  </div>`;
}
