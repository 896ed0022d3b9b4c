"""How every error looks to the clients of each API family."""

import json

import pytest
from pydantic import BaseModel, ConfigDict, ValidationError

from server.errors import (
    INVALID_FILE_INPUT,
    Conflict,
    Forbidden,
    HttpError,
    InvalidBody,
    InvalidRequest,
    Issue,
    NoRoute,
    NotFound,
    NotSupported,
    PayloadTooLarge,
    RequestTimeout,
    SteersmanError,
    TooManyRequests,
    Unauthenticated,
    Unavailable,
    render,
)
from tests import oxen


def subclasses(kind):
    yield kind
    for child in kind.__subclasses__():
        yield from subclasses(child)


TABLE = [
    # error, status on /v1, `type`, `code`, status on Axionic routes
    (SteersmanError("broken"), 500, "server_error", None, 500),
    (InvalidRequest("bad"), 400, "invalid_request_error", None, 422),
    (InvalidBody([Issue((), "bad", "value_error")]), 400, "invalid_request_error", None, 422),
    (Unauthenticated("who"), 401, "authentication_error", "invalid_api_key", 401),
    (Forbidden("no"), 403, "permission_error", None, 403),
    (NotFound("gone"), 404, "not_found_error", None, 404),
    (NotFound("gone", param="model", code="model_not_found"), 404, "not_found_error", "model_not_found", 404),
    (NoRoute("no route GET /x"), 404, "not_found_error", None, 404),
    (RequestTimeout("late"), 408, "timeout_error", "request_timeout", 408),
    (Conflict("twice"), 409, "conflict_error", None, 409),
    (PayloadTooLarge("big"), 413, "invalid_request_error", "payload_too_large", 413),
    (TooManyRequests("slower", retry_after=3), 429, "rate_limit_error", "rate_limit_exceeded", 429),
    (NotSupported("not here"), 501, "not_supported_error", None, 501),
    (HttpError(405, "not so"), 405, "invalid_request_error", None, 405),
    (HttpError(502, "not now"), 502, "server_error", None, 502),
    (Unavailable("later"), 503, "unavailable_error", None, 503),
]


def test_the_table_covers_every_error():
    """An error class that is added to the tree has to be added here."""
    assert {type(row[0]) for row in TABLE} >= set(subclasses(SteersmanError))


@pytest.mark.parametrize(("error", "status", "kind", "code", "_"), TABLE)
def test_openai_routes_get_the_envelope(error, status, kind, code, _):
    """`/v1` answers with message, type, param and code; only a 401 adds the `detail` that Axionic reads."""
    rendered = render("/v1/chat/completions", error)
    envelope = {"message": error.message, "type": kind, "param": error.param, "code": code}
    expected = {"error": envelope}
    if status == 401:
        expected["detail"] = error.message
    assert (rendered.status, rendered.body) == (status, expected)
    assert type(rendered.status) is int
    json.dumps(rendered.body)


@pytest.mark.parametrize(("error", "status", "kind", "code", "_"), TABLE)
def test_graphql_gets_a_list_of_errors(error, status, kind, code, _):
    """Outside of an operation with the status of `/v1`; what is missing begins as its clients know it."""
    rendered = render("/api/graphql", error)
    (told,) = rendered.body["errors"]
    assert rendered.status == status
    assert told["extensions"] == {"type": kind, "param": error.param, "code": code}
    if isinstance(error, NotFound):
        assert told["message"].startswith("EntityNotFound: ")
    else:
        assert told["message"] == error.message


@pytest.mark.parametrize(("error", "_v1", "_kind", "_code", "status"), TABLE)
@pytest.mark.parametrize("path", ["/generate", "/policies/run", "/", "/v1x", "/auth/whoami"])
def test_axionic_routes_get_detail(path, error, _v1, _kind, _code, status):
    """Elsewhere `detail` is the text, or FastAPI's list if the request is invalid."""
    rendered = render(path, error)
    assert rendered.status == status
    if isinstance(error, InvalidRequest):
        assert rendered.body == {"detail": [{"loc": ["body"], "msg": "bad", "type": "value_error"}]}
    else:
        assert rendered.body == {"detail": error.message}
    json.dumps(rendered.body)


OXEN = {
    Unauthenticated: "unauthenticated",
    InvalidRequest: "invalid_params",
    InvalidBody: "invalid_params",
    PayloadTooLarge: "invalid_params",
    NotFound: "resource_not_found",
    NoRoute: "resource_not_found",
}


@pytest.mark.parametrize(("error", "status", "_kind", "code", "_"), TABLE)
def test_oxens_routes_get_the_status_form(error, status, _kind, code, _):
    """`/api/ai` answers in Oxen's status form, which holds OpenAI's envelope; overload is a 500 there."""
    rendered = render("/api/ai/chat/completions", error)
    body = oxen.check(rendered.body, oxen.ERROR)
    assert rendered.status == (500 if isinstance(error, Unavailable) else status)
    assert body["status_message"] == body["error"]["type"] == OXEN.get(type(error), "unknown_error")
    assert body["error"]["message"] == body["error"]["detail"] == error.message
    assert (body["error"]["param"], body["error"]["code"]) == (error.param, code)


def test_a_file_that_cannot_be_had_has_its_own_type():
    """Oxen's clients tell it from other faults of a request."""
    error = InvalidRequest("no", param="messages.0.content.1.image_url.url", code=INVALID_FILE_INPUT)
    assert render("/api/ai/chat/completions", error).body["error"]["type"] == "invalid_file_input"


@pytest.mark.parametrize(("error", "status", "_kind", "_code", "_"), TABLE)
def test_adaptives_routes_get_a_text(error, status, _kind, _code, _):
    """`/api/v1` answers with one text under `error`, which says by a word that what was named is unknown."""
    rendered = render("/api/v1/chat/completions", error)
    unknown = type(error) is NotFound
    assert rendered.status == status
    assert rendered.body == {"error": f"EntityNotFound: {error.message}" if unknown else error.message}


def test_adaptives_text_names_the_field():
    """Where it does not do so already."""
    path = "/api/v1/chat/completions"
    assert render(path, InvalidRequest("too many", param="n")).body == {"error": "n: too many"}
    assert render(path, InvalidRequest("`n` is too high", param="n")).body == {"error": "`n` is too high"}
    invalid = InvalidBody([Issue(("n",), "too many", "value_error")])
    assert render(path, invalid).body == {"error": "n: too many"}


def test_the_field_is_named_in_both_families():
    """`param` is dotted for OpenAI's clients and a location for FastAPI's."""
    error = InvalidRequest("must be positive", param="policy.sampling.top_k", code="too_small")
    assert render("/v1/completions", error).body["error"] == {
        "message": "must be positive",
        "type": "invalid_request_error",
        "param": "policy.sampling.top_k",
        "code": "too_small",
    }
    assert render("/generate", error).body["detail"] == [
        {"loc": ["body", "policy", "sampling", "top_k"], "msg": "must be positive", "type": "too_small"}
    ]


def test_every_wrong_field_of_a_body_is_listed():
    """OpenAI's clients read all problems in one message, FastAPI's one item each; indices stay numbers."""
    error = InvalidBody(
        [
            Issue(("messages", 0, "role"), "Field required", "missing"),
            Issue(("n",), "too many", "value_error"),
        ]
    )
    assert render("/v1/chat/completions", error).body["error"] == {
        "message": "messages.0.role: Field required; n: too many",
        "type": "invalid_request_error",
        "param": "messages.0.role",
        "code": None,
    }
    assert render("/sampling/generate", error).body["detail"] == [
        {"loc": ["body", "messages", 0, "role"], "msg": "Field required", "type": "missing"},
        {"loc": ["body", "n"], "msg": "too many", "type": "value_error"},
    ]


def test_pydantic_errors_name_fields_and_not_branches():
    """A union's several complaints about one field become one issue with the path the client sent."""

    class Part(BaseModel):
        text: str

    class Body(BaseModel):
        model_config = ConfigDict(extra="forbid")
        content: str | list[Part]

    with pytest.raises(ValidationError) as caught:
        Body.model_validate({"content": [{"text": "ok"}, {"text": 5}], "contents": 1})
    error = InvalidBody.of(caught.value.errors())
    assert {issue.loc for issue in error.issues} == {("content",), ("content", 1, "text"), ("contents",)}
    assert "contents: unknown field" in error.message


def test_headers_tell_what_to_do_next():
    """401 names the scheme, 503 the seconds to wait if they are known; nothing else adds headers."""
    assert render("/v1/models", Unauthenticated("who")).headers == {"www-authenticate": "Bearer"}
    assert render("/models", Unavailable("later", retry_after=7)).headers == {"retry-after": "7"}
    assert render("/models", Unavailable("later", retry_after=0)).headers == {"retry-after": "0"}
    assert render("/api/ai/models", Unavailable("later", retry_after=7)).headers == {"retry-after": "7"}
    assert render("/models", TooManyRequests("slower", retry_after=7)).headers == {"retry-after": "7"}
    assert render("/models", Unavailable("later")).headers == {}
    assert render("/models", NotFound("gone")).headers == {}


def test_an_error_reads_as_its_message():
    """`str` of an error is what the client is told, so that logs and clients agree."""
    assert str(NotFound("There is no vector 'v'.", param="id")) == "There is no vector 'v'."
