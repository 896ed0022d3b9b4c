"""POST /constraints/check: the same reasons as in a request."""

from types import SimpleNamespace

import httpx
import pytest

from server.errors import InvalidRequest
from server.routes.constraints import router
from tests.server.apps import routes_alone


class Checker:
    """Compiles everything but one pattern."""

    async def check(self, constraint, param):
        if constraint.spec == "(":
            raise InvalidRequest("an open group", param=param, code="invalid_constraint")


@pytest.fixture
async def client():
    app = routes_alone(router)
    app.state.steersman = SimpleNamespace(checker=Checker())
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://test") as client:
        yield client


@pytest.mark.parametrize(
    ("body", "field", "reason"),
    [
        ({"regex_pattern": "("}, "regex_pattern", "an open group"),
        ({"grammar": " "}, "grammar", "The grammar is empty."),
        ({"json_schema": 5}, "json_schema", "dictionary"),
        ({}, None, "exactly one of json_schema, regex_pattern, grammar"),
        ({"grammar": "a", "regex_pattern": "a"}, None, "exactly one of"),
        ({"schema": {}}, "schema", "unknown field"),
    ],
)
async def test_what_is_refused_names_its_field_and_says_why(client, body, field, reason):
    """Whether the compiler refuses it, or what stands before the compiler."""
    answer = await client.post("/constraints/check", json=body)
    assert answer.status_code == 422
    [item] = answer.json()["detail"]
    assert reason in item["msg"]
    assert item["loc"] == ["body", *([field] if field else [])]


async def test_what_compiles_is_valid(client):
    """Nothing is generated for the answer."""
    for body in ({"regex_pattern": "a|b"}, {"json_schema": {"type": "object"}}, {"grammar": 'root ::= "a"'}):
        answer = await client.post("/constraints/check", json=body)
        assert (answer.status_code, answer.json()) == (200, {"valid": True})
