// Vectors and presets with their strengths, and the dose that they add up to.

import { Fragment, html } from "../html.mjs";
import { Choice, Slider } from "../parts/field.mjs";
import { Notice } from "../parts/notice.mjs";
import { doseAtOne, DoseMeter, gentleStrength } from "./dose.mjs";

const LEAST_STRENGTH = -3;
const MOST_STRENGTH = 3;
const TOKENS = [
  ["all", "all tokens"],
  ["prompt", "the prompt alone"],
  ["generated", "the answer alone"],
];

export function SteeringControls({ steering, onChange, things, facts }) {
  if (!facts.steering) return html`<${Notice}>${facts.unsteerable}<//>`;
  const change = (index, changes) => onChange(steering.map((entry, at) => (at === index ? { ...entry, ...changes } : entry)));
  const add = async (chosen) => {
    const [kind, id] = [chosen.slice(0, chosen.indexOf(":")), chosen.slice(chosen.indexOf(":") + 1)];
    const preset = things.presets.find(({ name }) => kind === "preset" && name === id);
    const name = preset ? preset.name : (things.vectors.find((vector) => vector.id === id)?.name ?? id.slice(0, 8));
    if (!id) return;
    const strength = preset ? 1 : gentleStrength(await doseAtOne({ kind, id }).catch(() => null));
    onChange([...steering, { kind, id, name, strength, tokens: "all" }]);
  };
  const options = [
    ["", "Add a vector or preset…"],
    ...things.presets.map(({ name, vector_id: made }) => [`preset:${name}`, `preset: ${name}${made ? "" : " (made at first use)"}`]),
    ...things.vectors.map((vector) => [`vector:${vector.id}`, vector.name ?? vector.label ?? vector.id.slice(0, 8)]),
  ];
  return html`<${Fragment}>
    ${steering.map((entry, index) => {
      const floor = things.presets.find(({ name }) => entry.kind === "preset" && name === entry.id)?.minimum_strength;
      return html`<div class="steer" key=${`${entry.kind}${entry.id}${index}`}>
        <${Slider} label=${entry.name} shown=${entry.strength.toFixed(2)} min=${floor ?? LEAST_STRENGTH} max=${MOST_STRENGTH} step=${0.05} value=${entry.strength}
          onChange=${(strength) => change(index, { strength })} />
        <div class="steer-foot">
          <select aria-label=${`Tokens that ${entry.name} acts on`} value=${entry.tokens} onChange=${(event) => change(index, { tokens: event.target.value })}>
            ${TOKENS.map(([value, label]) => html`<option value=${value} selected=${value === entry.tokens}>${label}</option>`)}
          </select>
          <button class="quiet" aria-label=${`Remove ${entry.name}`} onClick=${() => onChange(steering.filter((_, at) => at !== index))}>Remove</button>
        </div>
      </div>`;
    })}
    <${Choice} label="Add" value="" options=${options} onChange=${add} key=${steering.length} />
    ${steering.length > 0 && html`<${DoseMeter} steering=${steering} records=${things.records} />`}
    ${!things.vectors.length && html`<p class="hint">Presets come with the server; <a href="#/vectors">make your own vector</a> from pairs of answers.</p>`}
  <//>`;
}
