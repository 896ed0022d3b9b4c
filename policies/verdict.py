"""Judge a text against a policy's constraints and verifiers. Pure.

Penalties and reasons are those of Axionic's reference runner; what it names but does not implement
(`tool_args`, `factuality`, grammars that were masked) is defined here.
"""

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import lru_cache
from types import MappingProxyType
from typing import Any

from jsonschema import Draft202012Validator, SchemaError, ValidationError
from jsonschema.validators import validator_for
from referencing import Registry
from referencing.exceptions import Unresolvable

from policies.constraint import literals
from policies.enforced import enforced
from policies.policy import RuntimePolicy

# What each verifier that fails takes from a score of 1, in the order of their reasons.
PENALTIES: Mapping[str, float] = MappingProxyType(
    {
        "syntax": 0.7,
        "json_schema": 0.7,
        "regex": 0.4,
        "code_compile": 0.8,
        "unit_tests": 0.9,
        "tool_args": 0.7,
        "factuality": 0.6,
    }
)
# They need the engine, or a sandbox: their findings are added to a verdict that stands.
ELSEWHERE = ("unit_tests", "factuality")
PASSES = 0.5  # a lone regex mismatch still passes as a verifier; as a constraint it does not
_FENCED = re.compile(r"```[a-zA-Z0-9_+-]*\n(.*?)```", re.DOTALL)


@dataclass(frozen=True, slots=True)
class Verdict:
    """`broken` is the constraint that does not hold, `failed` the reason of each verifier that failed.

    `measured` is what verifiers found beside yes and no, such as P(yes) of `factuality`.
    """

    broken: str | None = None
    failed: Mapping[str, str] = field(default_factory=dict)
    measured: Mapping[str, float] = field(default_factory=dict)

    @property
    def verified(self) -> float:
        return 1.0 - sum(PENALTIES[name] for name in self.failed)

    @property
    def score(self) -> float:
        """1 less the penalty of each failed verifier, less 1 more where a constraint fails."""
        return self.verified - (self.broken is not None)

    @property
    def constraints_ok(self) -> bool:
        return self.broken is None

    @property
    def verifier_ok(self) -> bool:
        return self.verified >= PASSES

    @property
    def accepted(self) -> bool:
        return self.constraints_ok and self.verifier_ok

    @property
    def reasons(self) -> tuple[str, ...]:
        broken = [] if self.broken is None else [f"constraint: {self.broken}"]
        return (
            *broken,
            *(f"{name}_verifier: {self.failed[name]}" for name in PENALTIES if name in self.failed),
        )

    @property
    def reason(self) -> str:
        return " | ".join(self.reasons) or "accepted"

    def found(self, verifier: str, reason: str | None, measured: float | None = None) -> "Verdict":
        """With what one more verifier found; None: it passed."""
        failed = self.failed if reason is None else {**self.failed, verifier: reason}
        more = self.measured if measured is None else {**self.measured, verifier: measured}
        return replace(self, failed=failed, measured=more)


@dataclass(frozen=True, slots=True)
class Text:
    """What is judged; `cut` where its length ended it before it was complete."""

    text: str
    cut: bool = False


def judge(text: Text, policy: RuntimePolicy, *, masked_grammar: bool = True) -> Verdict:
    """By all that needs nothing but the text. A grammar that masked the decoding only fails what was cut
    off; one that could not be compiled, or stands beside JSON, is read as literals that come in order."""
    masked = "grammar" in enforced(policy, grammar_compiles=masked_grammar).masked
    return Verdict(_constraint(text, policy, masked), _verifiers(text.text, policy))


def code_of(text: str) -> str:
    """The first fenced block, or else the whole text."""
    fenced = _FENCED.search(text)
    return (fenced[1] if fenced else text).strip()


def _constraint(judged: Text, policy: RuntimePolicy, masked_grammar: bool) -> str | None:
    """The first that does not hold, in the reference's order."""
    constraints, text = policy.constraints, judged.text
    if constraints.wants_json and (reason := _json_fault(text, policy)):
        return reason
    if constraints.tool_schema is not None and (reason := _tool_fault(text, constraints.tool_schema)):
        return reason
    if constraints.regex_pattern is not None and not re.search(constraints.regex_pattern, text, re.DOTALL):
        return "regex mismatch"
    guidance = constraints.grammar
    if guidance is not None and (judged.cut if masked_grammar else not _in_order(text, guidance)):
        return "grammar mismatch"
    found = next((term for term in constraints.forbidden_terms if _contains(text, term)), None)
    return None if found is None else f"forbidden term '{found}'"


def _contains(text: str, term: str) -> bool:
    return term.lower() in text.lower() or term.casefold() in text.casefold()


def _json_fault(text: str, policy: RuntimePolicy) -> str | None:
    value = _json_object(text)
    if value is None:
        return "invalid json"
    for name in policy.constraints.required_fields:
        if name not in value:
            return f"missing required field '{name}'"
    schema = policy.constraints.json_schema
    return None if schema is None else schema_fault(value, schema)


def _verifiers(text: str, policy: RuntimePolicy) -> dict[str, str]:
    constraints, enabled = policy.constraints, policy.verifiers.enabled
    failed: dict[str, str] = {}
    value = _json_object(text)
    if constraints.json_mode and value is None:
        failed["syntax"] = "invalid json"
    if "json_schema" in enabled and constraints.json_schema is not None:
        reason = "invalid json" if value is None else schema_fault(value, constraints.json_schema)
        if reason is not None:
            failed["json_schema"] = reason
    pattern = constraints.regex_pattern
    if "regex" in enabled and pattern is not None and not re.search(pattern, text, re.DOTALL):
        failed["regex"] = "regex mismatch"
    language = policy.verifiers.code_language
    for name in ("code_compile", "unit_tests"):
        if name in enabled and language.strip().lower() != "python":
            failed[name] = f"unsupported language '{language}'"
    if "code_compile" in enabled and "code_compile" not in failed and (reason := _compile_fault(text)):
        failed["code_compile"] = reason
    if "tool_args" in enabled and (reason := _tool_fault(text, constraints.tool_schema)):
        failed["tool_args"] = reason
    return failed


def _compile_fault(text: str) -> str | None:
    try:
        compile(code_of(text), "<candidate>", "exec")
    except (SyntaxError, ValueError, RecursionError, MemoryError, OverflowError) as error:
        return str(error) or type(error).__name__
    return None


def _tool_fault(text: str, schema: Mapping[str, Any] | None) -> str | None:
    value = _json_object(text)
    if value is None:
        return "the tool call is no json object"
    if not isinstance(value.get("tool_name"), str) or not value["tool_name"]:
        return "the tool call has no 'tool_name'"
    if not isinstance(value.get("arguments"), dict):
        return "the tool call has no 'arguments' object"
    if schema is not None and (reason := schema_fault(value["arguments"], schema)):
        return f"arguments: {reason}"
    return None


def _in_order(text: str, guidance: str) -> bool:
    cursor, lowered = 0, text.lower()
    for literal in map(str.lower, literals(guidance)):
        found = lowered.find(literal, cursor)
        if found < 0:
            return False
        cursor = found + len(literal)
    return True


def schema_fault(value: Any, schema: Mapping[str, Any]) -> str | None:
    """Why `value` is not as `schema` says. Nothing outside the schema is ever fetched."""
    try:
        _validator(json.dumps(schema)).validate(value)
    except ValidationError as error:
        return f"schema violation ({error.message})"
    except SchemaError as error:
        return f"schema violation (the schema itself is invalid: {error.message})"
    except Unresolvable as error:
        return f"schema violation (the schema itself is invalid: {error.ref} is not within it)"
    except RecursionError:
        return "schema violation (the schema refers to itself without end)"
    return None


@lru_cache(maxsize=256)
def _validator(schema: str) -> Any:
    """Checked once: that takes fifty times as long as a short answer. Raises SchemaError."""
    parsed = json.loads(schema)
    kind = validator_for(parsed, default=Draft202012Validator)
    kind.check_schema(parsed)
    # A registry of our own, because jsonschema's would fetch what a client's `$ref` names.
    return kind(parsed, registry=Registry())


def _json_object(text: str) -> dict[str, Any] | None:
    """The JSON object that `text` is, or else the one from its first brace to its last."""
    text = text.strip()
    for part in (text, text[text.find("{") : text.rfind("}") + 1]):
        try:
            value = json.loads(part)
        except (ValueError, RecursionError):
            continue
        return value if isinstance(value, dict) else None
    return None
