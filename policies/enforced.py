"""What of a policy's constraints decoding itself can hold to: one mask, and terms that are banned.

The rest is checked on the text. Every constraint is checked there again in any case.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from policies.constraint import MAP_KEYWORDS, VALUE_KEYWORDS
from policies.policy import RuntimePolicy

_TOOL_CALL = ("tool_name", "arguments")
# Beside these, compilers look at no properties.
_DECISIVE = frozenset({"$ref", "const", "enum", "anyOf", "oneOf", "allOf"})


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
        if getattr(constraints, name) not in (None, False, [])
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
        return _requiring(_object(constraints.json_schema), constraints.required_fields)
    if constraints.tool_schema is None and "tool_args" not in policy.verifiers.enabled:
        if not constraints.required_fields:
            return None, True
        return _requiring({"type": "object"}, constraints.required_fields)
    call = {
        "type": "object",
        "properties": {
            "tool_name": {"type": "string", "minLength": 1},
            "arguments": _moved(_object(constraints.tool_schema or {}), "#/properties/arguments"),
        },
        "required": list(_TOOL_CALL),
    }
    return _requiring(call, constraints.required_fields)


def _object(schema: Mapping[str, Any]) -> dict[str, Any]:
    """`schema`, for objects alone where it does not say of what type: every constraint wants one."""
    typed = {"type", *_DECISIVE} & schema.keys()
    return dict(schema) if typed else {**schema, "type": "object"}


def _moved(schema: Any, place: str) -> Any:
    """`schema` as a part of another, at `place`: what it refers to in itself is there."""
    if isinstance(schema, list):
        return [_moved(each, place) for each in schema]
    if not isinstance(schema, dict):
        return schema
    moved: dict[str, Any] = {}
    for keyword, value in schema.items():
        if keyword in MAP_KEYWORDS and isinstance(value, dict):
            moved[keyword] = {name: _moved(each, place) for name, each in value.items()}
        else:
            moved[keyword] = value if keyword in VALUE_KEYWORDS else _moved(value, place)
    target = moved.get("$ref")
    if isinstance(target, str) and (target == "#" or target.startswith("#/")):
        moved["$ref"] = place + target[1:]
    return moved


def _requiring(schema: dict[str, Any], fields: list[str]) -> tuple[dict[str, Any], bool]:
    """`schema` with `fields` required and declared, which compilers need: any value where it does not say.

    Not where the schema's own form leaves no place for them, as with a `$ref` at its root.
    """
    properties, others = schema.get("properties", {}), schema.get("additionalProperties")
    required = schema.get("required", [])
    if not isinstance(properties, dict) or not isinstance(required, list):
        return schema, False
    unknown = [field for field in fields if field not in properties]
    missing = [field for field in fields if field not in required]
    if not unknown and not missing:
        return schema, True
    if _DECISIVE & schema.keys() or (unknown and others is False):
        return schema, False
    # Declared properties would else be the only ones, where the schema has none of its own.
    more = {} if properties or "additionalProperties" in schema else {"additionalProperties": True}
    return {
        **schema,
        **more,
        "properties": {
            **properties,
            **{field: others if isinstance(others, dict) else {} for field in unknown},
        },
        "required": [*required, *missing],
    }, True
