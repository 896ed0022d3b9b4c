// Pairs that were kept out of the training of a vector, by its id, for as long as the tab lives.

const known = new Map();

export const keepHeldOut = (id, pairs) => known.set(id, pairs);
export const heldOut = (id) => known.get(id) ?? null;
