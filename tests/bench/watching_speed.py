"""What it costs to watch requests for a behaviour: output tokens/s, alternating loads on one server.

    python tests/bench/watching_speed.py [--behavior NAME --url URL --key KEY] [--rounds 3]
        [--concurrency 32] [--input 64] [--tokens 64] [--markdown FILE]

The server is a running one with that behaviour, or one of its own.

`all`: every request is watched, in each mode that acts in the engine. `others`: one of the requests is
watched, and the speed is that of those that are not. Each is compared with the same load unwatched just
before or after it; the ratio is the median over the rounds.
"""

import argparse
import asyncio
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

# Before this folder, whose policies.py and steering.py would hide the packages.
sys.path.insert(0, str(Path(__file__).parents[2]))
from steering.train.pairs import read_jsonl
from tests.bench.serve import REPO, _machine
from tests.bench.watched_server import WatchedServer, add_arguments, watched_server


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
    parser.add_argument("--behavior", help="by default one for formality is made")
    add_arguments(parser)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--concurrency", type=int, default=32)
    parser.add_argument("--input", type=int, default=64)
    parser.add_argument("--tokens", type=int, default=64)
    parser.add_argument("--markdown", type=Path, help="also append the table to this file")
    args = parser.parse_args()
    with watched_server(args) as served:
        lines = asyncio.run(_measured(served, args))
    print("\n".join(lines))
    if args.markdown:
        with args.markdown.open("a") as out:
            out.write("\n".join(lines) + "\n\n")


def _cases(behavior: str, args: argparse.Namespace) -> list[Case]:
    watch = {"behavior_names": [behavior]}
    monitor, online = watch | {"behavior_mode": "monitor"}, watch | {"behavior_mode": "online"}
    return [
        Case("all, monitor", 0.90, monitor, args.concurrency),
        Case("all, online", 0.90, online, args.concurrency),
        Case("others, one watched", 0.98, monitor, 1, others=True),
    ]


async def _made(http: httpx.AsyncClient) -> str:
    pairs = read_jsonl((REPO / "steering" / "presets" / "tone_control.jsonl").read_text())
    body = {
        "behavior_name": "formality",
        "prompts": [pair.prompt for pair in pairs],
        "positive_answers": [pair.positive for pair in pairs],
        "negative_answers": [pair.negative for pair in pairs],
    }
    (await http.post("/behaviors/create", json=body)).raise_for_status()
    return body["behavior_name"]


async def _measured(served: WatchedServer, args: argparse.Namespace) -> list[str]:
    title = f"## Watching: {datetime.now(UTC):%Y-%m-%d}, {_machine()}, {args.concurrency} concurrent"
    lines = [f"{title}, {args.input} + {args.tokens} tokens\n"]
    lines += ["| case | unwatched tok/s | watched tok/s | ratio | bound |", "|---|---|---|---|---|"]
    headers = {"authorization": f"Bearer {served.key}"}
    async with httpx.AsyncClient(base_url=served.url, headers=headers, timeout=1200) as http:
        behavior = args.behavior or await _made(http)
        await _load(http, args, Case("", 0, {}, 0), seed=-1)
        for case in _cases(behavior, args):
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
