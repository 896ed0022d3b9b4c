import { html } from "../html.mjs";
import { FileButton } from "../parts/field.mjs";

/** Where the question is written. Enter sends it, Shift+Enter begins a line. */
export function Composer({ draft, onChange, onSay, onStop, onClear, busy, facts }) {
  const ready = draft.text.trim() && !busy;
  const typed = (event) => {
    if (event.key !== "Enter" || event.shiftKey || event.isComposing) return;
    event.preventDefault();
    if (ready) onSay();
  };
  const read = (file) => {
    const reader = new FileReader();
    reader.onload = () => onChange({ ...draft, image: reader.result });
    reader.readAsDataURL(file);
  };
  return html`<form
    class="composer"
    onSubmit=${(event) => {
      event.preventDefault();
      if (ready) onSay();
    }}
  >
    <label class="unseen" for="question">Your message</label>
    <textarea id="question" rows="2" placeholder="Your message" value=${draft.text} onKeyDown=${typed}
      onInput=${(event) => onChange({ ...draft, text: event.target.value })}></textarea>
    ${draft.image && html`<div class="attached"><img src=${draft.image} alt="To be sent" />
      <button type="button" class="quiet" onClick=${() => onChange({ ...draft, image: null })}>Remove the image</button></div>`}
    <div class="composer-foot">
      ${facts.modalities.includes("image") && html`<${FileButton} label="Image" accept="image/png,image/jpeg,image/webp,image/gif" onFile=${read} />`}
      ${onClear && html`<button type="button" class="quiet" onClick=${onClear}>New conversation</button>`}
      <span class="spread"></span>
      ${busy ? html`<button type="button" onClick=${onStop}>Stop</button>` : html`<button class="primary" disabled=${!ready}>Send</button>`}
    </div>
  </form>`;
}
