// The column of controls of one configuration.

import { post } from "../api.mjs";
import { Fragment, html, useState } from "../html.mjs";
import { Check, Choice, NumberField, Slider, TextField } from "../parts/field.mjs";
import { JsonEditor } from "../parts/jsoneditor.mjs";
import { Notice } from "../parts/notice.mjs";
import { beyondWatching, withMethod } from "./configuration.mjs";
import { isSchema, KINDS, PRESETS } from "./formats.mjs";
import { METHODS, methodOf } from "./methods.mjs";
import { SteeringControls } from "./steering.mjs";

/** `things` are what there is to choose from: models, vectors, presets, behaviours, policies. */
export function Controls({ configuration, onChange, things, facts, name }) {
  const set = (changes) => onChange({ ...configuration, ...changes });
  return html`<div class="controls" aria-label=${`Configuration ${name}`} role="group">
    <${Section} title="Model" open>
      <${Choice} label="Model or alias" value=${configuration.model} onChange=${(model) => set({ model })}
        options=${[["default", `default (${facts.model.split("/").pop()})`], ...things.models]} />
      <${TextField} label="System prompt" rows=${2} value=${configuration.system} onChange=${(system) => set({ system })} />
      <div class="pair">
        <${NumberField} label="Longest answer" hint="tokens" min=${1} max=${facts.max_model_len} value=${configuration.maxTokens}
          onChange=${(maxTokens) => set({ maxTokens: maxTokens ?? 1 })} />
        <${NumberField} label="Seed" hint="empty: another answer each time" value=${configuration.seed} onChange=${(seed) => set({ seed })} />
      </div>
    <//>
    <${Section} title="Steering" open badge=${configuration.steering.length}>
      <${SteeringControls} steering=${configuration.steering} onChange=${(steering) => set({ steering })} things=${things} facts=${facts} />
    <//>
    <${Section} title="Sampling" open badge=${methodOf(configuration.method).label}>
      <${Method} configuration=${configuration} onChange=${onChange} />
    <//>
    <${Section} title="Response format" badge=${configuration.format.kind === "text" ? null : configuration.format.kind}>
      <${Format} format=${configuration.format} onChange=${(format) => set({ format })} />
    <//>
    <${Section} title="Behaviours" badge=${configuration.behaviours.length}>
      <${Watching} configuration=${configuration} set=${set} things=${things} facts=${facts} />
    <//>
    <${Section} title="Tools and policy" badge=${configuration.tools.trim() || configuration.policy ? "set" : null}>
      <${JsonEditor} label="Tools" hint="As OpenAI's API takes them, a list." rows=${6} text=${configuration.tools} onChange=${(tools) => set({ tools })} />
      ${configuration.tools.trim() && html`<${Choice} label="Tool choice" value=${configuration.toolChoice} options=${["auto", "required", "none"]}
        onChange=${(toolChoice) => set({ toolChoice })} />`}
      <${Choice} label="Policy" value=${configuration.policy} onChange=${(policy) => set({ policy })}
        options=${[["", "none"], ...things.policies.map((each) => [each.id, each.name ?? each.id])]} />
    <//>
    <${Section} title="Details">
      <${Check} label="Log-probabilities of tokens" checked=${configuration.logprobs} onChange=${(logprobs) => set({ logprobs })} />
      <${Check} label="Store the answer" checked=${configuration.store} disabled=${facts.interactions === "none"} onChange=${(store) => set({ store })} />
    <//>
  </div>`;
}

/** Open at first where something in it is set. */
function Section({ title, badge, open = false, children }) {
  const [first] = useState(open || Boolean(badge));
  return html`<details open=${first}>
    <summary>${title}${badge ? html` <span class="badge">${badge}</span>` : null}</summary>
    <div class="inside">${children}</div>
  </details>`;
}

function Method({ configuration, onChange }) {
  const method = methodOf(configuration.method);
  const set = (name, value) => onChange({ ...configuration, parameters: { ...configuration.parameters, [name]: value } });
  return html`<${Fragment}>
    <${Choice} label="Method" hint=${method.hint} value=${configuration.method} options=${METHODS.map(({ name, label }) => [name, label])}
      onChange=${(name) => onChange(withMethod(configuration, name))} />
    ${configuration.policy && !method.name && html`<p class="hint">The policy samples as it says; a method chosen here overrules it.</p>`}
    ${(configuration.policy && !method.name ? [] : method.fields).map(
      ({ name, label, hint, min, max, step }) => html`<${Slider} key=${name} label=${label} hint=${hint} min=${min} max=${max} step=${step}
        value=${configuration.parameters[name]} onChange=${(value) => set(name, value)} />`,
    )}
  <//>`;
}

function Format({ format, onChange }) {
  const { kind, source } = format;
  const choose = (next) => onChange({ kind: next, source: PRESETS[next] ?? (next === "regex" ? "(yes|no)" : next === "grammar" ? 'root ::= "yes" | "no"' : "") });
  return html`<${Fragment}>
    <${Choice} label="Format" value=${kind} options=${KINDS} onChange=${choose} hint="Held to at every token, so that the form is always right." />
    ${isSchema(kind) &&
    html`<${JsonEditor} key=${kind} label="JSON schema" text=${source} onChange=${(text) => onChange({ kind, source: text })} rows=${14}
      check=${(json_schema) => post("/constraints/check", { json_schema })} />`}
    ${(kind === "regex" || kind === "grammar") &&
    html`<${TextField} label=${kind === "regex" ? "Pattern" : "Grammar"} rows=${kind === "regex" ? 2 : 6} class="code" value=${source}
      spellcheck=${false} onChange=${(text) => onChange({ kind, source: text })} />`}
  <//>`;
}

const MODES = [
  ["monitor", "only told"],
  ["online", "corrected from there on"],
  ["regenerate", "generated again, corrected"],
];

function Watching({ configuration, set, things, facts }) {
  if (facts.unwatchable) return html`<${Notice}>${facts.unwatchable}<//>`;
  const ready = things.behaviours.filter((behaviour) => behaviour.readiness.monitored);
  if (!ready.length) return html`<p class="hint">No behaviour is ready. <a href="#/behaviours">Make one</a> from pairs of answers.</p>`;
  const { behaviours } = configuration;
  const toggle = (name, on) => set({ behaviours: on ? [...behaviours, name] : behaviours.filter((each) => each !== name) });
  const beyond = beyondWatching(configuration);
  return html`<${Fragment}>
    ${ready.map(
      ({ behavior_name: name }) => html`<${Check} label=${`Watch for “${name}”`} checked=${behaviours.includes(name)} onChange=${(on) => toggle(name, on)} />`,
    )}
    ${behaviours.length > 0 && html`<${Choice} label="When it drifts" value=${configuration.behaviourMode} options=${MODES}
      onChange=${(behaviourMode) => set({ behaviourMode })} />`}
    ${behaviours.length > 0 &&
    html`<p class="hint">${
      beyond.length
        ? configuration.policy
          ? "With a policy, drift is told at the end only."
          : `With ${beyond.join(" and ")}, tokens are coloured once the answer is complete.`
        : "Each token is coloured by drift. Only the last message is read, without a system prompt."
    }</p>`}
  <//>`;
}
