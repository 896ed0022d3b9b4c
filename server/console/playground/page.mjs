// The playground: one conversation under one configuration, or under two side by side.

import { html, useEffect, useRef, useState } from "../html.mjs";
import { useLoaded } from "../loading.mjs";
import { Problem } from "../parts/notice.mjs";
import { Answer } from "./answerview.mjs";
import { ask } from "./answer.mjs";
import { Composer } from "./composer.mjs";
import { first, request } from "./configuration.mjs";
import { Controls } from "./controls.mjs";
import { takeHandedOver } from "./handover.mjs";
import { history } from "./history.mjs";
import { SnippetPanel } from "./snippetpanel.mjs";
import { things as fetchThings } from "./things.mjs";

const NOTHING = { models: [], vectors: [], presets: [], behaviours: [], policies: [], records: new Map() };
const NAMES = ["A", "B"];

export function PlaygroundPage({ facts }) {
  const [handed] = useState(takeHandedOver);
  const [configurations, setConfigurations] = useState([{ ...first(), ...handed?.configuration }]);
  const [turns, setTurns] = useState([]);
  const [draft, setDraft] = useState({ text: handed?.text ?? "", image: null });
  const [problem, setProblem] = useState(null);
  const [shown, setShown] = useState(0);
  const { value: things, error, reload } = useLoaded((signal) => fetchThings(facts, signal));
  const running = useRef(null);
  const [busy, setBusy] = useState(false);
  useEffect(() => () => running.current?.abort(), []);
  const twofold = configurations.length > 1;

  const change = (index, configuration) => setConfigurations((before) => before.map((each, at) => (at === index ? configuration : each)));
  const compare = () => {
    setShown(twofold ? 0 : 1);
    setConfigurations(twofold ? [configurations[0]] : [{ ...configurations[0], logprobs: true }, { ...configurations[0], logprobs: true, steering: [] }]);
    setTurns([]);
  };
  const say = async () => {
    const said = { role: "user", ...draft };
    let requests;
    try {
      requests = configurations.map((configuration, index) => request(configuration, [...history(turns, index), said]));
    } catch (raised) {
      setProblem(raised);
      return;
    }
    const abort = new AbortController();
    running.current = abort;
    const place = turns.length;
    setProblem(null);
    setBusy(true);
    setDraft({ text: "", image: null });
    setTurns([...turns, { ...said, answers: [] }]);
    const show = (index) => (answer) =>
      setTurns((before) => before.map((turn, at) => (at === place ? { ...turn, answers: Object.assign([...turn.answers], { [index]: answer }) } : turn)));
    const answers = await Promise.all(requests.map((each, index) => ask(each, show(index), abort.signal)));
    setBusy(false);
    // A preset that was made for this answer has a dose from now on.
    if (configurations.some((each) => each.steering.length)) reload();
    if (answers.every((answer) => answer.error)) {
      // Nothing was answered: what was asked goes back to where it can be mended.
      setProblem(answers[0].error);
      setTurns((before) => before.slice(0, place));
      setDraft({ text: said.text, image: said.image });
    }
  };

  const known = things ?? NOTHING;
  const next = draft.text ? [...history(turns, shown), { role: "user", ...draft }] : lastAsked(turns, shown);
  return html`<div class=${`playground${twofold ? " twofold" : ""}`}>
    <aside class="side" aria-label="Configuration">
      <div class="side-head">
        <h1>Playground</h1>
        <button aria-pressed=${twofold} onClick=${compare}>${twofold ? "One configuration" : "Side by side"}</button>
      </div>
      ${twofold &&
      html`<div class="tabs" role="group" aria-label="Which configuration">
        ${configurations.map((_, index) => html`<button class="tab" aria-pressed=${index === shown} onClick=${() => setShown(index)}>Configuration ${NAMES[index]}</button>`)}
      </div>`}
      <${Problem} error=${error} />
      <${Controls} key=${shown} name=${NAMES[shown]} configuration=${configurations[shown]} things=${known} facts=${facts} onChange=${(configuration) => change(shown, configuration)} />
    </aside>
    <section class="talk" aria-label="Conversation">
      <div class="turns" aria-live="polite" aria-busy=${busy}>
        ${turns.length === 0 && html`<${Welcome} onPick=${(text) => setDraft({ ...draft, text })} />`}
        ${turns.map((turn, index) => html`<${Turn} key=${index} turn=${turn} configurations=${configurations} />`)}
      </div>
      <${Problem} error=${problem} />
      <${Composer} draft=${draft} onChange=${setDraft} onSay=${say} onStop=${() => running.current?.abort()} busy=${busy} facts=${facts}
        onClear=${turns.length && !busy ? () => setTurns([]) : null} />
      <details class="program">
        <summary>This configuration as a program${twofold ? ` (${NAMES[shown]})` : ""}</summary>
        <${SnippetPanel} configuration=${configurations[shown]} turns=${next} />
      </details>
    </section>
  </div>`;
}

/** With nothing typed, the program asks what was asked last. */
function lastAsked(turns, index) {
  const asked = turns.slice(-1).map(({ text, image }) => ({ role: "user", text, image }));
  return [...history(turns.slice(0, -1), index), ...asked];
}

function Turn({ turn, configurations }) {
  const twofold = configurations.length > 1;
  return html`<article class="turn">
    <div class="asked">${turn.image && html`<img src=${turn.image} alt="What was sent with the question" />`}${turn.text}</div>
    <div class="answers">
      ${configurations.map((configuration, index) => html`<${Answer} key=${index} answer=${turn.answers[index]} other=${twofold ? turn.answers[1 - index] : null}
        name=${twofold ? NAMES[index] : null} />`)}
    </div>
  </article>`;
}

const IDEAS = ["Tell me about your weekend.", "Why is the sky blue?", "I missed my train this morning. What now?"];

function Welcome({ onPick }) {
  return html`<div class="welcome">
    <h2>Ask the model something, then steer it.</h2>
    <p>
      Under <b>Steering</b>, add a preset such as <i>tone_control</i> and move its strength: the same question is answered
      in another manner. <b>Side by side</b> shows both answers and where they part.
    </p>
    <div class="ideas">${IDEAS.map((idea) => html`<button onClick=${() => onPick(idea)}>${idea}</button>`)}</div>
  </div>`;
}
