// One answer as people see it: its texts, what was called, and what the server did.

import { html, useMemo } from "../html.mjs";
import { Notice, Problem } from "../parts/notice.mjs";
import { Trace } from "../policies/trace.mjs";
import { duration, fixed, plural } from "../words.mjs";
import { textOf } from "./answer.mjs";
import { difference } from "./difference.mjs";
import { Tokens } from "./tokens.mjs";

export function Answer({ answer, other, name }) {
  const changed = useMemo(
    () => (answer?.done && other?.done ? difference(...[answer, other].map((each) => each.choices[0].pieces.map((piece) => piece.text)))[0] : null),
    [answer?.done, other?.done],
  );
  if (!answer) return html`<div class="answer">${name && html`<h3>${name}</h3>`}<p class="thinking" role="status">Waiting for the first token…</p></div>`;
  return html`<div class="answer">
    ${name && html`<h3>${name}</h3>`}
    ${answer.choices.map(
      (choice, index) => html`<div class="choice" key=${index}>
        ${answer.choices.length > 1 && html`<span class="number">${index + 1}</span>`}
        <${Tokens} pieces=${choice.pieces} thresholds=${answer.thresholds} changed=${index === 0 ? changed : null} />
        ${!answer.done && html`<span class="caret" aria-hidden="true"></span>`}
        ${choice.calls.map((call) => html`<pre class="call"><code>${call.name}(${call.arguments})</code></pre>`)}
        ${answer.done && !answer.error && !textOf(choice) && !choice.calls.length && html`<p class="hint">An empty answer.</p>`}
      </div>`,
    )}
    ${answer.notes.map((note) => html`<${Notice} kind="warn">${note}<//>`)}
    <${Problem} error=${answer.error} />
    ${answer.done && html`<${Evidence} answer=${answer} />`}
    ${answer.steersman?.policy?.trace && html`<details><summary>How the policy came to it</summary><div class="inside"><${Trace} trace=${answer.steersman.policy.trace} /></div></details>`}
  </div>`;
}

/** What ran: the time it took, the dose, drift, and a policy's verdict. */
function Evidence({ answer }) {
  const { steersman, usage, milliseconds, firstMs, choices } = answer;
  const tokens = usage?.completion_tokens ?? choices.reduce((sum, choice) => sum + choice.pieces.length, 0);
  const { steering, behaviors, policy, method_used: method } = steersman ?? {};
  return html`<div class="evidence">
    <span>${plural(tokens, "token")} in ${duration(milliseconds)}${firstMs === null ? "" : `, the first after ${duration(firstMs)}`}</span>
    ${method && html`<span>method ${method}</span>`}
    ${choices[0].finish === "length" && html`<span class="warn">cut at the longest answer</span>`}
    ${steering && html`<span>steered, dose ${fixed(steering.dose)}: ${steering.vectors.map((vector) => `${vector.name ?? "vector"} × ${fixed(vector.strength)}`).join(", ")}</span>`}
    ${steering?.warning && html`<span class="warn">${steering.warning}</span>`}
    ${(behaviors ?? []).map((each) => html`<${Drift} told=${each} />`)}
    ${policy && html`<span class=${policy.accepted ? "good" : "bad"}>${policy.accepted ? "accepted" : "rejected"}, score ${fixed(policy.score)}, ${plural(policy.candidates, "candidate")}</span>`}
  </div>`;
}

function Drift({ told }) {
  const highest = told.max_drift;
  const state = told.drifted ? "drifted" : "did not drift";
  return html`<span class=${told.drifted ? "warn" : "good"}>${told.name}: ${state}${highest === null ? "" : ` (highest ${fixed(highest)})`}${told.corrected ? ", corrected" : ""}</span>`;
}
