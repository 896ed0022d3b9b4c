"""What the commands that work on the server's database share: which database it is, and how they end."""

import asyncio
import sys
from argparse import ArgumentParser, Namespace
from collections.abc import Awaitable, Callable

from server.errors import SteersmanError
from server.settings import Settings
from server.store import Store

Act = Callable[[Store, Namespace], Awaitable[None]]


def add_place(parser: ArgumentParser) -> None:
    """The flags that say where the database is."""
    parser.add_argument("--steersman-home", metavar="DIR", help="folder of the database")
    parser.add_argument("--steersman-database-url", metavar="URL", help="SQLite or PostgreSQL")


def run_on_store(command: str, args: Namespace, act: Act) -> int:
    """`act` on the store, whose schema is brought up to date first.

    Exit status: 0 done, 1 not possible and standard error says why.
    """
    try:
        store = Store(Settings.read(args).database_url)
        store.migrate()
        asyncio.run(_closing(store, args, act))
    except (SteersmanError, ValueError, OSError) as error:
        sys.stderr.write(f"steersman {command}: {error}\n")
        return 1
    return 0


async def _closing(store: Store, args: Namespace, act: Act) -> None:
    try:
        await act(store, args)
    finally:
        await store.close()
