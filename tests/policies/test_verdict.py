"""What a policy says of a text."""

import socket

import pytest
from hypothesis import given
from hypothesis import strategies as st

from policies.policy import RuntimePolicy
from policies.verdict import PENALTIES, Text, Verdict, code_of
from policies.verdict import judge as judge_text

SCHEMA = {"type": "object", "properties": {"n": {"type": "integer"}}, "required": ["n"]}


def policy(*verifiers: str, **constraints: object) -> RuntimePolicy:
    return RuntimePolicy.model_validate(
        {"constraints": constraints, "verifiers": {"enabled": list(verifiers)}}
    )


def judge(text: str, given: RuntimePolicy, *, cut: bool = False, masked_grammar: bool = True) -> Verdict:
    return judge_text(Text(text, cut), given, masked_grammar=masked_grammar)


@given(st.text(), st.booleans())
def test_without_constraints_every_text_passes(text, cut):
    """Nothing asked, nothing refused: score 1 and the reason "accepted"."""
    verdict = judge(text, policy(), cut=cut)
    assert (verdict.score, verdict.accepted, verdict.reason) == (1.0, True, "accepted")


@pytest.mark.parametrize(
    ("text", "constraints", "verifiers", "score", "constraints_ok", "verifier_ok"),
    [
        # The penalties of the contract: syntax 0.7, json_schema 0.7, regex 0.4, a constraint 1 more.
        ('{"n": 1}', {"json_mode": True, "json_schema": SCHEMA}, ["json_schema"], 1.0, True, True),
        ("no", {"json_mode": True}, [], 1 - 0.7 - 1, False, False),
        ("no", {"json_mode": True}, ["syntax"], 1 - 0.7 - 1, False, False),
        ("no", {"json_schema": SCHEMA}, [], 1 - 1, False, True),
        ('{"n": "x"}', {"json_schema": SCHEMA}, ["json_schema"], 1 - 0.7 - 1, False, False),
        ("[1]", {"required_fields": ["a"]}, [], 1 - 1, False, True),
        ("{}", {"json_mode": True, "required_fields": ["a"]}, ["syntax"], 1 - 1, False, True),
        ("a banana", {"forbidden_terms": ["BAN"]}, [], 1 - 1, False, True),
        ("x = (", {}, ["code_compile"], 1 - 0.8, True, False),
        ("x = 1", {}, ["code_compile"], 1.0, True, True),
        ("no", {}, ["tool_args"], 1 - 0.7, True, False),
        ("no", {"tool_schema": SCHEMA}, [], 1 - 1, False, True),
        ("no", {"tool_schema": SCHEMA}, ["tool_args"], 1 - 0.7 - 1, False, False),
        (
            "no (",
            {"json_mode": True, "regex_pattern": "x"},
            ["regex", "code_compile", "tool_args"],
            1 - 0.7 - 0.4 - 0.8 - 0.7 - 1,
            False,
            False,
        ),
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


def test_required_fields():
    """Each is a key of the object itself; the first that is missing is named, before the schema is read."""
    given = policy(required_fields=["a", "b"], json_schema={"required": ["c"]})
    assert judge("{}", given).broken == "missing required field 'a'"
    assert judge('{"a": null, "x": {"b": 1}}', given).broken == "missing required field 'b'"
    assert judge('{"a": 1, "b": 2}', given).broken == "schema violation ('c' is a required property)"
    assert judge('{"a": 1, "b": 2, "c": 3}', given).accepted


@pytest.mark.parametrize(
    ("text", "term"),
    [("a Banana", "banana"), ("STRASSE", "straße"), ("straße", "STRASSE"), ("İx", "İ"), ("x.y", ".")],
)
def test_forbidden_terms(text, term):
    """A term is found in any case and within words; the first in the policy's order is named."""
    verdict = judge(text, policy(forbidden_terms=["zebra", term]))
    assert verdict.broken == f"forbidden term '{term}'"
    assert judge("clean", policy(forbidden_terms=["zebra", "quagga"])).accepted


def test_constraints_come_in_order():
    """The first constraint that fails is the one that is told: JSON, tool call, regex, grammar, terms."""
    given = {"regex_pattern": "x", "grammar": "'one' 'two'", "forbidden_terms": ["bad"]}
    assert judge("bad", policy(json_mode=True, **given)).broken == "invalid json"
    assert judge("bad", policy(tool_schema={}, **given)).broken == "the tool call is no json object"
    assert judge("bad", policy(**given), masked_grammar=False).broken == "regex mismatch"
    assert judge("bad x", policy(**given), masked_grammar=False).broken == "grammar mismatch"
    assert judge("bad x one two", policy(**given), masked_grammar=False).broken == "forbidden term 'bad'"


@pytest.mark.parametrize(
    ("text", "ok"),
    [
        ("one and two", True),
        ("ONE, Two", True),
        ("two and one", False),
        ("one", False),
        ("onetwo", True),
        ("", False),
    ],
)
def test_a_grammar_that_is_none_is_read_as_literals(text, ok):
    """Its quoted literals occur in order, whatever their case, without overlap."""
    given = policy(grammar="first 'one', then \"two\"")
    assert judge(text, given, masked_grammar=False).constraints_ok is ok
    assert judge("aba", policy(grammar="'ab' 'ba'"), masked_grammar=False).broken == "grammar mismatch"


def test_a_grammar_that_masked_rejects_what_was_cut():
    """Decoding held to it, so only a text that its length ended can break it."""
    given = policy(grammar='root ::= "yes" | "no"')
    assert judge("no", given).accepted
    assert judge("n", given, cut=True).broken == "grammar mismatch"


def test_a_grammar_beside_json_did_not_mask():
    """One form masks at a time: beside JSON the grammar is read as literals, though it would compile."""
    given = policy(json_mode=True, grammar="'a' 'b'")
    assert judge('{"a": "b"}', given).accepted
    assert judge('{"b": "a"}', given).broken == "grammar mismatch"
    call = '{"tool_name": "t", "arguments": {}}'
    assert judge(call, policy("tool_args", grammar="'z'")).broken == "grammar mismatch"


@pytest.mark.parametrize(
    ("text", "code"),
    [
        ("x = 1", "x = 1"),
        ("Sure:\n```python\nx = 1\n```\nand\n```\ny\n```", "x = 1"),
        ("```\n a\n```", "a"),
        ("```python\nx = 1", "```python\nx = 1"),
    ],
)
def test_code_is_the_first_fenced_block(text, code):
    """Or else the whole text."""
    assert code_of(text) == code


@pytest.mark.parametrize("text", ["x = (", "\0", "(" * 100_000, "return 1", "x = '\\ud800'\n\ud800"])
def test_code_that_does_not_compile(text):
    """It rejects with what Python said, whatever that was."""
    verdict = judge(text, policy("code_compile"))
    assert not verdict.accepted
    assert verdict.reason.startswith("code_compile_verifier: ")
    assert len(verdict.reason) > len("code_compile_verifier: ")


def test_another_language_is_unsupported():
    """Code verifiers fail and say so; unit tests are then not run at all."""
    controls = {
        "enabled": ["code_compile", "unit_tests"],
        "code_unit_tests": ["assert True"],
        "code_language": "Rust",
    }
    verdict = judge("fn main() {}", RuntimePolicy.model_validate({"verifiers": controls}))
    assert verdict.failed == dict.fromkeys(("code_compile", "unit_tests"), "unsupported language 'Rust'")
    assert verdict.score == pytest.approx(1 - 0.8 - 0.9)
    python = RuntimePolicy.model_validate({"verifiers": {**controls, "code_language": " PYTHON "}})
    assert judge("x = 1", python).accepted


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("no", "the tool call is no json object"),
        ('{"arguments": {}}', "the tool call has no 'tool_name'"),
        ('{"tool_name": "", "arguments": {}}', "the tool call has no 'tool_name'"),
        ('{"tool_name": 5, "arguments": {}}', "the tool call has no 'tool_name'"),
        ('{"tool_name": "t"}', "the tool call has no 'arguments' object"),
        ('{"tool_name": "t", "arguments": [1]}', "the tool call has no 'arguments' object"),
        ('{"tool_name": "t", "arguments": {}}', "arguments: schema violation ('n' is a required property)"),
        ('{"tool_name": "t", "arguments": {"n": 1}}', None),
        ('Call: {"tool_name": "t", "arguments": {"n": 1}, "id": 7}', None),
    ],
)
def test_tool_calls(text, reason):
    """A call has a name and arguments, these as the tool's schema says: as constraint and as verifier."""
    verdict = judge(text, policy("tool_args", tool_schema=SCHEMA))
    assert (verdict.broken, verdict.failed.get("tool_args")) == (reason, reason)


def test_what_other_verifiers_find():
    """A verifier that needs more than the text adds its finding: a reason costs its penalty."""
    good = Verdict().found("factuality", None, 0.75)
    assert (good.accepted, good.score, dict(good.measured)) == (True, 1.0, {"factuality": 0.75})
    bad = good.found("factuality", "doubtful", 0.25).found("unit_tests", "AssertionError")
    assert bad.score == pytest.approx(1 - 0.6 - 0.9)
    assert bad.reasons == ("unit_tests_verifier: AssertionError", "factuality_verifier: doubtful")
    assert not good.found("factuality", "doubtful").accepted


@given(st.sets(st.sampled_from(sorted(PENALTIES))), st.booleans())
def test_what_is_accepted(failed, broken):
    """Accepted: no constraint broken and verifiers that leave one half at least, as regex alone does."""
    verdict = Verdict("x" if broken else None, dict.fromkeys(failed, "y"))
    assert verdict.verifier_ok == (failed <= {"regex"})
    assert verdict.accepted == (verdict.verifier_ok and not broken)
    assert verdict.score == pytest.approx(1 - sum(PENALTIES[name] for name in failed) - broken)
    assert len(verdict.reasons) == len(failed) + broken


def test_white_space_around_json():
    """Any white space counts, not JSON's own only: a list stays one."""
    assert not judge('\u00a0[{"a": 1}]', policy(json_mode=True)).constraints_ok
    assert judge('\u00a0{"a": 1}\u2003', policy(json_mode=True)).constraints_ok
