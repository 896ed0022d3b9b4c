// What another page leaves for the playground to begin with; it is taken once.

import { go } from "../place.mjs";

let waiting = null;

/** Open the playground with `text` asked under a configuration that differs from the first one so. */
export function handOver(text, configuration = {}) {
  waiting = { text, configuration };
  go("playground");
}

export function takeHandedOver() {
  const taken = waiting;
  waiting = null;
  return taken;
}
