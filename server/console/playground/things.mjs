// What there is to choose from, fetched together.

import { get } from "../api.mjs";

const none = () => [];

/** Also `records`: vectors by their ids, and those of presets by the presets' names. */
export async function things(facts, signal) {
  const options = { signal };
  const [models, vectors, presets, behaviours, policies] = await Promise.all([
    get("/v1/models", options).then((list) => list.data.map((model) => model.id), none),
    get("/steering/vectors?limit=1000&shared=true", options).catch(none),
    facts.steering ? get("/steering/presets", options).catch(none) : [],
    facts.unwatchable ? [] : get("/behaviors", options).catch(none),
    get("/policies", options).catch(none),
  ]);
  const records = new Map(vectors.map((vector) => [vector.id, vector]));
  const made = presets.filter((preset) => preset.vector_id && preset.minimum_strength !== null);
  await Promise.all(
    made.map(async ({ name, vector_id: id }) => {
      // The whole record has the doses at which neutral text was measured.
      const record = await get(`/steering/vectors/${id}`, options).catch(() => records.get(id));
      if (record) records.set(name, record);
    }),
  );
  const usable = presets.filter(({ name, vector_id: id, minimum_strength: floor }) => floor !== null && (name !== "domain_specific" || id));
  return { models: models.filter((name) => name !== facts.model), vectors: vectors.filter((vector) => !vector.preset), presets: usable, behaviours, policies, records };
}
