import { get } from "../api.mjs";
import { html } from "../html.mjs";
import { useAction, useLoaded } from "../loading.mjs";
import { Problem } from "../parts/notice.mjs";
import { handOver } from "../playground/handover.mjs";
import { duration, fixed, plural, time } from "../words.mjs";

const SNIPPET = 200; // characters that the server keeps of a prompt

export function CallView({ id, onClose }) {
  const { value: call, error } = useLoaded((signal) => get(`/observability/requests/${encodeURIComponent(id)}`, { signal }), [id]);
  const [replay, busy, wrong] = useAction(async (signal) => {
    const { text, system } = await said(call, signal);
    handOver(text, { ...(system ? { system } : {}), steering: steeringOf(call) });
  });
  if (error) return html`<section class="card"><${Problem} error=${error} /></section>`;
  if (!call) return html`<section class="card"><p role="status">Looking it up…</p></section>`;
  return html`<section class="card" aria-label="Call">
    <div class="card-head">
      <h2>${call.route}</h2>
      <span class=${`badge ${call.status < 400 ? "good" : "bad"}`}>${call.status}</span>
      <span class="spread"></span>
      ${call.prompt_snippet && html`<button class="primary" disabled=${busy} onClick=${() => replay()}>Replay in the playground</button>`}
      <button class="quiet" onClick=${onClose}>Close</button>
    </div>
    <${Problem} error=${wrong} />
    <dl>
      <dt>Id</dt><dd><code>${call.id}</code></dd>
      <dt>When</dt><dd>${time(call.created_at)}, ${duration(call.latency_ms)}${call.stream ? ", streamed" : ""}</dd>
      <dt>Model</dt><dd>${call.model ?? "–"}</dd>
      <dt>Tokens</dt><dd>${call.prompt_tokens} read, ${call.completion_tokens} written</dd>
      ${call.error && html`<dt>Error</dt><dd class="bad">${call.error}</dd>`}
      <dt>Prompt</dt><dd class="said">${call.prompt_snippet ?? "–"}</dd>
      <dt>Answer</dt><dd class="said">${call.output_snippet ?? "–"}</dd>
    </dl>
    ${call.steering && html`<${Steered} steering=${call.steering} />`}
    ${call.behaviors && html`<${Watched} behaviours=${call.behaviors} />`}
    ${(call.policies ?? []).map((run) => html`<${Judged} run=${run} />`)}
  </section>`;
}

function Steered({ steering }) {
  return html`<div class="pairs"><h3>Steered, dose ${fixed(steering.dose)}</h3>
    <ul class="trace">${steering.vectors.map(
      (vector) => html`<li><b>${vector.name ?? vector.id ?? "inline"}</b> ${vector.operation}, strength ${fixed(vector.strength)}, ${vector.tokens} tokens, layers ${vector.layers.join(", ")}</li>`,
    )}</ul>
    <p class="hint">${plural(steering.prompt_tokens, "token")} of the prompt and ${steering.generated_tokens} generated were steered.</p>
  </div>`;
}

function Watched({ behaviours }) {
  return html`<div class="pairs"><h3>Watched</h3>
    <ul class="trace">${behaviours.map(
      (each) => html`<li class=${each.drifted ? "bad" : "good"}><b>${each.name}</b> highest drift ${fixed(each.max_drift)} of ${fixed(each.threshold)}${each.drifted ? `, drifted after ${plural(each.drifted_after, "token")}` : ""}${each.corrected ? ", corrected" : ""}</li>`,
    )}</ul>
  </div>`;
}

function Judged({ run }) {
  const accepted = run.outcome === "accepted";
  return html`<div class="pairs"><h3>Policy: ${run.outcome}${run.stopped ? `, stopped by ${run.stopped}` : ""}</h3>
    <ul class="trace">${run.candidates.map(
      (each) => html`<li class=${each.failed.length || each.broken ? "bad" : "good"}>round ${each.round + 1}, ${each.method}, score ${fixed(each.score)}${each.broken ? ", a constraint broken" : ""}${each.failed.length ? `, failed ${each.failed.join(", ")}` : ""}${each.chosen ? html` <span class=${`badge ${accepted ? "good" : "bad"}`}>chosen</span>` : ""}</li>`,
    )}</ul>
    <p class="hint">${plural(run.rounds, "round")}, ${plural(run.tokens, "token")} in ${duration(run.latency_ms)}.</p>
  </div>`;
}

/** What was asked: in full where the answer was stored, else as much as the log keeps. */
async function said(call, signal) {
  const kept = call.prompt_snippet ?? "";
  if (kept.length < SNIPPET) return { text: kept };
  try {
    const { data } = await get(`/v1/chat/completions/chatcmpl-${encodeURIComponent(call.id)}/messages`, { signal });
    const text = (message) => (typeof message?.content === "string" ? message.content : "");
    return { text: text(data.findLast(({ role }) => role === "user")) || kept, system: text(data.find(({ role }) => role === "system")) };
  } catch (error) {
    if (error.status !== 404) throw error;
    return { text: kept };
  }
}

const steeringOf = ({ steering }) =>
  (steering?.vectors ?? [])
    .filter((vector) => vector.id && ["add", "norm-preserving-add"].includes(vector.operation))
    .map(({ id, name, strength, tokens }) => ({ kind: "vector", id, name: name ?? id.slice(0, 8), strength, tokens }));
