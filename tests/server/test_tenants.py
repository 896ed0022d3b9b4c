"""Whose requests the metrics count by name: a few, in every process the same, nobody by what it sends."""

import asyncio
import uuid
from datetime import UTC, datetime, timedelta
from types import SimpleNamespace

import pytest
from prometheus_client import REGISTRY
from sqlalchemy import insert

from server.auth import Principal, current_principal
from server.errors import Unavailable
from server.metrics import TENANT_OUTCOMES, TOKEN_TYPES
from server.observation import Observation, current_observation
from server.projects import Projects
from server.store import AccountRow
from server.tenants import OTHER, Tallied, Tenants, digest

BEGAN = datetime(2020, 1, 1, tzinfo=UTC)


@pytest.fixture(autouse=True)
def from_zero():
    """Counters without what other tests counted."""
    from server.metrics import TENANT_REQUESTS, TENANT_TOKENS

    TENANT_REQUESTS.clear()
    TENANT_TOKENS.clear()


async def accounts(store, count):
    """Ids of so many new accounts, by their age; all are older than what else there is."""
    ids = [str(uuid.uuid4()) for _ in range(count)]
    rows = [
        {"id": each, "email": f"{each}@example.org", "created_at": BEGAN + timedelta(seconds=at)}
        for at, each in enumerate(ids)
    ]
    async with store.database.writing() as connection:
        await connection.execute(insert(AccountRow), rows)
    return ids


def counted(kind="requests", of="outcome"):
    """The samples of a counter, by tenant."""
    found = {}
    for family in REGISTRY.collect():
        if family.name == f"steersman_tenant_{kind}":
            for sample in family.samples:
                if sample.name.endswith("_total"):
                    found[sample.labels["tenant"], sample.labels[of]] = sample.value
    return found


async def test_fifty_have_names_and_the_rest_is_one(store):
    """Those made first, in every process the same; who comes later counts with all others."""
    ids = await accounts(store, 60)
    for each in (Tenants(store.database), Tenants(store.database)):
        for account_id in reversed(ids):
            each.requested(account_id, "ok")
        assert counted().get((OTHER, "ok"), 0) % 10 == 0
        await each.refresh()
    assert counted() == {(digest(account_id), "ok"): 2 for account_id in ids[:50]} | {(OTHER, "ok"): 20}


async def test_nobody_learns_a_name_that_the_operator_did_not_list(store):
    """Neither an address, nor a key, nor an id."""
    (ada,) = await accounts(store, 1)
    projects = Projects(store.database)
    lab = (await projects.create(ada, key="lab", name="Lab")).id
    await projects.set_default_model(ada, "m")  # now the home has a row, and its key
    tenants = Tenants(store.database)
    for account_id in (ada, lab):
        tenants.spent(account_id, 3, 2)
    await tenants.refresh()
    assert counted("tokens", "type") == {
        (digest(account_id), kind): amount
        for account_id in (ada, lab)
        for kind, amount in zip(TOKEN_TYPES, (3, 2), strict=True)
    }


async def test_an_operator_may_say_which(store):
    """Keys and ids of projects alone have names then, also of one that is made later; one called `other` does
    not pass for all others."""
    ada, bob = await accounts(store, 2)
    tenants = Tenants(store.database, [bob, "lab", OTHER, bob])
    tenants.requested(ada, "ok")
    await tenants.refresh()
    lab = (await Projects(store.database).create(ada, key="lab", name="Lab")).id
    for account_id in (ada, bob, lab):
        tenants.requested(account_id, "ok")
    await tenants.refresh()
    other = (await Projects(store.database).create(ada, key=OTHER, name="Other")).id
    tenants.requested(other, "ok")
    await tenants.refresh()
    tenants.requested(ada, "ok")  # all that are named are known: nobody waits
    assert counted() == {("lab", "ok"): 1, (bob, "ok"): 1, (digest(other), "ok"): 1, (OTHER, "ok"): 3}


async def test_odd_ids_make_no_series(store):
    """Whatever an id may be, a name comes from the database."""
    tenants = Tenants(store.database)
    for odd in ("", "x" * 5000, "\0", 'a"b\\n', "другой", *(str(number) for number in range(2000))):
        tenants.requested(odd, "failed")
    assert len(tenants._waiting) <= 1000
    await tenants.refresh()
    assert set(counted()) == {(OTHER, "failed")}
    assert sum(counted().values()) == 2005


async def test_what_cannot_be_named_waits(store, monkeypatch):
    """While the database is away nothing is lost, nor counted twice."""
    (ada,) = await accounts(store, 1)
    tenants = Tenants(store.database)
    tenants.requested(ada, "ok")

    async def away():
        raise Unavailable("away")

    with monkeypatch.context() as patch:
        patch.setattr(tenants, "_read", away)
        running = asyncio.create_task(tenants.run(0.001))
        await asyncio.sleep(0.02)
        tenants.requested(ada, "ok")
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)
    assert counted() == {}
    await tenants.refresh()
    await tenants.refresh()
    assert counted() == {(digest(ada), "ok"): 2}


@pytest.mark.parametrize(
    ("status", "seen", "outcome"),
    [
        (200, {}, "ok"),
        (404, {"error": "no such model"}, "refused"),
        (429, {}, "limited"),
        (503, {}, "failed"),
        (200, {"error": "broke off"}, "failed"),
        (200, {"left": True}, "left"),
        (None, {}, "failed"),
    ],
)
async def test_a_request_counts_by_what_came_of_it(status, seen, outcome):
    """By its status, or by how its stream ended where that is otherwise; for the project it moved to."""
    told = []
    tenants = SimpleNamespace(requested=lambda *what: told.append(what))
    me = Principal("key", "me", None, None)
    scope = {"type": "http", "state": {"principal": me}}

    async def app(scope, receive, send):
        scope["state"]["principal"] = Principal("key", "project", None, None, member_id="me")
        if status is not None:
            await send({"type": "http.response.start", "status": status})

    async def send(message):
        pass

    token = current_observation.set(Observation(**seen))
    try:
        await Tallied(app, tenants)(scope, None, send)
    finally:
        current_observation.reset(token)
    assert told == [("project", outcome)]
    assert outcome in TENANT_OUTCOMES


async def test_who_shows_no_key_is_no_tenant():
    """What was not authenticated counts for nobody."""
    told = []
    tenants = SimpleNamespace(requested=lambda *what: told.append(what))

    async def app(scope, receive, send):
        pass

    await Tallied(app, tenants)({"type": "http"}, None, None)
    await Tallied(app, tenants)({"type": "websocket", "state": {"principal": "me"}}, None, None)
    assert told == []
    assert current_principal.get(None) is None
