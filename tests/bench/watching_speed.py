"""What it costs to watch requests for a behaviour, on a running server: output tokens/s, alternating loads.

    python tests/bench/watching_speed.py --behavior NAME [--url URL] [--key KEY] [--rounds 3]
        [--concurrency 32] [--input 64] [--tokens 64] [--markdown FILE]

`all`: every request is watched, in each mode that acts in the engine. `others`: one of the requests is
watched, and the speed is that of those that are not. Each is compared with the same load unwatched just
before or after it; the ratio is the median over the rounds.
"""

import argparse
import asyncio
import os
import random
import statistics
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import httpx

sys.path.insert(0, str(Path(__file__).parent))
from serve import _machine


@dataclass(frozen=True)
class Case:
    """`watched` of the clients send `body`; with `others`, the speed is that of the rest."""

    name: str
    bound: float
    body: dict[str, Any]
    watched: int
    others: bool = False


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--behavior", required=True)
    parser.add_argument("--url", default=os.environ.get("STEERSMAN_URL", "http://127.0.0.1:8000"))
    parser.add_argument("--key", default=os.environ.get("STEERSMAN_KEY", ""))
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--concurrency", type=int, default=32)
    parser.add_argument("--input", type=int, default=64)
    parser.add_argument("--tokens", type=int, default=64)
    parser.add_argument("--markdown", type=Path, help="also append the table to this file")
    args = parser.parse_args()
    lines = asyncio.run(_measured(args))
    print("\n".join(lines))
    if args.markdown:
        with args.markdown.open("a") as out:
            out.write("\n".join(lines) + "\n\n")


async def _measured(args: argparse.Namespace) -> list[str]:
    watch = {"behavior_names": [args.behavior]}
    monitor, online = watch | {"behavior_mode": "monitor"}, watch | {"behavior_mode": "online"}
    cases = [
        Case("all, monitor", 0.90, monitor, args.concurrency),
        Case("all, online", 0.90, online, args.concurrency),
        Case("others, one watched", 0.98, monitor, 1, others=True),
    ]
    title = f"## Watching: {datetime.now(UTC):%Y-%m-%d}, {_machine()}, {args.concurrency} concurrent"
    lines = [f"{title}, {args.input} + {args.tokens} tokens\n"]
    lines += ["| case | unwatched tok/s | watched tok/s | ratio | bound |", "|---|---|---|---|---|"]
    headers = {"authorization": f"Bearer {args.key}"}
    async with httpx.AsyncClient(base_url=args.url, headers=headers, timeout=1200) as http:
        await _load(http, args, Case("", 0, {}, 0), seed=-1)
        for case in cases:
            rounds = []
            for number in range(args.rounds):
                pair = [Case(case.name, 0, {}, case.watched, case.others), case]
                speeds = {}
                for each in pair if number % 2 else reversed(pair):
                    speeds[bool(each.body)] = await _load(http, args, each, seed=number)
                rounds.append((speeds[False], speeds[True]))
            ratio = statistics.median(watched / plain for plain, watched in rounds)
            plain, watched = (statistics.median(column) for column in zip(*rounds, strict=True))
            lines.append(f"| {case.name} | {plain:.1f} | {watched:.1f} | **{ratio:.3f}** | ≥ {case.bound} |")
            print(lines[-1], file=sys.stderr, flush=True)
    return lines


async def _load(http: httpx.AsyncClient, args: argparse.Namespace, case: Case, seed: int) -> float:
    """All clients at once, a request each, with prompts that no prefix cache knows."""
    draw = random.Random(f"{seed}{case.name}{bool(case.body)}")
    prompts = [draw.choices(range(1000, 40000), k=args.input) for _ in range(args.concurrency)]

    async def client(number: int, prompt: Sequence[int]) -> float:
        common = {"model": "default", "max_tokens": args.tokens, "ignore_eos": True, "temperature": 0}
        body = case.body if number < case.watched else {}
        answer = await http.post("/v1/completions", json={"prompt": prompt, **common, **body})
        answer.raise_for_status()
        return time.perf_counter()

    began = time.perf_counter()
    ends = await asyncio.gather(*(client(*each) for each in enumerate(prompts)))
    counted = ends[case.watched :] if case.others else ends
    return len(counted) * args.tokens / (max(counted) - began)


if __name__ == "__main__":
    main()
