"""Milliseconds that pages of stored chat completions take, among many: median of runs.

The second table is of completions as Adaptive's clients list them: each page with its total and its scores.

    PYTHONPATH=. python tests/bench/interaction_pages.py [--rows 50000] [--database-url URL] [--runs 20]

Without a URL it fills an SQLite file of its own. The rows are of two accounts, each with a question and an
answer of about 1 kB and three labels: one that all have, one of ten values, one of each row's own; a tenth
has a direct score, and is compared with another.
"""

import argparse
import asyncio
import statistics
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path

# Before this folder, whose policies.py and steering.py would hide the packages.
sys.path.insert(0, str(Path(__file__).parents[2]))
from sqlalchemy import text

from server.comparisons import Comparisons
from server.completion_filter import (
    Against,
    AllOf,
    AnyOf,
    Compared,
    Condition,
    FromSource,
    Labelled,
    Not,
    OfModel,
    OfPrompt,
    OfSession,
    OfUser,
    Scored,
    Within,
)
from server.completion_ids import completion_id
from server.completion_pages import Paging
from server.completion_rows import Source
from server.completions import Completions, GroupBy
from server.feedback import FeedbackStore
from server.interactions import Interaction, Interactions, Sought
from server.project_metrics import MetricKind, ProjectMetrics
from server.store import DEFAULT_ACCOUNT, Store

OTHER = "other"
BATCH = 500


def interaction(number: int) -> Interaction:
    words = f"{number} " + "lorem ipsum dolor sit amet " * 40
    answer = {
        "id": f"chatcmpl-{number}",
        "object": "chat.completion",
        "created": number,
        "model": "base",
        "choices": [{"index": 0, "message": {"role": "assistant", "content": words}}],
        "usage": {"prompt_tokens": 200, "completion_tokens": 200, "total_tokens": 400},
    }
    return Interaction(
        id=f"chatcmpl-{number}",
        account_id=DEFAULT_ACCOUNT if number % 2 else OTHER,
        created_at=datetime.now(UTC),
        model="adapter" if number % 50 == 25 else "base",
        session_id=f"session-{number // 20}",
        messages=[{"role": "user", "content": f"{number // 2 % 1000} {words[10:]}"}],
        parameters={"temperature": 0.7},
        answer=answer,
        labels={"app": "bench", "team": str(number // 2 % 10), "row": str(number)},
        prompt_tokens=200,
        completion_tokens=200,
        latency_ms=1.0,
        first_token_ms=None,
        source=Source.OFFLINE if number % 20 == 5 else Source.LIVE,
        user_id=f"user-{number // 2 % 100}",
    )


async def score(store: Store, rows: int) -> None:
    metric = await ProjectMetrics(store.database).create(
        DEFAULT_ACCOUNT, key="rate", name="Rate", kind=MetricKind.SCALAR
    )
    feedback, comparisons = FeedbackStore(store.database), Comparisons(store.database)
    for number in range(1, rows - 2, 20):
        mine, other = (completion_id(DEFAULT_ACCOUNT, f"chatcmpl-{each}", 0) for each in (number, number + 2))
        await feedback.score(DEFAULT_ACCOUNT, mine, metric, number % 7)
        await comparisons.add(DEFAULT_ACCOUNT, metric.key, mine, other)


async def fill(store: Store, interactions: Interactions, rows: int) -> None:
    await store.first_key()
    async with store.database.writing() as connection:
        await connection.execute(
            text(f"INSERT INTO accounts VALUES ('{OTHER}', '{OTHER}', '2026-01-01 00:00:00+00')")
        )
    started = time.perf_counter()
    for first in range(0, rows, BATCH):
        await interactions.keep([interaction(each) for each in range(first, min(rows, first + BATCH))])
    seconds = time.perf_counter() - started
    print(f"filled {rows} rows in {seconds:.1f} s, {rows / seconds:.0f} a second\n")
    await settle(store)


async def settle(store: Store) -> None:
    """What PostgreSQL does by itself within a minute or two, and SQLite not at all."""
    if not store.database.is_sqlite:
        async with store.database.at_once() as connection:
            await connection.execute(text("VACUUM ANALYZE"))


async def measured(name: str, runs: int, act: Callable[[], Awaitable[object]]) -> None:
    took = []
    for _ in range(runs):
        started = time.perf_counter()
        await act()
        took.append(1000 * (time.perf_counter() - started))
    print(f"| {name} | {statistics.median(took):.1f} | {max(took):.1f} |")


async def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--rows", type=int, default=50_000)
    parser.add_argument("--runs", type=int, default=20)
    parser.add_argument("--database-url", help="an empty database")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        store = Store(args.database_url or f"sqlite:///{folder}/bench.db")
        await asyncio.to_thread(store.migrate)
        interactions = Interactions(store.database)
        await fill(store, interactions, args.rows)
        deep, last = f"chatcmpl-{args.rows // 2 | 1}", args.rows - 1 | 1

        def page(newest_first: bool = True, after: str | None = None, **wanted: object):
            sought = Sought(DEFAULT_ACCOUNT, **wanted)
            return lambda: interactions.list(sought, limit=20, after=after, newest_first=newest_first)

        print("| page of 20 | median ms | slowest ms |\n|---|---|---|")
        await measured("newest", args.runs, page())
        await measured("oldest", args.runs, page(newest_first=False))
        await measured("after the middle", args.runs, page(after=deep))
        await measured("of a model (4 %)", args.runs, page(model="adapter"))
        await measured("of a label that all have", args.runs, page(labels={"app": "bench"}))
        await measured("of a label of a tenth", args.runs, page(labels={"team": "3"}))
        await measured("of a label of one", args.runs, page(labels={"row": str(last)}))
        await measured("of two labels", args.runs, page(labels={"app": "bench", "row": str(last)}))
        await measured("of no row's label", args.runs, page(labels={"team": "x"}))
        await measured("one by its id", args.runs, lambda: interactions.get(DEFAULT_ACCOUNT, deep))
        since = datetime(2000, 1, 1, tzinfo=UTC)
        await measured("nothing to prune", 3, lambda: interactions.prune(most=args.rows, since=since))
        await score(store, args.rows)
        await settle(store)
        await listed(store, args.rows, args.runs)
        await store.close()


async def listed(store: Store, rows: int, runs: int) -> None:
    completions = Completions(store.database)
    middle, at = interaction(rows // 2 | 1), datetime.now(UTC)
    asked: dict[str, Condition] = {
        "all": AllOf(),
        "of a model (4 %)": OfModel(["adapter"]),
        "of two models (all)": OfModel(["adapter", "base"]),
        "of the last hour": Within(since=at - timedelta(hours=1)),
        "of a time without any": Within(until=at - timedelta(days=1)),
        "of a session": OfSession(middle.session_id or ""),
        "of a user (1 %)": OfUser([middle.user_id or ""]),
        "of a prompt": OfPrompt([middle.prompt_hash]),
        "uploaded (10 %)": FromSource([Source.OFFLINE]),
        "with a label that all have": Labelled("app", ["bench"]),
        "with a label of a tenth": Labelled("team", ["3"]),
        "with a label of one": Labelled("row", [middle.labels["row"]]),
        "with a label, whatever it says": Labelled("app"),
        "without a label": Not(Labelled("app")),
        "with a score (10 %)": Scored("rate"),
        "with a score above 5": Scored("rate", [(Against.ABOVE, 5)]),
        "compared (20 %)": Compared("rate"),
        "of a model, with a label, not uploaded": AllOf(
            [OfModel(["adapter"]), Labelled("team", ["2"]), Not(FromSource([Source.OFFLINE]))]
        ),
        "of a model or of a user": AnyOf([OfModel(["adapter"]), OfUser([middle.user_id or ""])]),
    }
    print("\n| page of 20 completions | median ms | slowest ms |\n|---|---|---|")
    for name, condition in asked.items():
        await measured(name, runs, lambda condition=condition: completions.list(DEFAULT_ACCOUNT, condition))
    deep = (await completions.list(DEFAULT_ACCOUNT, paging=Paging(first=1, offset=rows // 4))).cursors[0]
    for name, paging in (
        ("after the middle", Paging(first=20, after=deep)),
        ("before the middle", Paging(last=20, before=deep)),
        ("from an offset of a quarter", Paging(first=20, offset=rows // 8)),
    ):
        await measured(name, runs, lambda paging=paging: completions.list(DEFAULT_ACCOUNT, paging=paging))
    name = completion_id(DEFAULT_ACCOUNT, middle.id, 0)
    await measured("one by its id", runs, lambda: completions.get(DEFAULT_ACCOUNT, name))
    for by in GroupBy:
        await measured(f"groups by {by}", runs, lambda by=by: completions.groups(DEFAULT_ACCOUNT, by))


if __name__ == "__main__":
    asyncio.run(main())
