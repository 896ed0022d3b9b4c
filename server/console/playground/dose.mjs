// How strong steering is, and from where on it costs the model its language.

import { html } from "../html.mjs";
import { fixed } from "../words.mjs";

export const AMBER_COST = 0.25; // nats per token that neutral text loses: what presets are calibrated to
export const RED_COST = 0.6;
// Relative doses at which neutral text lost as much on the embedded model, for vectors nobody measured.
const USUAL = { amber: 0.15, red: 0.3, measured: false };

const measured = new Map(); // vector id → [{dose, cost}], of this tab

export const remember = (id, points) => measured.set(id, points);

/** The largest relative dose of a vector's layers at strength 1; null where the server does not know it. */
export const unitDose = (record) => {
  const doses = Object.values(record?.doses ?? {});
  return doses.length ? Math.max(...doses) : null;
};

/** Where a vector's dose turns amber and red: as measured, by the server or here, else as is usual. */
export function bounds(record) {
  const points = measured.get(record?.id) ?? calibration(record);
  if (points.length < 2) return USUAL;
  const amber = doseAt(points, AMBER_COST);
  return { amber, red: Math.max(doseAt(points, RED_COST), amber * 1.2), measured: true };
}

function calibration(record) {
  const found = record?.evidence?.calibration ?? [];
  const zero = found.find((point) => point.dose === 0)?.neutral;
  if (zero === undefined) return [];
  const own = found.filter((point) => point.dose === 0 || point.layer === record.layers[0]);
  return own.map(({ dose, neutral }) => ({ dose, cost: neutral - zero })).sort((a, b) => a.dose - b.dose);
}

/** Straight between points, and beyond the last one as steep as before it. */
function doseAt(points, cost) {
  for (let index = 1; index < points.length; index++) {
    const [before, after] = [points[index - 1], points[index]];
    const last = index === points.length - 1;
    if (after.cost < cost && !last) continue;
    const slope = (after.cost - before.cost) / Math.max(after.dose - before.dose, 1e-9);
    return slope > 0 ? before.dose + (cost - before.cost) / slope : after.dose * 2;
  }
  return USUAL.red;
}

/** `{dose, share, level}`: shares of 1 are where amber begins; `level` good, warn or bad. */
export function doseOf(steering, records) {
  let [dose, share, redShare, unknown] = [0, 0, 0, false];
  for (const { id, strength } of steering) {
    const unit = unitDose(records.get(id));
    if (unit === null) {
      unknown = true;
      continue;
    }
    const { amber, red } = bounds(records.get(id));
    const own = Math.abs(strength) * unit;
    dose += own;
    share += own / amber;
    redShare += own / red;
  }
  return { dose, share, unknown, level: redShare >= 1 ? "bad" : share > 1.001 ? "warn" : "good" };
}

const WORDS = {
  good: "within what the model's language bears",
  warn: "neutral text begins to suffer",
  bad: "quality breaks here",
};

export function DoseMeter({ steering, records, limit }) {
  const { dose, share, unknown, level } = doseOf(steering, records);
  const refused = dose > limit;
  const words = refused ? `above ${limit}, the server refuses` : WORDS[level];
  return html`<div class=${`dose ${refused ? "bad" : level}`}>
    <div class="dose-head"><span>Dose</span><b>${fixed(dose)}</b><span>${words}</span></div>
    <div class="bar" role="meter" aria-label="Dose" aria-valuemin="0" aria-valuemax="2.5" aria-valuenow=${fixed(Math.min(2.5, share))}
      aria-valuetext=${`${fixed(dose)}: ${words}`}>
      <div style=${{ width: `${Math.min(100, share * 40)}%` }}></div>
    </div>
    ${unknown && html`<p class="hint">A preset that was never used is made first, in a minute or two; its dose is known then.</p>`}
  </div>`;
}
