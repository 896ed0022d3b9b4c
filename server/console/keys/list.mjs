import { get, post, remove } from "../api.mjs";
import { html, useState } from "../html.mjs";
import { useAction, useLoaded } from "../loading.mjs";
import { CopyButton } from "../parts/copy.mjs";
import { Choice, TextField } from "../parts/field.mjs";
import { Notice, Problem } from "../parts/notice.mjs";
import { Table } from "../parts/table.mjs";
import { time } from "../words.mjs";
import { EditLimits, hasLimits, LimitFields, limitColumns } from "./limits.mjs";

const ROLES = [
  ["owner", "owner: everything"],
  ["member", "member: all but keys and members"],
  ["read-only", "read-only: looks"],
];

export function KeyList({ facts }) {
  const owner = facts.role === "owner";
  const { value: keys, error, reload } = useLoaded((signal) => (owner ? get("/auth/api-keys", { signal }) : []));
  const [made, setMade] = useState(null);
  const [edited, setEdited] = useState(null);
  const [revoke, , wrong] = useAction(async (signal, key) => {
    if (!confirm(`Revoke ${key.name ?? key.masked}? Whatever uses it stops working at once.`)) return;
    await remove(`/auth/api-keys/${encodeURIComponent(key.id)}`);
    reload();
  });
  if (!owner) return html`<section class="card"><h2>Keys</h2><${Notice}>Only owners of the project see its keys; this key is ${facts.role}.<//></section>`;
  const columns = [
    { name: "Name", cell: (key) => key.name ?? "–" },
    { name: "Key", cell: (key) => html`<code>${key.masked}</code>` },
    { name: "Role", cell: (key) => key.role },
    { name: "Last used", cell: (key) => (key.last_used ? time(key.last_used) : "never") },
    ...limitColumns(keys ?? []),
    ...(hasLimits(keys ?? []) ? [{ name: "", cell: (key) => html`<button class="quiet" aria-label=${`Limits of ${key.name ?? key.masked}`} onClick=${() => setEdited(key)}>Limits</button>` }] : []),
    { name: "", cell: (key) => html`<button class="quiet danger" aria-label=${`Revoke ${key.name ?? key.masked}`} onClick=${() => revoke(key)}>Revoke</button>` },
  ];
  return html`<section class="card" aria-label="Keys">
    <h2>Keys</h2>
    <${MakeKey} limited=${hasLimits(keys ?? [])} onMade=${(key) => {
      setMade(key);
      reload();
    }} />
    ${made && html`<${Notice} kind="good"><p>This is the key <b>${made.name ?? "without a name"}</b>. It is shown this once.</p>
      <div class="row"><code>${made.api_key}</code><${CopyButton} text=${made.api_key} /><button class="quiet" onClick=${() => setMade(null)}>Hide</button></div><//>`}
    <${Problem} error=${error ?? wrong} />
    ${edited && html`<${EditLimits} key=${edited.id} apiKey=${edited} onDone=${() => {
      setEdited(null);
      reload();
    }} />`}
    ${keys && html`<${Table} caption="Keys" columns=${columns} rows=${keys} keyOf=${(key) => key.id} />`}
  </section>`;
}

function MakeKey({ limited, onMade }) {
  const [name, setName] = useState("");
  const [role, setRole] = useState("member");
  const [limits, setLimits] = useState({});
  const [make, busy, error] = useAction(async (signal) => {
    onMade(await post("/auth/api-keys", { name: name.trim() || null, role, ...limits }, { signal }));
    setName("");
  });
  return html`<form class="pairs" onSubmit=${(event) => {
    event.preventDefault();
    make();
  }}>
    <div class="pair">
      <${TextField} label="Name" value=${name} onChange=${setName} maxlength="200" placeholder="laptop" />
      <${Choice} label="Role" value=${role} options=${ROLES} onChange=${setRole} />
    </div>
    ${limited && html`<${LimitFields} limits=${limits} onChange=${setLimits} />`}
    <div class="row"><button class="primary" disabled=${busy}>Make a key</button></div>
    <${Problem} error=${error} />
  </form>`;
}
