"""What policies cost in time on this machine: alternating requests to one server, medians.

    python tests/bench/policy_speed.py [--rounds 5] [--concurrency 1] [--compile] [--markdown FILE]

The first compare requests to the server: without a policy and with one that says nothing; the best of eight
candidates and one; by `policy_id` and inline, while the account stores one policy and while it stores 1,000.
The others time what judges an answer, in this process and with the server idle.
"""

import argparse
import asyncio
import json
import statistics
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import httpx
import numpy as np

# Before this folder, where `policies` is this file.
sys.path.insert(0, str(Path(__file__).parents[2]))
from policies.policy import RuntimePolicy
from policies.verdict import Text
from server.judge import Judge
from server.sandbox import Sandbox, SandboxOff
from tests.bench.sandbox import measure
from tests.bench.serve import HERE, Served, _embedded, _machine, _steersman

# Of one round.
OVERHEAD_PAIRS, BEST_PAIRS, STORED_PAIRS, JUDGED, SANDBOXED = 100, 2, 60, 40, 6
CANDIDATES, OUTPUT_TOKENS, STORED = 8, 64, 1000
WARM_UP = 3
REFILL_SECONDS = 0.3  # between sandboxed runs, so that each finds the pool full
RESAMPLES = 2000

# Greedy, so that the engine does the same for a policy, whose sampling has defaults of its own.
ONE_TOKEN = {
    "model": "bench",
    "messages": [{"role": "user", "content": "Name three fruits."}],
    "max_tokens": 1,
    "temperature": 0,
}
LONG = {
    "model": "bench",
    "messages": [{"role": "user", "content": "Tell a story about a lighthouse."}],
    "max_tokens": OUTPUT_TOKENS,
    "temperature": 0.8,
    "ignore_eos": True,  # every candidate has as many tokens
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--model", type=Path)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--concurrency", type=int, nargs="+", default=[1], help="of best of 8 against 1")
    parser.add_argument("--compile", action="store_true")
    parser.add_argument("--markdown", type=Path, help="also append the table to this file")
    args = parser.parse_args()
    model = args.model or _embedded()
    mode = ["--compile"] if args.compile else ["--enforce-eager"]
    with tempfile.TemporaryDirectory() as scratch, _steersman(model, Path(scratch), mode) as ours:
        rows = asyncio.run(_measure(ours, args))
    mode_name = "compiled" if args.compile else "eager"
    lines = [
        f"## Policies, {mode_name}: {datetime.now(UTC):%Y-%m-%d}, {_machine()}, {model.name}\n",
        "Medians; a difference with its 95 % interval, a ratio or a single figure with its range.\n",
        "| measured | without | with | cost | bound |",
        "|---|---|---|---|---|",
        *rows,
    ]
    print("\n".join(lines))
    if args.markdown:
        with args.markdown.open("a") as out:
            out.write("\n".join(lines) + "\n\n")


async def _measure(ours: Served, args: argparse.Namespace) -> list[str]:
    headers = {"authorization": f"Bearer {ours.key}"}
    rows = []
    async with httpx.AsyncClient(base_url=ours.url, headers=headers, timeout=600) as http:
        rows.append(await _empty_policy(http, args.rounds))
        for concurrency in args.concurrency:
            rows.append(await _best_of(http, args.rounds, concurrency))
        rows += await _stored(http, args.rounds)
    rows.append(await _judged(args.rounds))
    rows.append(await _sandboxed(args.rounds))
    return rows


async def _empty_policy(http: httpx.AsyncClient, rounds: int) -> str:
    """One request at a time, in turns."""
    bodies = [ONE_TOKEN, {**ONE_TOKEN, "policy": {}}]
    took: list[list[float]] = [[], []]
    for number in range(-WARM_UP, rounds * OVERHEAD_PAIRS):
        for index in _order(number):
            seconds, answer = await _timed(http, bodies[index])
            assert ("policy" in answer["steersman"]) is bool(index)
            if number >= 0:
                took[index].append(1000 * seconds)
    return _difference("empty policy on a chat request of one token, ms", took, "≤ 1 ms")


async def _best_of(http: httpx.AsyncClient, rounds: int, concurrency: int) -> str:
    """`concurrency` requests at once, by turns all with one candidate and all with eight."""
    took: list[list[float]] = [[], []]
    for number in range(-1, rounds * BEST_PAIRS):
        for index in _order(number):
            count = CANDIDATES if index else 1
            policy = {"optimization": {"best_of_n": count, "retry_on_failure": 0}}
            bodies = [
                {**LONG, "policy": policy, "seed": 1000 * (number + 1) + 10 * client}
                for client in range(concurrency)
            ]
            started = time.perf_counter()
            answers = await asyncio.gather(*(_timed(http, body) for body in bodies))
            if number >= 0:
                took[index].append(time.perf_counter() - started)
            for _, answer in answers:
                assert answer["usage"]["completion_tokens"] == count * OUTPUT_TOKENS
    ratios = [best / one for one, best in zip(*took, strict=True)]
    cells = [
        f"best of {CANDIDATES} / 1 at {OUTPUT_TOKENS} tokens, {concurrency} at once, s",
        *(f"{statistics.median(column):.2f}" for column in took),
        f"**{statistics.median(ratios):.2f}×** ({min(ratios):.2f}–{max(ratios):.2f})",
        "≤ 2.5×",
    ]
    return _row(cells)


async def _stored(http: httpx.AsyncClient, rounds: int) -> list[str]:
    """A policy by its id beside the same one inline, in turns: while one is stored, and while 1,000 are.

    Only what is compared takes turns; the number of stored policies cannot change between two requests.
    """
    measured = {"sampling": {"temperature": 0}}
    rows = []
    async with _saved(http, [measured]) as (policy_id,):
        bodies = [{**ONE_TOKEN, "policy": measured}, {**ONE_TOKEN, "policy_id": policy_id}]

        async def compare(stored: int) -> str:
            took: list[list[float]] = [[], []]
            for number in range(-WARM_UP, rounds * STORED_PAIRS):
                for index in _order(number):
                    seconds, _ = await _timed(http, bodies[index])
                    if number >= 0:
                        took[index].append(1000 * seconds)
            return _difference(f"by policy_id, {stored:,} stored, against inline, ms", took, "—")

        rows.append(await compare(1))
        others = [{"name": f"policy {n}", "sampling": {"temperature": 0.5}} for n in range(1, STORED)]
        async with _saved(http, others):
            rows.append(await compare(STORED))
    return rows


@asynccontextmanager
async def _saved(http: httpx.AsyncClient, policies: Sequence[dict[str, Any]]) -> AsyncIterator[list[str]]:
    """The ids of `policies`, stored for a while."""
    ids = [
        (await _ok(http.post("/policies/save", json={"policy": policy})))["policy_id"] for policy in policies
    ]
    try:
        yield ids
    finally:
        for policy_id in ids:
            await _ok(http.delete(f"/policies/{policy_id}"))


async def _judged(rounds: int) -> str:
    """Eight candidates by the process that judges schemas: right, wrong, cut off, and no JSON."""
    task = json.loads((HERE / "data" / "extraction.jsonl").read_text().splitlines()[0])
    right = json.dumps(task["answer"])
    wrong = json.dumps(dict.fromkeys(task["answer"]))
    texts = [Text(right)] * 5 + [Text(wrong), Text(right[:-4], cut=True), Text("No JSON at all.")]
    policy = RuntimePolicy.model_validate(
        {
            "constraints": {"json_mode": True, "json_schema": task["schema"]},
            "verifiers": {"enabled": ["syntax", "json_schema"]},
        }
    )
    judge = Judge(2.0)
    took = []
    try:
        for number in range(-WARM_UP, rounds * JUDGED):  # the first one starts the process
            started = time.perf_counter()
            verdicts = await judge(texts, policy)
            if number >= 0:
                took.append(1000 * (time.perf_counter() - started))
            assert [verdict.accepted for verdict in verdicts] == [True] * 5 + [False] * 3
    finally:
        await judge.close()
    return _single(f"{len(texts)} candidates judged by schema, ms", took, "≤ 5 ms")


async def _sandboxed(rounds: int) -> str:
    sandbox = await Sandbox.open()
    if isinstance(sandbox, SandboxOff):
        return _row(["unit test in a warm sandbox, ms", "—", "—", sandbox.problem, "≤ 150 ms"])
    try:
        took = await measure(sandbox, rounds * SANDBOXED, REFILL_SECONDS)
    finally:
        await sandbox.close()
    return _single("unit test in a warm sandbox, ms", took, "≤ 150 ms")


async def _timed(http: httpx.AsyncClient, body: dict[str, Any]) -> tuple[float, dict[str, Any]]:
    """Seconds to the whole answer, and the answer."""
    started = time.perf_counter()
    response = await http.post("/v1/chat/completions", json=body)
    seconds = time.perf_counter() - started
    return seconds, _read(response)


async def _ok(answering: Any) -> dict[str, Any]:
    return _read(await answering)


def _read(response: httpx.Response) -> dict[str, Any]:
    if response.status_code != httpx.codes.OK:
        sys.exit(f"{response.request.url.path}: {response.status_code} {response.text}")
    answer: dict[str, Any] = response.json()
    return answer


def _order(number: int) -> tuple[int, int]:
    return (0, 1) if number % 2 else (1, 0)


def _difference(name: str, took: Sequence[Sequence[float]], bound: str) -> str:
    """Of two medians; turns are resampled, both sides of one together."""
    both = np.array(took)
    drawn = np.random.default_rng(0).integers(0, both.shape[1], (RESAMPLES, both.shape[1]))
    without, having = np.median(both[:, drawn], axis=2)
    low, high = np.quantile(having - without, [0.025, 0.975])
    medians = np.median(both, axis=1)
    cost = f"**{medians[1] - medians[0]:+.2f}** ({low:+.2f} to {high:+.2f})"
    return _row([name, *(f"{median:.2f}" for median in medians), cost, bound])


def _single(name: str, took: Sequence[float], bound: str) -> str:
    cost = f"**{statistics.median(took):.2f}** ({min(took):.2f}–{max(took):.2f})"
    return _row([name, "—", "—", cost, bound])


def _row(cells: Sequence[str]) -> str:
    row = f"| {' | '.join(cells)} |"
    print(row, file=sys.stderr, flush=True)
    return row


if __name__ == "__main__":
    main()
