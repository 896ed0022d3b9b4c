"""Steersman beside stock vLLM on this machine: output tokens/s and TTFT, medians of alternating runs.

    python tests/bench/serve.py [--rounds 5] [--model PATH] [--markdown FILE]

Both servers run at once with the same flags and take turns under vLLM's own load generator, so that what the
machine does meanwhile falls on both alike. Sampling methods are compared with top-p on Steersman's engine.
"""

import argparse
import functools
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
REPO = HERE.parent.parent
ENGINE_FLAGS = ["--max-model-len", "2048", "--max-num-seqs", "64"]
CPU_FLAGS = [
    "--no-enable-chunked-prefill",
    "--gpu-memory-utilization",
    "0.3",
    "--kv-cache-memory-bytes",
    str(1024**3),
]
INPUT_TOKENS, OUTPUT_TOKENS = 128, 64
PROMPTS = {1: 6, 8: 32, 32: 96}  # concurrency → requests of one run
SCHEMA = {"type": "array", "items": {"type": "integer"}, "minItems": 300}  # longer than any output here


@dataclass(frozen=True)
class Served:
    name: str
    url: str
    key: str


@dataclass(frozen=True)
class Result:
    tokens_per_second: float
    ttft_ms: float


@dataclass(frozen=True)
class Case:
    """One load: what the body adds, and the case it is compared with."""

    name: str
    body: dict[str, Any]
    against: str
    bound: float


class Load:
    """The load generator, in a process of its own, so that its long start is paid once."""

    def __init__(self, model: Path, key: str, log: Path) -> None:
        self._model = model
        environ = os.environ | {"OPENAI_API_KEY": key, "VLLM_NO_USAGE_STATS": "1", "TQDM_DISABLE": "1"}
        self._log = log
        with log.open("wb") as out:
            self._process = subprocess.Popen(
                [sys.executable, str(HERE / "vllm_load.py")],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=out,
                text=True,
                env=environ,
            )

    def __call__(self, served: Served, body: dict[str, Any], concurrency: int, seed: int) -> Result:
        asked = ["--backend", "openai", "--base-url", served.url, "--model", "bench"]
        asked += ["--tokenizer", str(self._model), "--dataset-name", "random", "--seed", str(seed)]
        asked += ["--random-input-len", str(INPUT_TOKENS), "--random-output-len", str(OUTPUT_TOKENS)]
        asked += ["--num-prompts", str(PROMPTS[concurrency]), "--max-concurrency", str(concurrency)]
        asked += ["--ignore-eos", "--disable-tqdm", *(["--extra-body", json.dumps(body)] if body else [])]
        stdin, stdout = self._process.stdin, self._process.stdout
        assert stdin is not None
        assert stdout is not None
        stdin.write(json.dumps(asked) + "\n")
        stdin.flush()
        line = stdout.readline()
        if not line:
            sys.exit(f"the load generator failed:\n{self._log.read_text()[-4000:]}")
        result = json.loads(line)
        if result["completed"] != PROMPTS[concurrency]:
            sys.exit(f"{served.name}: {result['completed']} of {PROMPTS[concurrency]} requests completed")
        return Result(result["output_throughput"], result["median_ttft_ms"])

    def close(self) -> None:
        self._process.kill()
        self._process.wait()


CASES = [
    Case("typical", {"temperature": 1.0, "sampling_method": "typical", "typical_p": 0.95}, "top-p", 0.97),
    Case("ADS", {"temperature": 1.0, "sampling_method": "ads"}, "top-p", 0.93),
    Case("JSON schema", {"temperature": 1.0, "json_schema": SCHEMA}, "unconstrained", 0.95),
]
BASELINES = {
    "top-p": {"temperature": 1.0, "sampling_method": "top-p", "top_p": 0.9},
    "unconstrained": {"temperature": 1.0},
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--model", type=Path)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--concurrency", type=int, nargs="+", default=sorted(PROMPTS))
    parser.add_argument("--only", choices=["stock", "methods"])
    parser.add_argument("--markdown", type=Path, help="also append the tables to this file")
    args = parser.parse_args()
    model = args.model or _embedded()
    lines = [f"## {datetime.now(UTC):%Y-%m-%d}, {_machine()}, {model.name}\n"]
    with (
        tempfile.TemporaryDirectory() as scratch,
        _steersman(model, Path(scratch), ["--enforce-eager"]) as ours,
        closing(Load(model, ours.key, Path(scratch) / "load.log")) as load,
    ):
        if args.only != "methods":
            with _stock(model, Path(scratch), ["--enforce-eager"]) as stock:
                lines += _against_stock(ours, stock, load, args)
        if args.only != "stock":
            lines += _methods(ours, load, args)
    print("\n".join(lines))
    if args.markdown:
        with args.markdown.open("a") as out:
            out.write("\n".join(lines) + "\n\n")


def _against_stock(ours: Served, stock: Served, load: Load, args: argparse.Namespace) -> list[str]:
    rows = [
        "| concurrent | stock tok/s | Steersman tok/s | ratio | stock TTFT ms | Steersman TTFT ms | ratio |",
        "|---|---|---|---|---|---|---|",
    ]
    for concurrency in args.concurrency:
        pairs = _alternate([(stock, {}), (ours, {})], load, concurrency, args.rounds)
        speeds = [f"{_median(results, 'tokens_per_second'):.1f}" for results in pairs]
        delays = [f"{_median(results, 'ttft_ms'):.0f}" for results in pairs]
        cells = [
            str(concurrency),
            *speeds,
            _ratio(pairs, "tokens_per_second"),
            *delays,
            _ratio(pairs, "ttft_ms"),
        ]
        rows.append(f"| {' | '.join(cells)} |")
    return ["Plain completions against stock vLLM (tok/s ≥ 0.98, TTFT ≤ 1.05):\n", *rows, ""]


def _methods(ours: Served, load: Load, args: argparse.Namespace) -> list[str]:
    rows = [
        "| method | concurrent | baseline tok/s | method tok/s | ratio | bound |",
        "|---|---|---|---|---|---|",
    ]
    for case in CASES:
        for concurrency in args.concurrency:
            loads = [(ours, BASELINES[case.against]), (ours, case.body)]
            pairs = _alternate(loads, load, concurrency, args.rounds)
            speeds = [f"{_median(results, 'tokens_per_second'):.1f}" for results in pairs]
            name, ratio = f"{case.name} / {case.against}", _ratio(pairs, "tokens_per_second")
            rows.append(f"| {' | '.join([name, str(concurrency), *speeds, ratio, f'≥ {case.bound}'])} |")
    return ["Methods against a baseline on the same engine:\n", *rows, ""]


def _alternate(
    loads: Sequence[tuple[Served, dict[str, Any]]], load: Load, concurrency: int, rounds: int
) -> list[list[Result]]:
    """One list of results per load; the first round warms up and is dropped, the order turns each round."""
    results: list[list[Result]] = [[] for _ in loads]
    for number in range(rounds + 1):
        order = list(range(len(loads)))
        for index in order if number % 2 else reversed(order):
            served, body = loads[index]
            result = load(served, body, concurrency, seed=number)
            if number:
                results[index].append(result)
    return results


def _median(results: Sequence[Result], field: str) -> float:
    return statistics.median(getattr(result, field) for result in results)


def _ratio(pairs: Sequence[Sequence[Result]], field: str) -> str:
    """Median of the ratios round by round, with their range."""
    ratios = [getattr(b, field) / getattr(a, field) for a, b in zip(*pairs, strict=True)]
    return f"**{statistics.median(ratios):.3f}** ({min(ratios):.3f}–{max(ratios):.3f})"


@contextmanager
def servers(
    model: Path, scratch: Path, compiled: bool, *, ours_first: bool = True
) -> Iterator[tuple[Served, Served]]:
    """Ours and stock vLLM, both compiled or both eager.

    Of two alike, the one that starts first is slower, by up to some per cent: what is compared closely is
    measured in both orders.
    """
    ours = functools.partial(_steersman, model, scratch, ["--compile"] if compiled else ["--enforce-eager"])
    stock = functools.partial(_stock, model, scratch, [] if compiled else ["--enforce-eager"])
    with (ours if ours_first else stock)() as first, (stock if ours_first else ours)() as second:
        yield (first, second) if ours_first else (second, first)


@contextmanager
def _steersman(model: Path, scratch: Path, more: list[str]) -> Iterator[Served]:
    flags = ["-m", "server", "serve", str(model), "--served-model-name", "bench"]
    flags += ["--database-url", f"sqlite+aiosqlite:///{scratch / 'bench.db'}"]
    with _running("steersman", [*flags, *more, *ENGINE_FLAGS], scratch) as (url, log):
        while "API key" not in log.read_text():
            time.sleep(0.2)
        key = next(line for line in log.read_text().splitlines() if line.startswith("API key")).split()[-1]
        yield Served("steersman", url, key)


@contextmanager
def _stock(model: Path, scratch: Path, more: list[str]) -> Iterator[Served]:
    flags = ["-m", "vllm.entrypoints.launchers.api_server.entry", "--model", str(model)]
    with _running("stock", [*flags, "--served-model-name", "bench", *more, *ENGINE_FLAGS], scratch) as (
        url,
        _,
    ):
        yield Served("stock vLLM", url, "none")


@contextmanager
def _running(name: str, command: list[str], scratch: Path) -> Iterator[tuple[str, Path]]:
    port = {"stock": 8701, "steersman": 8702}[name]
    command = [sys.executable, *command, "--host", "127.0.0.1", "--port", str(port)]
    if not Path("/proc/driver/nvidia/version").exists():
        command += CPU_FLAGS
    log = scratch / f"{name}.log"
    environ = os.environ | {
        "VLLM_USE_V2_MODEL_RUNNER": "0",
        "VLLM_NO_USAGE_STATS": "1",
        "HF_HUB_OFFLINE": "1",
    }
    with log.open("wb") as out:
        process = subprocess.Popen(command, stdout=out, stderr=subprocess.STDOUT, env=environ, cwd=REPO)
    try:
        url = f"http://127.0.0.1:{port}"
        while not _healthy(url):
            if process.poll() is not None:
                sys.exit(f"{name} did not start:\n{log.read_text()[-4000:]}")
            time.sleep(0.5)
        yield url, log
    finally:
        process.terminate()
        process.wait(60)


def _healthy(url: str) -> bool:
    try:
        with urllib.request.urlopen(f"{url}/health", timeout=2) as answer:
            return bool(answer.status == 200)
    except OSError:
        return False


def _embedded() -> Path:
    from server import embedded
    from server.settings import Settings

    return embedded.prepare(Settings.read().home, lambda line: print(line, file=sys.stderr))


def _machine() -> str:
    text = Path("/proc/cpuinfo").read_text()
    model = next((line.split(":")[1].strip() for line in text.splitlines() if "model name" in line), "CPU")
    return f"{os.cpu_count()} × {model}, Python {platform.python_version()}"


if __name__ == "__main__":
    main()
