// A/B tests of models, which their project's requests take part in, and what their scores say so far.

import { post } from "../api.mjs";
import { html, useState } from "../html.mjs";
import { useLoaded } from "../loading.mjs";
import { Empty, Problem } from "../parts/notice.mjs";
import { fixed, plural } from "../words.mjs";

const ASKED = `{ abCampaigns(filter: {}) { id key name status scoreType scores hasEnoughScores metric { key }
  winner { name } report { pValue variants { scores interval { start middle end } variant { name } } } } }`;

export function AbTests() {
  const [open, setOpen] = useState(false);
  return html`<details onToggle=${(event) => setOpen(event.currentTarget.open)}>
    <summary>A/B tests</summary>
    <div class="inside">${open && html`<${List} />`}</div>
  </details>`;
}

function List() {
  const { value, error } = useLoaded(async (signal) => {
    const { data, errors } = await post("/api/graphql", { query: ASKED }, { signal });
    if (errors?.length) throw new Error(errors[0].message);
    return data.abCampaigns;
  });
  if (error) return html`<${Problem} error=${error} />`;
  if (!value) return html`<p role="status">Asking…</p>`;
  if (!value.length) return html`<${Empty} title="No A/B test">Adaptive's client makes them: a share of a project's requests goes to each of its models.<//>`;
  return html`<ul class="trace">${value.map((test) => html`<${Report} key=${test.id} test=${test} />`)}</ul>`;
}

function Report({ test }) {
  const { report, winner } = test;
  return html`<li class=${winner ? "good" : ""}>
    <div><b>${test.name}</b> <span class="badge">${test.status.toLowerCase()}</span> <span class="hint">by ${test.metric?.key ?? "a metric"}, ${plural(test.scores, "score")}${test.hasEnoughScores ? "" : ", too few to tell"}</span></div>
    ${report.variants.map(
      ({ variant, scores, interval }) => html`<div>${variant.name}: ${interval ? html`<b>${fixed(interval.middle)}</b> [${fixed(interval.start)}, ${fixed(interval.end)}]` : "–"} <span class="hint">of ${plural(scores, "score")}</span></div>`,
    )}
    <div class="hint">${report.pValue === null ? "No p-value yet" : `p = ${fixed(report.pValue, 3)}`}${winner ? html` · winner <b>${winner.name}</b>` : ""}</div>
  </li>`;
}
