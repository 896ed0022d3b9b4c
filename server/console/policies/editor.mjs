// A policy as a form and as JSON. The JSON is the policy; the form reads and writes parts of it.

import { html } from "../html.mjs";
import { Check, Choice, NumberField, TextField } from "../parts/field.mjs";
import { METHODS } from "../playground/methods.mjs";

const VERIFIERS = ["syntax", "json_schema", "regex", "code_compile", "unit_tests", "tool_args", "factuality"];
const at = (policy, path) => path.split(".").reduce((part, name) => part?.[name], policy);

/** A copy with `value` at a dotted path; undefined takes it away, and a group left empty with it. */
export function withValue(policy, path, value) {
  const [name, ...rest] = path.split(".");
  const inner = rest.length ? withValue(policy?.[name] ?? {}, rest.join("."), value) : value;
  const { [name]: _, ...others } = policy ?? {};
  const empty = inner === undefined || (rest.length && !Object.keys(inner).length);
  return empty ? others : { ...policy, [name]: inner };
}

export function Editor({ policy, text, reason, onText, onPolicy }) {
  const set = (path, value) => onPolicy(withValue(policy, path, value));
  return html`<div class="pairs">
    ${policy && html`<${Form} policy=${policy} set=${set} />`}
    <${TextField} label="JSON" error=${reason} rows=${16} class="code" spellcheck=${false} value=${text} onChange=${onText} />
  </div>`;
}

function Form({ policy, set }) {
  const number = (path, label, hint, more) => html`<${NumberField} label=${label} hint=${hint} value=${at(policy, path) ?? null}
    onChange=${(value) => set(path, value ?? undefined)} ...${more} />`;
  const enabled = at(policy, "verifiers.enabled") ?? [];
  const lines = (path, label, hint) => html`<${TextField} label=${label} hint=${hint} value=${(at(policy, path) ?? []).join(", ")}
    onChange=${(value) => set(path, value.trim() ? value.split(",").map((each) => each.trim()).filter(Boolean) : undefined)} />`;
  return html`<div class="pairs">
    <div class="pair">
      <${TextField} label="Name" value=${policy.name ?? ""} onChange=${(name) => set("name", name || undefined)} />
      <${Choice} label="Method" value=${at(policy, "sampling.method") ?? "top-k"} options=${METHODS.filter(({ name }) => name).map(({ name, label }) => [name, label])} onChange=${(value) => set("sampling.method", value)} />
      ${number("sampling.temperature", "Temperature", null, { min: 0, max: 2, step: 0.1 })}
    </div>
    <div class="pair">
      ${number("optimization.best_of_n", "Best of", "candidates of a round", { min: 1, max: 64 })}
      ${number("optimization.retry_on_failure", "Retries", "rounds after the first", { min: 0, max: 16 })}
      ${number("optimization.self_revision_loops", "Revisions", "critique, then rewrite", { min: 0, max: 8 })}
      ${number("objective.latency_budget_ms", "Budget", "milliseconds", { min: 1 })}
    </div>
    ${lines("constraints.required_fields", "Required fields", "of a JSON answer, with commas between")}
    ${lines("constraints.forbidden_terms", "Forbidden terms", "never written, whatever their case")}
    <${Check} label="Answer is one JSON object" checked=${at(policy, "constraints.json_mode") ?? false} onChange=${(on) => set("constraints.json_mode", on || undefined)} />
    <fieldset class="plain"><legend>Verifiers</legend>
      ${VERIFIERS.map((name) => html`<${Check} label=${name} checked=${enabled.includes(name)}
        onChange=${(on) => set("verifiers.enabled", on ? [...enabled, name] : enabled.filter((each) => each !== name))} />`)}
    </fieldset>
  </div>`;
}
