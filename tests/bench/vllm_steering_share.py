"""What share of the engine's time steering's own code takes: timers around it in one engine.

    python tests/bench/vllm_steering_share.py [--rounds 3] [--compile] [--markdown FILE]

Whole servers differ from run to run by more than steering costs, so `steering_speed.py` can only say that the
ratio is near one. Here everything that the worker adds to a step is timed where it runs: the hooks of the
runner, what follows each block, and in compiled graphs the call of the op. Of the timers' own price only what
they take in a tight loop is taken off, so the share is an upper bound: in a step, where kernels have emptied
the caches, they take several times that. What a request costs the API process is not in it.
"""

import argparse
import json
import os
import random
import statistics
import sys
import time
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

os.environ |= {
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0",  # the worker is in this process
    "VLLM_USE_V2_MODEL_RUNNER": "0",
    "VLLM_LOGGING_LEVEL": "ERROR",
    "VLLM_NO_USAGE_STATS": "1",
}
sys.path.insert(0, str(Path(__file__).parents[2]))
import numpy as np
import torch
from vllm import LLM, SamplingParams

from steering import vllm_worker
from steering.apply import TorchPass
from steering.layout import Batch
from steering.spec import STEERING_KEY, Operation, SteeringSpec, Term
from steering.vector import SteeringVector
from tests.bench.serve import INPUT_TOKENS, OUTPUT_TOKENS, _embedded, _machine

LAYERS, VECTORS = 8, 32
CALLS = 20_000  # of the op, and of the timers, to know their price
BOUNDS = {"idle": 0.995, "one vector, one layer": 0.98, f"{VECTORS} vectors, {LAYERS} layers each": 0.95}


class _Nothing:
    def done(self) -> None:
        pass


class Meter:
    """Seconds spent in the methods it is put around, less what timing them takes; calls within others count
    once."""

    def __init__(self) -> None:
        self._price = 0.0
        self.start()
        self.around(_Nothing, "done")
        nothing = _Nothing()
        for _ in range(CALLS):
            nothing.done()
        self._price = self._seconds / CALLS
        self.start()

    def start(self) -> None:
        self._seconds, self._calls, self._depth = 0.0, 0, 0

    @property
    def seconds(self) -> float:
        return self._seconds - self._calls * self._price

    def around(self, owner: type, name: str) -> None:
        timed = getattr(owner, name)

        def metered(*args: Any, **kwargs: Any) -> Any:
            started = time.perf_counter()
            self._depth += 1
            try:
                return timed(*args, **kwargs)
            finally:
                self._depth -= 1
                if not self._depth:
                    self._calls += 1
                    self._seconds += time.perf_counter() - started

        setattr(owner, name, metered)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--model", type=Path)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--concurrency", type=int, nargs="+", default=[1, 8, 32])
    parser.add_argument("--compile", action="store_true")
    parser.add_argument("--markdown", type=Path, help="also append the table to this file")
    args = parser.parse_args()
    model = args.model or _embedded()
    mode = "compiled" if args.compile else "eager"
    title = f"## Steering's share of the engine, {mode}: {datetime.now(UTC):%Y-%m-%d}"
    lines = [
        f"{title}, {_machine()}, {model.name}\n",
        "| case | concurrent | ms a step | steering, µs a step | share | 1 − share | bound |",
        "|---|---|---|---|---|---|---|",
        *_measured(model, args),
    ]
    print("\n".join(lines))
    if args.markdown:
        with args.markdown.open("a") as out:
            out.write("\n".join(lines) + "\n\n")


def _measured(model: Path, args: argparse.Namespace) -> list[str]:
    config = json.loads((model / "config.json").read_text())
    depth, width = int(config["num_hidden_layers"]), int(config["hidden_size"])
    meter = Meter()
    for owner, names in ((Batch, ("prepare", "admit", "retire")), (TorchPass, ("take", "skips", "__call__"))):
        for name in names:
            meter.around(owner, name)
    llm = LLM(
        str(model),
        worker_cls="steering.vllm_worker.SteeringWorker",
        enforce_eager=not args.compile,
        max_model_len=2048,
        max_num_seqs=64,
        enable_chunked_prefill=False,
        kv_cache_memory_bytes=1024**3,
        gpu_memory_utilization=0.3,
    )
    first = depth * 2 // 3 - LAYERS
    digests = [_loaded(llm, seed, range(first, first + LAYERS), width) for seed in range(VECTORS)]
    one = [_spec(digests[0], (depth // 2,))]
    many = [_spec(digest, tuple(range(first, first + LAYERS))) for digest in digests]
    dispatch = _dispatch(width) * depth if args.compile else 0.0
    rows = []
    for (name, bound), specs in zip(BOUNDS.items(), ([None], one, many), strict=True):
        for concurrency in args.concurrency:
            _generate(llm, specs, concurrency, config["vocab_size"], -1)
            shares, steps, costs = [], [], []
            for seed in range(args.rounds):
                meter.start()
                took = _generate(llm, specs, concurrency, config["vocab_size"], seed)
                spent = meter.seconds + dispatch * OUTPUT_TOKENS
                shares.append(spent / took)
                steps.append(1e3 * took / OUTPUT_TOKENS)
                costs.append(1e6 * spent / OUTPUT_TOKENS)
            step, cost, share = map(statistics.median, (steps, costs, shares))
            cells = [f"{step:.1f}", f"{cost:.0f}", f"{share:.2%}", f"**{1 - share:.4f}**", f"≥ {bound}"]
            rows.append(f"| {name} | {concurrency} | {' | '.join(cells)} |")
    return rows


def _loaded(llm: LLM, seed: int, layers: range, width: int) -> str:
    rng = np.random.default_rng(seed)
    vector = SteeringVector.of({layer: rng.normal(0, 0.5, width).astype(np.float32) for layer in layers})
    (problem,) = llm.collective_rpc("steersman_load", args=(vector.digest, vector.blob))
    if problem:
        sys.exit(problem)
    return vector.digest


def _spec(digest: str, layers: tuple[int, ...]) -> str:
    return SteeringSpec((Term(digest, layers, Operation.ADD, 1.0),)).encode()


def _generate(llm: LLM, specs: list[str | None], concurrency: int, vocabulary: int, seed: int) -> float:
    """Seconds for one batch, of which every request ends with the same step; no prompt comes twice."""
    draw = random.Random(f"{seed} {concurrency} {len(specs)} {specs[0]}")
    words = range(1000, vocabulary - 1000)
    prompts = [{"prompt_token_ids": draw.choices(words, k=INPUT_TOKENS)} for _ in range(concurrency)]
    asked = [specs[index % len(specs)] for index in range(concurrency)]
    params = [
        SamplingParams(
            max_tokens=OUTPUT_TOKENS,
            ignore_eos=True,
            temperature=0,
            detokenize=False,
            extra_args={STEERING_KEY: spec} if spec else None,
        )
        for spec in asked
    ]
    started = time.perf_counter()
    llm.generate(prompts, params, use_tqdm=False)
    return time.perf_counter() - started


def _dispatch(width: int) -> float:
    """Seconds that a compiled graph pays for calling the op, beside what the op itself does."""
    hidden = torch.zeros(1, width)
    applied, vllm_worker._pass = vllm_worker._pass, lambda *_: None
    try:
        call: Callable[..., None] = torch.ops.steersman.steer.default
        started = time.perf_counter()
        for _ in range(CALLS):
            call(hidden, None, 0)
        return (time.perf_counter() - started) / CALLS
    finally:
        vllm_worker._pass = applied


if __name__ == "__main__":
    main()
