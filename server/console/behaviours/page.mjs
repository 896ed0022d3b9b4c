import { get, post } from "../api.mjs";
import { html, useState } from "../html.mjs";
import { useAction, useLoaded } from "../loading.mjs";
import { Empty, Notice, Problem } from "../parts/notice.mjs";
import { Table } from "../parts/table.mjs";
import { go } from "../place.mjs";
import { fixed, percent } from "../words.mjs";
import { MakeBehaviour } from "./make.mjs";
import { BehaviourView } from "./view.mjs";

const COLUMNS = [
  { name: "Name", cell: (each) => each.behavior_name },
  { name: "Ready", cell: (each) => html`<${Readiness} readiness=${each.readiness} />` },
  { name: "AUROC", number: true, cell: (each) => fixed(each.peak_auroc ?? each.auroc) },
  { name: "False alarms", number: true, cell: (each) => percent(each.false_positive_rate) },
  { name: "Found", number: true, cell: (each) => percent(each.true_positive_rate) },
];

function Readiness({ readiness }) {
  const words = readiness.ready ? "ready" : readiness.monitored ? "watches only" : readiness.corrected ? "corrects only" : "not ready";
  return html`<span class=${`badge ${readiness.ready ? "good" : readiness.monitored ? "warn" : "bad"}`}>${words}</span>`;
}

export function BehavioursPage({ facts, id }) {
  const steers = facts.steering !== null;
  const { value, error, reload } = useLoaded((signal) => (steers ? Promise.all([get("/behaviors", { signal }), get("/saes", { signal })]) : [[], { saes: [] }]));
  const [making, setMaking] = useState(false);
  const [renew, renewing, wrong] = useAction(async (signal) => {
    await post("/behaviors/recompute-baselines", { model_id: "default" }, { signal });
    reload();
  });
  if (!steers) return html`<div class="page"><h1>Behaviours</h1><${Notice}>${facts.unsteerable}<//></div>`;
  const [behaviours, saes] = value ?? [[], { saes: [] }];
  const fitting = saes.saes.filter((sae) => sae.fits);
  const partial = behaviours.some((each) => !each.readiness.ready);
  return html`<div class="page">
    <div class="page-head">
      <h1>Behaviours</h1>
      <p>What answers are watched for, and corrected where they drift.</p>
      <span class="spread"></span>
      ${partial && html`<button disabled=${renewing} onClick=${renew}>${renewing ? "Calibrating…" : "Calibrate anew"}</button>`}
      <button class="primary" aria-pressed=${making} disabled=${!fitting.length} onClick=${() => setMaking(!making)}>New behaviour</button>
    </div>
    <${Problem} error=${error ?? wrong} />
    ${facts.unwatchable && html`<${Notice} kind="warn">${facts.unwatchable}<//>`}
    ${value && !fitting.length && html`<${Empty} title="No autoencoder fits the served model">Behaviours are read through one: <code>make sae</code> trains a small one in some minutes, <code>steersman sae add</code> takes one from a folder.<//>`}
    ${making && html`<${MakeBehaviour} saes=${fitting} onMade=${(made) => {
      setMaking(false);
      reload();
      go("behaviours", made.id);
    }} />`}
    <div class="split">
      <section class="card" aria-label="Behaviours">
        ${behaviours.length
          ? html`<${Table} caption="Behaviours" columns=${COLUMNS} rows=${behaviours} keyOf=${(each) => each.id} chosen=${id} onOpen=${(each) => go("behaviours", each.id)} />`
          : value && html`<${Empty} title="No behaviour yet">Make one from pairs of answers, those that show it and those that do not.<//>`}
        ${fitting.length > 0 && html`<p class="hint">Autoencoders: ${fitting.map((sae) => `${sae.name} (layer ${sae.layer}, ${sae.d_sae} latents)`).join(", ")}.</p>`}
      </section>
      ${id && html`<${BehaviourView} key=${id} id=${id} facts=${facts} onGone=${() => {
        reload();
        go("behaviours");
      }} />`}
    </div>
  </div>`;
}
