"""`steersman interactions`: stored chat completions as files, from the database of the settings."""

import sys
from argparse import ArgumentParser, ArgumentTypeError, Namespace
from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

from server.comparisons import Comparisons
from server.feedback import FeedbackStore
from server.interaction_export import Pairing, Ranking, line, record, write_parquet
from server.interactions import Interaction, Interactions, Sought
from server.project_metrics import ProjectMetrics
from server.store import Store
from server.store_command import add_place, run_on_store

if TYPE_CHECKING:
    from argparse import _SubParsersAction

_PAGE = 500


def add_parser(subparsers: "_SubParsersAction[ArgumentParser]") -> ArgumentParser:
    """Add `interactions` to the command line; its namespace goes to `run`."""
    parser = subparsers.add_parser("interactions", help="stored chat completions")
    add_place(parser)
    commands = parser.add_subparsers(dest="interactions_command", required=True)
    exporting = commands.add_parser(
        "export",
        help="write them as a file, oldest first",
        description="`pairs` are lines of prompt, positive_answer and negative_answer, from which steering "
        "vectors and behaviors are made: two answers to one prompt, told apart by a label of each, or by "
        "--metric the best and the worst one. Only answers to a single message of a user make pairs. Without "
        "--negative the positives stand alone.",
    )
    exporting.add_argument("--format", choices=("jsonl", "parquet", "pairs"), default="jsonl")
    exporting.add_argument("-o", "--output", metavar="FILE", help="default: standard output")
    exporting.add_argument("--account", help="whose; default: of all")
    exporting.add_argument("--model", help="of this model alone")
    exporting.add_argument("--since", type=_moment, metavar="TIME", help="ISO 8601, as 2026-01-31; UTC")
    exporting.add_argument(
        "--metadata", type=_label, action="append", default=[], metavar="KEY=VALUE", help="with this label"
    )
    exporting.add_argument("--positive", type=_label, metavar="KEY=VALUE", help="of pairs: the positive ones")
    exporting.add_argument("--negative", type=_label, metavar="KEY=VALUE", help="of pairs: the negative ones")
    exporting.add_argument("--metric", help="of pairs: whose scores tell the best answer from the worst")
    return parser


def run(args: Namespace) -> int:
    """Exit status: 0 done, 1 not possible and standard error says why."""
    return run_on_store("interactions", args, _act)


def _check(args: Namespace) -> None:
    if args.format == "pairs" and (args.positive is None) == (args.metric is None):
        raise ValueError(
            "--format pairs needs --positive KEY=VALUE, the positive answers' label, or --metric"
        )
    if args.metric is not None and args.negative is not None:
        raise ValueError("--negative goes with --positive, not with --metric")
    if args.format != "pairs" and (args.positive or args.negative or args.metric):
        raise ValueError("--positive, --negative and --metric are for --format pairs")
    if args.positive is not None and args.positive == args.negative:
        raise ValueError("--positive and --negative are the same label")
    if args.format == "parquet" and args.output is None:
        raise ValueError("--format parquet needs a file: --output FILE")


async def _act(store: Store, args: Namespace) -> None:
    _check(args)
    database = store.database
    sought = Sought(args.account, args.model, dict(args.metadata), args.since)
    found = _all(Interactions(database), sought)
    feedback = await FeedbackStore(database).by_interaction(args.account)
    compared = await Comparisons(database).by_interaction(args.account)
    records = (
        record(each, feedback.get(key, ()), compared.get(key, ()))
        async for each in found
        for key in [(each.account_id, each.id)]
    )
    match args.format:
        case "jsonl":
            written = await _write_lines(records, args.output)
            sys.stderr.write(f"Exported {written} interactions.\n")
        case "parquet":
            written = await write_parquet(records, Path(args.output))
            sys.stderr.write(f"Exported {written} interactions.\n")
        case "pairs" if args.metric is not None:
            lower = await ProjectMetrics(database).lower(args.metric)
            await _write_pairs(found, Ranking.of(feedback, args.metric, lower), args.output)
        case "pairs":
            await _write_pairs(found, Pairing(args.positive, args.negative), args.output)


async def _all(interactions: Interactions, sought: Sought) -> AsyncIterator[Interaction]:
    last: int | None = None
    while True:
        page = await interactions.page(sought, limit=_PAGE, after=last)
        for each in page.interactions:
            yield each
        if not page.more:
            return
        last = page.last


async def _write_lines(records: AsyncIterator[Mapping[str, Any]], output: str | None) -> int:
    written = 0
    with _opened(output) as file:
        async for each in records:
            file.write(line(each))
            written += 1
    return written


async def _write_pairs(
    found: AsyncIterator[Interaction], pairing: Pairing | Ranking, output: str | None
) -> None:
    async for each in found:
        pairing.take(each)
    pairs = list(pairing.pairs())
    if pairing.left_out:
        sys.stderr.write(
            f"Left out {pairing.left_out}: no partner for the same prompt, or more than one message, no text,"
            " both labels.\n"
        )
    if not pairs:
        raise ValueError("there are no pairs")
    with _opened(output) as file:
        file.writelines(map(line, pairs))
    sys.stderr.write(f"Exported {len(pairs)} pairs.\n")


@contextmanager
def _opened(output: str | None) -> Iterator[BinaryIO]:
    if output is None:
        yield sys.stdout.buffer
        sys.stdout.buffer.flush()
        return
    with Path(output).open("wb") as file:
        yield file


def _label(text: str) -> tuple[str, str]:
    key, sign, value = text.partition("=")
    if not key or not sign:
        raise ArgumentTypeError(f"KEY=VALUE, not {text!r}")
    return key, value


def _moment(text: str) -> datetime:
    try:
        moment = datetime.fromisoformat(text)
    except ValueError as error:
        raise ArgumentTypeError(f"a time as ISO 8601 writes it, not {text!r}") from error
    return moment if moment.tzinfo else moment.replace(tzinfo=UTC)
