import { events } from "../api.mjs";
import { html, useState } from "../html.mjs";
import { useAction } from "../loading.mjs";
import { TextField } from "../parts/field.mjs";
import { parse } from "../parts/jsoneditor.mjs";
import { Problem } from "../parts/notice.mjs";
import { Plot } from "../parts/plot.mjs";
import { duration, fixed, percent } from "../words.mjs";
import { EXAMPLE_PROMPTS, Prompts, promptsOf } from "./prompts.mjs";

const SPACE = '{\n  "sampling.temperature": [0.2, 0.7, 1.2],\n  "optimization.best_of_n": [1, 2]\n}';

export function Autotune({ policy, tokens }) {
  const [text, setText] = useState(EXAMPLE_PROMPTS);
  const [space, setSpace] = useState(SPACE);
  const [trials, setTrials] = useState([]);
  const [result, setResult] = useState(null);
  const [of, setOf] = useState(null);
  const [prompts, parsed] = [promptsOf(text), parse(space)];
  const [search, busy, error] = useAction(async (signal) => {
    setTrials([]);
    setResult(null);
    const body = { base_policy: policy, prompts, search_space: parsed.value ?? {}, max_new_tokens: tokens, seed: 7, stream: true };
    for await (const event of events("/policies/autotune", body, { signal })) {
      if (event.status === "processing") {
        setOf(event.progress.of);
        setTrials((before) => [...before, event.progress.trial]);
      }
      if (event.status === "complete") setResult(event.result);
    }
  });
  return html`<form class="pairs" onSubmit=${(event) => {
    event.preventDefault();
    search();
  }}>
    <${Prompts} text=${text} onChange=${setText} />
    <${TextField} label="Values to try" hint="A dotted path of the policy, and its values." error=${parsed.reason} rows=${5} class="code" value=${space} onChange=${setSpace} />
    <div class="row">
      <button class="primary" disabled=${busy || !prompts.length || parsed.reason}>${busy ? "Searching…" : "Search"}</button>
      ${busy && html`<progress aria-label="Trials" value=${trials.length} max=${of ?? 1}></progress>`}
    </div>
    <${Problem} error=${error} />
    ${trials.length > 0 && html`<${Trials} trials=${trials} axes=${Object.keys(parsed.value ?? {})} best=${result?.best_policy} />`}
    ${(result?.skipped ?? []).map((point) => html`<p class="hint">Skipped: ${point.reason}</p>`)}
  </form>`;
}

const valueAt = (policy, path) => path.split(".").reduce((part, name) => part?.[name], policy);

function Trials({ trials, axes, best }) {
  const chosen = JSON.stringify(best);
  const numbers = trials.map((_, index) => index + 1);
  const rates = trials.map((trial) => trial.success_rate);
  return html`<div class="pairs">
    <${Plot} data=${[numbers, trials.map((trial) => trial.avg_score), trials.map((trial) => trial.avg_latency_ms / 1000)]} x="trial" y="score" y2="seconds" range=${{ x: [0.5, Math.max(2, trials.length) + 0.5], y: [Math.min(0, ...trials.map((trial) => trial.avg_score)), 1.05] }}
      series=${[{ label: "score", colour: "accent", bars: true }, { label: "seconds", colour: "second", axis: "y2", points: true }]}
      summary=${`Scores of ${trials.length} trials, from ${fixed(Math.min(...trials.map((trial) => trial.avg_score)))} to ${fixed(Math.max(...trials.map((trial) => trial.avg_score)))}`} />
    <ol class="trace">${trials.map(
      (trial, index) => html`<li class=${JSON.stringify(trial.policy) === chosen ? "good" : ""}>
        <b>${index + 1}</b> ${axes.map((axis) => `${axis.split(".").pop()} ${JSON.stringify(valueAt(trial.policy, axis) ?? null)}`).join(", ")}
        <span class="hint"> · score ${fixed(trial.avg_score)} · accepted ${percent(rates[index])} · ${duration(trial.avg_latency_ms)}</span>
        ${JSON.stringify(trial.policy) === chosen && html` <span class="badge good">best</span>`}
      </li>`,
    )}</ol>
  </div>`;
}
