// Contrastive pairs as people give them: typed in rows, pasted, or read from a file.

/** `{prompt, positive, negative}` of JSON lines, a JSON list, or lines of three texts between tabs. */
export function readPairs(text) {
  const trimmed = text.trim();
  if (!trimmed) return [];
  if (trimmed.startsWith("[")) return JSON.parse(trimmed).map(ofObject);
  return trimmed.split(/\r?\n/).filter((line) => line.trim()).map((line, index) => {
    if (line.trim().startsWith("{")) return ofObject(JSON.parse(line), index);
    const [prompt, positive, negative] = line.split("\t");
    if (positive === undefined || negative === undefined)
      throw new SyntaxError(`Line ${index + 1} is neither a JSON object nor prompt, positive and negative answer between tabs.`);
    return { prompt, positive, negative };
  });
}

function ofObject(item, index) {
  const pair = {
    prompt: item.prompt ?? "",
    positive: item.positive_answer ?? item.positive,
    negative: item.negative_answer ?? item.negative,
  };
  if (typeof pair.positive !== "string" || typeof pair.negative !== "string")
    throw new SyntaxError(`Pair ${index + 1} needs positive_answer and negative_answer.`);
  return pair;
}

export const complete = (pairs) => pairs.filter(({ positive, negative }) => positive.trim() && negative.trim());

/** The lists that the server takes. */
export const asLists = (pairs) => ({
  prompts: pairs.map(({ prompt }) => prompt),
  positive_answers: pairs.map(({ positive }) => positive),
  negative_answers: pairs.map(({ negative }) => negative),
});

export const asBodies = (pairs) => pairs.map(({ prompt, positive, negative }) => ({ prompt, positive_answer: positive, negative_answer: negative }));

/** Formal and casual answers to the same questions. */
export const EXAMPLE = [
  ["Can you help me?", "Certainly, it would be my pleasure to assist you.", "Yeah sure, what's up?"],
  ["Where is the station?", "The station is situated at the end of this avenue, sir.", "Dunno, end of the road I guess."],
  ["Is it cold?", "Indeed, the temperature is rather low this morning.", "Yep, it's freezing, dude."],
  ["What do you think of tea?", "I consider tea to be a most agreeable beverage.", "Tea's cool, no biggie."],
  ["Are you coming?", "I shall be delighted to attend the event.", "Yeah I'll be there, whatever."],
  ["How was the film?", "The film was, in my estimation, thoroughly engaging.", "Movie was sick, loved it."],
  ["Could you wait?", "By all means, I would be glad to wait for you.", "Sure, I'll hang around."],
  ["Did you sleep well?", "I slept very well indeed, thank you for enquiring.", "Slept like a log, thanks man."],
  ["May I sit here?", "Please do take a seat, madam.", "Yeah go for it, grab a chair."],
  ["What time is it?", "It is presently a quarter past four.", "Like, four-ish?"],
  ["Do you like my hat?", "Your hat is exceedingly elegant.", "Hat's awesome, dude."],
  ["Shall we eat?", "I propose that we dine at once.", "Let's grab some food, I'm starving."],
].map(([prompt, positive, negative]) => ({ prompt, positive, negative }));
