"""Strict JSON bodies, on a small application with the errors of the real one."""

import json

import httpx
import pytest
from fastapi import APIRouter, FastAPI, Request
from fastapi.exceptions import RequestValidationError
from hypothesis import given
from hypothesis import strategies as st
from pydantic import BaseModel
from starlette.exceptions import HTTPException
from starlette.responses import JSONResponse

from server.errors import InvalidBody, SteersmanError, render
from server.routes.body import MAX_NESTING, JsonRequest, JsonRoute

router = APIRouter(route_class=JsonRoute)


class Sent(BaseModel):
    value: object


@router.post("/echo")
@router.post("/v1/echo")
async def echo(sent: Sent) -> JSONResponse:
    return JSONResponse(sent.value)


@router.get("/plain")
async def plain() -> str:
    return "no body"


def application() -> FastAPI:
    app = FastAPI()
    app.include_router(router)

    @app.exception_handler(SteersmanError)
    async def ours(request: Request, error: SteersmanError) -> JSONResponse:
        rendered = render(request.url.path, error)
        return JSONResponse(rendered.body, rendered.status)

    @app.exception_handler(RequestValidationError)
    async def invalid(request: Request, error: RequestValidationError) -> JSONResponse:
        return await ours(request, InvalidBody.of(error.errors()))

    @app.exception_handler(HTTPException)
    async def foreign(request: Request, error: HTTPException) -> JSONResponse:
        raise AssertionError(f"FastAPI answered by itself: {error.detail}")

    return app


APP = application()
JSON = {"content-type": "application/json"}


async def post(body: bytes, path: str = "/echo", **headers: str) -> httpx.Response:
    async with httpx.AsyncClient(transport=httpx.ASGITransport(APP), base_url="http://test") as client:
        return await client.post(path, content=body, headers=headers or JSON)


async def parsed(body: bytes) -> object:
    async def receive() -> dict[str, object]:
        return {"type": "http.request", "body": body, "more_body": False}

    return await JsonRequest({"type": "http", "headers": []}, receive).json()


def nested(depth: int) -> bytes:
    """`depth` containers, one in the other, objects and arrays by turns."""
    opening = b"".join(b'{"a":' if level % 2 == 0 else b"[" for level in range(depth))
    closing = b"".join(b"}" if level % 2 == 0 else b"]" for level in reversed(range(depth)))
    return opening + b"0" + closing


json_values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(st.characters(codec="utf-8")),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(st.characters(codec="utf-8")), inner),
)


@given(json_values, st.booleans(), st.sampled_from([None, 2]))
async def test_json_is_read(value, ascii_only, indent):
    """Any JSON arrives as it was meant, emoji as escaped surrogate pairs included."""
    assert await parsed(json.dumps(value, ensure_ascii=ascii_only, indent=indent).encode()) == value


@pytest.mark.parametrize("path", ["/echo", "/v1/echo"])
@pytest.mark.parametrize(
    ("body", "reason"),
    [
        (b'{"value": NaN}', "NaN is not a JSON number"),
        (b'{"value": Infinity}', "Infinity is not a JSON number"),
        (b'{"value": -Infinity}', "-Infinity is not a JSON number"),
        (b'{"value": 1,}', "line 1 column 1"),
        (b"{'value': 1}", "line 1 column 2"),
        (b'{"value": 1} x', "Extra data"),
        (b'{"value": 0x10}', "delimiter"),
        (b'{"value": "\n"}', "Invalid control character"),
        (b'{"value": "\xff"}', "can't decode byte 0xff"),
        ('{"value": 1}'.encode("utf-16"), "can't decode byte"),
        ('{"value": 1}'.encode("utf-16-le"), "Expecting property name"),
        (b'\xef\xbb\xbf{"value": 1}', "BOM"),
        (b'{"value": "\\ud800"}', "surrogates not allowed"),
        (b'{"\\uDFFF": 1, "value": 1}', "surrogates not allowed"),
        (b'{"value": ' + b"9" * 5000 + b"}", "4300 digits"),
        (b" ", "Expecting value"),
        (nested(MAX_NESTING + 1), f"nests deeper than {MAX_NESTING} levels"),
        (nested(100_000), f"nests deeper than {MAX_NESTING} levels"),
        (b"[" * 100_000, f"nests deeper than {MAX_NESTING} levels"),
    ],
)
async def test_what_is_not_json(path, body, reason):
    """A body that is not JSON is refused with the reason, in the shape of its API family."""
    answer = await post(body, path)
    if path.startswith("/v1/"):
        assert answer.status_code == 400
        error = answer.json()["error"]
        assert error["code"] == "json_invalid"
        message = error["message"]
    else:
        assert answer.status_code == 422
        (item,) = answer.json()["detail"]
        assert (item["type"], item["loc"]) == ("json_invalid", ["body"])
        message = item["msg"]
    assert reason in message


async def test_nesting_up_to_the_limit():
    """Exactly MAX_NESTING levels pass; brackets side by side or within strings are not nesting."""
    assert await parsed(b"[[],[]," + nested(MAX_NESTING - 1) + b"]")
    assert await parsed(b"[" + b"[]," * 500 + b"0]")
    assert await parsed(b'"' + b"[{" * 500 + b'"') == "[{" * 500


@pytest.mark.parametrize(
    "kind", ["text/plain", "application/xml", "application/jsonl", "multipart/form-data; boundary=x"]
)
async def test_another_content_type(kind):
    """Only application/json is read; anything else is refused by the header's name."""
    answer = await post(b'{"value": 1}', "/v1/echo", **{"content-type": kind})
    assert answer.status_code == 400
    assert answer.json()["error"]["param"] == "content-type"
    assert "application/json" in answer.json()["error"]["message"]


async def test_no_content_type():
    """A body without a content type is refused in the same way."""
    async with httpx.AsyncClient(transport=httpx.ASGITransport(APP), base_url="http://test") as client:
        answer = await client.post("/v1/echo", content=b'{"value": 1}')
    assert (answer.status_code, answer.json()["error"]["param"]) == (400, "content-type")


@pytest.mark.parametrize(
    "kind", ["application/json", "Application/JSON; charset=utf-8", "application/json;x=y"]
)
async def test_json_with_parameters(kind):
    """The content type's case and parameters do not matter."""
    assert (await post(b'{"value": "\xe2\x82\xac"}', **{"content-type": kind})).json() == "€"


@pytest.mark.parametrize("body", [b"", b"{}", b"null", b"[]", b"1"])
async def test_json_that_does_not_fit(body):
    """A missing body, or JSON of another shape, is the model's to refuse."""
    answer = await post(body)
    assert answer.status_code == 422
    assert answer.json()["detail"][0]["type"] in ("missing", "model_attributes_type")


async def test_a_route_without_a_body():
    """A route that takes no body asks for no content type."""
    async with httpx.AsyncClient(transport=httpx.ASGITransport(APP), base_url="http://test") as client:
        assert (await client.get("/plain")).json() == "no body"


async def test_a_client_that_leaves():
    """A client gone before its body was complete is an invalid request, not an error of ours."""
    answered = []
    sent = [
        {"type": "http.request", "body": b'{"value":', "more_body": True},
        {"type": "http.disconnect"},
    ]

    async def receive() -> dict[str, object]:
        return sent.pop(0)

    async def send(message: dict[str, object]) -> None:
        answered.append(message)

    scope = {
        "type": "http",
        "method": "POST",
        "path": "/echo",
        "query_string": b"",
        "headers": [(b"content-type", b"application/json")],
    }
    await APP(scope, receive, send)
    assert answered[0]["status"] == 422
