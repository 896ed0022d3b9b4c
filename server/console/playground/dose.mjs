// How strong steering is, and from where on it costs the model its language.

import { post } from "../api.mjs";
import { html, useEffect, useState } from "../html.mjs";
import { fixed } from "../words.mjs";
import { entryOf } from "./entry.mjs";

export const AMBER_COST = 0.25; // nats per token that neutral text loses: what presets are calibrated to
export const RED_COST = 0.6;
// Relative doses at which neutral text lost as much on the embedded model, for vectors nobody measured.
const USUAL = { amber: 0.15, red: 0.3, measured: false };

const measured = new Map(); // vector id → [{dose, cost}], of this tab

export const remember = (id, points) => measured.set(id, points);

/** The largest relative dose of a vector's single layers at strength 1; null where the server does not know it. */
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

/** What the server would dose entries at: `{dose, refusal}`, of which one is null. Raises ApiError for other reasons. */
export async function exactDose(steering, signal) {
  try {
    const { dose } = await post("/steering/dose", { steering: steering.map(entryOf) }, { signal });
    return { dose, refusal: null };
  } catch (error) {
    if (error.status !== 422) throw error;
    return { dose: null, refusal: error.message };
  }
}

const SMALL = 0.05; // a strength at which hardly any vector is refused

/** The dose of a vector at strength 1, all its layers together: strength and dose are proportional. */
export async function doseAtOne(entry, signal) {
  const { dose } = await exactDose([{ ...entry, strength: SMALL }], signal);
  return dose === null ? null : dose / SMALL;
}

/** To begin with: a dose that language bears. Presets are scaled so that it is strength 1. */
export const gentleStrength = (unit) => (unit ? Math.min(3, Math.max(0.05, Math.round((USUAL.amber / unit) * 20) / 20)) : 1);

/** `{share, level}` of a dose: shares of 1 are where amber begins, weighted by what each vector adds. */
export function levelOf(dose, steering, records) {
  const weights = steering.map(({ id, strength }) => Math.abs(strength) * (unitDose(records.get(id)) ?? 0.15) + 1e-9);
  const total = weights.reduce((sum, weight) => sum + weight, 0);
  const limit = (name) => 1 / steering.reduce((sum, { id }, index) => sum + weights[index] / total / bounds(records.get(id))[name], 0);
  const share = dose / limit("amber");
  return { share, level: dose >= limit("red") ? "bad" : share > 1.001 ? "warn" : "good" };
}

const WORDS = {
  good: "within what the model's language bears",
  warn: "neutral text begins to suffer",
  bad: "quality breaks here",
};

const PAUSE = 120; // milliseconds that a slider rests before the server is asked

/** The server's own dose; presets that were never used have none yet, since they would be made for it. */
export function DoseMeter({ steering, records }) {
  const [told, setTold] = useState(null);
  const known = steering.filter((entry) => entry.kind === "vector" || records.has(entry.id));
  const asked = JSON.stringify(known);
  useEffect(() => {
    if (!known.length) {
      setTold(null);
      return undefined;
    }
    const abort = new AbortController();
    const later = setTimeout(() => {
      exactDose(known, abort.signal).then(setTold, (error) => error.name === "AbortError" || setTold({ dose: null, refusal: error.message }));
    }, PAUSE);
    return () => {
      clearTimeout(later);
      abort.abort();
    };
  }, [asked]);
  const { share, level } = told?.dose == null ? { share: 2.5, level: "bad" } : levelOf(told.dose, known, records);
  const words = told?.refusal ? `refused: ${told.refusal}` : WORDS[level];
  return html`<div class=${`dose ${told ? level : "unknown"}`}>
    ${told &&
    html`<div class="dose-head"><span>Dose</span><b>${fixed(told.dose)}</b><span>${words}</span></div>
      <div class="bar" role="meter" aria-label="Dose" aria-valuemin="0" aria-valuemax="2.5" aria-valuenow=${fixed(Math.min(2.5, share))}
        aria-valuetext=${`${fixed(told.dose)}: ${words}`}>
        <div style=${{ width: `${Math.min(100, share * 40)}%` }}></div>
      </div>`}
    ${known.length < steering.length && html`<p class="hint">A preset that was never used is made first, in a minute or two; its dose is known then.</p>`}
  </div>`;
}
