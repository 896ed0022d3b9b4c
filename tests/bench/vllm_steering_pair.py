"""Steering in the engine alone: two engines in one process, stock and ours, batch by batch in turns.

    python tests/bench/vllm_steering_pair.py [--rounds 20] [--compile] [--markdown FILE]

Two servers share two cores with their API processes and each other, which hides what a per cent is. Here both
engines run in the one thread that calls them, so their ratio is of the worker's own work: the runner's hooks,
what follows each block, and in compiled graphs the op. Of two engines alike the one made first is slower, so
both orders are measured, `--rounds` each; a ratio is the geometric mean of their medians.
"""

import argparse
import gc
import itertools
import json
import os
import random
import sys
import time
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

os.environ |= {
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
    "VLLM_USE_V2_MODEL_RUNNER": "0",
    "VLLM_LOGGING_LEVEL": "ERROR",
    "VLLM_NO_USAGE_STATS": "1",
}
sys.path.insert(0, str(Path(__file__).parents[2]))
import numpy as np
from vllm import LLM, SamplingParams
from vllm.distributed.parallel_state import cleanup_dist_env_and_memory

from steering.spec import STEERING_KEY, Operation, SteeringSpec, Term
from steering.vector import SteeringVector
from tests.bench.serve import INPUT_TOKENS, _embedded, _machine

WORKERS = ("auto", "steering.vllm_worker.SteeringWorker")
LAYERS, VECTORS, OUTPUT_TOKENS, RESAMPLES = 8, 32, 32, 2000


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--model", type=Path)
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--concurrency", type=int, nargs="+", default=[1, 8, 32])
    parser.add_argument("--compile", action="store_true")
    parser.add_argument("--markdown", type=Path, help="also append the table to this file")
    args = parser.parse_args()
    model = args.model or _embedded()
    mode = "compiled" if args.compile else "eager"
    lines = [
        f"## Steering, engines alone, {mode}: {datetime.now(UTC):%Y-%m-%d}, {_machine()}, {model.name}\n",
        "| case | concurrent | stock s | speed against stock | bound |",
        "|---|---|---|---|---|",
        *_measured(model, args),
    ]
    print("\n".join(lines))
    if args.markdown:
        with args.markdown.open("a") as out:
            out.write("\n".join(lines) + "\n\n")


def _measured(model: Path, args: argparse.Namespace) -> list[str]:
    config = json.loads((model / "config.json").read_text())
    depth, width = int(config["num_hidden_layers"]), int(config["hidden_size"])
    first = depth * 2 // 3 - LAYERS
    layers = tuple(range(first, first + LAYERS))
    bounds = {"idle": 0.995, "one vector, one layer": 0.98, f"{VECTORS} vectors, {LAYERS} layers each": 0.95}
    halves: list[dict[tuple[str, int], np.ndarray[Any, Any]]] = []
    seeds = itertools.count(1)  # no prompt comes twice, so that none is found in a prefix cache
    for order in (WORKERS, WORKERS[::-1]):
        engines = {worker: _engine(model, worker, compiled=args.compile) for worker in order}
        stock, ours = (engines[worker] for worker in WORKERS)
        digests = [_loaded(ours, seed, layers, width) for seed in range(VECTORS)]
        specs: list[Sequence[str | None]] = [[None], [_spec(digests[0], (depth // 2,))]]
        specs.append([_spec(digest, layers) for digest in digests])
        halves.append({})
        for name, steered in zip(bounds, specs, strict=True):
            turns: list[tuple[LLM, Sequence[str | None]]] = [(stock, [None]), (ours, steered)]
            for concurrency in args.concurrency:
                took: list[list[float]] = [[], []]
                for number, seed in zip(range(-1, args.rounds), seeds, strict=False):
                    for index in (0, 1) if number % 2 else (1, 0):
                        seconds = _generate(*turns[index], concurrency, config["vocab_size"], seed)
                        if number >= 0:
                            took[index].append(seconds)
                halves[-1][name, concurrency] = np.array(took)
        for llm in engines.values():
            llm.llm_engine.engine_core.shutdown()
        del engines, stock, ours, turns, llm
        gc.collect()
        cleanup_dist_env_and_memory()
    rows = []
    for name, concurrency in halves[0]:
        pairs = [half[name, concurrency] for half in halves]
        seconds = np.median(np.concatenate([took[0] for took in pairs]))
        ratio = _ratio([took[0] / took[1] for took in pairs])
        rows.append(f"| {name} | {concurrency} | {seconds:.2f} | {ratio} | ≥ {bounds[name]} |")
    return rows


def _ratio(halves: Sequence[np.ndarray[Any, Any]]) -> str:
    """The geometric mean of both orders' medians, with its 95 % interval, and the two medians."""
    rng = np.random.default_rng(0)
    drawn = [half[rng.integers(0, len(half), (RESAMPLES, len(half)))] for half in halves]
    both = np.exp(np.mean([np.log(np.median(each, axis=1)) for each in drawn], axis=0))
    low, high = np.quantile(both, [0.025, 0.975])
    medians = [float(np.median(half)) for half in halves]
    parts = ", ".join(f"{each:.3f}" for each in medians)
    return f"**{np.sqrt(np.prod(medians)):.3f}** [{low:.3f}–{high:.3f}] ({parts})"


def _engine(model: Path, worker: str, *, compiled: bool) -> LLM:
    return LLM(
        str(model),
        worker_cls=worker,
        enforce_eager=not compiled,
        max_model_len=2048,
        max_num_seqs=64,
        enable_chunked_prefill=False,
        kv_cache_memory_bytes=512 * 1024**2,
        gpu_memory_utilization=0.3,
    )


def _loaded(llm: LLM, seed: int, layers: Sequence[int], width: int) -> str:
    rng = np.random.default_rng(seed)
    vector = SteeringVector.of({layer: rng.normal(0, 0.5, width).astype(np.float32) for layer in layers})
    (problem,) = llm.collective_rpc("steersman_load", args=(vector.digest, vector.blob))
    if problem:
        sys.exit(problem)
    return vector.digest


def _spec(digest: str, layers: tuple[int, ...]) -> str:
    return SteeringSpec((Term(digest, layers, Operation.ADD, 1.0),)).encode()


def _generate(llm: LLM, specs: Sequence[str | None], concurrency: int, vocabulary: int, seed: int) -> float:
    """Seconds for one batch, of which every request ends with the same step."""
    draw = random.Random(seed)
    words = range(1000, vocabulary - 1000)
    prompts: list[Any] = [
        {"prompt_token_ids": draw.choices(words, k=INPUT_TOKENS)} for _ in range(concurrency)
    ]
    params = [
        SamplingParams(
            max_tokens=OUTPUT_TOKENS,
            ignore_eos=True,
            temperature=0,
            detokenize=False,
            extra_args={STEERING_KEY: spec} if (spec := specs[index % len(specs)]) else None,
        )
        for index in range(concurrency)
    ]
    started = time.perf_counter()
    llm.generate(prompts, params, use_tqdm=False)
    return time.perf_counter() - started


if __name__ == "__main__":
    main()
