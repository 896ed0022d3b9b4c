import { html, useState } from "../html.mjs";
import { plural } from "../words.mjs";
import { FileButton } from "./field.mjs";
import { Notice } from "./notice.mjs";
import { complete, EXAMPLE, readPairs } from "./pairs.mjs";

const EMPTY = { prompt: "", positive: "", negative: "" };
const SHOWN = 12; // rows; more are kept, and counted

export function PairsEditor({ pairs, onChange, positive, negative }) {
  const [problem, setProblem] = useState(null);
  const change = (index, field, value) => onChange(pairs.map((pair, at) => (at === index ? { ...pair, [field]: value } : pair)));
  const take = (text) => {
    try {
      onChange([...complete(pairs), ...readPairs(text)]);
      setProblem(null);
    } catch (error) {
      setProblem(error.message);
    }
  };
  const pasted = (event) => {
    const text = event.clipboardData.getData("text");
    if (!/\n|\t|^\s*[[{]/.test(text)) return;
    event.preventDefault();
    take(text);
  };
  return html`<div class="pairs" onPaste=${pasted}>
    <div class="row">
      <h3>Pairs</h3>
      <span class="hint">${plural(complete(pairs).length, "complete pair")}</span>
      <span class="spread"></span>
      <button type="button" class="quiet" onClick=${() => onChange(EXAMPLE)}>Use an example</button>
      <${FileButton} label="From a file" accept=".jsonl,.json,.tsv,.txt" onFile=${(file) => file.text().then(take)} />
    </div>
    ${problem && html`<${Notice} kind="bad">${problem}<//>`}
    ${pairs.slice(0, SHOWN).map(
      (pair, index) => html`<div class="pair-row" key=${index} role="group" aria-label=${`Pair ${index + 1}`}>
        <textarea rows="2" aria-label="Prompt" placeholder="Prompt" value=${pair.prompt} onInput=${(event) => change(index, "prompt", event.target.value)}></textarea>
        <textarea rows="2" aria-label=${positive} placeholder=${positive} value=${pair.positive} onInput=${(event) => change(index, "positive", event.target.value)}></textarea>
        <textarea rows="2" aria-label=${negative} placeholder=${negative} value=${pair.negative} onInput=${(event) => change(index, "negative", event.target.value)}></textarea>
        <button type="button" class="quiet" aria-label=${`Remove pair ${index + 1}`} onClick=${() => onChange(pairs.filter((_, at) => at !== index))}>✕</button>
      </div>`,
    )}
    ${pairs.length > SHOWN && html`<p class="hint">and ${plural(pairs.length - SHOWN, "pair")} more</p>`}
    <div class="row">
      <button type="button" onClick=${() => onChange([...pairs, EMPTY])}>Add a pair</button>
      ${pairs.length > 1 && html`<button type="button" class="quiet" onClick=${() => onChange([EMPTY])}>Remove all</button>`}
      <span class="hint">Lines of a file: <code>{"prompt", "positive_answer", "negative_answer"}</code>, or three texts between tabs. Pasting works too.</span>
    </div>
  </div>`;
}
