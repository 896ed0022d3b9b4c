"""What a constraint refuses before any compiler sees it."""

import json
from typing import Any

import pytest

from policies import constraint
from policies.constraint import (
    Constraint,
    ConstraintError,
    from_choice,
    from_grammar,
    from_json_schema,
    from_regex,
    from_structural_tag,
)


def nested(depth: int) -> Any:
    schema: Any = {"type": "string"}
    for _ in range(depth):
        schema = {"items": schema}
    return schema


def test_schema_keeps_the_order_of_its_keys():
    """The output follows the schema's order, so the canonical text must not sort it."""
    schema = {"type": "object", "properties": {"z": {"type": "string"}, "a": {"type": "integer"}}}
    for given in (schema, json.dumps(schema, indent=3)):
        built = from_json_schema(given)
        assert built.kind == "json"
        assert list(json.loads(built.spec)["properties"]) == ["z", "a"]
    assert from_json_schema(schema) == from_json_schema(json.dumps(schema, indent=3))


@pytest.mark.parametrize(
    ("text", "built"),
    [
        ("regex:[0-9]+:x", Constraint("regex", "[0-9]+:x")),
        (' regex:"a"', Constraint("regex", '"a"')),
        ('root ::= "a"', Constraint("grammar", 'root ::= "a"')),
        ('regex::= "a"\nroot ::= regex', Constraint("grammar", 'regex::= "a"\nroot ::= regex')),
        ('start: "a"', Constraint("grammar", 'start: "a"')),
        ("Be brief.", Constraint("grammar", "Be brief.")),
    ],
)
def test_grammar_ladder(text: str, built: Constraint):
    """A prefix makes a regex; any other text is a grammar, whose dialect the compiler tells apart."""
    assert from_grammar(text) == built


@pytest.mark.parametrize(
    ("build", "value", "limit"),
    [
        (from_json_schema, nested(10_000), "64 levels"),
        (from_json_schema, '{"items":' * 5_000 + "{}" + "}" * 5_000, "64 levels"),
        (from_json_schema, "[" * 60_000, "64 levels"),
        (from_json_schema, {"enum": list(range(1_000_000))}, "10000 values"),
        (from_json_schema, {"anyOf": [{"const": n} for n in range(10_001)]}, "10000 values"),
        (from_json_schema, {"properties": {f"p{n}": {} for n in range(513)}}, "512 properties"),
        (from_json_schema, {"description": "x" * 70_000}, "65536 are allowed"),
        (from_json_schema, {"type": "string", "maxLength": 2**31}, "`maxLength` is at most 2147483647"),
        (from_json_schema, {"type": "string", "pattern": "a{1,99999999999}"}, "at most 2147483647"),
        (from_regex, "a{" + "9" * 10_000 + "}", "at most 2147483647"),
        (from_regex, "a" * 70_000, "65536 are allowed"),
        (from_grammar, "regex:" + "a" * 70_000, "65536 are allowed"),
        (from_choice, ["a"] * 10_001, "10000 strings"),
        (from_structural_tag, {"format": nested(80)}, "64 levels"),
    ],
)
def test_oversize_is_refused_by_a_message_that_names_the_limit(build: Any, value: Any, limit: str):
    """Each static limit refuses what exceeds it and says what would pass."""
    with pytest.raises(ConstraintError) as refusal:
        build(value)
    assert limit in refusal.value.reason


@pytest.mark.parametrize(
    ("build", "value", "reason"),
    [
        (from_json_schema, "{", "not JSON"),
        (from_json_schema, '{"const": NaN}', "not JSON"),
        (from_json_schema, {"const": float("inf")}, "not JSON"),
        (from_json_schema, [1], "an array"),
        (from_json_schema, True, "a boolean"),
        (from_json_schema, None, "null"),
        (from_json_schema, {"const": "\ud800"}, "Unicode"),
        (from_regex, "a\0b", "NUL"),
        (from_grammar, " \n", "empty"),
        (from_choice, [], "at least one"),
        (from_choice, [1], "list of strings"),
        (from_structural_tag, "[]", "an array"),
    ],
)
def test_what_is_no_constraint_is_refused(build: Any, value: Any, reason: str):
    """A value that cannot be what it claims to be never reaches the compiler."""
    with pytest.raises(ConstraintError) as refusal:
        build(value)
    assert reason in refusal.value.reason


def test_limits_spare_ordinary_schemas():
    """Deep, wide and recursive schemas as people write them pass, and so do names that look like keywords."""
    tree = {"properties": {"children": {"type": "array", "items": {"$ref": "#"}, "maxItems": 10**9}}}
    wide = {"properties": {f"field_{n}": {"enum": ["a", "b", "c"]} for n in range(500)}}
    named = {"properties": {"enum": {"type": "string"}, "maxLength": {"type": "integer"}, "const": {}}}
    data = {"const": {"properties": {f"p{n}": 1 for n in range(600)}, "maxLength": 2**40}}
    for schema in (tree, wide, named, data, nested(constraint.MAX_NESTING - 1)):
        assert json.loads(from_json_schema(schema).spec) == schema


@pytest.mark.parametrize(
    ("text", "guides"),
    [
        ("say 'x'", True),
        ('say "x"', True),
        ("say '' or \"\"", False),
        ("be brief", False),
        ('root ::= "x"', False),
        (" regex: 'x'", False),
    ],
)
def test_guidance(text, guides):
    """A text with something in quotes, which claims to be no grammar and no pattern."""
    assert constraint.is_guidance(text) is guides
