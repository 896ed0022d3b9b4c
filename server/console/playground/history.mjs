import { textOf } from "./answer.mjs";

/** The conversation as configuration number `index` had it: turns without an answer are left out. */
export function history(turns, index) {
  return turns.flatMap(({ text, image, answers }) => {
    const answer = answers[index];
    if (!answer || answer.error) return [];
    return [
      { role: "user", text, image },
      { role: "assistant", text: textOf(answer.choices[0]) },
    ];
  });
}
