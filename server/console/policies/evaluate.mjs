import { post } from "../api.mjs";
import { html, useState } from "../html.mjs";
import { useAction } from "../loading.mjs";
import { Problem } from "../parts/notice.mjs";
import { Table } from "../parts/table.mjs";
import { duration, fixed, percent } from "../words.mjs";
import { EXAMPLE_PROMPTS, Prompts, promptsOf } from "./prompts.mjs";

export function Evaluate({ policy, tokens }) {
  const [text, setText] = useState(EXAMPLE_PROMPTS);
  const [found, setFound] = useState(null);
  const prompts = promptsOf(text);
  const [evaluate, busy, error] = useAction(async (signal) => setFound({ prompts, ...(await post("/policies/evaluate", { policy, prompts, max_new_tokens: tokens, seed: 7 }, { signal })) }));
  return html`<form class="pairs" onSubmit=${(event) => {
    event.preventDefault();
    evaluate();
  }}>
    <${Prompts} text=${text} onChange=${setText} />
    <div class="row"><button class="primary" disabled=${busy || !prompts.length}>${busy ? "Running…" : `Evaluate on ${prompts.length}`}</button></div>
    <${Problem} error=${error} />
    ${found && html`<${Result} found=${found} />`}
  </form>`;
}

function Result({ found }) {
  const rows = found.outputs.map((output, index) => ({ ...output, prompt: found.prompts[index], index }));
  const columns = [
    { name: "Prompt", cell: (row) => row.prompt },
    { name: "Answer", cell: (row) => row.output ?? row.error },
    { name: "Verdict", cell: (row) => html`<span class=${`badge ${row.accepted ? "good" : "bad"}`}>${row.accepted ? "accepted" : "rejected"}</span>` },
    { name: "Score", number: true, cell: (row) => fixed(row.score) },
    { name: "Took", number: true, cell: (row) => (row.latency_ms === undefined ? "–" : duration(row.latency_ms)) },
  ];
  return html`<div class="pairs">
    <p><b>${percent(found.pass_count / found.num_prompts)}</b> accepted of ${found.num_prompts}.</p>
    <${Table} caption="Answers" columns=${columns} rows=${rows} keyOf=${(row) => row.index} />
  </div>`;
}
