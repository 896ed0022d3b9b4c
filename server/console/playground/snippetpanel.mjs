import { html, useState } from "../html.mjs";
import { CopyButton } from "../parts/copy.mjs";
import { CLIENTS, snippet } from "./snippets.mjs";

/** The configuration as a program; `turns` are those that would be sent. */
export function SnippetPanel({ configuration, turns }) {
  const [client, setClient] = useState("curl");
  let program;
  try {
    program = snippet(client, configuration, turns.length ? turns : [{ role: "user", text: "Hello." }]);
  } catch (error) {
    program = `# ${error.message}`;
  }
  return html`<section class="snippets" aria-label="Program">
    <div class="tabs" role="group" aria-label="Client">
      ${CLIENTS.map(
        ([name, label]) =>
          html`<button aria-pressed=${name === client} class="tab" onClick=${() => setClient(name)}>${label}</button>`,
      )}
      <${CopyButton} text=${program} />
    </div>
    <pre tabindex="0" aria-label=${`Program for ${client}`}><code data-client=${client}>${program}</code></pre>
  </section>`;
}
