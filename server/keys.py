"""`steersman keys`: make, list and revoke API keys in the database that the settings name."""

import json
import sys
from argparse import SUPPRESS, ArgumentParser, ArgumentTypeError, Namespace
from collections.abc import Sequence
from dataclasses import replace
from datetime import datetime
from typing import TYPE_CHECKING

from server.columns import columns
from server.limits import MAX_LIMIT, RateLimits
from server.projects import Projects
from server.roles import Role
from server.store import KeyRecord, Store
from server.store_command import add_place, run_on_store

if TYPE_CHECKING:
    from argparse import _SubParsersAction

_SHORTEST_PREFIX = 4
_LIMITS = {  # option → field of `RateLimits`
    "requests_per_minute": "requests",
    "tokens_per_minute": "tokens",
    "concurrent_requests": "concurrent",
}


def add_parser(subparsers: "_SubParsersAction[ArgumentParser]") -> ArgumentParser:
    """Add `keys` to the command line; its namespace goes to `run`."""
    parser = subparsers.add_parser("keys", help="make, list and revoke API keys")
    add_place(parser)
    commands = parser.add_subparsers(dest="keys_command", required=True)
    create = commands.add_parser("create", help="make a key and print it, once")
    create.add_argument("--name", help="what the key is for")
    create.add_argument("--project", metavar="KEY", help="a project that the key is within, and in no other")
    create.add_argument(
        "--role", choices=list(Role), default=Role.OWNER, help="the most that the key may do (owner)"
    )
    _add_limits(create)
    listing = commands.add_parser("list", help="all keys, their limits and their usage")
    listing.add_argument("--json", action="store_true", help="as a JSON list")
    limit = commands.add_parser("limit", help="change the limits of a key; those that are not given stay")
    limit.add_argument("key", metavar="ID_OR_PREFIX", help="the key's id, or the beginning of the key")
    _add_limits(limit)
    revoke = commands.add_parser("revoke", help="refuse a key from now on")
    revoke.add_argument("key", metavar="ID_OR_PREFIX", help="the key's id, or the beginning of the key")
    return parser


def _add_limits(parser: ArgumentParser) -> None:
    what = ("requests in a minute", "tokens in a minute, of prompts and answers", "requests at once")
    for option, meaning in zip(_LIMITS, what, strict=True):
        parser.add_argument(
            f"--{option.replace('_', '-')}",
            type=_limit,
            metavar="N",
            default=SUPPRESS,
            help=f"{meaning}; none: the server's default, 0: no limit",
        )


def _limit(text: str) -> int | None:
    if text == "none":
        return None
    if not text.isdecimal() or int(text) > MAX_LIMIT:
        raise ArgumentTypeError(f"a number of 0 to {MAX_LIMIT}, or none, not {text!r}")
    return int(text)


def _limited(args: Namespace, rates: RateLimits) -> RateLimits:
    return replace(
        rates, **{field: getattr(args, name) for name, field in _LIMITS.items() if hasattr(args, name)}
    )


def run(args: Namespace) -> int:
    """Exit status: 0 done, 1 not possible and standard error says why."""
    return run_on_store("keys", args, _act)


async def _act(store: Store, args: Namespace) -> None:
    match args.keys_command:
        case "create":
            rates = _limited(args, RateLimits())
            await _create(store, args.name, args.project, Role(args.role), rates)
        case "list":
            records = await store.list_keys(None)
            sys.stdout.write(_as_json(records) if args.json else _as_table(records))
        case "limit":
            await _change(store, args)
        case "revoke":
            await _revoke(store, args.key)


async def _create(store: Store, name: str | None, project: str | None, role: Role, rates: RateLimits) -> None:
    account_id = None if project is None else (await Projects(store.database).named(project)).id
    created = await store.create_key(account_id, name, role, rates)
    # The key alone on standard output, so that `KEY=$(steersman keys create)` works.
    sys.stdout.write(f"{created.key}\n")
    sys.stderr.write(f"Made key {created.id}. Keep it safe: it cannot be shown again.\n")


async def _change(store: Store, args: Namespace) -> None:
    record = _choose(await store.list_keys(None), args.key)
    rates = _limited(args, record.rates)
    if not any(hasattr(args, name) for name in _LIMITS):
        raise ValueError("Give a limit to change, as --requests-per-minute 60.")
    await store.limit_key(None, record.id, rates)
    sys.stdout.write(
        f"Key {record.masked} ({record.id}): {_told(rates)}. Running servers notice within seconds.\n"
    )


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
            "requests_per_minute": record.rates.requests,
            "tokens_per_minute": record.rates.tokens,
            "concurrent_requests": record.rates.concurrent,
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
    rows = [
        (
            "ID",
            "KEY",
            "NAME",
            "ROLE",
            "MODEL",
            "LIMITS",
            "CREATED",
            "LAST USED",
            "REQUESTS",
            "TOKENS",
            "STATE",
        )
    ]
    rows += [
        (
            record.id,
            record.masked,
            record.name or "-",
            record.role,
            record.selected_model or "default",
            _told(record.rates),
            _minute(record.created_at),
            _minute(record.last_used),
            str(record.usage.requests),
            str(record.usage.prompt_tokens + record.usage.completion_tokens),
            "revoked" if record.revoked_at else "active",
        )
        for record in records
    ]
    return columns(rows)


def _told(rates: RateLimits) -> str:
    """As 60/min,1000 tokens/min,4 at once; a limit of 0 is one that the server's default does not reach."""
    units = ("/min", " tokens/min", " at once")
    told = [
        f"{limit or 'any'}{unit}" for limit, unit in zip(rates.each, units, strict=True) if limit is not None
    ]
    return ",".join(told) or "default"


def _minute(moment: datetime | None) -> str:
    return f"{moment:%Y-%m-%d %H:%M}Z" if moment else "never"
