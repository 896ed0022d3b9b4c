import { get } from "./api.mjs";
import { html, useEffect, useRef, useState } from "./html.mjs";
import { storeKey } from "./key.mjs";
import { useAction } from "./loading.mjs";
import { Notice } from "./parts/notice.mjs";

export function SignIn({ problem, onDone }) {
  const field = useRef(null);
  const [touched, setTouched] = useState(false);
  const [enter, busy, error] = useAction(async (signal) => {
    const key = field.current.value.trim();
    const facts = await get("/capabilities", { key, signal });
    storeKey(key);
    onDone(facts);
  });
  // While the key is being pasted, what comes next is on its way.
  useEffect(() => void import("./playground/page.mjs").catch(() => {}), []);
  const told = error?.message ?? (touched ? null : problem);
  return html`<main class="signin">
    <form
      onSubmit=${(event) => {
        event.preventDefault();
        setTouched(true);
        enter();
      }}
    >
      <h1><span class="wheel" aria-hidden="true">⎈</span> Steersman</h1>
      <p>See and steer the model that this server runs: chat, vectors, policies, behaviours.</p>
      <label for="key">API key</label>
      <input
        id="key"
        ref=${field}
        type="password"
        autocomplete="off"
        spellcheck=${false}
        placeholder="ax_…"
        required
        autofocus
        aria-describedby="key-hint"
        aria-invalid=${told ? "true" : undefined}
      />
      <p id="key-hint" class="hint">
        The server printed one at its first start; <code>steersman keys create</code> makes another. It is kept in this
        tab alone, until you close it.
      </p>
      ${told && html`<${Notice} kind="bad">${told}<//>`}
      <button class="primary" disabled=${busy}>${busy ? "Checking…" : "Enter"}</button>
    </form>
  </main>`;
}
