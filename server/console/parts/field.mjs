import { html, useMemo } from "../html.mjs";

let made = 0;
const useId = (name) => useMemo(() => `${name}-${++made}`, []);

/** A label with what it labels; `children` is given the ids that tie them together. */
export function Field({ label, hint, error, children, wide = false }) {
  const id = useId("field");
  const told = [hint && `${id}-hint`, error && `${id}-error`].filter(Boolean).join(" ") || undefined;
  return html`<div class=${`field${wide ? " wide" : ""}`}>
    <label for=${id}>${label}</label>
    ${children({ id, "aria-describedby": told, "aria-invalid": error ? "true" : undefined })}
    ${hint && html`<p class="hint" id=${`${id}-hint`}>${hint}</p>`}
    ${error && html`<p class="wrong" id=${`${id}-error`} role="alert">${error}</p>`}
  </div>`;
}

export function TextField({ label, hint, error, value, onChange, rows, wide, ...more }) {
  const typed = (event) => onChange(event.target.value);
  return html`<${Field} label=${label} hint=${hint} error=${error} wide=${wide}>
    ${(ids) =>
      rows
        ? html`<textarea ...${ids} rows=${rows} value=${value} onInput=${typed} ...${more}></textarea>`
        : html`<input ...${ids} type="text" value=${value} onInput=${typed} ...${more} />`}
  <//>`;
}

/** A number that may be absent: `null` where nothing is typed. */
export function NumberField({ label, hint, error, value, onChange, ...more }) {
  const typed = (event) => onChange(event.target.value === "" ? null : Number(event.target.value));
  return html`<${Field} label=${label} hint=${hint} error=${error}>
    ${(ids) => html`<input ...${ids} type="number" value=${value ?? ""} onInput=${typed} ...${more} />`}
  <//>`;
}

/** `options` are values, or pairs of a value and its name. */
export function Choice({ label, hint, error, value, options, onChange, ...more }) {
  return html`<${Field} label=${label} hint=${hint} error=${error}>
    ${(ids) => html`<select ...${ids} value=${value} onChange=${(event) => onChange(event.target.value)} ...${more}>
      ${options.map((option) => {
        const [known, name] = Array.isArray(option) ? option : [option, option];
        return html`<option value=${known} selected=${known === value}>${name}</option>`;
      })}
    </select>`}
  <//>`;
}

export function Slider({ label, hint, value, onChange, min, max, step, shown, children }) {
  return html`<${Field} label=${html`${label} <output>${shown ?? value}</output>`} hint=${hint}>
    ${(ids) => html`<input
        ...${ids}
        type="range"
        min=${min}
        max=${max}
        step=${step}
        value=${value}
        onInput=${(event) => onChange(Number(event.target.value))}
      />${children}`}
  <//>`;
}

export function Check({ label, checked, onChange, ...more }) {
  const id = useId("check");
  return html`<div class="check">
    <input id=${id} type="checkbox" checked=${checked} onChange=${(event) => onChange(event.target.checked)} ...${more} />
    <label for=${id}>${label}</label>
  </div>`;
}

export function FileButton({ label, accept, onFile, disabled }) {
  const id = useId("file");
  const chosen = (event) => {
    const [file] = event.target.files;
    event.target.value = "";
    if (file) onFile(file);
  };
  return html`<span class="file">
    <input id=${id} type="file" accept=${accept} onChange=${chosen} disabled=${disabled} />
    <label class="button" for=${id}>${label}</label>
  </span>`;
}
