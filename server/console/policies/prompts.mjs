import { html } from "../html.mjs";
import { TextField } from "../parts/field.mjs";

export const EXAMPLE_PROMPTS = "Name a fruit, as JSON.\nName a river, as JSON.\nName a city, as JSON.";
export const promptsOf = (text) => text.split("\n").map((line) => line.trim()).filter(Boolean);

export function Prompts({ text, onChange }) {
  return html`<${TextField} label="Prompts" hint="One a line." rows=${5} value=${text} onChange=${onChange} />`;
}
