"""`steersman migrate`: bring the database's schema up to date, and do nothing else."""

import sys
from argparse import ArgumentParser, Namespace
from typing import TYPE_CHECKING

from sqlalchemy.exc import DBAPIError

from server import json_log
from server.database import Database
from server.errors import SteersmanError, Unavailable
from server.settings import Settings
from server.store_command import add_place

if TYPE_CHECKING:
    from argparse import _SubParsersAction

DONE, IMPOSSIBLE, AWAY = 0, 1, 75  # the last is EX_TEMPFAIL of sysexits.h: the same command may do later


def add_parser(subparsers: "_SubParsersAction[ArgumentParser]") -> ArgumentParser:
    """Add `migrate` to the command line; its namespace goes to `run`."""
    parser = subparsers.add_parser(
        "migrate",
        help="bring the database's schema up to date, and nothing else",
        description="Safe to repeat, and to run in several places at once. Exit status: 0 the schema is the "
        "newest, 1 it cannot be made so, 75 the database does not answer (try again).",
    )
    add_place(parser)
    return parser


def run(args: Namespace) -> int:
    """Exit status: DONE, IMPOSSIBLE or AWAY; standard error says why."""
    try:
        settings = Settings.read(args)
        if settings.log_format == "json":
            json_log.configure()
        schema = Database(settings.database_url).migrate()
    except Unavailable as error:
        return _ended(AWAY, str(error))
    except DBAPIError as error:
        return _ended(IMPOSSIBLE, f"the database refuses: {error.orig}")
    except (SteersmanError, ValueError) as error:
        return _ended(IMPOSSIBLE, str(error))
    if schema.newer:
        sys.stdout.write(f"The schema is of a newer version, and left as it is: {schema.after}.\n")
    elif schema.before == schema.after:
        sys.stdout.write(f"The schema is up to date already: {schema.after}.\n")
    else:
        sys.stdout.write(f"The schema is up to date: {schema.before or 'nothing'} to {schema.after}.\n")
    return DONE


def _ended(status: int, why: str) -> int:
    sys.stderr.write(f"steersman migrate: {why}\n")
    return status
