"""Sessions, on SQLite and on a real PostgreSQL server."""

import asyncio
from dataclasses import replace
from datetime import timedelta

import pytest
from sqlalchemy import text

from server import sessions as module
from server.errors import NotFound, Unauthenticated
from server.logins import Logins
from server.sessions import Lives, Sessions
from server.store import Store

AT_ONCE = replace(Lives(), repeat=timedelta(0))


@pytest.fixture
async def account(store):
    return (await Logins(store.database).add("ada@example.com", "no hash")).id


async def rows(store, query):
    async with store.database.reading() as connection:
        return (await connection.execute(text(query))).all()


async def test_a_session_stands_for_its_account(store, account):
    """Its access token finds a principal without a key, and says for how long it is good."""
    sessions = Sessions(store.database, 60)
    session = await sessions.open(account)
    principal = await sessions.principal(session.access_token)
    assert (principal.account_id, principal.key_id, principal.usage_id) == (account, None, account)
    assert session.expires_in == 900
    other = await sessions.principal((await sessions.open(account)).access_token)
    assert other.session_id != principal.session_id
    with pytest.raises(NotFound):
        await sessions.open("nobody")


async def test_all_processes_sign_with_one_secret(store, account):
    """Made once though many need it at the same time; each takes what any other has signed."""
    url = store.database.url.render_as_string(hide_password=False)
    stores = [Store(url) for _ in range(5)]
    processes = [Sessions(each.database, 60) for each in stores]
    opened = await asyncio.gather(*(each.open(account) for each in processes))
    for each in processes:
        for session in opened:
            assert (await each.principal(session.access_token)).account_id == account
    for each in stores:
        await each.close()
    assert len(await rows(store, "SELECT secret FROM signing_secrets")) == 1


async def test_no_token_is_in_the_database(store, account):
    """What is stored of a session opens nothing."""
    session = await Sessions(store.database, 60).open(account)
    [row] = await rows(store, "SELECT * FROM sessions")
    for token in (session.access_token, session.refresh_token):
        assert not any(piece in str(column) for column in row for piece in token.split("."))


async def test_a_refresh_makes_new_tokens(store, account):
    """Of the same session; the new refresh token works in turn, and the old access token until it expires."""
    sessions = Sessions(store.database, 60)
    session = first = await sessions.open(account)
    for _ in range(3):
        fresh = await sessions.refresh(session.refresh_token)
        assert fresh.refresh_token != session.refresh_token
        assert fresh.access_token != session.access_token
        session = fresh
    ids = {(await sessions.principal(each.access_token)).session_id for each in (first, session)}
    assert len(ids) == 1


@pytest.mark.parametrize("thief_first", [True, False])
async def test_a_refresh_token_used_twice_ends_the_session(store, account, thief_first):
    """Whichever of owner and thief comes second: all of its tokens are worthless, other sessions stay."""
    sessions = Sessions(store.database, 60, AT_ONCE)
    stolen, bystander = await sessions.open(account), await sessions.open(account)
    fresh = await sessions.refresh(stolen.refresh_token)
    if thief_first:
        fresh = await sessions.refresh(fresh.refresh_token)
    await sessions.principal(fresh.access_token)
    with pytest.raises(Unauthenticated, match="used before"):
        await sessions.refresh(stolen.refresh_token)
    for token in (fresh.refresh_token, stolen.refresh_token):
        with pytest.raises(Unauthenticated, match="has ended"):
            await sessions.refresh(token)
    for token in (fresh.access_token, stolen.access_token):
        with pytest.raises(Unauthenticated, match="has ended"):
            await sessions.principal(token)
    assert (await sessions.principal(bystander.access_token)).account_id == account


async def test_two_refreshes_at_once_agree(store, account):
    """Two processes of one client get tokens that both go on working, since seconds lie between them."""
    sessions = Sessions(store.database, 60)
    session = await sessions.open(account)
    first, second = await asyncio.gather(*(sessions.refresh(session.refresh_token) for _ in range(2)))
    assert (await sessions.refresh(first.refresh_token)).account_id == account
    assert (await sessions.refresh(second.refresh_token)).account_id == account


async def test_only_the_last_refresh_is_repeated(store, account):
    """A refresh token two generations old is a reuse, however soon."""
    sessions = Sessions(store.database, 60)
    session = await sessions.open(account)
    await sessions.refresh((await sessions.refresh(session.refresh_token)).refresh_token)
    with pytest.raises(Unauthenticated, match="used before"):
        await sessions.refresh(session.refresh_token)


async def test_a_session_that_is_not_refreshed_ends(store, account):
    """After its life neither of its tokens works, and the next login deletes it."""
    brief = Lives(session=timedelta(seconds=0.2))
    sessions = Sessions(store.database, 0.01, brief)
    session = await sessions.open(account)
    await asyncio.sleep(0.3)
    with pytest.raises(Unauthenticated, match="has ended"):
        await sessions.principal(session.access_token)
    with pytest.raises(Unauthenticated, match="log in again"):
        await sessions.refresh(session.refresh_token)
    await sessions.open(account)
    assert len(await rows(store, "SELECT id FROM sessions")) == 1


async def test_a_refresh_lengthens_a_session(store, account):
    """It is good for its whole life again."""
    sessions = Sessions(store.database, 60)
    session = await sessions.open(account)
    before = await rows(store, "SELECT expires_at FROM sessions")
    await sessions.refresh(session.refresh_token)
    assert await rows(store, "SELECT expires_at FROM sessions") > before


async def test_an_account_ends_its_sessions(store, account):
    """All at once and at once, but for the one that asks."""
    sessions = Sessions(store.database, 60)
    opened = [await sessions.open(account) for _ in range(3)]
    mine = await sessions.principal(opened[0].access_token)
    for session in opened:
        await sessions.principal(session.access_token)
    assert await sessions.end(account, but=mine.session_id) == 2
    assert await sessions.principal(opened[0].access_token) == mine
    for session in opened[1:]:
        with pytest.raises(Unauthenticated, match="has ended"):
            await sessions.principal(session.access_token)
    assert await sessions.end(account) == 1


async def test_the_end_of_a_session_reaches_other_processes(store, account):
    """They remember it for as long as they were told, and no longer."""
    here, there = Sessions(store.database, 60), Sessions(store.database, 0.2)
    session = await here.open(account)
    await there.principal(session.access_token)
    await here.end(account)
    assert (await there.principal(session.access_token)).account_id == account
    await asyncio.sleep(0.25)
    with pytest.raises(Unauthenticated):
        await there.principal(session.access_token)


async def test_an_account_has_so_many_sessions(store, account, monkeypatch):
    """A login beyond the most ends the oldest; other accounts' stay."""
    monkeypatch.setattr(module, "MOST", 3)
    other = (await Logins(store.database).add("bob@example.com", "no hash")).id
    sessions = Sessions(store.database, 60)
    theirs = await sessions.open(other)
    opened = [await sessions.open(account) for _ in range(5)]
    for session in opened[:2]:
        with pytest.raises(Unauthenticated):
            await sessions.principal(session.access_token)
    for session in (*opened[2:], theirs):
        await sessions.principal(session.access_token)
