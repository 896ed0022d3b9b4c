// How well drift parts held-out texts: the ROC, and the threshold's place on it.

import { html } from "../html.mjs";
import { Plot } from "../parts/plot.mjs";
import { fixed, percent } from "../words.mjs";

/** `{alarms, hits}` for each threshold from the highest peak down; both begin at 0 and end at 1. */
export function roc(peaks, without) {
  const thresholds = [...new Set([...peaks, ...without])].sort((a, b) => b - a);
  const share = (values, threshold) => values.filter((value) => value >= threshold).length / values.length;
  const points = thresholds.map((threshold) => ({ alarms: share(without, threshold), hits: share(peaks, threshold) }));
  return [{ alarms: 0, hits: 0 }, ...points];
}

/** By trapezoids: ties count half. */
export function area(points) {
  return points.slice(1).reduce((sum, { alarms, hits }, index) => sum + ((alarms - points[index].alarms) * (hits + points[index].hits)) / 2, 0);
}

export function Calibration({ behaviour }) {
  const evidence = behaviour.sae_baseline?.evidence;
  if (!evidence) return null;
  const { peaks = [], peaks_without: without = [] } = evidence;
  if (!peaks.length || !without.length) return html`<p class="hint">AUROC ${fixed(behaviour.auroc)}. An older version made it, and kept no curve; calibrate it anew to see one.</p>`;
  return html`<div class="pairs">
    <h3>Calibration on held-out texts</h3>
    <${Curve} peaks=${peaks} without=${without} evidence=${evidence} />
    <${Peaks} peaks=${peaks} without=${without} threshold=${behaviour.threshold} />
  </div>`;
}

function Curve({ peaks, without, evidence }) {
  const points = roc(peaks, without);
  // uPlot wants x to rise; the curve's steps are kept by their order.
  const data = [points.map(({ alarms }) => alarms), points.map(({ hits }) => hits)];
  const marks = [{ at: evidence.false_positive_rate, label: "threshold", colour: "bar-warn" }];
  const words = `Area under the curve ${fixed(area(points))}, of ${peaks.length} texts with it and ${without.length} without, neutral prose among them.`;
  return html`<${Plot} data=${data} x="false alarms" y="found" series=${[{ label: "ROC", colour: "accent", stepped: true }]} height=${190} range=${{ x: [-0.02, 1.02], y: [0, 1.03] }} marks=${marks}
    summary=${`ROC curve. ${words} At the threshold ${percent(evidence.true_positive_rate)} are found and ${percent(evidence.false_positive_rate)} are false alarms.`} />
    <p class="hint">${words} Between the pairs alone it is ${fixed(evidence.peak_auroc ?? evidence.auroc)}.</p>`;
}

const BINS = 16;

/** Counts of `values` in equal bins from 0 to `top`; what lies above is in the last. */
export function binned(values, top, bins = BINS) {
  const counts = new Array(bins).fill(0);
  for (const value of values) counts[Math.min(bins - 1, Math.max(0, Math.floor((value / top) * bins)))] += 1;
  return counts;
}

function Peaks({ peaks, without, threshold }) {
  const top = Math.max(...peaks, ...without, threshold) * 1.05;
  const middles = Array.from({ length: BINS }, (_, index) => ((index + 0.5) * top) / BINS);
  const data = [middles, binned(peaks, top), binned(without, top)];
  return html`<${Plot} data=${data} x="highest drift of a text" y="texts" height=${190} range=${{ x: [0, top] }}
    series=${[{ label: "with it", colour: "accent", bars: true }, { label: "without it", colour: "second", bars: true }]}
    marks=${[{ at: threshold, label: "threshold", colour: "bar-warn" }]} summary=${`Highest drift of texts with and without the behaviour; the threshold is ${fixed(threshold)}`} />`;
}
