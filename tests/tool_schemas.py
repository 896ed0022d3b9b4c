"""Tools of twenty kinds of arguments, each bounded, so that a call of it ends."""

import json
from typing import Any

import jsonschema


def text(longest=12, **more):
    return {"type": "string", "maxLength": longest, **more}


def record(properties, required=None, **more):
    names = list(properties) if required is None else required
    return {
        "type": "object",
        "properties": properties,
        "required": names,
        "additionalProperties": False,
        **more,
    }


NUMBER = {"type": "integer", "minimum": 1, "maximum": 9}
DAY = {"type": "string", "enum": ["Saturday", "Sunday"]}
GUEST = record({"name": text(), "age": {"type": "integer", "minimum": 0, "maximum": 120}})
SCHEMAS = {
    "empty": record({}),
    "text": record({"city": text()}),
    "number": record({"people": NUMBER}),
    "fraction": record({"share": {"type": "number", "minimum": 0, "maximum": 1}}),
    "flag": record({"outdoors": {"type": "boolean"}}),
    "enum": record({"day": DAY}),
    "const": record({"kind": {"const": "picnic"}, "day": DAY}),
    "null": record({"note": {"type": "null"}}),
    "nullable": record({"note": {"type": ["string", "null"], "maxLength": 8}}),
    "either": record({"when": {"anyOf": [DAY, NUMBER]}}),
    "list": record({"foods": {"type": "array", "items": text(), "minItems": 2, "maxItems": 3}}),
    "numbers": record({"hours": {"type": "array", "items": NUMBER, "minItems": 1, "maxItems": 4}}),
    "pair": record(
        {"place": {"type": "array", "prefixItems": [text(), NUMBER], "items": False, "minItems": 2}}
    ),
    "nested": record({"guest": GUEST, "day": DAY}),
    "guests": record({"guests": {"type": "array", "items": GUEST, "minItems": 1, "maxItems": 2}}),
    "deep": record({"a": record({"b": record({"c": record({"d": NUMBER})})})}),
    "pattern": record({"code": {"type": "string", "pattern": "^[A-Z]{2}-[0-9]{3}$"}}),
    "date": record({"on": {"type": "string", "format": "date"}}),
    "optional": record({"city": text(), "people": NUMBER, "day": DAY}, ["people"]),
    "reference": record(
        {"first": {"$ref": "#/$defs/day"}, "other": {"$ref": "#/$defs/day"}}, **{"$defs": {"day": DAY}}
    ),
}


def tool(name, **more):
    described = {"name": name, "description": f"Takes {name}.", "parameters": SCHEMAS[name]}
    return {"type": "function", "function": {**described, **more}}


def named(name):
    return {"type": "function", "function": {"name": name}}


def checked(call: dict[str, Any]) -> str:
    """The name of the function that `call` calls, with arguments of its schema."""
    arguments = json.loads(call["function"]["arguments"])
    jsonschema.validate(arguments, SCHEMAS[call["function"]["name"]])
    name: str = call["function"]["name"]
    return name
