"""Two hundred constraints of many shapes, all methods, shared batches: what ends by itself always conforms.

References: jsonschema, `re.fullmatch`, and lark's Earley parser. The constraints are made at random from a
fixed seed, so that they are many and the same in every run.
"""

import json
import random
import re
from collections import Counter

import jsonschema
import lark
import pytest

pytestmark = pytest.mark.engine

CHAT = "/v1/chat/completions"
METHODS = [
    {"sampling_method": "top-k"},
    {"sampling_method": "ads"},
    {"typical_p": 0.8},
    {"min_p": 0.1, "temperature": 1.2},
    {"temperature": 0},
]
WORDS = ("name", "size", "open", "tags", "owner", "where", "kind")


def some_value(rng, depth):
    """A schema of one value; `depth` levels may follow."""
    kinds = "enum const bool int number text pattern null anyof array object ref".split()  # noqa: SIM905
    kind = rng.choice(kinds[: None if depth else 9])
    low = rng.randint(-50, 50)
    return {
        "enum": lambda: {"enum": rng.sample(["red", "green", "blue", 3, True, None], 3)},
        "const": lambda: {"const": rng.choice(["fixed", 7, False, [1, 2]])},
        "bool": lambda: {"type": "boolean"},
        "int": lambda: {"type": "integer", "minimum": low, "maximum": low + rng.randint(1, 400)},
        "number": lambda: {"type": "number", "minimum": 0, "maximum": 9},
        "text": lambda: {"type": "string", "minLength": 1, "maxLength": rng.randint(1, 12)},
        "pattern": lambda: {"type": "string", "pattern": rng.choice(["^[A-Z]{2}-[0-9]{3}$", "^(yes|no)$"])},
        "null": lambda: {"type": ["null", "boolean"]},
        "anyof": lambda: {"anyOf": [some_value(rng, 0), some_value(rng, 0)]},
        "array": lambda: {
            "type": "array",
            "items": some_value(rng, depth - 1),
            "minItems": rng.randint(0, 1),
            "maxItems": rng.randint(1, 3),
        },
        "object": lambda: some_object(rng, depth - 1),
        "ref": lambda: {"$ref": "#/$defs/shared"},
    }[kind]()


def some_object(rng, depth):
    names = rng.sample(WORDS, rng.randint(1, 3))
    return {
        "type": "object",
        "properties": {name: some_value(rng, depth) for name in names},
        "required": names[: rng.randint(1, len(names))],
        "additionalProperties": False,
    }


def some_schema(rng):
    shared = {"enum": ["here", "there"]}
    return {**some_object(rng, rng.randint(0, 2)), "$defs": {"shared": shared}}


def some_regex(rng, depth=2):
    """A pattern with the same meaning to Python's `re` and to the engine."""
    pieces = [
        "[a-e]",
        r"\d",
        "[A-Z]{2,4}",
        "ab?",
        "x{3}",
        r"\d{1,3}",
        "[^a-z ]{2}",
        "(cat|dog|bird)",
        "-",
        "[.]",
    ]
    made = []
    for _ in range(rng.randint(2, 4)):
        piece = rng.choice(pieces)
        if depth and rng.random() < 0.3:
            piece = f"({some_regex(rng, depth - 1)}|{some_regex(rng, 0)})"
        made.append(piece)
    return "".join(made)


def some_grammar(rng):
    """The same grammar for xgrammar's EBNF and for Lark: pairs of rule name and body, in both notations."""
    words = [json.dumps(word) for word in rng.sample(["red", "blue", "big", "small", "old", "new"], 4)]
    low, high = sorted(rng.sample(range(10), 2))
    digit = f"[{low}-{high}]"
    shapes = {
        "list": ('item (", " item)*', f"{words[0]} | {words[1]} | {words[2]}"),
        "sum": ('item ((" + " | " - ") item)*', "DIGIT DIGIT?"),
        "nested": ('item | "(" start ")"', f"{words[0]} | DIGIT"),
        "record": ('"<" item "|" item "|" item ">"', f"{words[0]} | {words[3]} DIGIT"),
        "optional": ('"a" item? "b"? ("c" item)?', f"{words[1]} | DIGIT"),
        "repeated": ('"[" item item* "]"', f"{words[0]} | {words[2]}"),
    }
    start, item = shapes[rng.choice(list(shapes))]
    lark_text = f"start: {start}\nitem: {item}\nDIGIT: /{digit}/\n"
    ebnf = f"root ::= {start}\nitem ::= {item}\nDIGIT ::= {digit}\n"
    return re.sub(r"\bstart\b", "root", ebnf), lark_text


def bodies(kind, made):
    """Requests by every field that takes this kind of constraint, and every method, in turn."""
    spellings = {
        "schema": [
            lambda schema: {"json_schema": schema},
            lambda schema: {
                "response_format": {"type": "json_schema", "json_schema": {"name": "x", "schema": schema}}
            },
            lambda schema: {"structured_outputs": {"json": schema}},
        ],
        "regex": [
            lambda pattern: {"regex_pattern": pattern},
            lambda pattern: {"structured_outputs": {"regex": pattern}},
            lambda pattern: {"grammar": f"regex:{pattern}"},
        ],
        "grammar": [
            lambda text: {"grammar": text},
            lambda text: {"structured_outputs": {"grammar": text}},
        ],
    }[kind]
    for index, one in enumerate(made):
        yield (
            CHAT,
            {
                "messages": [{"role": "user", "content": "Fill in the form."}],
                "max_tokens": 96,
                "seed": index,
                **METHODS[index % len(METHODS)],
                **spellings[index % len(spellings)](one),
            },
        )


async def check_all(ask, kind, made, conforms, record, *, stopping=0.9):
    """Every answer that stopped conforms, all others were cut. Records how many, and at most so many did."""
    responses = await ask.together(list(bodies(kind, made)))
    ends = Counter()
    for index, (one, response) in enumerate(zip(made, responses, strict=True)):
        assert response.status_code == 200, (one, response.text)
        (choice,) = response.json()["choices"]
        text, reason = choice["message"]["content"], choice["finish_reason"]
        ends[reason] += 1
        if reason == "stop":
            assert conforms(index, text), (one, text)
        else:
            assert reason == "length"
            assert response.json()["usage"]["completion_tokens"] == 96
            ends["whitespace"] += text != text.rstrip() and len(text) - len(text.rstrip()) > 8
    record(f"{kind}_ends", dict(ends))
    print(f"{kind}: {dict(ends)}")
    assert ends["stop"] >= stopping * len(made), ends


async def test_a_hundred_schemas(ask, record_property):
    """Objects, arrays, bounds, patterns, unions, references: whatever stops validates."""
    rng = random.Random(1)
    made = [some_schema(rng) for _ in range(100)]

    def conforms(index, text):
        jsonschema.Draft202012Validator(made[index]).validate(json.loads(text))
        return True

    await check_all(ask, "schema", made, conforms, record_property)


async def test_sixty_regexes(ask, record_property):
    """Whatever stops is matched in full."""
    rng = random.Random(2)
    made = [some_regex(rng) for _ in range(60)]
    await check_all(ask, "regex", made, lambda index, text: re.fullmatch(made[index], text), record_property)


async def test_forty_grammars(ask, record_property):
    """EBNF and Lark: whatever stops is parsed by lark."""
    rng = random.Random(3)
    pairs = [some_grammar(rng) for _ in range(40)]

    def conforms(index, text):
        return lark.Lark(pairs[index][1], parser="earley").parse(text)

    made = [pair[index % 2] for index, pair in enumerate(pairs)]
    # A grammar that repeats without a bound may be followed without end, which small models do.
    await check_all(ask, "grammar", made, conforms, record_property, stopping=0.5)


async def test_ten_choices_are_kept_to(ask):
    """structured_outputs.choice: the text is one of the strings, in other scripts too."""
    choices = ["oui", "non", "peut-être", "да", "はい", 'quo"te', "new\nline"]
    body = {"structured_outputs": {"choice": choices}, "max_tokens": 20}
    message = [{"role": "user", "content": "Choose."}]
    responses = await ask.together(
        [(CHAT, {"messages": message, "seed": n, "temperature": 2, **body}) for n in range(10)]
    )
    for response in responses:
        assert response.json()["choices"][0]["message"]["content"] in choices, response.text


@pytest.mark.parametrize(
    ("fields", "reason"),
    [
        ({"json_schema": {"type": "nonsense"}}, "nonsense"),
        ({"json_schema": {"properties": []}}, "properties"),
        ({"json_schema": {"$ref": "#/$defs/absent"}}, ""),
        ({"json_schema": {"not": {"type": "string"}}}, "not"),
        ({"json_schema": {"type": "object", "properties": {"a": False}, "required": ["a"]}}, ""),
        ({"regex_pattern": "(unclosed"}, ""),
        ({"regex_pattern": "[z-a]"}, ""),
        ({"regex_pattern": "a{5,2}"}, ""),
        ({"regex_pattern": "(?<=look)behind"}, ""),
        ({"regex_pattern": "a{99999999999}"}, "repetition"),
        ({"grammar": "root ::= absent"}, "absent"),
        ({"grammar": 'root ::= "unclosed'}, ""),
        ({"grammar": "please answer in French"}, ""),
        ({"grammar": "start: absent"}, ""),
        ({"grammar": "regex:("}, ""),
        ({"grammar": 'root ::= root "a"'}, ""),
    ],
    ids=lambda value: json.dumps(value)[:50] if isinstance(value, dict) else "",
)
def test_what_does_not_compile_is_refused_with_its_reason(client, fields, reason):
    """400 on /v1, 422 on Axionic's routes; the field is named and the compiler quoted."""
    (field,) = fields
    message = [{"role": "user", "content": "Hi"}]
    v1 = client.post(CHAT, json={"messages": message, "max_tokens": 4, **fields})
    assert v1.status_code == 400, v1.text
    error = v1.json()["error"]
    assert error["param"] == field
    assert error["code"] == "invalid_constraint"
    assert len(error["message"]) > 10
    assert reason in error["message"]
    native = client.post("/sampling/generate", json={"prompt": "Hi", "max_new_tokens": 4, **fields})
    assert native.status_code == 422, native.text
    (item,) = native.json()["detail"]
    assert item["loc"] == ["body", field]
    assert item["msg"] == error["message"]
