// The configuration as a program, for each client. The key is never in them.

import { chatRequest, request } from "./configuration.mjs";

const BASE = new URL("..", document.baseURI).href.replace(/\/$/, "");

export const CLIENTS = [
  ["curl", "curl"],
  ["python", "openai (Python)"],
  ["typescript", "openai (TypeScript)"],
  ["mechanex", "mechanex"],
];

/** A program that asks for what the playground asks for. Raises SyntaxError as `request` does. */
export function snippet(client, configuration, turns) {
  return { curl, python, typescript, mechanex }[client](configuration, turns);
}

function curl(configuration, turns) {
  const { path, body } = request(configuration, turns);
  const told = path === "/sae/generate" ? { ...body, stream: false } : body;
  const quoted = JSON.stringify(told, null, 2).replaceAll("'", "'\\''");
  return `curl ${BASE}${path} \\
  -H "Authorization: Bearer $STEERSMAN_KEY" -H "Content-Type: application/json" \\
  -d '${quoted}'
`;
}

// Arguments that the method has of its own; everything else goes into extra_body.
const OPENAI = new Set(["model", "messages", "max_tokens", "seed", "temperature", "top_p", "n", "tools", "tool_choice", "response_format", "logprobs", "top_logprobs", "store"]);

function python(configuration, turns) {
  const { body } = chatRequest(configuration, turns);
  const own = Object.entries(body).filter(([name]) => OPENAI.has(name));
  const beyond = Object.fromEntries(Object.entries(body).filter(([name]) => !OPENAI.has(name)));
  const lines = own.map(([name, value]) => `    ${name}=${literal(value, 1)},`);
  if (Object.keys(beyond).length) lines.push(`    extra_body=${literal(beyond, 1)},`);
  return `import os

from openai import OpenAI

client = OpenAI(base_url="${BASE}/v1", api_key=os.environ["STEERSMAN_KEY"])
answer = client.chat.completions.create(
${lines.join("\n")}
)
for choice in answer.choices:
    print(choice.message.content or choice.message.tool_calls)
`;
}

function typescript(configuration, turns) {
  const { body } = chatRequest(configuration, turns);
  return `import OpenAI from "openai";

const client = new OpenAI({ baseURL: "${BASE}/v1", apiKey: process.env.STEERSMAN_KEY });
const request = ${JSON.stringify(body, null, 2)};
// Some fields are beyond OpenAI's own.
const answer = await client.chat.completions.create(request as OpenAI.ChatCompletionCreateParamsNonStreaming);
for (const choice of answer.choices) console.log(choice.message.content ?? choice.message.tool_calls);
`;
}

/** Axionic's client has prompts and policies, and no seed. */
function mechanex(configuration, turns) {
  const missing = beyondMechanex(configuration, turns);
  if (missing.length) return `# mechanex has no call for ${missing.join(", ")}.\n`;
  const prompt = turns.findLast((turn) => turn.role === "user")?.text ?? "";
  const [policy, named] = configuration.policy ? ["", configuration.policy] : [literal(policyOf(configuration), 1), ""];
  const given = named ? `policy_id=${literal(named, 1)}` : `policy=${policy}`;
  const drawn = configuration.method !== "greedy" && configuration.seed !== null;
  return `import os

os.environ["MECHANEX_BASE_URL"] = "${BASE}"
import mechanex as mx

mx.set_key(os.environ["STEERSMAN_KEY"])
${drawn ? "# mechanex sends no seed: what is drawn differs from run to run.\n" : ""}run = mx.policy.run(
    ${literal(prompt, 1)},
    ${given},
    model=${literal(configuration.model, 1)},
    max_new_tokens=${configuration.maxTokens},
)
print(run["output"])
`;
}

function beyondMechanex(configuration, turns) {
  const found = [];
  if (configuration.system.trim()) found.push("a system prompt");
  if (turns.filter((turn) => turn.role === "user").length > 1) found.push("several turns");
  if (turns.some((turn) => turn.image)) found.push("images");
  if (configuration.tools.trim()) found.push("tools of this kind");
  if (configuration.steering.length > 1) found.push("several vectors at once");
  if (configuration.steering.some((entry) => entry.tokens !== "all")) found.push("steering of some tokens");
  if (configuration.behaviours.length) found.push("watching with these fields");
  if (!configuration.method && !configuration.policy) found.push("sampling without a method; choose one");
  return found;
}

function policyOf({ method, parameters, format, steering }) {
  const { n, best_of: votes, length_penalty: _, ...sampling } = parameters;
  const policy = { sampling: { method, ...sampling, ...(n ? { num_candidates: n } : {}) } };
  if (votes) policy.optimization = { best_of_n: votes };
  if (format.kind === "json") policy.constraints = { json_mode: true };
  else if (format.kind === "regex") policy.constraints = { regex_pattern: format.source };
  else if (format.kind === "grammar") policy.constraints = { grammar: format.source };
  else if (format.kind !== "text") policy.constraints = { json_schema: JSON.parse(format.source) };
  for (const { kind, id, strength } of steering)
    policy.steering = { enabled: true, [kind === "preset" ? "preset" : "vector_id"]: id, strength };
  return policy;
}

/** A JSON value as Python writes it, `depth` levels in. */
export function literal(value, depth = 0) {
  const [inner, outer] = ["    ".repeat(depth + 1), "    ".repeat(depth)];
  if (value === null) return "None";
  if (value === true) return "True";
  if (value === false) return "False";
  if (typeof value === "number") return String(value);
  if (typeof value === "string") return JSON.stringify(value);
  const [open, close] = Array.isArray(value) ? "[]" : "{}";
  const items = Array.isArray(value)
    ? value.map((each) => literal(each, depth + 1))
    : Object.entries(value).map(([name, each]) => `${JSON.stringify(name)}: ${literal(each, depth + 1)}`);
  return items.length ? `${open}\n${items.map((item) => `${inner}${item},\n`).join("")}${outer}${close}` : `${open}${close}`;
}
