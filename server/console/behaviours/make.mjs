import { post } from "../api.mjs";
import { html, useEffect, useState } from "../html.mjs";
import { useAction } from "../loading.mjs";
import { Choice, NumberField, TextField } from "../parts/field.mjs";
import { Problem } from "../parts/notice.mjs";
import { asLists, complete } from "../parts/pairs.mjs";
import { PairsEditor } from "../parts/pairseditor.mjs";

const LEAST = 4; // pairs

export function MakeBehaviour({ saes, onMade }) {
  const [name, setName] = useState("");
  const [description, setDescription] = useState("");
  const [sae, setSae] = useState(saes[0].name);
  const [alarms, setAlarms] = useState(0.05);
  const [pairs, setPairs] = useState([{ prompt: "", positive: "", negative: "" }]);
  const usable = complete(pairs);
  const [make, busy, error] = useAction(async (signal) => {
    const body = { behavior_name: name.trim(), ...asLists(usable), sae, false_positives: alarms ?? 0.05 };
    if (description.trim()) body.description = description.trim();
    onMade(await post("/behaviors/create", body, { signal }));
  });
  return html`<form class="card" aria-label="New behaviour" onSubmit=${(event) => {
    event.preventDefault();
    make();
  }}>
    <div class="pair">
      <${TextField} label="Name" required maxlength="200" value=${name} onChange=${setName} placeholder="formal tone" />
      <${TextField} label="Description" maxlength="4000" value=${description} onChange=${setDescription} />
      <${Choice} label="Autoencoder" value=${sae} options=${saes.map((each) => [each.name, `${each.name}, layer ${each.layer}`])} onChange=${setSae} />
      <${NumberField} label="False alarms" hint="share of texts without it, at most" min=${0} max=${0.5} step=${0.01} value=${alarms} onChange=${setAlarms} />
    </div>
    <${PairsEditor} pairs=${pairs} onChange=${setPairs} positive="Answer that shows it" negative="Answer that does not" />
    <${Problem} error=${error} />
    <div class="row">
      <button class="primary" disabled=${busy || usable.length < LEAST || !name.trim()}>${busy ? "Calibrating…" : "Make the behaviour"}</button>
      ${usable.length < LEAST && html`<span class="hint">At least ${LEAST} pairs: some are held out, to tell where the threshold lies.</span>`}
      ${busy && html`<${Waiting} />`}
    </div>
  </form>`;
}

/** The route answers when all is done: how long it has taken is all there is to tell. */
function Waiting() {
  const [seconds, setSeconds] = useState(0);
  useEffect(() => {
    const counting = setInterval(() => setSeconds((before) => before + 1), 1000);
    return () => clearInterval(counting);
  }, []);
  return html`<span role="status" class="hint">${seconds} s; it takes seconds to a minute.</span><progress aria-label="Calibrating"></progress>`;
}
