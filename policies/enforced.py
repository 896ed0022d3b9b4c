"""What of a policy's constraints decoding itself can hold to: one mask, and terms that are banned.

The rest is checked on the text. Every constraint is checked there again in any case.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from policies.policy import RuntimePolicy

_TOOL_CALL = ("tool_name", "arguments")


@dataclass(frozen=True, slots=True)
class Enforced:
    """At most one of the first four is set: xgrammar masks by one constraint at a time.

    `masked` and `checked` are the policy's fields that each way accounts for.
    """

    json_schema: Mapping[str, Any] | None = None
    json_object: bool = False
    grammar: str | None = None
    regex_pattern: str | None = None
    forbidden_terms: tuple[str, ...] = ()
    masked: tuple[str, ...] = ()
    checked: tuple[str, ...] = ()

    @property
    def constrained(self) -> bool:
        return self.json_object or any(
            given is not None for given in (self.json_schema, self.grammar, self.regex_pattern)
        )


def enforced(policy: RuntimePolicy, *, grammar_compiles: bool = True) -> Enforced:
    """JSON comes before a grammar, a grammar before a regex: the stricter form of one answer."""
    constraints = policy.constraints
    schema, whole = _json(policy)
    wants_json = schema is not None or constraints.json_mode
    json_fields = [
        name
        for name in ("json_mode", "json_schema", "required_fields", "tool_schema")
        if getattr(constraints, name)
    ]
    checked = [] if whole else ["required_fields"]
    masked = [name for name in json_fields if name not in checked]
    grammar = constraints.grammar if grammar_compiles and not wants_json else None
    regex = constraints.regex_pattern if not wants_json and grammar is None else None
    for name, value in (("grammar", grammar), ("regex_pattern", regex)):
        if getattr(constraints, name) is not None:
            (checked if value is None else masked).append(name)
    if constraints.forbidden_terms:
        masked.append("forbidden_terms")
    return Enforced(
        json_schema=schema,
        json_object=wants_json and schema is None,
        grammar=grammar,
        regex_pattern=regex,
        forbidden_terms=tuple(constraints.forbidden_terms),
        masked=tuple(masked),
        checked=tuple(checked),
    )


def _json(policy: RuntimePolicy) -> tuple[dict[str, Any] | None, bool]:
    """The schema of the whole answer, None for any object; and whether it holds all required fields."""
    constraints = policy.constraints
    if constraints.json_schema is not None:
        return _requiring(constraints.json_schema, constraints.required_fields)
    calls = constraints.tool_schema is not None or "tool_args" in policy.verifiers.enabled
    if not calls:
        if not constraints.required_fields:
            return None, True
        return _requiring({"type": "object", "properties": {}}, constraints.required_fields)
    call = {
        "type": "object",
        "properties": {
            "tool_name": {"type": "string", "minLength": 1},
            "arguments": constraints.tool_schema or {"type": "object", "additionalProperties": True},
        },
        "required": list(_TOOL_CALL),
    }
    return _requiring(call, constraints.required_fields)


def _requiring(schema: Mapping[str, Any], fields: list[str]) -> tuple[dict[str, Any], bool]:
    """`schema` with `fields` required: any value where it does not say which.

    Not where the schema's own form leaves no place for them, as with a `$ref` at its root.
    """
    properties = schema.get("properties")
    missing = [field for field in fields if field not in (schema.get("required") or ())]
    if not missing:
        return dict(schema), True
    if not isinstance(properties, dict) or "$ref" in schema:
        return dict(schema), False
    unknown = [field for field in missing if field not in properties]
    if unknown and schema.get("additionalProperties") is False:
        return dict(schema), False
    return {
        **schema,
        "properties": {**properties, **{field: {} for field in unknown}},
        "required": [*(schema.get("required") or ()), *missing],
    }, True
