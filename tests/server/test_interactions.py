"""The interaction log, on SQLite and on a real PostgreSQL server."""

from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest
from sqlalchemy import text

from server.errors import NotFound
from server.interactions import (
    MAX_LABEL_KEY,
    MAX_LABEL_VALUE,
    Interaction,
    Interactions,
    Sought,
)
from server.store import DEFAULT_ACCOUNT

NOW = datetime(2026, 3, 1, 12, 0, 0, 250_000, tzinfo=UTC)
ONE = Interaction(
    id="chatcmpl-1",
    account_id=DEFAULT_ACCOUNT,
    created_at=NOW,
    model="base",
    session_id="s-1",
    messages=[{"role": "user", "content": [{"type": "text", "text": "Name a frÜit \u2028 \0."}]}],
    parameters={"temperature": 0, "stop": None},
    answer={
        "id": "chatcmpl-1",
        "object": "chat.completion",
        "created": 1772366400,
        "model": "base",
        "choices": [{"index": 0, "message": {"role": "assistant", "content": "a pear"}}],
        "usage": {"prompt_tokens": 7, "completion_tokens": 2, "total_tokens": 9},
        "steersman": {"steering": {"dose": 0.1}},
    },
    labels={"team": "search", "rating": "good"},
    prompt_tokens=7,
    completion_tokens=2,
    latency_ms=12.5,
    first_token_ms=3.25,
)
MINE = Sought(DEFAULT_ACCOUNT)


def named(name, **changes):
    return replace(ONE, **{"id": name, "answer": {**ONE.answer, "id": name}, **changes})


@pytest.fixture
async def interactions(store):
    """Of a database that has two accounts."""
    await store.first_key()
    async with store.database.writing() as connection:
        await connection.execute(
            text("INSERT INTO accounts VALUES ('other', 'other@localhost', '2026-01-01 00:00:00+00')")
        )
    return Interactions(store.database)


async def ids(interactions, sought=MINE, *, limit=100, **more):
    page = await interactions.list(sought, limit=limit, **more)
    return [each.id for each in page.interactions]


async def labels_left(store):
    async with store.database.reading() as connection:
        return (await connection.execute(text("SELECT count(*) FROM interaction_labels"))).scalar_one()


async def test_an_interaction_comes_back_as_it_was(interactions):
    """Nested texts, times, evidence and what is missing survive the database."""
    bare = named("bare", session_id=None, labels={}, first_token_ms=None)
    await interactions.keep([ONE, bare])
    assert await interactions.get(DEFAULT_ACCOUNT, "chatcmpl-1") == ONE
    assert await interactions.get(DEFAULT_ACCOUNT, "bare") == bare
    page = await interactions.list(MINE, limit=10)
    assert (page.interactions, page.more) == ([ONE, bare], False)


async def test_nothing_is_nothing_to_keep(interactions):
    await interactions.keep([])
    assert await ids(interactions) == []


async def test_an_account_sees_its_own_interactions_alone(interactions):
    """Also where two accounts have the same id; what one changes or deletes stays with the other."""
    await interactions.keep([ONE, replace(ONE, account_id="other", model="secret")])
    assert (await interactions.get(DEFAULT_ACCOUNT, ONE.id)).model == "base"
    assert await ids(interactions, Sought("other")) == [ONE.id]
    assert await ids(interactions, Sought(DEFAULT_ACCOUNT, model="secret")) == []
    assert await ids(interactions, Sought(None)) == [ONE.id, ONE.id]
    await interactions.label("other", ONE.id, {"team": "x"})
    assert await ids(interactions, Sought(DEFAULT_ACCOUNT, labels={"team": "x"})) == []
    await interactions.delete("other", ONE.id)
    assert await interactions.get(DEFAULT_ACCOUNT, ONE.id) == ONE
    for act in (
        interactions.get("other", ONE.id),
        interactions.delete("other", ONE.id),
        interactions.label("other", ONE.id, {}),
    ):
        with pytest.raises(NotFound, match="chatcmpl-1") as refused:
            await act
        assert refused.value.param == "completion_id"


async def test_an_id_that_comes_again_replaces_what_it_named(interactions, store):
    """A client may send its x-request-id again; in one batch too the last one counts."""
    await interactions.keep([ONE, named("b")])
    again = replace(ONE, latency_ms=1.0, labels={"team": "ads"})
    await interactions.keep([replace(ONE, model="older"), again])
    assert await ids(interactions) == ["b", ONE.id]
    assert await interactions.get(DEFAULT_ACCOUNT, ONE.id) == again
    assert await labels_left(store) == 3


async def test_pages_follow_one_another_in_both_orders(interactions):
    """Each begins after the last one of the page before, and says whether there is more."""
    names = [f"c{index}" for index in range(7)]
    await interactions.keep([named(name) for name in names])
    for newest_first, expected in ((False, names), (True, names[::-1])):
        seen, after, more = [], None, True
        while more:
            page = await interactions.list(MINE, limit=3, after=after, newest_first=newest_first)
            seen += [each.id for each in page.interactions]
            after, more = page.interactions[-1].id, page.more
        assert seen == expected
    assert await ids(interactions, after="c6") == []
    with pytest.raises(NotFound) as refused:
        await interactions.list(MINE, limit=3, after="none")
    assert refused.value.param == "after"


async def test_they_are_found_by_model_label_and_time(interactions):
    """Alone and together, in both orders and across pages."""
    await interactions.keep(
        [
            named("a"),
            named("b", labels={"team": "search"}, created_at=NOW + timedelta(days=1)),
            named("c", labels={"team": "ads", "rating": "good"}),
            named("d", model="adapter"),
            named("e", labels={}),
        ]
    )

    async def found(account=DEFAULT_ACCOUNT, **wanted):
        return await ids(interactions, Sought(account, **wanted))

    for account in (DEFAULT_ACCOUNT, None):
        assert await found(account, model="adapter") == ["d"]
        assert await found(account, labels={"team": "search"}) == ["a", "b", "d"]
        assert await found(account, labels={"team": "search", "rating": "good"}) == ["a", "d"]
        assert await found(account, labels={"team": "search"}, model="base") == ["a", "b"]
        assert await found(account, since=NOW + timedelta(hours=1)) == ["b"]
        assert await found(account, labels={"team": "SEARCH"}) == []
        assert await found(account, labels={"search": "team"}) == []
        assert await found(account, model="\0") == []
    by_team = Sought(DEFAULT_ACCOUNT, labels={"team": "search"})
    assert await ids(interactions, by_team, newest_first=True) == ["d", "b", "a"]
    page = await interactions.list(by_team, limit=2)
    assert ([each.id for each in page.interactions], page.more) == (["a", "b"], True)
    assert await ids(interactions, by_team, after="b") == ["d"]
    assert await ids(interactions, by_team, after="c", newest_first=True) == ["b", "a"]


async def test_labels_are_replaced(interactions, store):
    """As a whole; it is found by the new ones and no longer by the old."""
    await interactions.keep([ONE])
    changed = await interactions.label(DEFAULT_ACCOUNT, ONE.id, {"rating": "bad", "nul": "\0"})
    assert changed == replace(ONE, labels={"rating": "bad", "nul": "\0"})
    assert await ids(interactions, Sought(DEFAULT_ACCOUNT, labels={"rating": "bad"})) == [ONE.id]
    assert await ids(interactions, Sought(DEFAULT_ACCOUNT, labels={"nul": "\0"})) == [ONE.id]
    assert await ids(interactions, Sought(DEFAULT_ACCOUNT, labels={"team": "search"})) == []
    await interactions.label(DEFAULT_ACCOUNT, ONE.id, {})
    assert await labels_left(store) == 0


async def test_what_is_deleted_is_gone_with_its_labels(interactions, store):
    await interactions.keep([ONE, named("b", labels={})])
    await interactions.delete(DEFAULT_ACCOUNT, ONE.id)
    assert await ids(interactions) == ["b"]
    assert await labels_left(store) == 0
    with pytest.raises(NotFound):
        await interactions.delete(DEFAULT_ACCOUNT, ONE.id)


async def test_the_latest_of_all_accounts_are_left(interactions, store):
    """At most so many, since so long ago."""
    rows = [
        named(str(index), account_id="other" if index % 2 else DEFAULT_ACCOUNT, created_at=NOW)
        for index in range(6)
    ]
    await interactions.keep(rows)
    await interactions.prune(most=3, since=NOW - timedelta(days=1))
    assert (await ids(interactions), await ids(interactions, Sought("other"))) == (["4"], ["3", "5"])
    assert await labels_left(store) == 6
    await interactions.keep([named("old", created_at=NOW - timedelta(days=2))])
    await interactions.prune(most=100, since=NOW - timedelta(days=1))
    assert await ids(interactions, Sought(None)) == ["3", "4", "5"]


async def test_the_longest_labels_fit_the_databases_index(interactions):
    """Of letters that take four bytes each."""
    long = {"𝒜" * MAX_LABEL_KEY: "𝒵" * MAX_LABEL_VALUE}
    await interactions.keep([named("long", labels=long)])
    assert await ids(interactions, Sought(DEFAULT_ACCOUNT, labels=long)) == ["long"]


async def test_names_beyond_their_columns_are_cut(interactions):
    """Clients choose ids, operators models; an answer is not lost for either."""
    labels = {"redacted": "x" * 999}
    await interactions.keep([named("i" * 999, model="m" * 999, session_id="s" * 999, labels=labels)])
    [kept] = (await interactions.list(MINE, limit=1)).interactions
    assert (len(kept.id), len(kept.model), len(kept.session_id)) == (200, 500, 200)
    assert kept.labels == {"redacted": "x" * MAX_LABEL_VALUE}


async def test_an_accounts_interactions_go_with_it(interactions, store):
    await interactions.keep([replace(ONE, account_id="other")])
    async with store.database.writing() as connection:
        await connection.execute(text("DELETE FROM accounts WHERE id = 'other'"))
    assert await ids(interactions, Sought(None)) == []
    assert await labels_left(store) == 0


async def test_an_account_that_goes_takes_no_other_with_it(interactions):
    """What was asked by an account that is gone by now is passed over; the rest of the batch is kept."""
    await interactions.keep([named("a"), named("b", account_id="nobody"), named("c", labels={"team": "x"})])
    await interactions.keep([named("d", account_id="nobody")])
    assert [each.id for each in (await interactions.list(MINE, limit=9)).interactions] == ["a", "c"]
    found = await interactions.list(Sought(DEFAULT_ACCOUNT, labels={"team": "x"}), limit=9)
    assert [each.id for each in found.interactions] == ["c"]
