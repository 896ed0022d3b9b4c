"""`steersman accounts`: the accounts that log in, as their operator makes and ends them."""

import getpass
import json
import sys
from argparse import ArgumentParser, Namespace
from collections.abc import Sequence
from typing import TYPE_CHECKING

from server.errors import NotFound
from server.logins import Login, Logins, email_address
from server.passwords import MAX_LENGTH, MIN_LENGTH, Passwords
from server.sessions import Sessions
from server.settings import Settings
from server.store import Store
from server.store_command import add_place, run_on_store

if TYPE_CHECKING:
    from argparse import _SubParsersAction


def add_parser(subparsers: "_SubParsersAction[ArgumentParser]") -> ArgumentParser:
    """Add `accounts` to the command line; its namespace goes to `run`."""
    parser = subparsers.add_parser("accounts", help="accounts that log in to a server with --accounts")
    add_place(parser)
    commands = parser.add_subparsers(dest="accounts_command", required=True)
    asks = "the password is asked for, or read as the first line of standard input"
    add = commands.add_parser("add", help="make an account", description=f"Make an account; {asks}.")
    add.add_argument("email", metavar="EMAIL")
    listing = commands.add_parser("list", help="all accounts")
    listing.add_argument("--json", action="store_true", help="as a JSON list")
    password = commands.add_parser(
        "password",
        help="set an account's password, and end its sessions",
        description=f"Set an account's password, its first one too, and end its sessions; {asks}.",
    )
    password.add_argument("email", metavar="EMAIL")
    delete = commands.add_parser("delete", help="delete an account with its keys and all that it owns")
    delete.add_argument("email", metavar="EMAIL")
    return parser


def run(args: Namespace) -> int:
    """Exit status: 0 done, 1 not possible and standard error says why."""
    return run_on_store("accounts", args, _act)


async def _act(store: Store, args: Namespace) -> None:
    logins = Logins(store.database)
    sessions = Sessions(store.database, Settings.read(args).key_cache_seconds)
    match args.accounts_command:
        case "add":
            await _add(logins, email_address(args.email))
        case "list":
            found = await logins.list()
            sys.stdout.write(_as_json(found) if args.json else _as_table(found))
        case "password":
            await _set_password(logins, sessions, await _find(logins, args.email))
        case "delete":
            login = await _find(logins, args.email)
            await logins.delete(login.account.id)
            sys.stdout.write(f"Deleted {login.account.email}, with its keys and all that it owned.\n")


async def _add(logins: Logins, email: str) -> None:
    account = await logins.add(email, await Passwords().hashed(_new_password()))
    # The id alone on standard output, so that `ID=$(steersman accounts add EMAIL)` works.
    sys.stdout.write(f"{account.id}\n")
    sys.stderr.write(f"Made an account for {email}: POST /auth/login, or `mechanex login`.\n")


async def _set_password(logins: Logins, sessions: Sessions, login: Login) -> None:
    await logins.set_password(login.account.id, await Passwords().hashed(_new_password()))
    ended = await sessions.end(login.account.id)
    sys.stdout.write(f"Set the password of {login.account.email}; {ended} sessions ended.\n")


async def _find(logins: Logins, email: str) -> Login:
    login = await logins.find(email_address(email))
    if login is None:
        raise NotFound(f"There is no account of {email}: `steersman accounts list` names them.")
    return login


def _new_password() -> str:
    """Raises ValueError for one that will not do."""
    if sys.stdin.isatty():
        password = getpass.getpass("Password: ")
        if getpass.getpass("Again: ") != password:
            raise ValueError("The two are not the same.")
    else:
        password = sys.stdin.readline().rstrip("\r\n")
    if not MIN_LENGTH <= len(password) <= MAX_LENGTH:
        raise ValueError(f"A password has {MIN_LENGTH} to {MAX_LENGTH} characters, this one {len(password)}.")
    return password


def _as_json(logins: Sequence[Login]) -> str:
    items = [
        {
            "id": login.account.id,
            "email": login.account.email,
            "created_at": login.account.created_at.isoformat(),
            "has_password": login.password_hash is not None,
        }
        for login in logins
    ]
    return json.dumps(items, indent=2, ensure_ascii=False) + "\n"


def _as_table(logins: Sequence[Login]) -> str:
    if not logins:
        return "No accounts yet: `steersman accounts add EMAIL` makes one.\n"
    rows = [("ID", "EMAIL", "CREATED", "LOGS IN")]
    rows += [
        (
            login.account.id,
            login.account.email,
            f"{login.account.created_at:%Y-%m-%d %H:%M}Z",
            "no" if login.password_hash is None else "yes",
        )
        for login in logins
    ]
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    lines = ("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) for row in rows)
    return "".join(f"{line.rstrip()}\n" for line in lines)
