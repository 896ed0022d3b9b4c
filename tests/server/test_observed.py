"""Stored calls, on SQLite and on a real PostgreSQL server."""

from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest
from sqlalchemy import text

from server.errors import NotFound
from server.observed import ObservedRequest, ObservedRequests, Wanted
from server.store import DEFAULT_ACCOUNT

NOW = datetime(2026, 3, 1, 12, 0, 0, 250_000, tzinfo=UTC)
LONG_AGO = datetime(2000, 1, 1, tzinfo=UTC)
STEERING = {"fingerprint": "ab", "vectors": [{"id": None, "strength": 0.5}], "dose": 0.1}
POLICIES = [{"outcome": "accepted", "rounds": 1, "candidates": []}]
BEHAVIORS = [{"name": "gloom", "max_drift": None}]
CALL = ObservedRequest(
    id="first",
    account_id=DEFAULT_ACCOUNT,
    created_at=NOW,
    route="/generate",
    status=200,
    model="base",
    prompt="Name a fruit.",
    output="a pear",
    latency_ms=12.5,
    prompt_tokens=7,
    completion_tokens=2,
    stream=True,
    steering=STEERING,
    behaviors=BEHAVIORS,
    policies=POLICIES,
    error=None,
)
BARE = replace(
    CALL,
    id="bare",
    model=None,
    prompt=None,
    output=None,
    steering=None,
    behaviors=None,
    policies=None,
    stream=False,
)


@pytest.fixture
async def observed(store):
    """Of a database that has two accounts."""
    await store.first_key()
    async with store.database.writing() as connection:
        await connection.execute(
            text("INSERT INTO accounts VALUES ('other', 'other@localhost', '2026-01-01 00:00:00+00')")
        )
    return ObservedRequests(store.database)


async def keep(observed, *calls, most=100, since=LONG_AGO):
    await observed.keep(calls, most=most, since=since)


async def ids(observed, account=DEFAULT_ACCOUNT, *, limit=100, offset=0, **wanted):
    page = await observed.list(account, Wanted(**wanted), limit=limit, offset=offset)
    return [each.id for each in page.requests]


async def test_a_call_comes_back_as_it_was(observed):
    """Evidence, times and what is missing survive the database."""
    await keep(observed, CALL, BARE)
    assert await observed.get(DEFAULT_ACCOUNT, "first") == CALL
    assert await observed.get(DEFAULT_ACCOUNT, "bare") == BARE
    page = await observed.list(DEFAULT_ACCOUNT, Wanted(), limit=10)
    assert (page.requests, page.total) == ([BARE, CALL], 2)


async def test_the_calls_of_a_deleted_account_do_not_hold_up_others(observed):
    """An account may be deleted while it calls: its last calls are passed over, the rest are kept."""
    await keep(observed, replace(CALL, account_id="gone"), BARE)
    assert await ids(observed) == ["bare"]
    await keep(observed, replace(CALL, account_id="gone"))
    assert await ids(observed) == ["bare"]


async def test_an_account_sees_its_own_calls_alone(observed):
    """Also where two accounts chose the same id."""
    await keep(observed, CALL, replace(CALL, account_id="other", prompt="a secret"))
    assert (await observed.get(DEFAULT_ACCOUNT, "first")).prompt == CALL.prompt
    assert (await observed.get("other", "first")).prompt == "a secret"
    assert await ids(observed, "other") == ["first"]
    assert await ids(observed, search="secret") == []
    await keep(observed, replace(CALL, id="own", account_id="other"))
    with pytest.raises(NotFound, match="'own'") as refused:
        await observed.get(DEFAULT_ACCOUNT, "own")
    assert refused.value.param == "request_id"


async def test_of_one_id_the_latest_call_is_shown(observed):
    """A client that tries again may send the id again."""
    await keep(observed, replace(CALL, status=503), CALL)
    assert (await observed.get(DEFAULT_ACCOUNT, "first")).status == 200
    assert await ids(observed) == ["first", "first"]


async def test_the_latest_calls_of_all_accounts_are_left(observed):
    """At most so many, with every write; with 0 none."""
    calls = [
        replace(CALL, id=str(index), account_id="other" if index % 2 else DEFAULT_ACCOUNT)
        for index in range(6)
    ]
    await keep(observed, *calls[:4], most=4)
    assert await ids(observed) == ["2", "0"]
    await keep(observed, *calls[4:], most=4)
    assert (await ids(observed), await ids(observed, "other")) == (["4", "2"], ["5", "3"])
    await keep(observed, most=1)
    assert (await ids(observed), await ids(observed, "other")) == ([], ["5"])
    await keep(observed, most=0)
    assert await ids(observed, "other") == []


async def test_calls_older_than_the_limit_go(observed):
    old = replace(CALL, id="old", created_at=NOW - timedelta(days=7, seconds=1))
    young = replace(CALL, id="young", created_at=NOW - timedelta(days=6))
    await keep(observed, old, young)
    await keep(observed, since=NOW - timedelta(days=7))
    assert await ids(observed) == ["young"]


@pytest.mark.parametrize(
    ("search", "found"),
    [
        ("FRUIT", ["fruit"]),
        ("ärger", ["umlaut"]),
        ("STRASSE", ["umlaut"]),
        ("/V1/CHAT", ["percent"]),
        ("Adapter", ["umlaut"]),
        ("100%", ["percent"]),
        ("%", ["percent"]),
        ("_", ["percent"]),
        ("\\", []),
        ("\0", []),
        ("nowhere", []),
        ("", ["percent", "umlaut", "fruit"]),
    ],
)
async def test_a_search_ignores_case_and_takes_signs_as_they_are(observed, search, found):
    await keep(
        observed,
        replace(CALL, id="fruit"),
        replace(CALL, id="umlaut", prompt="ÄRGER auf der Straße", model="adapter"),
        replace(CALL, id="percent", prompt="100% a_b", route="/v1/chat/completions", model=None),
    )
    assert await ids(observed, search=search) == found


async def test_filters_and_pages(observed):
    """`total` counts what the filters leave, whatever the page."""
    calls = [
        CALL,
        replace(CALL, id="refused", status=422, behaviors=None),
        replace(CALL, id="chat", route="/v1/chat/completions"),
        replace(BARE, id="bare"),
    ]
    await keep(observed, *calls)
    assert await ids(observed, watched=True) == ["chat", "first"]
    assert await ids(observed, status=422) == ["refused"]
    assert await ids(observed, route="/v1/chat/completions") == ["chat"]
    assert await ids(observed, route="/v1/chat") == []
    assert await ids(observed, watched=True, status=200, route="/generate") == ["first"]
    page = await observed.list(DEFAULT_ACCOUNT, Wanted(status=200), limit=1, offset=1)
    assert ([each.id for each in page.requests], page.total) == (["chat"], 3)
    assert await ids(observed, limit=2, offset=3) == ["first"]


async def test_an_accounts_calls_go_with_it(observed, store):
    await keep(observed, replace(CALL, account_id="other"))
    async with store.database.writing() as connection:
        await connection.execute(text("DELETE FROM accounts WHERE id = 'other'"))
    assert await ids(observed, "other") == []


async def test_days_are_those_of_utc(observed):
    """Calls and tokens are added up by day, the oldest first, for one account alone; failed are those of
    status 400 and above."""
    late = replace(CALL, id="late", created_at=NOW.replace(hour=23, minute=59), status=503)
    next_day = replace(CALL, id="next", created_at=NOW.replace(day=2, hour=0, minute=1))
    await observed.keep([CALL, late, next_day], most=10, since=LONG_AGO)
    first, second = await observed.days(DEFAULT_ACCOUNT)
    assert (str(first.day), first.requests, first.failed) == ("2026-03-01", 2, 1)
    assert (first.prompt_tokens, first.completion_tokens) == (14, 4)
    assert (str(second.day), second.requests, second.failed) == ("2026-03-02", 1, 0)
    assert await observed.days("another") == []
