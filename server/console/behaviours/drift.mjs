// How far recent answers drifted.

import { get } from "../api.mjs";
import { html } from "../html.mjs";
import { useLoaded } from "../loading.mjs";
import { Problem } from "../parts/notice.mjs";
import { Plot } from "../parts/plot.mjs";
import { fixed, plural } from "../words.mjs";
import { binned } from "./calibration.mjs";

const RECENT = 200; // calls
const BINS = 16;

export function RecentDrift({ behaviour }) {
  const { value, error } = useLoaded((signal) => get(`/observability/requests?sae_only=true&limit=${RECENT}`, { signal }), [behaviour.id]);
  if (error) return html`<${Problem} error=${error} />`;
  if (!value) return null;
  const told = value.requests.flatMap((call) => call.behaviors ?? []).filter((each) => each.id === behaviour.id && each.max_drift !== null);
  if (!told.length) return html`<div><h3>Recent answers</h3><p class="hint">None of the last ${RECENT} watched answers was watched for it. “Watch for it” asks one.</p></div>`;
  const drifts = told.map((each) => each.max_drift);
  const top = Math.max(...drifts, behaviour.threshold ?? 0) * 1.05 || 1;
  const drifted = told.filter((each) => each.drifted).length;
  const middles = Array.from({ length: BINS }, (_, index) => ((index + 0.5) * top) / BINS);
  return html`<div class="pairs">
    <h3>Recent answers</h3>
    <${Plot} data=${[middles, binned(drifts, top, BINS)]} x="highest drift" y="answers" height=${170} range=${{ x: [0, top] }} series=${[{ label: "answers", colour: "accent", bars: true }]}
      marks=${[{ at: behaviour.threshold, label: "threshold", colour: "bar-warn" }]} summary=${`Highest drift of ${plural(told.length, "recent answer")}`} />
    <p class="hint">${drifted} of ${plural(told.length, "answer")} drifted, the furthest to ${fixed(Math.max(...drifts))}.</p>
  </div>`;
}
