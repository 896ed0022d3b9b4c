"""`steersman keys`: make, list and revoke API keys in the database that the settings name."""

import asyncio
import json
import sys
from argparse import ArgumentParser, Namespace
from collections.abc import Sequence
from datetime import datetime
from typing import TYPE_CHECKING

from server.errors import SteersmanError
from server.projects import Projects
from server.roles import Role
from server.settings import Settings
from server.store import KeyRecord, Store

if TYPE_CHECKING:
    from argparse import _SubParsersAction

_SHORTEST_PREFIX = 4


def add_parser(subparsers: "_SubParsersAction[ArgumentParser]") -> ArgumentParser:
    """Add `keys` to the command line; its namespace goes to `run`."""
    parser = subparsers.add_parser("keys", help="make, list and revoke API keys")
    parser.add_argument("--steersman-home", metavar="DIR", help="folder of the database")
    parser.add_argument("--steersman-database-url", metavar="URL", help="SQLite or PostgreSQL")
    commands = parser.add_subparsers(dest="keys_command", required=True)
    create = commands.add_parser("create", help="make a key and print it, once")
    create.add_argument("--name", help="what the key is for")
    create.add_argument("--project", metavar="KEY", help="a project that the key is within, and in no other")
    create.add_argument(
        "--role", choices=list(Role), default=Role.OWNER, help="the most that the key may do (owner)"
    )
    listing = commands.add_parser("list", help="all keys and their usage")
    listing.add_argument("--json", action="store_true", help="as a JSON list")
    revoke = commands.add_parser("revoke", help="refuse a key from now on")
    revoke.add_argument("key", metavar="ID_OR_PREFIX", help="the key's id, or the beginning of the key")
    return parser


def run(args: Namespace) -> int:
    """Exit status: 0 done, 1 not possible and standard error says why."""
    try:
        store = Store(Settings.read(args).database_url)
        store.migrate()
        asyncio.run(_act(store, args))
    except (SteersmanError, ValueError) as error:
        sys.stderr.write(f"steersman keys: {error}\n")
        return 1
    return 0


async def _act(store: Store, args: Namespace) -> None:
    try:
        match args.keys_command:
            case "create":
                await _create(store, args.name, args.project, Role(args.role))
            case "list":
                records = await store.list_keys(None)
                sys.stdout.write(_as_json(records) if args.json else _as_table(records))
            case "revoke":
                await _revoke(store, args.key)
    finally:
        await store.close()


async def _create(store: Store, name: str | None, project: str | None, role: Role) -> None:
    account_id = None if project is None else (await Projects(store.database).named(project)).id
    created = await store.create_key(account_id, name, role)
    # The key alone on standard output, so that `KEY=$(steersman keys create)` works.
    sys.stdout.write(f"{created.key}\n")
    sys.stderr.write(f"Made key {created.id}. Keep it safe: it cannot be shown again.\n")


async def _revoke(store: Store, wanted: str) -> None:
    record = _choose(await store.list_keys(None), wanted)
    await store.revoke_key(None, record.id)
    sys.stdout.write(f"Revoked key {record.masked} ({record.id}). Running servers notice within seconds.\n")


def _choose(records: Sequence[KeyRecord], wanted: str) -> KeyRecord:
    """The one key in force that `wanted` means. Raises ValueError if none or several."""
    active = [record for record in records if record.revoked_at is None]
    by_id = [record for record in active if record.id == wanted]
    if by_id:
        return by_id[0]
    prefix = wanted.removeprefix("ax_").removesuffix("…")[:8]
    if len(prefix) < _SHORTEST_PREFIX:
        raise ValueError(f"Give the key's id, or at least {_SHORTEST_PREFIX} digits of the key after `ax_`.")
    found = [record for record in active if record.prefix.startswith(prefix)]
    if not found:
        raise ValueError(f"No key in force has the id or prefix {prefix!r}.")
    if len(found) > 1:
        names = ", ".join(f"{record.masked} ({record.id})" for record in found)
        raise ValueError(f"{prefix!r} means several keys: {names}.")
    return found[0]


def _as_json(records: Sequence[KeyRecord]) -> str:
    items = [
        {
            "id": record.id,
            "key": record.masked,
            "name": record.name,
            "account_id": record.account_id,
            "role": record.role,
            "selected_model": record.selected_model,
            "created_at": record.created_at.isoformat(),
            "last_used": record.last_used and record.last_used.isoformat(),
            "revoked_at": record.revoked_at and record.revoked_at.isoformat(),
            "requests": record.usage.requests,
            "prompt_tokens": record.usage.prompt_tokens,
            "completion_tokens": record.usage.completion_tokens,
        }
        for record in records
    ]
    return json.dumps(items, indent=2, ensure_ascii=False) + "\n"


def _as_table(records: Sequence[KeyRecord]) -> str:
    if not records:
        return "No keys yet: `steersman keys create` makes one.\n"
    rows = [("ID", "KEY", "NAME", "ROLE", "MODEL", "CREATED", "LAST USED", "REQUESTS", "TOKENS", "STATE")]
    rows += [
        (
            record.id,
            record.masked,
            record.name or "-",
            record.role,
            record.selected_model or "default",
            _minute(record.created_at),
            _minute(record.last_used),
            str(record.usage.requests),
            str(record.usage.prompt_tokens + record.usage.completion_tokens),
            "revoked" if record.revoked_at else "active",
        )
        for record in records
    ]
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    lines = ("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) for row in rows)
    return "".join(f"{line.rstrip()}\n" for line in lines)


def _minute(moment: datetime | None) -> str:
    return f"{moment:%Y-%m-%d %H:%M}Z" if moment else "never"
