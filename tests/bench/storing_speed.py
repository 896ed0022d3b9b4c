"""What the interaction log costs: output tokens/s of chat completions that are stored and that are not.

    python tests/bench/storing_speed.py [--url URL --key KEY] [--rounds 6] [--concurrency 32]
        [--tokens 32] [--requests 128] [--markdown FILE]

The server is a running one, or one of its own. The same load runs in turns with `store` false and true; the
ratio is the median over the rounds. Afterwards as many completions must be stored as were asked to be.
"""

import argparse
import asyncio
import itertools
import os
import random
import statistics
import sys
import tempfile
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path

import httpx

# Before this folder, whose policies.py and steering.py would hide the packages.
sys.path.insert(0, str(Path(__file__).parents[2]))
from tests.bench.serve import _embedded, _machine, _steersman

BOUND = 0.99


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--url", default=os.environ.get("STEERSMAN_URL"), help="default: a server of its own")
    parser.add_argument("--key", default=os.environ.get("STEERSMAN_KEY", ""))
    parser.add_argument("--rounds", type=int, default=6)
    parser.add_argument("--concurrency", type=int, default=32)
    parser.add_argument("--requests", type=int, default=128, help="of one load")
    parser.add_argument("--tokens", type=int, default=32)
    parser.add_argument("--markdown", type=Path, help="also append the table to this file")
    args = parser.parse_args()
    with _served(args) as (url, key):
        lines = asyncio.run(_measured(url, key, args))
    print("\n".join(lines))
    if args.markdown:
        with args.markdown.open("a") as out:
            out.write("\n".join(lines) + "\n\n")


@contextmanager
def _served(args: argparse.Namespace) -> Iterator[tuple[str, str]]:
    if args.url:
        yield args.url, args.key
        return
    with tempfile.TemporaryDirectory() as scratch:
        home = ["--home", str(Path(scratch, "home"))]
        with _steersman(_embedded(), Path(scratch), home) as served:
            yield served.url, served.key


async def _measured(url: str, key: str, args: argparse.Namespace) -> list[str]:
    headers = {"authorization": f"Bearer {key}"}
    limits = httpx.Limits(max_connections=args.concurrency)
    async with httpx.AsyncClient(base_url=url, headers=headers, timeout=1200, limits=limits) as http:
        await _load(http, args, store=True, label="warm")
        rounds = []
        for number in range(args.rounds):
            speeds = {}
            for store in (False, True) if number % 2 else (True, False):
                speeds[store] = await _load(http, args, store=store, label=f"{number}")
            rounds.append((speeds[False], speeds[True]))
            print(f"{speeds[False]:.1f} {speeds[True]:.1f}", file=sys.stderr, flush=True)
        kept = await _kept(http, args)
    plain, stored = (statistics.median(column) for column in zip(*rounds, strict=True))
    ratios = [stored / plain for plain, stored in rounds]
    title = (
        f"## Storing: {datetime.now(UTC):%Y-%m-%d}, {_machine()}, {args.concurrency} concurrent,"
        f" {args.requests} requests of {args.tokens} tokens\n"
    )
    row = (
        f"| {plain:.1f} | {stored:.1f} | **{statistics.median(ratios):.3f}** ({min(ratios):.3f},"
        f" {max(ratios):.3f}) | ≥ {BOUND} | {kept} of {args.requests * args.rounds} |"
    )
    return [
        title,
        "| not stored tok/s | stored tok/s | ratio (least, most) | bound | stored of those asked |",
        "|---|---|---|---|---|",
        row,
    ]


_RUN = uuid.uuid4().hex


async def _load(http: httpx.AsyncClient, args: argparse.Namespace, *, store: bool, label: str) -> float:
    """`requests` short chats by `concurrency` clients, each with words that no prefix cache knows."""
    draw = random.Random(f"{_RUN}{store}{label}")
    texts = iter([" ".join(f"w{draw.randrange(10**6)}" for _ in range(12)) for _ in range(args.requests)])
    metadata = {"run": _RUN, "round": label}

    async def client(texts: Iterator[str]) -> None:
        for text in texts:
            body = {"messages": [{"role": "user", "content": text}], "store": store, "metadata": metadata}
            more = {"max_tokens": args.tokens, "ignore_eos": True, "temperature": 0}
            (await http.post("/v1/chat/completions", json=body | more)).raise_for_status()

    began = time.perf_counter()
    await asyncio.gather(*(client(texts) for _ in range(args.concurrency)))
    return args.requests * args.tokens / (time.perf_counter() - began)


async def _kept(http: httpx.AsyncClient, args: argparse.Namespace) -> int:
    """How many of the measured loads' completions can be found."""
    count = 0
    for number in range(args.rounds):
        query = {"metadata[run]": _RUN, "metadata[round]": f"{number}", "limit": 100}
        for _ in itertools.count():
            page = (await http.get("/v1/chat/completions", params=query)).raise_for_status().json()
            count += len(page["data"])
            if not page["has_more"]:
                break
            query["after"] = page["last_id"]
    return count


if __name__ == "__main__":
    main()
