// Numbers and times as people read them.

const GROUPED = new Intl.NumberFormat("en-GB");

export const count = (number) => GROUPED.format(number);
export const fixed = (number, digits = 2) =>
  number === null || number === undefined || !Number.isFinite(number) ? "–" : number.toFixed(digits);
export const percent = (share) => (share === null || share === undefined ? "–" : `${Math.round(share * 100)} %`);
export const plural = (number, noun) => `${count(number)} ${noun}${number === 1 ? "" : "s"}`;

export function time(text) {
  const date = new Date(text);
  const today = date.toDateString() === new Date().toDateString();
  return today ? date.toLocaleTimeString("en-GB") : date.toLocaleString("en-GB", { dateStyle: "medium", timeStyle: "short" });
}

export function duration(milliseconds) {
  return milliseconds < 1000 ? `${Math.round(milliseconds)} ms` : `${(milliseconds / 1000).toFixed(1)} s`;
}
