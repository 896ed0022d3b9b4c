"""`steersman accounts`, on SQLite and on a real PostgreSQL server."""

import argparse
import io
import json
import sys

import pytest

from server import accounts_cli
from server.store import Store
from tests.server.accounts_world import EMAIL, PASSWORD, World
from tests.terminal import Terminal


@pytest.fixture
def steersman(database_url, capsys, monkeypatch):
    """Run `steersman accounts …` in this process, with something on standard input: its status, standard
    output and standard error."""
    parser = argparse.ArgumentParser("steersman")
    accounts_cli.add_parser(parser.add_subparsers())

    def run(*arguments: str, typed: str = "") -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "stdin", io.StringIO(typed))
        words = ["accounts", "--steersman-database-url", database_url, *arguments]
        status = accounts_cli.run(parser.parse_args(words))
        captured = capsys.readouterr()
        return status, captured.out, captured.err

    return run


def test_the_command_makes_lists_and_deletes(steersman):
    """The id is printed alone, the list names the account and no hash, and deleting takes it away."""
    assert steersman("list")[:2] == (0, "No accounts yet: `steersman accounts add EMAIL` makes one.\n")
    status, out, err = steersman("add", "Ada@Example.com", typed=f"{PASSWORD}\n")
    assert (status, EMAIL in err) == (0, True)
    [item] = json.loads(steersman("list", "--json")[1])
    assert (item["id"], item["email"], item["has_password"]) == (out.strip(), EMAIL, True)
    header, row = steersman("list")[1].splitlines()
    assert header.split()[:2] == ["ID", "EMAIL"]
    assert (row.split()[:2], row.split()[-1]) == ([item["id"], EMAIL], "yes")
    assert "argon2" not in row
    assert steersman("delete", EMAIL)[0] == 0
    assert json.loads(steersman("list", "--json")[1]) == []


@pytest.mark.parametrize(
    ("arguments", "typed", "says"),
    [
        (["add", "ada"], f"{PASSWORD}\n", "name@host"),
        (["add", EMAIL], "", "8 to 1024 characters"),
        (["add", EMAIL], "short\n", "8 to 1024 characters"),
        (["password", EMAIL], f"{PASSWORD}\n", "no account of"),
        (["delete", EMAIL], "", "no account of"),
        (["delete", "owner@localhost"], "", "no account of"),
    ],
)
def test_what_cannot_be_done_is_told(steersman, arguments, typed, says):
    """One line on standard error, status 1, and nothing was made."""
    status, out, err = steersman(*arguments, typed=typed)
    assert (status, out, says in err) == (1, "", True), err
    assert len(err.splitlines()) == 1
    assert json.loads(steersman("list", "--json")[1]) == []


def test_an_account_is_made_once(steersman):
    """A second time is refused, and the operator's own account is neither made nor deleted."""
    steersman("add", EMAIL, typed=f"{PASSWORD}\n")
    assert steersman("add", EMAIL, typed="another password\n")[0] == 1
    assert "already" in steersman("add", "owner@localhost", typed=f"{PASSWORD}\n")[2]


async def test_who_was_added_logs_in_where_signup_is_closed(steersman, database_url):
    """With the password that was typed; a new password ends the sessions, and the old one does not do."""
    import asyncio

    await asyncio.to_thread(steersman, "add", EMAIL, typed=f"{PASSWORD}\n")
    store = Store(database_url)
    world = World(store, "closed", seconds=0.001)
    session = (await world.logged_in()).json()["session"]
    assert (await world.get("/auth/whoami", session["access_token"])).status_code == 200
    status, out, _ = await asyncio.to_thread(steersman, "password", EMAIL, typed="a new password\r\n")
    assert (status, "1 sessions ended" in out) == (0, True)
    assert (await world.get("/auth/whoami", session["access_token"])).status_code == 401
    assert (await world.logged_in()).status_code == 401
    assert (await world.logged_in(password="a new password")).status_code == 200
    await store.close()


def test_in_a_terminal_the_password_is_asked_for_twice(tmp_path):
    """Unseen; two that differ make no account."""
    command = [sys.executable, "-m", "server", "accounts", "add", EMAIL]
    environ = {"STEERSMAN_HOME": str(tmp_path), "PATH": "/usr/bin:/bin"}
    typing = Terminal(["sh", "-c", '"$@" || true', "-", *command], environ)
    typing.answer("Password:", PASSWORD)
    typing.answer("Again:", f"{PASSWORD}!")
    shown = typing.end()
    assert ("not the same" in shown, PASSWORD in shown) == (True, False)
    typing = Terminal(command, environ)
    typing.answer("Password:", PASSWORD)
    typing.answer("Again:", PASSWORD)
    assert "Made an account" in typing.end()
