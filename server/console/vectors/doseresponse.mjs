// What strengths do to pairs that the vector never saw, and what they cost neutral text.

import { post } from "../api.mjs";
import { html, useState } from "../html.mjs";
import { useAction } from "../loading.mjs";
import { FileButton } from "../parts/field.mjs";
import { Problem } from "../parts/notice.mjs";
import { asBodies, complete, EXAMPLE, readPairs } from "../parts/pairs.mjs";
import { Plot } from "../parts/plot.mjs";
import { AMBER_COST, bounds, remember } from "../playground/dose.mjs";
import { fixed, plural } from "../words.mjs";
import { heldOut, keepHeldOut } from "./heldout.mjs";

const DOSES = [-0.2, 0, 0.1, 0.2, 0.35];
const USUAL_STRENGTHS = [-1, 0, 0.5, 1, 2];

function strengthsOf(unit) {
  return unit ? DOSES.map((dose) => Number((dose / unit).toPrecision(3))) : USUAL_STRENGTHS;
}

/** `unit` is the vector's dose at strength 1. */
export function DoseResponse({ vector, unit }) {
  const [pairs, setPairs] = useState(heldOut(vector.id));
  const [points, setPoints] = useState(null);
  const [measure, busy, error] = useAction(async (signal, given) => {
    const used = complete(given).slice(0, 64);
    setPairs(used);
    keepHeldOut(vector.id, used);
    const body = { steering_vector_id: vector.id, pairs: asBodies(used), strengths: strengthsOf(unit), neutral: true };
    const { results } = await post("/steering/evaluate/margins", body, { signal });
    const zero = results.find(({ strength }) => strength === 0);
    const found = results.map((each) => ({ ...each, shift: each.mean - zero.mean, cost: each.neutral - zero.neutral }));
    remember(vector.id, found.filter(({ strength }) => strength >= 0).map(({ relative_dose: dose, cost }) => ({ dose, cost })));
    setPoints(found);
  });
  const read = async (file) => measure(readPairs(await file.text()));
  return html`<div class="pairs">
    <div class="row">
      <h3>Dose and response</h3>
      <span class="spread"></span>
      ${pairs && html`<button disabled=${busy} onClick=${() => measure(pairs)}>${busy ? "Measuring…" : `Measure on ${plural(pairs.length, "held-out pair")}`}</button>`}
      ${!pairs && html`<button disabled=${busy} onClick=${() => measure(EXAMPLE)}>${busy ? "Measuring…" : "Measure on the example pairs"}</button>`}
      <${FileButton} label="Pairs from a file" accept=".jsonl,.json,.tsv,.txt" onFile=${read} disabled=${busy} />
    </div>
    <${Problem} error=${error} />
    ${points ? html`<${Curve} vector=${vector} unit=${unit} points=${points} />` : html`<p class="hint">How far each strength moves the model towards the positive answers, on pairs that did not train it, and what neutral text loses.</p>`}
  </div>`;
}

function Curve({ vector, unit, points }) {
  const strengths = points.map(({ strength }) => strength);
  const { amber, red } = bounds(vector);
  const marks = unit
    ? [{ at: amber / unit, label: "costs", colour: "bar-warn" }, { at: red / unit, label: "breaks", colour: "bar-bad" }].filter(({ at }) => at < strengths.at(-1))
    : [];
  const best = points.filter(({ cost }) => cost <= AMBER_COST).reduce((one, other) => (other.shift > one.shift ? other : one), points[0]);
  const words = `Within ${AMBER_COST} nats of cost, strength ${fixed(best.strength)} moves the margin by ${fixed(best.shift)} nats per token.`;
  return html`<${Plot} data=${[strengths, points.map(({ shift }) => shift), points.map(({ cost }) => cost)]} x="strength" y="nats per token"
      series=${[{ label: "towards the positive answers", colour: "accent" }, { label: "cost on neutral text", colour: "second", dash: [6, 4] }]} marks=${marks} summary=${`Dose and response. ${words}`} />
    <p class="hint">${words}</p>`;
}
