"""What Adaptive's OpenAPI description (concorde 0.1.0) says of its generation routes, as JSON Schema; that of
`/completions` is the older one, which its SDK 0.14.2 carries."""

import json
from pathlib import Path
from typing import Any

import jsonschema

_SCHEMAS = json.loads(Path(__file__).with_suffix("").with_name("adaptive_schemas.json").read_text())


def check(body: Any, name: str) -> Any:
    """`body`, which must fit the schema of that name."""
    schema = {**_SCHEMAS, "$ref": f"#/$defs/{name}"}
    checker = jsonschema.FormatChecker(["uuid"])
    jsonschema.Draft202012Validator(schema, format_checker=checker).validate(body)
    return body


def refused(response: Any, status: int) -> str:
    """The text of a response that must be an error."""
    assert response.status_code == status, response.text
    body = response.json()
    assert list(body) == ["error"]
    text: str = body["error"]
    return text
