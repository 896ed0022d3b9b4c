// What an answer may be held to, with examples to begin with.

const text = (schema) => JSON.stringify(schema, null, 2);

export const PRESETS = {
  classification: text({
    type: "object",
    properties: {
      label: { type: "string", enum: ["positive", "neutral", "negative"] },
      confident: { type: "boolean" },
    },
    required: ["label", "confident"],
    additionalProperties: false,
  }),
  extraction: text({
    type: "object",
    properties: {
      people: { type: "array", items: { type: "string", maxLength: 40 }, maxItems: 5 },
      places: { type: "array", items: { type: "string", maxLength: 40 }, maxItems: 5 },
    },
    required: ["people", "places"],
    additionalProperties: false,
  }),
  object: text({
    type: "object",
    properties: { title: { type: "string", maxLength: 60 }, summary: { type: "string", maxLength: 200 } },
    required: ["title", "summary"],
    additionalProperties: false,
  }),
};

export const KINDS = [
  ["text", "Free text"],
  ["classification", "Classification (schema)"],
  ["extraction", "Extraction (schema)"],
  ["object", "Object (schema)"],
  ["json", "Any JSON object"],
  ["regex", "Regular expression"],
  ["grammar", "Grammar (EBNF or Lark)"],
];

export const isSchema = (kind) => kind in PRESETS;

/** The request's own field of a format; `{}` for free text. Raises SyntaxError for a schema that is no JSON. */
export function formatFields({ kind, source }) {
  if (kind === "text") return {};
  if (kind === "json") return { response_format: { type: "json_object" } };
  if (kind === "regex") return { regex_pattern: source };
  if (kind === "grammar") return { grammar: source };
  return { json_schema: JSON.parse(source) };
}
