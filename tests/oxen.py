"""What Oxen.ai's OpenAPI description (hub 0.243.1) says of the routes served here, as JSON Schema.

Of chunks, calls and errors it says nothing: these are what its documentation shows and its clients read.
"""

from typing import Any

import jsonschema

_TEXT = {"type": "string"}
_NULLABLE_TEXT = {"type": ["string", "null"]}
_NUMBER = {"type": ["number", "null"]}
_INTEGER = {"type": "integer"}


def _object(required: str = "", **properties: Any) -> dict[str, Any]:
    return {"type": "object", "properties": properties, "required": required.split()}


def _list(items: Any) -> dict[str, Any]:
    return {"type": "array", "items": items}


CALL = _object(
    "id index type function",
    id=_TEXT,
    index=_INTEGER,
    type={"const": "function"},
    function=_object("name arguments", name=_TEXT, arguments=_TEXT),
)
USAGE = _object(
    "prompt_tokens completion_tokens total_tokens",
    prompt_tokens=_INTEGER,
    completion_tokens=_INTEGER,
    total_tokens=_INTEGER,
)
COMPLETION = _object(
    "id object created model choices usage",
    id=_TEXT,
    object={"enum": ["chat.completion"]},
    created=_INTEGER,
    model=_TEXT,
    usage={**USAGE, "type": ["object", "null"]},
    choices=_list(
        _object(
            "index message finish_reason",
            index=_INTEGER,
            finish_reason=_TEXT,
            message=_object(
                "role content",
                role=_TEXT,
                content=_NULLABLE_TEXT,
                tool_calls={**_list(CALL), "type": ["array", "null"]},
            ),
        )
    ),
)
# Its example client reads choices[0] of every chunk.
CHUNK = _object(
    "id object created model choices",
    id=_TEXT,
    object={"enum": ["chat.completion.chunk"]},
    created=_INTEGER,
    model=_TEXT,
    choices={
        **_list(
            _object(
                "index delta finish_reason",
                index=_INTEGER,
                finish_reason=_NULLABLE_TEXT,
                delta=_object(content=_NULLABLE_TEXT),
            )
        ),
        "minItems": 1,
    },
)
MODEL = _object(
    "id object created owned_by",
    id=_TEXT,
    object={"enum": ["model"]},
    created=_INTEGER,
    owned_by=_TEXT,
    display_name=_TEXT,
    description=_NULLABLE_TEXT,
    summary=_NULLABLE_TEXT,
    model_type={"enum": ["base", "custom"]},
    endpoint={"enum": ["/chat/completions", "/images/generate", "/videos/generate"]},
    capabilities=_object(input=_list(_TEXT), output=_list(_TEXT)),
    pricing=_object(
        method={"enum": ["token", "time", "per_image", "per_video_output_second"]},
        input_cost_per_token=_NUMBER,
        output_cost_per_token=_NUMBER,
    ),
    fine_tuning={"type": ["object", "null"]},
    deployments=_list(
        _object(
            status={"enum": ["active", "inactive", "deploying", "deactivating", "error", "unknown"]},
        )
    ),
    developer={**_object(name=_TEXT, logo=_NULLABLE_TEXT), "type": ["object", "null"]},
    source_model=_NULLABLE_TEXT,
    image_url=_NULLABLE_TEXT,
    released_at=_NULLABLE_TEXT,
    request_schema={"type": ["object", "null"]},
    showcase={"type": ["object", "null"]},
)
MODELS = _object("object data", object={"enum": ["list"]}, data=_list(MODEL))
KINDS = ["unauthenticated", "invalid_params", "resource_not_found", "unknown_error", "invalid_file_input"]
ERROR = _object(
    "error status status_message",
    status={"const": "error"},
    status_message={"enum": KINDS},
    error=_object(
        "message type title detail param code",
        message=_TEXT,
        type={"enum": KINDS},
        title=_TEXT,
        detail=_TEXT,
        param=_NULLABLE_TEXT,
        code=_NULLABLE_TEXT,
    ),
)


def check(body: Any, schema: dict[str, Any]) -> Any:
    """`body`, which must fit."""
    jsonschema.Draft202012Validator(schema).validate(body)
    return body


def refused(response: Any, status: int, kind: str = "invalid_params") -> dict[str, Any]:
    """The error of a response that must be one, the same text wherever its clients look for it."""
    assert response.status_code == status, response.text
    body = check(response.json(), ERROR)
    error: dict[str, Any] = body["error"]
    assert (error["type"], body["status_message"]) == (kind, kind)
    assert error["message"] == error["detail"]
    return error
