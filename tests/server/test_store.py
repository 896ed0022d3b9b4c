"""The store, on SQLite and on a real PostgreSQL server."""

import asyncio
import hashlib
import re
from datetime import UTC, datetime, timedelta, timezone

import pytest
from sqlalchemy import text

from server.errors import NotFound
from server.logins import Logins
from server.store import DEFAULT_ACCOUNT, Store
from server.usage import Usage


async def rows(store, query):
    async with store.database.reading() as connection:
        return (await connection.execute(text(query))).all()


async def test_keys_have_the_published_form(store):
    """A key is `ax_` and 48 lowercase hexadecimal digits, and no two are equal."""
    keys = [(await store.create_key(None, None)).key for _ in range(5)]
    assert all(re.fullmatch(r"ax_[0-9a-f]{48}", key) for key in keys)
    assert len(set(keys)) == 5


async def test_only_the_hash_of_a_key_is_stored(store):
    """The record holds the SHA-256 and the first eight digits; the rest of the key is nowhere."""
    key = (await store.create_key(None, "ci")).key
    [row] = await rows(store, "SELECT * FROM api_keys")
    assert row.hash == hashlib.sha256(key.encode()).hexdigest()
    assert row.prefix == key[3:11]
    assert not any(key[11:] in str(column) for column in row)


async def test_the_plain_key_is_not_in_the_database_file(tmp_path):
    """Not one byte sequence of the files on disk, the write-ahead log included, is the key's secret part."""
    store = Store(f"sqlite:///{tmp_path / 'a.db'}")
    await asyncio.to_thread(store.migrate)
    key = await store.first_key()
    written = b"".join(path.read_bytes() for path in tmp_path.iterdir())
    await store.close()
    written += b"".join(path.read_bytes() for path in tmp_path.iterdir())
    assert key[3:11].encode() in written
    assert key[11:].encode() not in written
    assert bytes.fromhex(key[3:]) not in written


async def test_the_first_key_is_made_once(store):
    """Only the first of several processes gets a key, even if they ask at the same time."""
    others = [Store(store.database.url.render_as_string(hide_password=False)) for _ in range(6)]
    for each in others:
        await each.list_keys(None)  # so that all have a connection when it begins
    made = await asyncio.gather(*(each.first_key() for each in others))
    for each in others:
        await each.close()
    assert sorted(key is not None for key in made) == [False] * 5 + [True]
    assert len(await store.list_keys(None)) == 1
    assert await store.first_key() is None


async def test_a_revoked_first_key_is_not_replaced(store):
    """Revoking the only key does not make a start mint a new one."""
    principal = await store.find_key(await store.first_key())
    await store.revoke_key(None, principal.key_id)
    assert await store.first_key() is None


async def test_a_key_is_found_by_all_of_its_digits(store):
    """The key finds its principal; one that differs in the last digit, or is no key at all, finds nobody."""
    created = await store.create_key(None, "ci")
    found = await store.find_key(created.key)
    assert (found.key_id, found.account_id, found.name, found.selected_model) == (
        created.id,
        DEFAULT_ACCOUNT,
        "ci",
        None,
    )
    other = created.key[:-1] + ("0" if created.key[-1] != "0" else "1")
    for wrong in (other, created.key[:-1], created.key.upper(), f"{created.key}0", "", "ax_", "ax_\0"):
        assert await store.find_key(wrong) is None


async def test_keys_that_share_a_prefix_are_told_apart(store):
    """The prefix only narrows the search: both keys work and each has its own principal."""
    one = await store.create_key(None, "one")
    two = "ax_" + one.key[3:11] + "f" * 40
    other = await store.create_key(None, "two")
    async with store.database.writing() as connection:
        await connection.execute(
            text("UPDATE api_keys SET prefix = :prefix, hash = :hash WHERE id = :id"),
            {"prefix": two[3:11], "hash": hashlib.sha256(two.encode()).hexdigest(), "id": other.id},
        )
    assert (await store.find_key(one.key)).name == "one"
    assert (await store.find_key(two)).name == "two"


async def test_a_revoked_key_finds_nobody(store):
    """Revocation ends the key, is dated, and cannot be repeated; its counters stay."""
    created = await store.create_key(None, None)
    await store.record_usage({created.id: Usage(1, 2, 3)}, datetime.now(UTC))
    await store.revoke_key(None, created.id)
    assert await store.find_key(created.key) is None
    [record] = await store.list_keys(None)
    assert record.revoked_at is not None
    assert record.usage == Usage(1, 2, 3)
    with pytest.raises(NotFound):
        await store.revoke_key(None, created.id)


async def test_an_account_sees_and_revokes_only_its_own_keys(store):
    """Keys of another account are neither listed nor revocable; no account means all of them."""
    created = await store.create_key(None, "mine")
    assert [record.id for record in await store.list_keys(DEFAULT_ACCOUNT)] == [created.id]
    assert await store.list_keys("somebody") == []
    assert len(await store.list_keys(None)) == 1
    with pytest.raises(NotFound):
        await store.revoke_key("somebody", created.id)
    with pytest.raises(NotFound):
        await store.create_key("somebody", None)
    assert await store.find_key(created.key) is not None


async def test_a_model_can_be_bound_and_unbound(store):
    """`set_model` shows in the principal; an unknown key is an error."""
    created = await store.create_key(None, None)
    await store.set_model(created.id, "org/model")
    assert (await store.find_key(created.key)).selected_model == "org/model"
    await store.set_model(created.id, None)
    assert (await store.find_key(created.key)).selected_model is None
    with pytest.raises(NotFound):
        await store.set_model("nobody", "m")


async def test_concurrent_increments_all_count(store):
    """Usage recorded by many writers at once, in opposite orders, adds up without loss or deadlock."""
    first, second = [(await store.create_key(None, None)).id for _ in range(2)]
    other = Store(store.database.url.render_as_string(hide_password=False))
    now = datetime.now(UTC)

    async def record(writer: Store, turn: int) -> None:
        ids = (first, second) if turn % 2 else (second, first)
        await writer.record_usage({key_id: Usage(1, 10, 100) for key_id in ids}, now)

    await asyncio.gather(*(record(writer, turn) for writer in (store, other) for turn in range(20)))
    await other.close()
    assert await store.usage(first) == Usage(40, 400, 4000)
    assert await store.usage(second) == Usage(40, 400, 4000)


async def test_usage_counts_beyond_32_bits(store):
    """Token counters of a busy key pass 2³¹ without overflow."""
    key_id = (await store.create_key(None, None)).id
    await store.record_usage({key_id: Usage(0, 2**31, 2**40)}, datetime.now(UTC))
    await store.record_usage({}, datetime.now(UTC))
    assert await store.usage(key_id) == Usage(0, 2**31, 2**40)
    with pytest.raises(NotFound):
        await store.usage("nobody")


async def test_the_usage_of_an_account_is_that_of_its_keys_and_sessions(store):
    """Sessions count under the account's id; keys revoked count on; other accounts do not."""
    account = (await Logins(store.database).add("ada@example.com", "x")).id
    mine, gone = [(await store.create_key(account, None)).id for _ in range(2)]
    other = (await store.create_key(None, None)).id
    now = datetime.now(UTC)
    await store.record_usage({account: Usage(1, 2, 3), mine: Usage(10, 20, 30), other: Usage(7, 7, 7)}, now)
    await store.record_usage({account: Usage(1, 2, 3), gone: Usage(100, 200, 300), "nobody": Usage(5)}, now)
    await store.revoke_key(account, gone)
    assert await store.account_usage(account) == Usage(112, 224, 336)
    assert await store.usage(mine) == Usage(10, 20, 30)
    assert await store.account_usage(DEFAULT_ACCOUNT) == Usage(7, 7, 7)


async def test_a_key_without_a_model_has_its_accounts(store):
    """Its own wins; an account without a login has none to bind."""
    account = (await Logins(store.database).add("ada@example.com", "x")).id
    created = await store.create_key(account, None)
    await store.set_account_model(account, "org/account")
    assert (await store.find_key(created.key)).selected_model == "org/account"
    await store.set_model(created.id, "org/key")
    assert (await store.find_key(created.key)).selected_model == "org/key"
    await store.set_account_model(account, None)
    await store.set_model(created.id, None)
    assert (await store.find_key(created.key)).selected_model is None
    with pytest.raises(NotFound):
        await store.set_account_model(DEFAULT_ACCOUNT, "org/model")


async def test_times_come_back_in_utc(store):
    """A time written in any zone is the same moment in UTC when read."""
    created = await store.create_key(None, None)
    [fresh] = await store.list_keys(None)
    assert fresh.last_used is None
    assert fresh.created_at.utcoffset() == timedelta(0)
    assert abs(datetime.now(UTC) - fresh.created_at) < timedelta(minutes=1)
    moment = datetime(2030, 5, 6, 7, 8, 9, 123456, tzinfo=timezone(timedelta(hours=5, minutes=30)))
    await store.record_usage({created.id: Usage(1)}, moment)
    [used] = await store.list_keys(None)
    assert used.last_used == moment
    assert used.last_used.tzinfo is UTC


async def test_the_default_account_has_an_address(store):
    """The account behind the first key can be read; an unknown one is an error."""
    principal = await store.find_key(await store.first_key())
    account = await store.account(principal.account_id)
    assert account.id == principal.account_id
    assert "@" in account.email
    with pytest.raises(NotFound):
        await store.account("nobody")
