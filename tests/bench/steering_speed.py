"""Steersman with and without steering beside stock vLLM on this machine: output tokens/s, alternating runs.

    python tests/bench/steering_speed.py [--rounds 3] [--concurrency 1 8 32] [--compile] [--markdown FILE]

Both servers run at once and take turns, half of the time with ours started first and half with stock,
since of two alike the first is slower. `--rounds` are of each half. `idle`: no request is steered. `one
vector`: all requests share one, at one layer. `32 vectors`: 32 different ones, each at eight layers.
Also how long it takes to register a vector, and to make one from 100 pairs while requests are served.
"""

import argparse
import asyncio
import itertools
import json
import random
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import httpx

sys.path.insert(0, str(Path(__file__).parent))
from serve import INPUT_TOKENS, OUTPUT_TOKENS, REPO, Served, _embedded, _machine, servers

WIDTH_KEY, LAYERS = "hidden_size", 8
PROMPTS = {1: 3, 8: 16, 32: 64}  # concurrency → requests of one run
# (case, concurrency) → tokens/s of stock and of ours, round by round
Measured = dict[tuple[str, int], list[tuple[float, float]]]


@dataclass(frozen=True)
class Case:
    name: str
    bound: float
    bodies: Sequence[dict[str, Any]]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--model", type=Path)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--concurrency", type=int, nargs="+", default=sorted(PROMPTS))
    parser.add_argument("--compile", action="store_true")
    parser.add_argument("--markdown", type=Path, help="also append the tables to this file")
    args = parser.parse_args()
    model = args.model or _embedded()
    config = json.loads((model / "config.json").read_text())
    halves, making = list[Measured](), list[str]()
    for ours_first in (True, False):
        with (
            tempfile.TemporaryDirectory() as scratch,
            servers(model, Path(scratch), args.compile, ours_first=ours_first) as (ours, stock),
        ):
            vectors = [_register(ours, config, seed) for seed in range(32)]
            halves.append(asyncio.run(_measure(ours, stock, config, _cases(config, vectors), args)))
            if not ours_first:
                making = asyncio.run(_making(ours, config, vectors))
    mode = "compiled" if args.compile else "eager"
    title = f"## Steering, {mode}: {datetime.now(UTC):%Y-%m-%d}, {_machine()}, {model.name}\n"
    lines = [title, *_table(_cases(config, [""]), halves), "", *making]
    print("\n".join(lines))
    if args.markdown:
        with args.markdown.open("a") as out:
            out.write("\n".join(lines) + "\n\n")


def _cases(config: dict[str, Any], vectors: Sequence[str]) -> list[Case]:
    middle = config["num_hidden_layers"] // 2
    one = {"steering": [{"vector_id": vectors[0], "layers": [middle], "strength": 1.0}]}
    return [
        Case("idle", 0.995, [{}]),
        Case("one vector, one layer", 0.98, [one]),
        Case("32 vectors, 8 layers each", 0.95, [{"steering_vector_id": vector} for vector in vectors]),
    ]


async def _measure(
    ours: Served, stock: Served, config: dict[str, Any], cases: Sequence[Case], args: argparse.Namespace
) -> Measured:
    for concurrency in args.concurrency:  # once for warming up
        for served in (stock, ours):
            await _load(served, [{}], concurrency, config, 0)
    seeds = itertools.count(1)  # no prompt comes twice, so that none is found in a prefix cache
    measured: Measured = {}
    for case in cases:
        for concurrency in args.concurrency:
            pairs = measured[case.name, concurrency] = []
            for number, seed in zip(range(args.rounds), seeds, strict=False):
                turns = [(stock, [{}]), (ours, case.bodies)]
                speeds = {}
                for served, bodies in turns if number % 2 else reversed(turns):
                    speeds[served.name] = await _load(served, bodies, concurrency, config, seed)
                pairs.append((speeds[stock.name], speeds[ours.name]))
            print(case.name, concurrency, f"{_ratio(pairs):.3f}", file=sys.stderr, flush=True)
    return measured


def _ratio(pairs: Sequence[tuple[float, float]]) -> float:
    return statistics.median(mine / theirs for theirs, mine in pairs)


def _table(cases: Sequence[Case], halves: Sequence[Measured]) -> list[str]:
    """The ratio is the geometric mean of two medians, which stand behind it: ours first, then stock first."""
    rows = [
        "| case | concurrent | stock tok/s | Steersman tok/s | ratio | bound |",
        "|---|---|---|---|---|---|",
    ]
    bounds = {case.name: case.bound for case in cases}
    for name, concurrency in halves[0]:
        pairs = [half[name, concurrency] for half in halves]
        ratios = [_ratio(each) for each in pairs]
        medians = [
            f"{statistics.median(column):.1f}" for column in zip(*itertools.chain(*pairs), strict=True)
        ]
        ratio = f"**{statistics.geometric_mean(ratios):.3f}** ({', '.join(f'{each:.3f}' for each in ratios)})"
        rows.append(f"| {name} | {concurrency} | {' | '.join(medians)} | {ratio} | ≥ {bounds[name]} |")
    return rows


async def _load(
    served: Served, bodies: Sequence[dict[str, Any]], concurrency: int, config: dict[str, Any], seed: int
) -> float:
    """Output tokens per second of a closed loop: `concurrency` clients, one request each at a time."""
    draw = random.Random(seed)
    prompts = [
        draw.choices(range(1000, config["vocab_size"] - 1000), k=INPUT_TOKENS)
        for _ in range(PROMPTS[concurrency])
    ]
    waiting: Iterator[tuple[list[int], dict[str, Any]]] = zip(prompts, itertools.cycle(bodies), strict=False)
    headers = {"authorization": f"Bearer {served.key}"}
    async with httpx.AsyncClient(base_url=served.url, headers=headers, timeout=600) as http:

        async def client() -> None:
            for prompt, body in waiting:
                common = {"model": "bench", "max_tokens": OUTPUT_TOKENS, "ignore_eos": True, "temperature": 0}
                answer = await http.post("/v1/completions", json={"prompt": prompt, **common, **body})
                answer.raise_for_status()

        started = time.perf_counter()
        await asyncio.gather(*(client() for _ in range(concurrency)))
    return len(prompts) * OUTPUT_TOKENS / (time.perf_counter() - started)


def _register(ours: Served, config: dict[str, Any], seed: int) -> str:
    draw = random.Random(seed)
    first = config["num_hidden_layers"] * 2 // 3 - LAYERS
    vector = {str(first + n): [draw.gauss(0, 0.5) for _ in range(config[WIDTH_KEY])] for n in range(LAYERS)}
    headers = {"authorization": f"Bearer {ours.key}"}
    answer = httpx.post(f"{ours.url}/steering/vectors", json={"vector": vector}, headers=headers, timeout=60)
    answer.raise_for_status()
    return str(answer.json()["id"])


async def _making(ours: Served, config: dict[str, Any], vectors: Sequence[str]) -> list[str]:
    registered = []
    for seed in range(20):
        started = time.perf_counter()
        await asyncio.to_thread(_register, ours, config, 100 + seed)
        registered.append((time.perf_counter() - started) * 1000)
    pairs = [
        json.loads(line) for line in (REPO / "steering/presets/tone_control.jsonl").read_text().splitlines()
    ]
    pairs = list(itertools.islice(itertools.cycle(pairs), 100))
    body = {
        "prompts": [f"{pair['prompt']} ({number})" for number, pair in enumerate(pairs)],
        "positive_answers": [pair["positive_answer"] for pair in pairs],
        "negative_answers": [pair["negative_answer"] for pair in pairs],
    }
    headers = {"authorization": f"Bearer {ours.key}", "accept": "application/json"}
    serving = asyncio.create_task(_load(ours, [{"steering_vector_id": vectors[0]}], 8, config, -1))
    async with httpx.AsyncClient(base_url=ours.url, headers=headers, timeout=600) as http:
        started = time.perf_counter()
        (await http.post("/steering/generate", json=body)).raise_for_status()
        seconds = time.perf_counter() - started
    await serving
    return [
        f"Registering a vector of {LAYERS} layers: median {statistics.median(registered):.1f} ms (bound 50).",
        f"CAA from 100 pairs with 8 clients being served: {seconds:.1f} s (bound 60).",
    ]


if __name__ == "__main__":
    main()
