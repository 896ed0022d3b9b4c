"""Recent calls over HTTP, in an application with these routes alone."""

from dataclasses import replace
from types import SimpleNamespace

import httpx
import pytest
from sqlalchemy import text

from server.auth import Authentication, KeyRing
from server.observed import ObservedRequests
from server.routes.observability import router
from server.settings import Settings
from tests.server.apps import routes_alone
from tests.server.test_observed import BARE, BEHAVIORS, CALL, LONG_AGO, POLICIES, STEERING

PATH = "/observability/requests"


@pytest.fixture
async def client(store):
    """A client with the first key; `client.other` are the headers of another account's key."""
    app = routes_alone(router)
    keyring = KeyRing(store.find_key, ttl=60)
    key = await store.first_key()
    async with store.database.writing() as connection:
        await connection.execute(
            text("INSERT INTO accounts VALUES ('other', 'other@localhost', '2026-01-01 00:00:00+00')")
        )
    observed = ObservedRequests(store.database)
    app.state.steersman = SimpleNamespace(observed=observed, settings=Settings.read(environ={}))
    transport = httpx.ASGITransport(Authentication(app, keyring, lambda method, outcome: None))
    async with httpx.AsyncClient(
        transport=transport, base_url="http://test", headers={"x-api-key": key}
    ) as client:
        client.observed, client.state = observed, app.state.steersman
        client.other = {"x-api-key": (await store.create_key("other", None)).key}
        yield client


async def keep(client, *calls):
    await client.observed.keep(calls, most=100, since=LONG_AGO)


async def test_calls_are_listed_and_looked_up(client):
    await keep(client, CALL, BARE)
    page = (await client.get(PATH)).json()
    assert (page["total"], page["limit"], page["offset"]) == (2, 50, 0)
    bare, call = page["requests"]
    assert call == {
        "id": "first",
        "created_at": "2026-03-01T12:00:00.250000Z",
        "route": "/generate",
        "status": 200,
        "model": "base",
        "prompt_snippet": "Name a fruit.",
        "output_snippet": "a pear",
        "stream": True,
        "latency_ms": 12.5,
        "prompt_tokens": 7,
        "completion_tokens": 2,
        "steering": STEERING,
        "behaviors": BEHAVIORS,
        "policies": POLICIES,
        "error": None,
    }
    assert (bare["id"], bare["steering"], bare["behaviors"], bare["prompt_snippet"]) == (
        "bare",
        None,
        None,
        None,
    )
    assert (await client.get(f"{PATH}/first")).json() == call


async def test_every_parameter_takes_effect(client):
    await keep(
        client, CALL, replace(BARE, prompt="other", status=422), replace(BARE, id="c", route="/sae/generate")
    )

    async def ids(**params):
        return [each["id"] for each in (await client.get(PATH, params=params)).json()["requests"]]

    assert await ids() == ["c", "bare", "first"]
    assert await ids(search="FRUIT") == ["first"]
    assert await ids(sae_only=True) == ["first"]
    assert await ids(status=422) == ["bare"]
    assert await ids(route="/sae/generate") == ["c"]
    assert await ids(limit=1, offset=1) == ["bare"]


@pytest.mark.parametrize(
    "query",
    ["limit=0", "limit=201", "limit=x", "offset=-1", "status=99", "sae_only=perhaps", f"search={'x' * 501}"],
)
async def test_a_bad_parameter_is_refused_by_name(client, query):
    answer = await client.get(f"{PATH}?{query}")
    assert answer.status_code == 422
    assert query.partition("=")[0] in answer.json()["detail"][0]["loc"]


async def test_another_accounts_calls_are_not_found(client):
    await keep(client, CALL)
    assert (await client.get(f"{PATH}/first", headers=client.other)).status_code == 404
    assert (await client.get(PATH, headers=client.other)).json()["total"] == 0


async def test_an_id_may_hold_any_sign(client):
    """A client chooses it, slashes and question marks included."""
    await keep(client, replace(CALL, id="a/b c?d"))
    assert (await client.get(f"{PATH}/a/b%20c%3Fd")).json()["id"] == "a/b c?d"
    missing = await client.get(f"{PATH}/no%00ne")
    assert missing.status_code == 404
    assert "x-request-id" in missing.json()["detail"]


async def test_a_server_that_keeps_none_names_the_switch(client):
    client.state.settings = Settings.read(environ={"STEERSMAN_OBSERVE_REQUESTS": "0"})
    for path in (PATH, f"{PATH}/first"):
        answer = await client.get(path)
        assert answer.status_code == 501
        assert "--observe-requests" in answer.json()["detail"]
