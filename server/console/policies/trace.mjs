// How a run came to its answer: candidates round by round, verdicts, retries.

import { html } from "../html.mjs";
import { duration, fixed } from "../words.mjs";

export function Trace({ trace }) {
  const rounds = Map.groupBy ? Map.groupBy(trace.candidates, ({ round }) => round) : grouped(trace.candidates);
  const chosen = JSON.stringify(trace.selection);
  return html`<div class="pairs">
    ${trace.constraints.masked.length > 0 && html`<p class="hint">Held to while decoding: ${trace.constraints.masked.join(", ")}.</p>`}
    ${trace.constraints.checked.length > 0 && html`<p class="hint">Checked on the text: ${trace.constraints.checked.join(", ")}.</p>`}
    ${[...rounds].map(([round, candidates]) => {
      const retry = trace.retry_events.find((event) => event.round === round);
      return html`<div class="pairs">
        <h3>Round ${round + 1}${retry ? html` <span class="hint">tried again: ${retry.trigger}</span>` : ""}</h3>
        <ul class="trace">
          ${candidates.map((candidate) => html`<${Candidate} candidate=${candidate} chosen=${JSON.stringify(candidate) === chosen} />`)}
        </ul>
      </div>`;
    })}
    ${trace.critiques.map((critique) => html`<p class="hint">Critique (${critique.kept ? "kept" : "not kept"}): ${critique.text}</p>`)}
    ${trace.errors.map((error) => html`<p class="bad">${error.kind}: ${error.message}</p>`)}
    ${trace.budgets.stopped_by && html`<p class="hint">Stopped by ${trace.budgets.stopped_by}.</p>`}
  </div>`;
}

function Candidate({ candidate, chosen }) {
  return html`<li class=${candidate.accepted ? "good" : "bad"}>
    <div class="hint">${candidate.kind} ${candidate.slot + 1} · ${candidate.sampling_method} · temperature ${fixed(candidate.temperature)} · score ${fixed(candidate.score)} · ${duration(candidate.latency_ms)}${chosen ? html` <span class="badge">chosen</span>` : ""}</div>
    <div class="said">${candidate.output}</div>
    ${!candidate.accepted && html`<div class="bad">${candidate.reason ?? "rejected"}</div>`}
  </li>`;
}

function grouped(candidates) {
  const rounds = new Map();
  for (const candidate of candidates) rounds.set(candidate.round, [...(rounds.get(candidate.round) ?? []), candidate]);
  return rounds;
}
