"""Accounts with a password, on SQLite and on a real PostgreSQL server."""

import asyncio

import pytest
from sqlalchemy import text

from server.errors import Conflict, Forbidden, NotFound
from server.logins import Logins, email_address
from server.sessions import Sessions
from server.store import DEFAULT_ACCOUNT, DEFAULT_EMAIL


@pytest.fixture
def logins(store):
    return Logins(store.database)


async def test_an_account_is_found_by_its_address(logins):
    """With the hash of its password; nobody else's address finds it."""
    account = await logins.add("ada@example.com", "hash 1")
    found = await logins.find("ada@example.com")
    assert (found.account, found.password_hash) == (account, "hash 1")
    assert await logins.find("bob@example.com") is None


async def test_an_address_has_one_account(logins):
    """Of several that are added with one address at the same time one is made."""
    made = await asyncio.gather(
        *(logins.add("ada@example.com", "x") for _ in range(5)), return_exceptions=True
    )
    conflicts = [each for each in made if isinstance(each, Conflict)]
    assert len(conflicts) == 4
    assert conflicts[0].param == "email"
    assert len(await logins.list()) == 1


async def test_the_operators_address_is_taken(logins, store):
    """Before its account is made and after: nobody signs up as the operator."""
    for _ in range(2):
        with pytest.raises(Conflict):
            await logins.add(DEFAULT_EMAIL, "x")
        await store.first_key()
    other = await logins.add("ada@example.com", "x")
    with pytest.raises(Conflict):
        await logins.set_email(other.id, DEFAULT_EMAIL)


async def test_the_operators_account_may_get_a_password(logins, store):
    """It has none until it is set one, and cannot be deleted."""
    await store.first_key()
    assert (await logins.find(DEFAULT_EMAIL)).password_hash is None
    await logins.set_password(DEFAULT_ACCOUNT, "hash 1")
    await logins.set_password(DEFAULT_ACCOUNT, "hash 2")
    assert (await logins.find(DEFAULT_EMAIL)).password_hash == "hash 2"
    with pytest.raises(Forbidden):
        await logins.delete(DEFAULT_ACCOUNT)
    with pytest.raises(NotFound):
        await logins.set_password("nobody", "x")


async def test_an_address_can_be_changed(logins):
    """To a free one, or to itself; the old one is free then."""
    ada = await logins.add("ada@example.com", "x")
    await logins.add("bob@example.com", "x")
    await logins.set_email(ada.id, "ada@example.com")
    with pytest.raises(Conflict) as caught:
        await logins.set_email(ada.id, "bob@example.com")
    assert caught.value.param == "new_email"
    await logins.set_email(ada.id, "ada@example.org")
    assert (await logins.find("ada@example.org")).account.id == ada.id
    assert await logins.find("ada@example.com") is None
    await logins.add("ada@example.com", "x")
    with pytest.raises(NotFound):
        await logins.set_email("nobody", "new@example.com")


async def test_a_deleted_account_leaves_nothing(logins, store):
    """Its keys, password and sessions go with it, those of others stay."""
    ada, bob = [await logins.add(f"{name}@example.com", "x") for name in ("ada", "bob")]
    for account in (ada, bob):
        await store.create_key(account.id, None)
        await Sessions(store.database, 60).open(account.id)
    await logins.delete(ada.id)
    async with store.database.reading() as connection:
        for table in ("api_keys", "logins", "sessions"):
            left = await connection.execute(text(f"SELECT account_id FROM {table}"))
            assert left.scalars().all() == [bob.id]
    with pytest.raises(NotFound):
        await logins.delete(ada.id)


@pytest.mark.parametrize(
    ("written", "kept"),
    [
        ("ada@example.com", "ada@example.com"),
        (" Ada@Example.COM\n", "ada@example.com"),
        ("ada+steer@corp.internal", "ada+steer@corp.internal"),
        ("ada@host", "ada@host"),
        ("owner@localhost", "owner@localhost"),
        ("ada@nas.local", "ada@nas.local"),
        ("a.!#$%&'*+/=?^_`{|}~-@x.org", "a.!#$%&'*+/=?^_`{|}~-@x.org"),
        ("ada@xn--bcher-kva.example", "ada@xn--bcher-kva.example"),
        ("a" * 248 + "@x.org", "a" * 248 + "@x.org"),
    ],
)
def test_an_address_has_one_form(written, kept):
    """Whatever its case and white space; names of private networks will do."""
    assert email_address(written) == kept


@pytest.mark.parametrize(
    "written",
    [
        *("", "ada", "@x.org", "ada@", "a b@x.org", "a\0@x.org", "a@b@c", "a@-x.org", "a@x..org", "a@x.org."),
        *("a@x_y.org", "ada@bücher.example", "ädä@x.org", "a@" + "x" * 64 + ".org", "a" * 249 + "@x.org"),
    ],
)
def test_what_is_no_address_is_refused(written):
    """It is told how one is written."""
    with pytest.raises(ValueError, match="name@host"):
        email_address(written)
