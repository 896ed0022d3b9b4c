"""What of a policy's constraints masks the decoding, and that the mask admits what the judge accepts."""

import json

import pytest
import xgrammar

from policies.enforced import enforced
from policies.policy import RuntimePolicy
from policies.verdict import Text, judge

BYTES = xgrammar.TokenizerInfo(
    [bytes([byte]) for byte in range(256)] + [b"<end>"],
    vocab_type=xgrammar.VocabType.RAW,
    stop_token_ids=[256],
)
COMPILER = xgrammar.GrammarCompiler(BYTES)
SCHEMA = {"type": "object", "properties": {"n": {"type": "integer"}}, "required": ["n"]}


def policy(*verifiers, **constraints):
    return RuntimePolicy.model_validate(
        {"constraints": constraints, "verifiers": {"enabled": list(verifiers)}}
    )


def admits(given, text):
    """Whether the mask lets a model write `text` and end there."""
    schema = enforced(given).json_schema
    matcher = xgrammar.GrammarMatcher(COMPILER.compile_json_schema(json.dumps(schema)))
    return matcher.accept_string(text) and matcher.accept_token(256)


def accepts(given, text):
    return judge(Text(text), given).constraints_ok


@pytest.mark.parametrize(
    ("constraints", "verifiers", "form", "masked", "checked"),
    [
        ({}, [], None, (), ()),
        ({"json_mode": True}, [], "json_object", ("json_mode",), ()),
        ({"json_schema": {}}, [], "json_schema", ("json_schema",), ()),
        ({"json_mode": True, "json_schema": SCHEMA}, [], "json_schema", ("json_mode", "json_schema"), ()),
        ({"required_fields": ["a"]}, [], "json_schema", ("required_fields",), ()),
        ({"tool_schema": {}}, [], "json_schema", ("tool_schema",), ()),
        ({}, ["tool_args"], "json_schema", (), ()),
        (
            {"json_schema": {"$ref": "#/$defs/a", "$defs": {"a": SCHEMA}}, "required_fields": ["a"]},
            [],
            "json_schema",
            ("json_schema",),
            ("required_fields",),
        ),
        ({"regex_pattern": "a+"}, [], "regex_pattern", ("regex_pattern",), ()),
        ({"grammar": 'root ::= "a"'}, [], "grammar", ("grammar",), ()),
        ({"grammar": "'a'", "regex_pattern": "a"}, [], "grammar", ("grammar",), ("regex_pattern",)),
        (
            {"json_mode": True, "grammar": "'a'", "regex_pattern": "a"},
            [],
            "json_object",
            ("json_mode",),
            ("grammar", "regex_pattern"),
        ),
        ({"forbidden_terms": ["a", "b"]}, [], None, ("forbidden_terms",), ()),
        (
            {"json_mode": True, "forbidden_terms": ["a"]},
            [],
            "json_object",
            ("json_mode", "forbidden_terms"),
            (),
        ),
    ],
)
def test_one_form_masks_and_the_rest_is_checked(  # the columns of a table
    constraints, verifiers, form, masked, checked
):
    """JSON before a grammar before a regex; each field is accounted for, one way or the other."""
    given = policy(*verifiers, **constraints)
    found = enforced(given)
    forms = [
        name
        for name in ("json_schema", "json_object", "grammar", "regex_pattern")
        if getattr(found, name) not in (None, False)
    ]
    assert forms == ([] if form is None else [form])
    assert found.constrained == (form is not None)
    assert (found.masked, found.checked) == (masked, checked)
    assert set(masked) | set(checked) == set(constraints)
    assert found.forbidden_terms == tuple(constraints.get("forbidden_terms", ()))


def test_a_grammar_that_does_not_compile_is_checked():
    """Then a regex beside it masks."""
    found = enforced(policy(grammar="'a' then 'b'", regex_pattern="a.*b"), grammar_compiles=False)
    assert (found.grammar, found.regex_pattern) == (None, "a.*b")
    assert (found.masked, found.checked) == (("regex_pattern",), ("grammar",))


CALL = '{"tool_name": "t", "arguments": %s}'
# Texts that both the mask and the judge take, and texts that both refuse.
AGREED = [
    (policy(json_schema={}), ["{}", '{"a": [1]}'], ["[1]", "5"]),
    (policy(json_schema={"title": "any"}), ["{}"], ['"x"']),
    (policy(json_schema=SCHEMA), ['{"n": 1}'], ["{}", '{"n": "1"}']),
    (policy(required_fields=["a"]), ['{"a": 1}', '{"a": 1, "b": 2}'], ["{}", '{"b": 1}', "[]"]),
    (policy(json_schema={"type": "object"}, required_fields=["a"]), ['{"a": 1, "b": 2}'], ["{}"]),
    (policy(json_schema=SCHEMA, required_fields=["a"]), ['{"n": 1, "a": "x"}'], ['{"n": 1}', '{"a": 1}']),
    (policy(json_schema=SCHEMA, required_fields=["n"]), ['{"n": 1}'], ["{}"]),
    (
        policy(json_schema={"type": "object", "required": ["a"]}, required_fields=["a"]),
        ['{"a": 1}', '{"a": 1, "b": 2}'],
        ["{}"],
    ),
    (
        policy(json_schema={**SCHEMA, "additionalProperties": {"type": "integer"}}, required_fields=["a"]),
        ['{"n": 1, "a": 2}'],
        ['{"n": 1, "a": "x"}', '{"n": 1}'],
    ),
    (policy(tool_schema={}), [CALL % "{}", CALL % '{"x": 1}'], [CALL % "5", '{"tool_name": "t"}']),
    (policy("tool_args"), [CALL % '{"x": [1]}'], []),
    (policy(tool_schema=SCHEMA), [CALL % '{"n": 1}'], [CALL % "{}", CALL % '{"n": "x"}', '{"n": 1}']),
    (
        policy(tool_schema=SCHEMA, required_fields=["id"]),
        ['{"tool_name": "t", "arguments": {"n": 1}, "id": 7}'],
        [CALL % '{"n": 1}'],
    ),
    (
        policy(required_fields=["tool_name", "arguments"], tool_schema=SCHEMA),
        [CALL % '{"n": 1}'],
        [CALL % "{}"],
    ),
    (
        policy(
            tool_schema={
                "type": "object",
                "properties": {"p": {"$ref": "#/$defs/P"}},
                "required": ["p"],
                "$defs": {"P": {"type": "integer"}, "default": {"type": "null"}},
            }
        ),
        [CALL % '{"p": 1}'],
        [CALL % '{"p": "1"}', CALL % "{}"],
    ),
    (
        policy(tool_schema={"type": "object", "properties": {"in": {"$ref": "#"}}}),
        [CALL % '{"in": {"in": {}}}'],
        [CALL % '{"in": 5}'],
    ),
    (
        policy(tool_schema={"$ref": "#/$defs/A", "$defs": {"A": SCHEMA}}),
        [CALL % '{"n": 1}'],
        [CALL % '{"n": "x"}'],
    ),
]


@pytest.mark.parametrize(("given", "good", "bad"), AGREED)
def test_the_mask_and_the_judge_agree(given, good, bad):
    """What the judge accepts can be written under the mask, and what it rejects cannot."""
    for text in good:
        assert (admits(given, text), accepts(given, text)) == (True, True), text
    for text in bad:
        assert (admits(given, text), accepts(given, text)) == (False, False), text


@pytest.mark.parametrize(
    "schema",
    [
        {**SCHEMA, "additionalProperties": False, "patternProperties": {"^a": {}}},
        {"anyOf": [SCHEMA, {"type": "object"}]},
        {"properties": 5},
        {"required": "n"},
        {"$ref": "#/$defs/a", "$defs": {"a": SCHEMA}},
    ],
)
def test_required_fields_that_a_schema_leaves_no_place_for(schema):
    """They are checked on the text, and the schema masks as it is."""
    found = enforced(policy(json_schema=schema, required_fields=["a"]))
    assert found.json_schema in (schema, {**schema, "type": "object"})
    assert found.checked == ("required_fields",)
    assert not accepts(policy(json_schema=schema, required_fields=["a"]), '{"n": 1}')


def test_a_policys_own_schemas_are_left_alone():
    """Merging makes new schemas; what the client sent stays as it is."""
    schema = {"type": "object", "properties": {"p": {"$ref": "#"}}}
    for given in (policy(json_schema=schema, required_fields=["a"]), policy(tool_schema=schema)):
        before = given.model_dump_json()
        enforced(given)
        assert given.model_dump_json() == before


def test_only_references_move():
    """A tool's schema refers to itself from where it stands in the call; data that look alike stay."""
    schema = {
        "properties": {"$ref": {"const": {"$ref": "#/x"}}, "default": {"$ref": "#/properties/$ref"}},
        "items": [{"$ref": "#"}, {"$ref": "other.json#/a"}],
    }
    moved = enforced(policy(tool_schema=schema)).json_schema["properties"]["arguments"]
    assert moved == {
        "type": "object",
        "properties": {
            "$ref": {"const": {"$ref": "#/x"}},
            "default": {"$ref": "#/properties/arguments/properties/$ref"},
        },
        "items": [{"$ref": "#/properties/arguments"}, {"$ref": "other.json#/a"}],
    }
