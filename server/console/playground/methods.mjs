// The sampling methods and the fields that each has, as /v1/chat/completions takes them.

const number = (name, label, hint, value, min, max, step) => ({ name, label, hint, value, min, max, step });

const TEMPERATURE = number("temperature", "Temperature", "How far chance may stray from the likeliest token; 0 draws nothing.", 0.7, 0, 2, 0.05);
const TOP_P = number("top_p", "Top-p", "Draw from the likeliest tokens that together have this probability.", 0.9, 0.01, 1, 0.01);
const TOP_K = number("top_k", "Top-k", "Draw from this many of the likeliest tokens.", 50, 1, 200, 1);
const N = number("n", "Answers", "Siblings generated together, each aware of the others.", 3, 2, 8, 1);

/** `hint` says in one line what the method does; `name` empty: the model's own defaults. */
export const METHODS = [
  { name: "", label: "Plain sampling", hint: "Draws from all tokens, but for what the model itself cuts off.", fields: [TEMPERATURE] },
  { name: "greedy", label: "Greedy", hint: "Always the likeliest token; the same answer each time.", fields: [] },
  { name: "top-k", label: "Top-k", hint: "Draws from a fixed number of likely tokens.", fields: [TEMPERATURE, TOP_K] },
  { name: "top-p", label: "Top-p", hint: "Draws from as many tokens as make up a share of the probability.", fields: [TEMPERATURE, TOP_P] },
  {
    name: "min-p",
    label: "Min-p",
    hint: "Drops tokens far less likely than the likeliest one.",
    fields: [TEMPERATURE, number("min_p", "Min-p", "The least share of the likeliest token's probability.", 0.1, 0.01, 1, 0.01)],
  },
  {
    name: "typical",
    label: "Typical",
    hint: "Keeps tokens that are about as surprising as the model expects.",
    fields: [TEMPERATURE, number("typical_p", "Typical mass", "The probability that typical tokens make up.", 0.95, 0.05, 1, 0.01)],
  },
  {
    name: "ads",
    label: "ADS (diverse answers)",
    hint: "Several answers at once that avoid one another's words.",
    fields: [
      TEMPERATURE,
      N,
      number("ads_beta", "Avoidance", "How much less likely a sibling's token becomes.", 0.3, 0, 0.9, 0.05),
      number("ads_subset_size", "Subset", "How many likely tokens are weighed against each other.", 8, 1, 32, 1),
    ],
  },
  {
    name: "constrained-beam-search",
    label: "Beam search",
    hint: "Follows the likeliest sequences side by side; draws nothing.",
    fields: [
      number("beam_width", "Beam width", "How many sequences are followed.", 4, 1, 16, 1),
      number("length_penalty", "Length penalty", "Above 1 prefers longer answers.", 1, -2, 4, 0.1),
    ],
  },
  {
    name: "ensemble-sampling",
    label: "Ensemble vote",
    hint: "Samples several answers and gives the one that most agree on.",
    fields: [TEMPERATURE, number("best_of", "Votes", "How many answers are sampled.", 5, 1, 15, 1)],
  },
  {
    name: "speculative-decoding",
    label: "Speculative",
    hint: "A draft model proposes tokens, where the server has one; else ordinary decoding with a warning.",
    fields: [TEMPERATURE],
  },
  {
    name: "guided-generation",
    label: "Guided generation",
    hint: "Held to the response format at every token; choose a format below.",
    fields: [TEMPERATURE, TOP_P],
  },
];

export const methodOf = (name) => METHODS.find((method) => method.name === name) ?? METHODS[0];
export const parametersOf = (name) => Object.fromEntries(methodOf(name).fields.map((field) => [field.name, field.value]));
