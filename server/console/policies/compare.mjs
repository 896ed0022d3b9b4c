import { post } from "../api.mjs";
import { html, useState } from "../html.mjs";
import { useAction } from "../loading.mjs";
import { Check, TextField } from "../parts/field.mjs";
import { Problem } from "../parts/notice.mjs";
import { Outcome } from "./run.mjs";

/** The policy at hand beside stored ones and presets, on one prompt. */
export function Compare({ policy, policies, presets, tokens }) {
  const others = [...policies.map((each) => ({ id: each.id, name: each.name ?? each.id, policy: each })), ...presets.map((each) => ({ id: each.id, name: `preset: ${each.name}`, policy: each.policy }))];
  const [chosen, setChosen] = useState(() => new Set(others.slice(0, 1).map(({ id }) => id)));
  const [prompt, setPrompt] = useState("Name three fruits.");
  const [outcomes, setOutcomes] = useState(null);
  const [compare, busy, error] = useAction(async (signal) => {
    const taken = [{ name: policy.name ?? "this policy", policy }, ...others.filter(({ id }) => chosen.has(id))];
    const { results } = await post("/policies/compare", { prompt, policies: taken.map((each) => each.policy), max_new_tokens: tokens, seed: 7 }, { signal });
    setOutcomes(results.map((result, index) => ({ name: taken[index].name, result })));
  });
  const toggle = (id, on) => setChosen(new Set([...chosen].filter((each) => each !== id).concat(on ? [id] : [])));
  return html`<form class="pairs" onSubmit=${(event) => {
    event.preventDefault();
    compare();
  }}>
    <${TextField} label="Prompt" rows=${2} value=${prompt} onChange=${setPrompt} />
    <fieldset class="plain"><legend>Beside the policy at hand</legend>
      ${others.map(({ id, name }) => html`<${Check} key=${id} label=${name} checked=${chosen.has(id)} onChange=${(on) => toggle(id, on)} />`)}
    </fieldset>
    <div class="row"><button class="primary" disabled=${busy || !chosen.size}>${busy ? "Comparing…" : "Compare"}</button></div>
    <${Problem} error=${error} />
    ${outcomes && outcomes.map(({ name, result }) => html`<${Outcome} title=${name} outcome=${result} />`)}
  </form>`;
}
