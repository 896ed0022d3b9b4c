// What the playground's controls say, and the request that it comes to.

import { entryOf } from "./entry.mjs";
import { formatFields } from "./formats.mjs";
import { methodOf, parametersOf } from "./methods.mjs";

const WATCHED_METHOD = "top-k"; // what /sae/generate does unless it is told

/** `steering` are `{kind: "vector" | "preset", id, name, strength, tokens}`; `behaviours` are names. */
export const first = () => ({
  model: "default",
  system: "",
  method: "",
  parameters: parametersOf(""),
  maxTokens: 160,
  seed: 7,
  format: { kind: "text", source: "" },
  tools: "",
  toolChoice: "auto",
  steering: [],
  behaviours: [],
  behaviourMode: "monitor",
  policy: "",
  logprobs: false,
  store: false,
});

/** With what a method needs, and nothing of the one before. */
export const withMethod = (configuration, name) => ({
  ...configuration,
  method: name,
  parameters: Object.fromEntries(
    Object.entries(parametersOf(name)).map(([field, value]) => [field, configuration.parameters[field] ?? value]),
  ),
});

/** Whether each token's score is to be had: by the route that streams drift, which takes no more than this. */
export const scoresTokens = (configuration) =>
  configuration.behaviours.length > 0 && !beyondWatching(configuration).length;

/** What keeps an answer from being coloured by drift as it is written. */
export function beyondWatching({ steering, format, tools, policy, method }) {
  const found = [];
  if (steering.length) found.push("steering");
  if (format.kind !== "text") found.push("a response format");
  if (tools.trim()) found.push("tools");
  if (policy) found.push("a policy");
  if (["ads", "ensemble-sampling", "constrained-beam-search", "guided-generation"].includes(method)) found.push("this method");
  return found;
}

/** `{path, body}` of the turns so far. Raises SyntaxError for a schema or tools that are no JSON. */
export function request(configuration, turns) {
  if (scoresTokens(configuration)) return watched(configuration, turns);
  const asked = chat(configuration, turns);
  // With log-probabilities each piece of a stream is a token, which its drift belongs to.
  if (configuration.behaviours.length && !configuration.policy) Object.assign(asked.body, { behavior_levels: true, logprobs: true });
  return asked;
}

/** The same for clients of chat completions alone, which hear of drift at the end. */
export function chatRequest(configuration, turns) {
  const method = configuration.method || (scoresTokens(configuration) ? WATCHED_METHOD : "");
  return chat({ ...configuration, method }, turns);
}

function chat(configuration, turns) {
  const { model, system, method, maxTokens, seed, format, tools, toolChoice, steering, policy } = configuration;
  const messages = [...(system.trim() ? [{ role: "system", content: system }] : []), ...turns.map(message)];
  const body = { model, messages, max_tokens: maxTokens };
  if (seed !== null) body.seed = seed;
  if (method) body.sampling_method = method;
  // What a request says wins over its policy: without a method, the policy samples.
  if (method || !policy) Object.assign(body, parameters(configuration));
  Object.assign(body, formatFields(format));
  if (tools.trim()) Object.assign(body, { tools: JSON.parse(tools), tool_choice: toolChoice });
  if (steering.length) body.steering = steering.map(entryOf);
  if (configuration.behaviours.length)
    Object.assign(body, { behavior_names: configuration.behaviours, behavior_mode: configuration.behaviourMode });
  if (policy) Object.assign(body, { policy_id: policy, include_trace: true });
  if (configuration.logprobs) Object.assign(body, { logprobs: true, top_logprobs: 4 });
  if (configuration.store) body.store = true;
  return { path: "/v1/chat/completions", body };
}

/** /sae/generate reads one prompt: the last turn of the person. */
function watched(configuration, turns) {
  const prompt = turns.findLast((turn) => turn.role === "user")?.text ?? "";
  const body = { prompt, max_new_tokens: configuration.maxTokens };
  if (configuration.model !== "default") body.model = configuration.model;
  if (configuration.seed !== null) body.seed = configuration.seed;
  body.sampling_method = configuration.method || WATCHED_METHOD;
  Object.assign(body, parameters(configuration));
  Object.assign(body, { behavior_names: configuration.behaviours, behavior_mode: configuration.behaviourMode });
  return { path: "/sae/generate", body };
}

function parameters({ method, parameters: given }) {
  return Object.fromEntries(methodOf(method).fields.map(({ name, value }) => [name, given[name] ?? value]));
}

function message({ role, text, image }) {
  if (!image) return { role, content: text };
  return { role, content: [{ type: "text", text }, { type: "image_url", image_url: { url: image } }] };
}
