"""Errors a client can see, and how each API family writes them.

SteersmanError
├── InvalidRequest      400 (422 on Axionic routes): a field is wrong; `param` names it
│   └── InvalidBody     several fields at once, as pydantic found them
├── Unauthenticated     401
├── Forbidden           403
├── NotFound            404
│   └── NoRoute         nothing is served at this path
├── RequestTimeout      408: not begun in the time that the request, or its route, allows
├── Conflict            409
├── PayloadTooLarge     413
├── TooManyRequests     429: `retry_after` says when to try again
├── NotSupported        501: understood, but not served here
├── HttpError           what the framework answers by itself: 405 and the like
└── Unavailable         503: later it may work; `retry_after` says when

Code raises these; `render` is the only place that knows the shapes of api families.
"""

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from http import HTTPStatus
from typing import Any, ClassVar

Json = dict[str, Any]


class SteersmanError(Exception):
    """`param` is the dotted path of the offending field, as the client sent it."""

    status: HTTPStatus = HTTPStatus.INTERNAL_SERVER_ERROR
    type: str = "server_error"
    code: ClassVar[str | None] = None

    def __init__(self, message: str, *, param: str | None = None, code: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.param = param
        self.reason = code or self.code


class InvalidRequest(SteersmanError):
    status = HTTPStatus.BAD_REQUEST
    type = "invalid_request_error"


@dataclass(frozen=True, slots=True)
class Issue:
    """One thing wrong with a body: `loc` is the path of the field, as names and indices."""

    loc: tuple[str | int, ...]
    message: str
    type: str


class InvalidBody(InvalidRequest):
    """A body that does not fit its route's model; `param` names the first offending field."""

    def __init__(self, issues: Sequence[Issue]) -> None:
        message = "; ".join(f"{_dotted(i.loc)}: {i.message}" if i.loc else i.message for i in issues)
        super().__init__(message, param=_dotted(issues[0].loc) or None)
        self.issues = tuple(issues)

    @classmethod
    def of(cls, errors: Sequence[Any]) -> "InvalidBody":
        """From pydantic's error list, which repeats a field once per branch of a union."""
        issues = {issue.loc: issue for issue in map(_issue, reversed(errors[:_MAX_ISSUES]))}
        return cls(tuple(reversed(issues.values())))


_MAX_ISSUES = 20
_BRANCHES = re.compile(
    r"[\[\](){}]|^(function-\w+|nullable|constrained-\w+|lax-or-strict|json-or-python|tagged-union|union"
    r"|str|int|float|bool|bytes|dict|tuple|chain|is-instance)$"
)


def _issue(error: dict[str, Any]) -> Issue:
    loc = error["loc"][1:] if error["loc"][:1] == ("query",) else error["loc"]
    path = tuple(part for part in loc if part != "body" and not _BRANCHES.search(str(part)))
    cause = (error.get("ctx") or {}).get("error")
    field = getattr(cause, "parameter", None)  # vLLM's validators know the field, pydantic only the model
    if not path and isinstance(field, str):
        path = (field,)
    message = str(error["msg"]).removeprefix("Value error, ")
    if error["type"] == "extra_forbidden":
        message = "unknown field"
    return Issue(path, message, str(error["type"]))


def _dotted(loc: Sequence[str | int]) -> str:
    return ".".join(map(str, loc))


class Unauthenticated(SteersmanError):
    status = HTTPStatus.UNAUTHORIZED
    type = "authentication_error"
    code = "invalid_api_key"


class Forbidden(SteersmanError):
    status = HTTPStatus.FORBIDDEN
    type = "permission_error"


class NotFound(SteersmanError):
    status = HTTPStatus.NOT_FOUND
    type = "not_found_error"


class NoRoute(NotFound):
    """The path is unknown, rather than something that a request names."""


class RequestTimeout(SteersmanError):
    status = HTTPStatus.REQUEST_TIMEOUT
    type = "timeout_error"
    code = "request_timeout"


class Conflict(SteersmanError):
    status = HTTPStatus.CONFLICT
    type = "conflict_error"


class PayloadTooLarge(SteersmanError):
    status = HTTPStatus.REQUEST_ENTITY_TOO_LARGE
    type = "invalid_request_error"
    code = "payload_too_large"


class TooManyRequests(SteersmanError):
    status = HTTPStatus.TOO_MANY_REQUESTS
    type = "rate_limit_error"
    code = "rate_limit_exceeded"

    def __init__(self, message: str, *, retry_after: int) -> None:
        super().__init__(message)
        self.retry_after = retry_after


class NotSupported(SteersmanError):
    status = HTTPStatus.NOT_IMPLEMENTED
    type = "not_supported_error"


class HttpError(SteersmanError):
    """An HTTP status that the framework answers and no class above stands for, such as 405."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = HTTPStatus(status)
        if status < HTTPStatus.INTERNAL_SERVER_ERROR:
            self.type = "invalid_request_error"


class Unavailable(SteersmanError):
    status = HTTPStatus.SERVICE_UNAVAILABLE
    type = "unavailable_error"

    def __init__(self, message: str, *, retry_after: int | None = None) -> None:
        super().__init__(message)
        self.retry_after = retry_after


@dataclass(frozen=True, slots=True)
class Rendered:
    status: int
    body: Json
    headers: dict[str, str]


def _openai(error: SteersmanError) -> tuple[int, Json]:
    body: Json = {
        "error": {
            "message": error.message,
            "type": error.type,
            "param": error.param,
            "code": error.reason,
        }
    }
    if isinstance(error, Unauthenticated):
        body["detail"] = error.message  # Axionic's client calls /v1 too and reads `detail`
    return error.status, body


def _axionic(error: SteersmanError) -> tuple[int, Json]:
    if isinstance(error, InvalidBody):
        items = [{"loc": ["body", *i.loc], "msg": i.message, "type": i.type} for i in error.issues]
        return HTTPStatus.UNPROCESSABLE_ENTITY, {"detail": items}
    if isinstance(error, InvalidRequest):
        path = error.param.split(".") if error.param else []
        loc = ["body", *(int(part) if part.isdigit() else part for part in path)]
        item = {"loc": loc, "msg": error.message, "type": error.reason or "value_error"}
        return HTTPStatus.UNPROCESSABLE_ENTITY, {"detail": [item]}
    return error.status, {"detail": error.message}


def _oxen(error: SteersmanError) -> tuple[int, Json]:
    """Oxen.ai's status form, with what OpenAI's clients read in it."""
    kind = next((kind for known, kind in _OXEN_TYPES.items() if isinstance(error, known)), "unknown_error")
    if error.reason == INVALID_FILE_INPUT:
        kind = INVALID_FILE_INPUT
    body: Json = {
        "error": {
            "message": error.message,
            "type": kind,
            "title": kind.replace("_", " ").capitalize(),
            "detail": error.message,
            "param": error.param,
            "code": error.reason,
        },
        "status": "error",
        "status_message": kind,
    }
    # Its clients know no 503; whether to try again they learn from `retry-after`.
    overloaded = isinstance(error, Unavailable)
    return HTTPStatus.INTERNAL_SERVER_ERROR if overloaded else error.status, body


def _adaptive(error: SteersmanError) -> tuple[int, Json]:
    """Adaptive's clients read one text, which names the field; what is unknown they know by a word in it."""
    message = error.message
    if error.param and not re.search(rf"(?<!\w){re.escape(error.param)}(?!\w)", message):
        message = f"{error.param}: {message}"
    if isinstance(error, NotFound) and not isinstance(error, NoRoute):
        message = _entity_not_found(error)
    return error.status, {"error": message}


def graphql_error(error: SteersmanError) -> Json:
    """As one of the `errors` of a GraphQL answer."""
    message = _entity_not_found(error) if isinstance(error, NotFound) else error.message
    return {
        "message": message,
        "extensions": {"type": error.type, "param": error.param, "code": error.reason},
    }


def _graphql(error: SteersmanError) -> tuple[int, Json]:
    return error.status, {"errors": [graphql_error(error)]}


def _entity_not_found(error: NotFound) -> str:
    """Adaptive's clients take the first of `_ENTITIES` that they find anywhere in the message for what is
    missing: one that would mislead them, by what its keys are called, is told without details."""
    entity = next((each for each in _ENTITIES if (error.param or "").startswith(each)), None)
    message = f"EntityNotFound: {error.message.removeprefix('EntityNotFound: ')}"
    if _entity_read(message) == entity:
        return message
    return f"EntityNotFound: {entity or 'nothing'} of this id or key is known here"


def _entity_read(message: str) -> str | None:
    return next((each for each in _ENTITIES if each in message.lower()), None)


_ENTITIES = ("project", "metric", "model", "user", "integration")  # in the order in which they look

INVALID_FILE_INPUT = "invalid_file_input"  # the code of a media part that cannot be had
_OXEN_TYPES: dict[type[SteersmanError], str] = {
    Unauthenticated: "unauthenticated",
    NotFound: "resource_not_found",
    InvalidRequest: "invalid_params",
    PayloadTooLarge: "invalid_params",
}

_FAMILIES: dict[str, Callable[[SteersmanError], tuple[int, Json]]] = {
    # path prefix → shape; the first match wins, so the catch-all stands last
    "/v1/": _openai,
    "/api/ai/": _oxen,
    "/api/v1/": _adaptive,
    "/api/graphql": _graphql,
    "/": _axionic,
}


def render(path: str, error: SteersmanError) -> Rendered:
    """Write `error` in the shape that clients of `path` parse."""
    shape = next(shape for prefix, shape in _FAMILIES.items() if path.startswith(prefix))
    status, body = shape(error)
    headers: dict[str, str] = {}
    if isinstance(error, Unavailable | TooManyRequests) and error.retry_after is not None:
        headers["retry-after"] = str(error.retry_after)
    if isinstance(error, Unauthenticated):
        headers["www-authenticate"] = "Bearer"
    return Rendered(int(status), body, headers)
