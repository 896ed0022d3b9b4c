import { post } from "../api.mjs";
import { html, useState } from "../html.mjs";
import { useAction } from "../loading.mjs";
import { TextField } from "../parts/field.mjs";
import { Problem } from "../parts/notice.mjs";
import { duration, fixed, plural } from "../words.mjs";
import { Trace } from "./trace.mjs";

export function Run({ policy, tokens }) {
  const [prompt, setPrompt] = useState("Name a fruit, as JSON.");
  const [outcome, setOutcome] = useState(null);
  const [run, busy, error] = useAction(async (signal) => setOutcome(await post("/policies/run", { policy, prompt, max_new_tokens: tokens, seed: 7 }, { signal })));
  return html`<form class="pairs" onSubmit=${(event) => {
    event.preventDefault();
    run();
  }}>
    <${TextField} label="Prompt" rows=${2} value=${prompt} onChange=${setPrompt} />
    <div class="row"><button class="primary" disabled=${busy || !prompt.trim()}>${busy ? "Running…" : "Run"}</button></div>
    <${Problem} error=${error} />
    ${outcome && html`<${Outcome} outcome=${outcome} />`}
  </form>`;
}

/** The answer that was chosen, and how it came to be. */
export function Outcome({ outcome, title }) {
  return html`<div class="pairs">
    <div class="row">
      ${title && html`<h3>${title}</h3>`}
      <span class=${`badge ${outcome.accepted ? "good" : "bad"}`}>${outcome.accepted ? "accepted" : "rejected"}</span>
      <span class="hint">score ${fixed(outcome.score)} · ${duration(outcome.latency_ms ?? 0)} · ${plural(outcome.total_tokens ?? 0, "token")}</span>
    </div>
    <pre class="wrapped"><code>${outcome.output ?? outcome.error}</code></pre>
    ${outcome.trace && html`<${Trace} trace=${outcome.trace} />`}
  </div>`;
}
