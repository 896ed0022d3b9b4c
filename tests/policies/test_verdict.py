"""What a policy says of a text."""

import socket

import pytest
from hypothesis import given
from hypothesis import strategies as st

from policies.policy import RuntimePolicy
from policies.verdict import judge

SCHEMA = {"type": "object", "properties": {"n": {"type": "integer"}}, "required": ["n"]}


def policy(*verifiers: str, **constraints: object) -> RuntimePolicy:
    return RuntimePolicy.model_validate(
        {"constraints": constraints, "verifiers": {"enabled": list(verifiers)}}
    )


@given(st.text())
def test_without_constraints_every_text_passes(text):
    """Nothing asked, nothing refused: score 1 and the reason "accepted"."""
    verdict = judge(text, policy("syntax", "json_schema", "regex"))
    assert (verdict.score, verdict.accepted, verdict.reason) == (1.0, True, "accepted")


@pytest.mark.parametrize(
    ("text", "constraints", "verifiers", "score", "constraints_ok", "verifier_ok"),
    [
        # The penalties of the contract: syntax 0.7, json_schema 0.7, regex 0.4, a constraint 1 more.
        ('{"n": 1}', {"json_mode": True, "json_schema": SCHEMA}, ["json_schema"], 1.0, True, True),
        ("no", {"json_mode": True}, [], 1 - 0.7 - 1, False, False),
        ("no", {"json_mode": True}, ["syntax"], 1 - 0.7 - 1, False, False),
        ("no", {"json_schema": SCHEMA}, [], 1 - 1, False, True),
        ("no", {"json_schema": SCHEMA}, ["syntax"], 1 - 1, False, True),
        ('{"n": "x"}', {"json_schema": SCHEMA}, ["json_schema"], 1 - 0.7 - 1, False, False),
        ('{"n": "x"}', {"json_mode": True}, ["json_schema"], 1.0, True, True),
        ("no", {"json_mode": True, "json_schema": SCHEMA}, ["json_schema"], 1 - 1.4 - 1, False, False),
        ("x", {"regex_pattern": r"\d"}, [], 1 - 1, False, True),
        ("x", {"regex_pattern": r"\d"}, ["regex"], 1 - 0.4 - 1, False, True),
        ("x1", {"regex_pattern": r"\d"}, ["regex"], 1.0, True, True),
    ],
)
def test_scores(  # noqa: PLR0917  # the columns of a table
    text, constraints, verifiers, score, constraints_ok, verifier_ok
):
    """Each failed verifier and each broken constraint costs what the API promises."""
    verdict = judge(text, policy(*verifiers, **constraints))
    assert verdict.score == pytest.approx(score)
    assert (verdict.constraints_ok, verdict.verifier_ok) == (constraints_ok, verifier_ok)
    assert verdict.accepted == (constraints_ok and verifier_ok)


def test_reasons():
    """Reasons say which check failed, constraints first, joined by a bar."""
    judged = judge("x", policy("regex", json_mode=True, regex_pattern=r"\d"))
    assert (
        judged.reason
        == "constraint: invalid json | syntax_verifier: invalid json | regex_verifier: regex mismatch"
    )
    judged = judge('{"n": "x"}', policy("json_schema", json_schema=SCHEMA))
    assert judged.reasons[0] == "constraint: schema violation ('x' is not of type 'integer')"
    assert judged.reasons[1].startswith("json_schema_verifier: schema violation (")
    assert judge("x", policy(regex_pattern=r"\d")).reason == "constraint: regex mismatch"


@pytest.mark.parametrize(
    ("text", "ok"),
    [
        ('{"a": 1}', True),
        ('  {"a": {"b": []}}\n', True),
        ('Sure: {"a": 1}. Done', True),
        ('```json\n{"a": 1}\n```', True),
        ("[1]", False),
        ('[{"a": 1}]', False),
        ("1", False),
        ("", False),
        ('{"a": 1', False),
        ('{"a": 1} {"b": 2}', False),
        ("} {", False),
        ("{" * 100_000, False),
        ('{"a":' * 100_000 + "}", False),
    ],
)
def test_json_mode_wants_an_object(text, ok):
    """The whole text, else what stands from the first brace to the last, must be a JSON object."""
    assert judge(text, policy(json_mode=True)).constraints_ok is ok


@pytest.mark.parametrize(
    ("pattern", "text", "ok"),
    [("b", "abc", True), ("^b", "abc", False), ("a.c", "a\nc", True), ("", "", True)],
)
def test_a_regex_is_searched(pattern, text, ok):
    """A pattern may match anywhere, and its dot matches a newline."""
    assert judge(text, policy(regex_pattern=pattern)).constraints_ok is ok


def test_an_empty_schema_still_wants_json():
    """`json_schema: {}` is a constraint: any JSON object, and nothing else."""
    assert not judge("no", policy(json_schema={})).constraints_ok
    assert judge("{}", policy(json_schema={})).constraints_ok


@pytest.mark.parametrize(
    ("schema", "reason"),
    [
        ({"type": "nothing"}, "the schema itself is invalid"),
        ({"properties": 5}, "the schema itself is invalid"),
        ({"$ref": "#/$defs/missing"}, "/$defs/missing is not within it"),
        ({"pattern": "("}, "the schema itself is invalid"),
        ({"$ref": "#"}, "refers to itself without end"),
    ],
)
def test_an_unsound_schema_accepts_nothing(schema, reason):
    """A schema that cannot be applied rejects, with the reason; it never passes and never fails loudly."""
    verdict = judge("{}", policy(json_schema=schema))
    assert not verdict.constraints_ok
    assert reason in verdict.reason


def test_a_schema_fetches_nothing():
    """A `$ref` to a host is not followed: a client's schema makes the server connect nowhere."""
    with socket.create_server(("127.0.0.1", 0)) as door:
        door.settimeout(0.2)
        url = f"http://127.0.0.1:{door.getsockname()[1]}/schema"
        verdict = judge("{}", policy(json_schema={"$ref": url}))
        with pytest.raises(TimeoutError):
            door.accept()
    assert f"{url} is not within it" in verdict.reason


def test_an_unknown_dialect_is_the_newest():
    """A `$schema` that nobody knows is read as JSON Schema 2020-12."""
    schema = {**SCHEMA, "$schema": "https://example.com/own"}
    assert judge('{"n": 1}', policy(json_schema=schema)).constraints_ok
    assert not judge("{}", policy(json_schema=schema)).constraints_ok
