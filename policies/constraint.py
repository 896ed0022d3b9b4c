"""What generated text must look like: one constraint, in the form the engine's compiler takes.

Building one costs microseconds and refuses only what no compiler should see: text that is not what it claims
to be, and sizes no honest schema has. Whether it compiles is for `server.constraints` to find out.
"""

import json
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal, NoReturn

Kind = Literal["json", "json_object", "regex", "grammar", "choice", "structural_tag"]

MAX_BYTES = 64 * 1024
MAX_NESTING = 64  # of objects and arrays, as in vLLM
MAX_VALUES = 10_000  # in all `enum`s and `const`s together, and of a choice
MAX_PROPERTIES = 512  # of one object: compile time grows with the square of the optional ones
MAX_COUNT = 2**31 - 1  # of a repetition: compilers hold it in 32 bits, and wrap around

_COUNTS = ("minLength", "maxLength", "minItems", "maxItems", "minProperties", "maxProperties")
_REPETITION = re.compile(r"\{\s*(\d*)\s*,?\s*(\d*)\s*\}")
_LITERAL = re.compile(r"'([^']+)'|\"([^\"]+)\"")
VALUE_KEYWORDS = frozenset({"enum", "const", "default", "examples"})  # their content is data, not schema
MAP_KEYWORDS = frozenset({"properties", "patternProperties", "$defs", "definitions", "dependentSchemas"})


class ConstraintError(ValueError):
    """`reason` is a sentence for the client who sent the constraint."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason


@dataclass(frozen=True, slots=True)
class Constraint:
    """`spec` is a JSON schema, regex, grammar (EBNF with `::=`, else Lark), JSON list of strings (choice) or
    structural tag; empty for json_object. JSON keeps the order of its keys: the output follows it.
    """

    kind: Kind
    spec: str


def from_json_schema(schema: object) -> Constraint:
    """A schema as a dict, or as JSON text. Raises ConstraintError."""
    if isinstance(schema, str):
        schema = _parsed(schema, "JSON schema")
    if not isinstance(schema, dict):
        _refuse(f"A JSON schema is an object, not {_kind_of(schema)}.")
    _check_nesting(schema, "JSON schema")
    _check_schema(schema)
    return _sized("json", _dumped(schema), "JSON schema")


def from_regex(pattern: str) -> Constraint:
    """A regular expression that the whole text must match. Raises ConstraintError."""
    if "\0" in pattern:
        _refuse("A regex must not contain a NUL character.")
    _check_repetition(pattern, "regex")
    return _sized("regex", pattern, "regex")


def from_grammar(text: str) -> Constraint:
    """`regex:…` is a regex; a text with `::=` is EBNF (GBNF), any other is Lark. Raises ConstraintError."""
    head, _, pattern = text.partition("regex:")
    if pattern and not head.strip() and not pattern.startswith(":="):
        return from_regex(pattern)
    if not text.strip():
        _refuse("The grammar is empty.")
    _check_repetition(text, "grammar")
    return _sized("grammar", text, "grammar")


def literals(guidance: str) -> list[str]:
    """What stands in quotes in a text that need be no grammar."""
    return [single or double for single, double in _LITERAL.findall(guidance)]


def is_guidance(grammar: str) -> bool:
    """Whether a text can be checked as literals in order, and does not claim to be anything else."""
    formal = "::=" in grammar or grammar.lstrip().startswith("regex:")
    return not formal and bool(literals(grammar))


def from_choice(choices: Sequence[str]) -> Constraint:
    """The text is one of `choices`. Raises ConstraintError."""
    if not choices or not all(isinstance(choice, str) for choice in choices):
        _refuse("A choice is a list of strings and has at least one.")
    if len(choices) > MAX_VALUES:
        _refuse(f"A choice has at most {MAX_VALUES} strings; this has {len(choices)}.")
    return _sized("choice", _dumped(list(choices)), "choice")


def from_structural_tag(tag: object) -> Constraint:
    """A structural tag as a dict, or as JSON text. Raises ConstraintError."""
    if isinstance(tag, str):
        tag = _parsed(tag, "structural tag")
    if not isinstance(tag, dict):
        _refuse(f"A structural tag is an object, not {_kind_of(tag)}.")
    _check_nesting(tag, "structural tag")
    _check_schema(tag)
    return _sized("structural_tag", _dumped(tag), "structural tag")


def json_object() -> Constraint:
    """The text is any JSON object."""
    return Constraint("json_object", "")


def _parsed(text: str, name: str) -> object:
    # Before parsing: the parser's own cost and recursion follow the text.
    _sized("json", text, name)
    try:
        parsed: object = json.loads(text, parse_constant=_refuse_constant)
    except RecursionError:
        _refuse(f"The {name} nests deeper than {MAX_NESTING} levels.")
    except json.JSONDecodeError as error:
        raise ConstraintError(f"The {name} is not JSON: {error}.") from error
    return parsed


def _dumped(document: object) -> str:
    try:
        return json.dumps(document, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    except ValueError as error:
        raise ConstraintError(f"The document is not JSON: {error}.") from error


def _refuse_constant(name: str) -> NoReturn:
    _refuse(f"{name} is not JSON.")


def _sized(kind: Kind, spec: str, name: str) -> Constraint:
    size = len(spec.encode(errors="surrogatepass"))
    if size > MAX_BYTES:
        _refuse(f"The {name} has {size} bytes; at most {MAX_BYTES} are allowed.")
    try:
        spec.encode()
    except UnicodeEncodeError as error:
        raise ConstraintError(f"The {name} is not valid Unicode: {error.reason}.") from error
    return Constraint(kind, spec)


def _check_nesting(document: object, name: str) -> None:
    level = [document]
    for _ in range(MAX_NESTING):
        level = [child for node in level for child in _children(node) if isinstance(child, dict | list)]
        if not level:
            return
    _refuse(f"The {name} nests deeper than {MAX_NESTING} levels.")


def _children(node: object) -> Iterator[Any]:
    if isinstance(node, dict):
        yield from node.values()
    elif isinstance(node, list):
        yield from node


def _check_schema(schema: object) -> None:
    values = 0
    for node in subschemas(schema):
        enum = node.get("enum", ())
        values += len(enum) if isinstance(enum, list) else 0
        values += "const" in node
        properties = node.get("properties")
        if isinstance(properties, dict) and len(properties) > MAX_PROPERTIES:
            _refuse(f"An object has at most {MAX_PROPERTIES} properties; one has {len(properties)}.")
        for keyword in _COUNTS:
            if isinstance(count := node.get(keyword), int | float) and count > MAX_COUNT:
                _refuse(f"`{keyword}` is at most {MAX_COUNT}, not {count}.")
        if isinstance(pattern := node.get("pattern"), str):
            _check_repetition(pattern, "pattern")
    if values > MAX_VALUES:
        _refuse(f"`enum` and `const` list at most {MAX_VALUES} values in all; these list {values}.")


def subschemas(schema: object) -> Iterator[dict[str, Any]]:
    """Every object of `schema` in a schema's place, itself first: not property names, not data."""
    pending = [schema]
    while pending:
        node = pending.pop()
        if isinstance(node, list):
            pending.extend(node)
        elif isinstance(node, dict):
            yield node
            for keyword, value in node.items():
                if keyword in MAP_KEYWORDS and isinstance(value, dict):
                    pending.extend(value.values())
                elif keyword not in VALUE_KEYWORDS:
                    pending.append(value)


def _check_repetition(text: str, name: str) -> None:
    for bounds in _REPETITION.findall(text):
        # Compared by length first: int() of very long digits is an error of its own.
        if any(len(digits) > 10 or (digits and int(digits) > MAX_COUNT) for digits in bounds):
            _refuse(f"A repetition in a {name} counts to at most {MAX_COUNT}.")


def _kind_of(value: object) -> str:
    return {type(None): "null", list: "an array", str: "a string", dict: "an object", bool: "a boolean"}.get(
        type(value), "a number"
    )


def _refuse(reason: str) -> NoReturn:
    raise ConstraintError(reason)
