import { get, patch, remove, send } from "../api.mjs";
import { html, useState } from "../html.mjs";
import { useAction, useLoaded } from "../loading.mjs";
import { saveFile } from "../parts/copy.mjs";
import { TextField } from "../parts/field.mjs";
import { Problem } from "../parts/notice.mjs";
import { Plot } from "../parts/plot.mjs";
import { doseAtOne, gentleStrength } from "../playground/dose.mjs";
import { handOver } from "../playground/handover.mjs";
import { fixed, time } from "../words.mjs";
import { DoseResponse } from "./doseresponse.mjs";

export function VectorView({ id, facts, onGone }) {
  const { value, error, reload } = useLoaded(async (signal) => {
    const vector = await get(`/steering/vectors/${id}`, { signal });
    return { vector, unit: await doseAtOne({ kind: "vector", id }, signal) };
  }, [id]);
  if (error) return html`<section class="card"><${Problem} error=${error} /></section>`;
  if (!value) return html`<section class="card"><p role="status">Looking it up…</p></section>`;
  const { vector, unit } = value;
  const name = vector.name ?? vector.label ?? vector.id.slice(0, 8);
  const entry = vector.preset ? { kind: "preset", id: vector.preset } : { kind: "vector", id };
  const strength = vector.preset ? 1 : gentleStrength(unit);
  const tryIt = () => handOver("Tell me about your weekend.", { steering: [{ ...entry, name, strength, tokens: "all" }] });
  return html`<section class="card" aria-label=${`Vector ${name}`}>
    <div class="card-head">
      <h2>${name}</h2>
      <span class="spread"></span>
      <button class="primary" onClick=${tryIt}>Try it</button>
    </div>
    <dl>
      <dt>Id</dt><dd><code>${vector.id}</code></dd>
      <dt>Model</dt><dd>${vector.model_name}</dd>
      <dt>Method</dt><dd>${vector.method}${vector.preset ? ` (preset ${vector.preset})` : ""}</dd>
      <dt>Dose at 1</dt><dd>${fixed(unit, 3)} of the states' own length, all layers together</dd>
      <dt>Made</dt><dd>${time(vector.created_at)}</dd>
    </dl>
    <${LayerNorms} vector=${vector} />
    <${DoseResponse} vector=${vector} unit=${unit} />
    <${Keeping} vector=${vector} onChanged=${reload} onGone=${onGone} />
  </section>`;
}

function LayerNorms({ vector }) {
  const { layers, norms, doses } = vector;
  if (layers.length === 1)
    return html`<p class="hint">One layer, ${layers[0]}: length ${fixed(norms[layers[0]])}.</p>`;
  const data = [layers, layers.map((layer) => norms[layer])];
  const series = [{ label: "length", colour: "accent", bars: true }];
  if (doses) {
    data.push(layers.map((layer) => doses[layer]));
    series.push({ label: "relative dose", colour: "second", axis: "y2" });
  }
  return html`<div><h3>Length by layer</h3>
    <${Plot} data=${data} series=${series} x="layer" y="length" y2=${doses && "relative dose"} height=${190} range=${{ x: [layers[0] - 0.7, layers.at(-1) + 0.7], y: [0, Math.max(...data[1]) * 1.05] }}
      summary=${`Length of the vector at layers ${layers[0]} to ${layers.at(-1)}`} /></div>`;
}

function Keeping({ vector, onChanged, onGone }) {
  const [name, setName] = useState(vector.name ?? "");
  const [rename, renaming, wrongName] = useAction(async () => {
    await patch(`/steering/vectors/${vector.id}`, { name: name.trim() || null });
    onChanged();
  });
  const [download, , wrongFile] = useAction(async (signal, format) => {
    const response = await send("GET", `/steering/vectors/${vector.id}/download?format=${format}`, { signal });
    saveFile(`${vector.name ?? vector.id}.${format}`, await response.blob());
  });
  const [erase, , wrongErase] = useAction(async () => {
    if (!confirm(`Delete “${vector.name ?? vector.id}”? Programs that name it will fail.`)) return;
    await remove(`/steering/vectors/${vector.id}`);
    onGone();
  });
  return html`<div class="pairs">
    <div class="row">
      <span>Export</span>
      ${["json", "safetensors", "gguf"].map((format) => html`<button onClick=${() => download(format)}>${format}</button>`)}
      <span class="spread"></span>
      ${!vector.preset && html`<button class="quiet danger" onClick=${erase}>Delete</button>`}
    </div>
    ${!vector.preset &&
    html`<form class="row" onSubmit=${(event) => {
      event.preventDefault();
      rename();
    }}>
      <${TextField} label="Name" value=${name} onChange=${setName} maxlength="200" />
      <button disabled=${renaming}>Rename</button>
    </form>`}
    <${Problem} error=${wrongName ?? wrongFile ?? wrongErase} />
  </div>`;
}
