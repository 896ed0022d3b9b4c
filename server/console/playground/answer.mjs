// An answer as it comes: its texts, tokens, scores, and what the server says at its end.

import { events } from "../api.mjs";

/** Of one choice: `pieces` are `{text, logprob?, top?, drift?}`, `calls` those of tools. */
const emptyChoice = () => ({ pieces: [], calls: [], finish: null });

export const emptyAnswer = () => ({
  choices: [emptyChoice()],
  steersman: null,
  usage: null,
  thresholds: {},
  notes: [],
  error: null,
  done: false,
  firstMs: null,
  milliseconds: null,
});

export const textOf = (choice) => choice.pieces.map((piece) => piece.text).join("");

/** Ask, and call `changed(answer)` at most once a frame with one and the same growing answer. */
export async function ask({ path, body }, changed, signal) {
  const answer = emptyAnswer();
  const started = performance.now();
  let waiting = 0;
  const show = () => {
    waiting ||= requestAnimationFrame(() => {
      waiting = 0;
      changed({ ...answer });
    });
  };
  try {
    const options = path === "/sae/generate" ? {} : { stream_options: { include_usage: true } };
    for await (const event of events(path, { ...body, stream: true, ...options }, { signal })) {
      answer.firstMs ??= performance.now() - started;
      if (path === "/sae/generate") takeWatched(answer, event);
      else takeChunk(answer, event);
      show();
    }
  } catch (error) {
    if (error.name === "AbortError") answer.notes.push("Stopped.");
    else answer.error = error;
  }
  cancelAnimationFrame(waiting);
  Object.assign(answer, { done: true, milliseconds: performance.now() - started });
  changed({ ...answer });
  return answer;
}

function takeChunk(answer, chunk) {
  for (const given of chunk.choices ?? []) {
    while (answer.choices.length <= given.index) answer.choices.push(emptyChoice());
    const choice = answer.choices[given.index];
    const said = given.delta?.reasoning_content ?? given.delta?.content ?? "";
    const scored = given.logprobs?.content ?? [];
    if (scored.length) for (const each of scored) choice.pieces.push({ text: each.token, logprob: each.logprob, top: each.top_logprobs });
    else if (said) choice.pieces.push({ text: said });
    for (const call of given.delta?.tool_calls ?? []) {
      const known = (choice.calls[call.index] ??= { name: "", arguments: "" });
      known.name += call.function?.name ?? "";
      known.arguments += call.function?.arguments ?? "";
    }
    choice.finish = given.finish_reason ?? choice.finish;
  }
  if (chunk.usage) answer.usage = chunk.usage;
  if (chunk.steersman) answer.steersman = { ...answer.steersman, ...chunk.steersman };
  for (const { name, threshold, levels } of chunk.steersman?.behaviors ?? [])
    // Of several candidates nothing says which one was chosen.
    if (levels?.length === 1) takeDrift(answer, answer.choices[0], 0, { name, threshold, drift: levels[0] });
}

function takeWatched(answer, event) {
  const [choice] = answer.choices;
  if (event.status === "token") choice.pieces.push({ text: event.token });
  if (event.status === "regenerating") {
    choice.pieces.length = 0;
    answer.notes.push(`Drifted (${event.behaviors.join(", ")}); generated again.`);
  }
  if (event.status === "drift") for (const told of event.behaviors) takeDrift(answer, choice, event.first_token, told);
  if (event.status === "complete") {
    const { output, text, ...told } = event.result;
    answer.steersman = told;
    choice.finish = "stop";
  }
}

function takeDrift(answer, choice, from, { name, drift, threshold }) {
  answer.thresholds[name] = threshold;
  drift.forEach((level, index) => {
    const piece = choice.pieces[from + index];
    if (piece) piece.drift = { ...piece.drift, [name]: level };
  });
}
