import { get, patch, remove } from "../api.mjs";
import { html, useState } from "../html.mjs";
import { useAction, useLoaded } from "../loading.mjs";
import { TextField } from "../parts/field.mjs";
import { Notice, Problem } from "../parts/notice.mjs";
import { handOver } from "../playground/handover.mjs";
import { fixed, percent } from "../words.mjs";
import { Calibration } from "./calibration.mjs";
import { RecentDrift } from "./drift.mjs";

export function BehaviourView({ id, facts, onGone }) {
  const path = `/behaviors/${encodeURIComponent(id)}`;
  const { value: found, error, reload } = useLoaded((signal) => get(path, { signal }), [id]);
  const [name, setName] = useState(null);
  const [rename, renaming, wrong] = useAction(async () => {
    await patch(`${path}/rename`, { behavior_name: name.trim() });
    reload();
  });
  const [erase, , kept] = useAction(async () => {
    if (!confirm(`Delete the behaviour “${found.behavior_name}”? Its vector stays.`)) return;
    await remove(path);
    onGone();
  });
  if (error) return html`<section class="card"><${Problem} error=${error} /></section>`;
  if (!found) return html`<section class="card"><p role="status">Looking it up…</p></section>`;
  const { readiness } = found;
  return html`<section class="card" aria-label=${`Behaviour ${found.behavior_name}`}>
    <div class="card-head">
      <h2>${found.behavior_name}</h2>
      <span class="spread"></span>
      ${readiness.monitored && !facts.unwatchable && html`<button class="primary" onClick=${() => handOver("Tell me about your weekend.", { behaviours: [found.behavior_name] })}>Watch for it</button>`}
    </div>
    ${readiness.missing.map((each) => html`<${Notice} kind="warn"><b>${each.part}</b>: ${each.message}<//>`)}
    ${found.description && html`<p>${found.description}</p>`}
    <dl>
      <dt>Read by</dt><dd>${found.sae_id}, layer ${found.layer}, ${found.sae_baseline?.latents.length ?? 0} latents</dd>
      <dt>Threshold</dt><dd>${fixed(found.threshold)}</dd>
      <dt>Corrected by</dt><dd><a href=${`#/vectors/${found.steering_vector_id}`}>its vector</a>, strength ${fixed(found.steering_strength)}</dd>
      <dt>Held-out texts</dt><dd>${percent(found.true_positive_rate)} of those with it drift, ${percent(found.false_positive_rate)} of those without</dd>
    </dl>
    <${Calibration} behaviour=${found} />
    ${facts.observes && html`<${RecentDrift} behaviour=${found} />`}
    <form class="row" onSubmit=${(event) => {
      event.preventDefault();
      if (name?.trim()) rename();
    }}>
      <${TextField} label="Name" value=${name ?? found.behavior_name} onChange=${setName} maxlength="200" />
      <button disabled=${renaming}>Rename</button>
      <span class="spread"></span>
      <button type="button" class="quiet danger" onClick=${erase}>Delete</button>
    </form>
    <${Problem} error=${wrong ?? kept} />
  </section>`;
}
