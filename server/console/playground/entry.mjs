/** One entry of a request's `steering`. */
export function entryOf({ kind, id, strength, tokens = "all" }) {
  const named = kind === "preset" ? { preset: id } : { vector_id: id };
  return { ...named, strength, ...(tokens === "all" ? {} : { tokens }) };
}
