// A text token by token: coloured by drift, marked where another answer differs, with probabilities to hover.

import { html, useState } from "../html.mjs";
import { fixed, percent } from "../words.mjs";

/** `changed` are the places of tokens that the other answer does not have. */
export function Tokens({ pieces, thresholds = {}, changed = null }) {
  const [shown, setShown] = useState(null);
  const detailed = pieces.some((piece) => piece.top || piece.drift);
  if (!detailed && !changed) return html`<span class="said">${pieces.map((piece) => piece.text).join("")}</span>`;
  const step = (event) => {
    const by = { ArrowRight: 1, ArrowLeft: -1 }[event.key];
    if (!by) return;
    event.preventDefault();
    setShown((before) => Math.min(pieces.length - 1, Math.max(0, before === null ? 0 : before + by)));
  };
  const pick = (event) => {
    const place = event.target.dataset?.at;
    if (place !== undefined) setShown(Number(place));
  };
  const reached = detailed ? { tabindex: 0, role: "group", "aria-label": "Answer, token by token: arrow keys show each" } : {};
  return html`<span class="said tokens" ...${reached} onMouseOver=${pick} onClick=${pick} onMouseLeave=${() => setShown(null)} onKeyDown=${step}>
      ${pieces.map(
        (piece, index) =>
          html`<span data-at=${index} class=${classOf(piece, thresholds, changed?.has(index), index === shown)}>${piece.text}</span>`,
      )}
    </span>
    ${detailed && html`<${Detail} piece=${pieces[shown]} thresholds=${thresholds} />`}`;
}

function classOf(piece, thresholds, differs, shown) {
  const names = ["token"];
  if (differs) names.push("differs");
  if (shown) names.push("shown");
  const level = drifted(piece, thresholds);
  if (level !== null) names.push(`drift-${level}`);
  return names.join(" ");
}

/** From 0, none, to 5, at the threshold or above; null where no score came. */
function drifted({ drift }, thresholds) {
  if (!drift) return null;
  const shares = Object.entries(drift).map(([name, level]) => level / Math.max(thresholds[name], 1e-6));
  return shares.length ? Math.min(5, Math.floor(Math.max(0, ...shares) * 5)) : null;
}

/** What is known of the token under the pointer. Its height is kept, so that nothing jumps. */
function Detail({ piece, thresholds }) {
  if (!piece) return html`<div class="token-detail hint">Point at a token, or step with the arrow keys, to see what is known of it.</div>`;
  return html`<div class="token-detail" aria-live="polite">
    <code>${JSON.stringify(piece.text)}</code>
    ${piece.logprob !== undefined && html`<span>log-probability <b>${fixed(piece.logprob)}</b> (${percent(Math.exp(piece.logprob))})</span>`}
    ${(piece.top ?? []).map((other) => html`<span><code>${JSON.stringify(other.token)}</code> ${fixed(other.logprob)}</span>`)}
    ${Object.entries(piece.drift ?? {}).map(([name, level]) => html`<span>${name} <b>${fixed(level)}</b> of ${fixed(thresholds[name])}</span>`)}
  </div>`;
}
