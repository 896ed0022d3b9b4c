import { get, post, remove } from "../api.mjs";
import { html, useState } from "../html.mjs";
import { useAction, useLoaded } from "../loading.mjs";
import { NumberField } from "../parts/field.mjs";
import { parse } from "../parts/jsoneditor.mjs";
import { Problem } from "../parts/notice.mjs";
import { go } from "../place.mjs";
import { time } from "../words.mjs";
import { Autotune } from "./autotune.mjs";
import { Compare } from "./compare.mjs";
import { Editor } from "./editor.mjs";
import { Evaluate } from "./evaluate.mjs";
import { Run } from "./run.mjs";

const START = {
  name: "my policy",
  sampling: { method: "top-p", temperature: 0.4 },
  verifiers: { enabled: [] },
  optimization: { best_of_n: 2, retry_on_failure: 1 },
};
const TABS = [
  ["run", "Run", Run],
  ["compare", "Compare", Compare],
  ["evaluate", "Evaluate", Evaluate],
  ["autotune", "Autotune", Autotune],
];

const written = (policy) => JSON.stringify(policy, null, 2);

export function PoliciesPage({ facts, id }) {
  const { value: stored, error, reload } = useLoaded((signal) => Promise.all([get("/policies", { signal }), get("/policies/presets", { signal })]));
  const [text, setText] = useState(written(START));
  const [tab, setTab] = useState("run");
  const [tokens, setTokens] = useState(64);
  const [policies, presets] = stored ?? [[], []];
  const { value: opened, error: missing, reload: again } = useLoaded(
    async (signal) => {
      if (!id) return null;
      const [policy, versions] = await Promise.all([get(`/policies/${encodeURIComponent(id)}`, { signal }), get(`/policies/${encodeURIComponent(id)}/versions`, { signal })]);
      setText(written(policy));
      return { policy, versions };
    },
    [id],
  );
  const { value: policy, reason } = parse(text);
  const [save, saving, refused] = useAction(async (signal) => {
    const made = await post("/policies/save", { policy: { ...policy, ...(id ? { id } : {}) } }, { signal });
    reload();
    if (made.policy_id === id) again();
    else go("policies", made.policy_id);
  });
  const [show, , wrong] = useAction(async (signal, version) => setText(written(await get(`/policies/${encodeURIComponent(id)}?version=${version}`, { signal }))));
  const [erase, , kept] = useAction(async () => {
    if (!confirm("Delete this policy with all its versions?")) return;
    await remove(`/policies/${encodeURIComponent(id)}`);
    reload();
    begin(START);
  });
  const begin = (policyToStart) => {
    setText(written(policyToStart));
    go("policies");
  };
  const choose = (event) => {
    const [kind, chosen] = [event.target.value.slice(0, 1), event.target.value.slice(1)];
    if (kind === "s") go("policies", chosen);
    else if (kind === "p") begin(presets.find((preset) => preset.id === chosen).policy);
    else begin(START);
  };
  const [, , Tab] = TABS.find(([known]) => known === tab);
  return html`<div class="page">
    <div class="page-head"><h1>Policies</h1><p>How an answer is sampled, what it must satisfy, and what happens when it does not.</p></div>
    <${Problem} error=${error ?? missing} />
    <div class="split">
      <section class="card" aria-label="Policy">
        <div class="row">
          <label for="policy-choice">Begin with</label>
          <select id="policy-choice" class="short" value=${id ? `s${id}` : ""} onChange=${choose}>
            <option value="">a new policy</option>
            <optgroup label="Stored">${policies.map((each) => html`<option value=${`s${each.id}`} selected=${each.id === id}>${each.name ?? each.id}</option>`)}</optgroup>
            <optgroup label="Presets">${presets.map((each) => html`<option value=${`p${each.id}`}>${each.name}</option>`)}</optgroup>
          </select>
          <span class="spread"></span>
          ${id && html`<button class="quiet danger" onClick=${erase}>Delete</button>`}
          <button class="primary" disabled=${!policy || saving} onClick=${save}>${id ? "Save a new version" : "Save"}</button>
        </div>
        ${opened && html`<${Versions} versions=${opened.versions} onShow=${show} />`}
        <${Problem} error=${refused ?? wrong ?? kept} />
        <${Editor} policy=${policy} text=${text} reason=${reason} onText=${setText} onPolicy=${(changed) => setText(written(changed))} />
      </section>
      <section class="card" aria-label="Trial">
        <div class="tabs" role="group" aria-label="What to do">
          ${TABS.map(([name, label]) => html`<button class="tab" aria-pressed=${name === tab} onClick=${() => setTab(name)}>${label}</button>`)}
        </div>
        <${NumberField} label="Longest answer" hint="tokens" value=${tokens} min=${1} max=${facts.max_model_len} onChange=${(value) => setTokens(value ?? 1)} />
        ${policy ? html`<${Tab} tokens=${tokens} policy=${policy} policies=${policies} presets=${presets} />` : html`<p class="hint">The policy is no JSON at the moment.</p>`}
      </section>
    </div>
  </div>`;
}

function Versions({ versions, onShow }) {
  return html`<div class="row"><span class="hint">Versions</span>
    ${versions.slice(0, 8).map(({ version, saved_at: at }) => html`<button class="quiet" title=${time(at)} onClick=${() => onShow(version)}>${version}</button>`)}</div>`;
}
