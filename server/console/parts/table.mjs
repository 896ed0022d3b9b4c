import { html } from "../html.mjs";

/** `columns` are `{name, cell(row), number?}`; `onOpen(row)` makes the first cell a button. */
export function Table({ caption, columns, rows, keyOf, onOpen, chosen }) {
  return html`<div class="table" tabindex="0" role="region" aria-label=${caption}>
    <table>
      <caption class="unseen">${caption}</caption>
      <thead>
        <tr>${columns.map((column) => html`<th scope="col" class=${column.number ? "number" : ""}>${column.name}</th>`)}</tr>
      </thead>
      <tbody>
        ${rows.map(
          (row) => html`<tr key=${keyOf(row)} class=${keyOf(row) === chosen ? "chosen" : ""}>
            ${columns.map((column, index) => {
              const shown = column.cell(row);
              const cell = index === 0 && onOpen ? html`<button class="link" onClick=${() => onOpen(row)}>${shown}</button>` : shown;
              return html`<td class=${column.number ? "number" : ""}>${cell}</td>`;
            })}
          </tr>`,
        )}
      </tbody>
    </table>
  </div>`;
}
