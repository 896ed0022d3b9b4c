import { events } from "../api.mjs";
import { html, useState } from "../html.mjs";
import { useAction } from "../loading.mjs";
import { Choice, NumberField, TextField } from "../parts/field.mjs";
import { Problem } from "../parts/notice.mjs";
import { asLists, complete } from "../parts/pairs.mjs";
import { PairsEditor } from "../parts/pairseditor.mjs";
import { keepHeldOut } from "./heldout.mjs";

const METHODS = [
  ["caa", "Mean difference (CAA), seconds"],
  ["few-shot", "Few-shot, optimised, minutes"],
  ["asas", "Sparse latents (ASAS)"],
  ["steering-perceptrons", "Perceptrons, a gated direction"],
];
const HELD_OUT = 0.25; // of the pairs, for the dose-response

export function MakeVector({ facts, onMade }) {
  const [pairs, setPairs] = useState([{ prompt: "", positive: "", negative: "" }]);
  const [name, setName] = useState("");
  const [method, setMethod] = useState("caa");
  const [layer, setLayer] = useState(null);
  const [progress, setProgress] = useState(null);
  const usable = complete(pairs);
  const kept = usable.length >= 8 ? Math.floor(usable.length * HELD_OUT) : 0;
  const [make, busy, error] = useAction(async (signal) => {
    const [training, held] = [usable.slice(0, usable.length - kept), usable.slice(usable.length - kept)];
    const body = { ...asLists(training), method, name: name.trim() || null, stream: true };
    if (layer !== null) body.layer_idxs = [layer];
    setProgress({ stage: "asked" });
    for await (const event of events("/steering/generate", body, { signal })) {
      if (event.status === "processing") setProgress(event.progress);
      if (event.status === "complete") {
        const id = event.result.steering_vector_id;
        if (held.length) keepHeldOut(id, held);
        onMade(id);
      }
    }
  });
  return html`<form class="card" aria-label="New vector" onSubmit=${(event) => {
    event.preventDefault();
    make();
  }}>
    <div class="pair">
      <${TextField} label="Name" value=${name} onChange=${setName} maxlength="200" placeholder="formal tone" />
      <${Choice} label="Method" value=${method} options=${METHODS} onChange=${setMethod} />
      <${NumberField} label="Layer" hint=${`0 to ${facts.steering.layers - 1}; empty: those in the middle`} min=${0} max=${facts.steering.layers - 1} value=${layer} onChange=${setLayer} />
    </div>
    <${PairsEditor} pairs=${pairs} onChange=${setPairs} positive="Answer that shows it" negative="Answer that does not" />
    <${Problem} error=${error} />
    <div class="row">
      <button class="primary" disabled=${busy || usable.length === 0}>${busy ? "Making…" : "Make the vector"}</button>
      ${kept > 0 && html`<span class="hint">The last ${kept} pairs are kept out of it, to measure it by.</span>`}
      ${busy && html`<${Progress} progress=${progress} />`}
    </div>
  </form>`;
}

export function Progress({ progress }) {
  if (!progress) return null;
  const { stage, done, of, total } = progress;
  const whole = of ?? total;
  return html`<span role="status">${stage ?? "working"}${whole ? ` ${done ?? 0} of ${whole}` : "…"}</span>
    <progress aria-label="Progress" value=${whole ? (done ?? 0) : undefined} max=${whole ?? 1}></progress>`;
}
