import { html, useEffect, useRef, useState } from "../html.mjs";
import { TextField } from "./field.mjs";

const PAUSE = 400; // milliseconds without a keystroke before the server is asked

/** JSON as text, with why it is none; `check(value)` may refuse what is sound JSON, with the server's reason. */
export function JsonEditor({ label, hint, text, onChange, check, rows = 10 }) {
  const [verdict, setVerdict] = useState({ reason: null, sound: false });
  const latest = useRef(check);
  latest.current = check;
  useEffect(() => {
    let over = false;
    const parsed = parse(text);
    if (parsed.reason || !latest.current || parsed.value === undefined) {
      setVerdict({ reason: parsed.reason, sound: false });
      return undefined;
    }
    const asked = setTimeout(async () => {
      try {
        await latest.current(parsed.value);
        if (!over) setVerdict({ reason: null, sound: true });
      } catch (error) {
        if (!over) setVerdict({ reason: error.message, sound: false });
      }
    }, PAUSE);
    return () => {
      over = true;
      clearTimeout(asked);
    };
  }, [text]);
  return html`<div class="json-editor">
    <${TextField} label=${label} hint=${hint} error=${verdict.reason} value=${text} onChange=${onChange} rows=${rows}
      class="code" spellcheck=${false} />
    ${verdict.sound && html`<p class="sound" role="status">Compiles.</p>`}
  </div>`;
}

/** `{value}` of JSON, `{}` of nothing, `{reason}` of anything else. */
export function parse(text) {
  if (!text.trim()) return {};
  try {
    return { value: JSON.parse(text) };
  } catch (error) {
    return { reason: `Not JSON: ${error.message}` };
  }
}
