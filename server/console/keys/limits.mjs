// Limits of keys, where the server tells of some.

import { count } from "../words.mjs";

const LIMITS = [
  ["requests_per_minute", "Requests/min"],
  ["tokens_per_minute", "Tokens/min"],
  ["concurrent_requests", "At once"],
];

/** A column for each limit that any of `keys` has. */
export function limitColumns(keys) {
  const value = (key, name) => key.limits?.[name] ?? key[name] ?? null;
  return LIMITS.filter(([name]) => keys.some((key) => value(key, name) !== null)).map(([name, title]) => ({
    name: title,
    number: true,
    cell: (key) => (value(key, name) === null ? "–" : count(value(key, name))),
  }));
}
