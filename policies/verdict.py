"""Judge a text against a policy's constraints and verifiers. Pure."""

import json
import re
from dataclasses import dataclass
from typing import Any

from jsonschema import Draft202012Validator, SchemaError, ValidationError
from jsonschema.validators import validator_for
from referencing import Registry
from referencing.exceptions import Unresolvable

from policies.policy import RuntimePolicy

_PENALTIES = {"syntax": 0.7, "json_schema": 0.7, "regex": 0.4}
_PASSES = 0.5  # a lone regex mismatch still passes as a verifier; as a constraint it does not


@dataclass(frozen=True, slots=True)
class Verdict:
    """`score` is 1 less the penalty of each failed verifier, less 1 more where a constraint fails."""

    score: float
    constraints_ok: bool
    verifier_ok: bool
    reasons: tuple[str, ...]

    @property
    def accepted(self) -> bool:
        return self.constraints_ok and self.verifier_ok

    @property
    def reason(self) -> str:
        return " | ".join(self.reasons) if self.reasons else "accepted"


def judge(text: str, policy: RuntimePolicy) -> Verdict:
    broken = _constraint(text, policy)
    failed = _verifiers(text, policy)
    score = 1.0 - sum(_PENALTIES[name] for name in failed)
    reasons = [f"constraint: {broken}"] if broken else []
    reasons += [f"{name}_verifier: {reason}" for name, reason in failed.items()]
    return Verdict(score - bool(broken), broken is None, score >= _PASSES, tuple(reasons))


def _constraint(text: str, policy: RuntimePolicy) -> str | None:
    constraints = policy.constraints
    if constraints.json_mode or constraints.json_schema is not None:
        reason = _json_fault(text, constraints.json_schema)
        if reason is not None:
            return reason
    if constraints.regex_pattern is not None and not re.search(constraints.regex_pattern, text, re.DOTALL):
        return "regex mismatch"
    return None


def _verifiers(text: str, policy: RuntimePolicy) -> dict[str, str]:
    constraints, enabled = policy.constraints, policy.verifiers.enabled
    failed: dict[str, str] = {}
    if constraints.json_mode and _json_fault(text, None) is not None:
        failed["syntax"] = "invalid json"
    if "json_schema" in enabled and constraints.json_schema is not None:
        reason = _json_fault(text, constraints.json_schema)
        if reason is not None:
            failed["json_schema"] = reason
    pattern = constraints.regex_pattern
    if "regex" in enabled and pattern is not None and not re.search(pattern, text, re.DOTALL):
        failed["regex"] = "regex mismatch"
    return failed


def _json_fault(text: str, schema: dict[str, Any] | None) -> str | None:
    value = _json_object(text)
    if value is None:
        return "invalid json"
    if schema is None:
        return None
    kind = validator_for(schema, default=Draft202012Validator)
    try:
        kind.check_schema(schema)
        # A registry of our own, because jsonschema's would fetch what a client's `$ref` names.
        kind(schema, registry=Registry()).validate(value)
    except ValidationError as error:
        return f"schema violation ({error.message})"
    except SchemaError as error:
        return f"schema violation (the schema itself is invalid: {error.message})"
    except Unresolvable as error:
        return f"schema violation (the schema itself is invalid: {error.ref} is not within it)"
    except RecursionError:
        return "schema violation (the schema refers to itself without end)"
    return None


def _json_object(text: str) -> dict[str, Any] | None:
    """The JSON object that `text` is, or else the one from its first brace to its last."""
    for part in (text, text[text.find("{") : text.rfind("}") + 1]):
        try:
            value = json.loads(part)
        except (ValueError, RecursionError):
            continue
        return value if isinstance(value, dict) else None
    return None
