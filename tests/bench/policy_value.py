"""What a policy is worth: how many answers are right with one and without, on the embedded model.

    python tests/bench/policy_value.py [--only extraction|code|confidence] [--limit N] [--markdown FILE]
    python tests/bench/policy_value.py --url http://127.0.0.1:8000 --key KEY

Extraction asks every prompt in four ways, each of which adds to the one before: the task alone; told to
answer in JSON with these keys; held to the schema while decoding; the best of four of those by two verifiers.
Code takes the best of 1, 4 and 8 by unit tests. There are no retries and no repairs, so that a row differs
from the one above by what its name says. Seeds are fixed: a prompt's candidates have the same ones in each
row, and more candidates have more. Intervals are 95 %, from resampled prompts.

Confidence takes four candidates of each prompt and asks whether the surer ones are right more often, and as
often as their confidence says.
"""

import argparse
import asyncio
import json
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import httpx
import numpy as np
from jsonschema import Draft202012Validator

# Before this folder, whose policies.py and steering.py would hide the packages.
sys.path.insert(0, str(Path(__file__).parents[2]))
from steering.train.auroc import auroc
from tests.bench.serve import HERE, Served, _embedded, _machine, _steersman

CONCURRENCY = 8
SEEDS_APART = 100  # between prompts: more than one has candidates
BEST_OF = (1, 4, 8)
JSON_TOKENS, CODE_TOKENS = 128, 192
TEST_TIMEOUT_MS = 5000  # the engine keeps the processors busy meanwhile
RESAMPLES = 10_000
CANDIDATES, BINS = 4, 5  # of confidence


@dataclass(frozen=True)
class Job:
    """One run: its row of the table, the number of its prompt, and what is asked."""

    row: str
    number: int
    prompt: str
    policy: dict[str, Any]
    max_tokens: int
    trace: bool = False

    @property
    def body(self) -> dict[str, Any]:
        return {
            "prompt": self.prompt,
            "policy": self.policy,
            "max_new_tokens": self.max_tokens,
            "seed": SEEDS_APART * self.number,
            "include_trace": self.trace,
        }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--url", help="of a running server; without it, one is started")
    parser.add_argument("--key", default="none")
    parser.add_argument("--model", type=Path, help="to start a server with; the embedded one by default")
    parser.add_argument("--limit", type=int, help="ask only the first N prompts of each table")
    parser.add_argument("--only", choices=["extraction", "code", "confidence"])
    parser.add_argument("--markdown", type=Path, help="also append the tables to this file")
    args = parser.parse_args()
    with _server(args) as (served, name):
        lines = [f"## What a policy is worth: {datetime.now(UTC):%Y-%m-%d}, {_machine()}, {name}\n"]
        facts, tasks = _data("extraction.jsonl", args.limit), _data("python_tasks.jsonl", args.limit)
        if args.only in (None, "extraction"):
            lines += asyncio.run(_extraction(served, facts))
        if args.only in (None, "code"):
            lines += asyncio.run(_code(served, tasks))
        if args.only in (None, "confidence"):
            lines += asyncio.run(_confidence(served, facts, tasks))
    print("\n".join(lines))
    if args.markdown:
        with args.markdown.open("a") as out:
            out.write("\n".join(lines) + "\n\n")


@contextmanager
def _server(args: argparse.Namespace) -> Iterator[tuple[Served, str]]:
    """The server to ask, and the name of what it serves."""
    if args.url:
        yield Served("steersman", args.url, args.key), args.url
        return
    model = args.model or _embedded()
    with (
        tempfile.TemporaryDirectory() as scratch,
        _steersman(model, Path(scratch), ["--enforce-eager"]) as served,
    ):
        yield served, model.name


def _data(name: str, limit: int | None) -> list[dict[str, Any]]:
    lines = (HERE / "data" / name).read_text().splitlines()
    return [json.loads(line) for line in lines[:limit]]


async def _extraction(served: Served, tasks: Sequence[dict[str, Any]]) -> list[str]:
    jobs = [job for number, task in enumerate(tasks) for job in extraction_jobs(number, task)]
    rows = [
        "| way | valid JSON | has an object | schema-valid | fields right | tokens per prompt |",
        "|---|---|---|---|---|---|",
    ]
    for name, answers in (await _asked(served, jobs)).items():
        scored = [scores(answer["output"], task) for answer, task in zip(answers, tasks, strict=True)]
        cells = [share(column) for column in zip(*scored, strict=True)]
        rows.append(f"| {name} | {' | '.join(cells)} | {_tokens(answers)} |")
    explained = (
        "Valid JSON is an answer that is an object and nothing else. The next columns also take an object"
        " with text around it, from the first brace to the last, as the verifiers do."
    )
    return [f"Facts from {len(tasks)} short texts:\n", *rows, "", explained, ""]


def extraction_jobs(number: int, task: dict[str, Any]) -> Iterator[Job]:
    keys = ", ".join(task["schema"]["properties"])
    told = f"{task['prompt']}\n\nAnswer with JSON only, with exactly these keys: {keys}."
    held = {"json_mode": True, "json_schema": task["schema"]}
    verified = {"enabled": ["syntax", "json_schema"]}
    ways = {
        "plain": (task["prompt"], policy(0.7)),
        "asked for JSON": (told, policy(0.7)),
        "constraint": (told, policy(0.7, constraints=held)),
        "constraint, best of 4 verified": (told, policy(0.7, 4, constraints=held, verifiers=verified)),
    }
    for name, (prompt, given) in ways.items():
        yield Job(name, number, prompt, given, JSON_TOKENS)


async def _code(served: Served, tasks: Sequence[dict[str, Any]]) -> list[str]:
    jobs = [job for number, task in enumerate(tasks) for job in code_jobs(number, task)]
    rows = ["| way | passed its tests | tokens per prompt |", "|---|---|---|"]
    for name, answers in (await _asked(served, jobs)).items():
        passed = share([float(answer["accepted"]) for answer in answers])
        rows.append(f"| {name} | {passed} | {_tokens(answers)} |")
    return [f"{len(tasks)} small Python tasks:\n", *rows, ""]


def code_jobs(number: int, task: dict[str, Any]) -> Iterator[Job]:
    verified = {
        "enabled": ["unit_tests"],
        "code_unit_tests": task["tests"],
        "unit_test_timeout_ms": TEST_TIMEOUT_MS,
    }
    for count in BEST_OF:
        given = policy(0.8, count, verifiers=verified)
        yield Job(f"best of {count}", number, f"{task['prompt']} Only code.", given, CODE_TOKENS)


async def _confidence(
    served: Served, facts: Sequence[dict[str, Any]], tasks: Sequence[dict[str, Any]]
) -> list[str]:
    jobs = [job for number, task in enumerate(facts) for job in extraction_jobs(number, task)]
    texts = [confident(job) for job in jobs if job.row == "constraint"]
    jobs = [job for number, task in enumerate(tasks) for job in code_jobs(number, task)]
    code = [confident(job) for job in jobs if job.row == "best of 1"]
    (answers,), (programs,) = (
        (await _asked(served, texts)).values(),
        (await _asked(served, code)).values(),
    )
    found = {
        "all facts right": [
            [(each["mean_logprob"], scores(each["output"], task)[3] == 1.0) for each in _first(answer)]
            for answer, task in zip(answers, facts, strict=True)
        ],
        "passed its tests": [
            [(each["mean_logprob"], each["accepted"]) for each in _first(answer)] for answer in programs
        ],
    }
    rows = ["| right means | answers | AUROC | confidence of each fifth | right of each fifth |"]
    return [*rows, "|---|---|---|---|---|", *(_reliability(name, each) for name, each in found.items()), ""]


def confident(job: Job) -> Job:
    """Several candidates of one round that are scored: threshold 0 is always met."""
    given = dict(job.policy)
    given["optimization"] = {
        "best_of_n": CANDIDATES,
        "retry_on_failure": 0,
        "confidence_triggered_regeneration": True,
        "confidence_threshold": 0,
    }
    return replace(job, row="confidence", policy=given, trace=True)


def _first(answer: dict[str, Any]) -> list[dict[str, Any]]:
    """What the first round made: a rejected winner is followed by another."""
    return [each for each in answer["trace"]["candidates"] if each["round"] == 0]


def _reliability(name: str, prompts: Sequence[Sequence[tuple[float, bool]]]) -> str:
    """Candidates of a prompt are resampled together."""
    logprobs = np.array([[logprob for logprob, _ in each] for each in prompts])
    right = np.array([[float(good) for _, good in each] for each in prompts])
    rng, areas = np.random.default_rng(0), []
    for _ in range(RESAMPLES // 10):
        drawn = rng.integers(0, len(prompts), len(prompts))
        both = logprobs[drawn].ravel(), right[drawn].ravel()
        if 0 < both[1].sum() < both[1].size:
            areas.append(auroc(both[0][both[1] == 1], both[0][both[1] == 0]))
    low, high = np.quantile(areas, [0.025, 0.975])
    sure, good = np.exp(logprobs.ravel()), right.ravel()
    area = auroc(sure[good == 1], sure[good == 0])
    fifths = np.array_split(np.argsort(sure), BINS)
    says = " · ".join(f"{sure[each].mean():.2f}" for each in fifths)
    is_right = " · ".join(f"{good[each].mean():.2f}" for each in fifths)
    return f"| {name} | {good.size} | **{area:.2f}** ({low:.2f}–{high:.2f}) | {says} | {is_right} |"


def policy(
    temperature: float,
    best_of: int = 1,
    *,
    constraints: dict[str, Any] | None = None,
    verifiers: dict[str, Any] | None = None,
) -> dict[str, Any]:
    return {
        "sampling": {"temperature": temperature},
        "constraints": constraints or {},
        "verifiers": {"repair_on_failure": False, **(verifiers or {})},
        "optimization": {"best_of_n": best_of, "retry_on_failure": 0},
    }


async def _asked(served: Served, jobs: Sequence[Job]) -> dict[str, list[dict[str, Any]]]:
    """The answers of each row, in the order of the prompts. Rows take turns, `CONCURRENCY` runs at once."""
    answers: list[dict[str, Any]] = [{}] * len(jobs)
    waiting = iter(enumerate(jobs))
    headers = {"authorization": f"Bearer {served.key}", "accept": "application/json"}
    async with httpx.AsyncClient(base_url=served.url, headers=headers, timeout=600) as http:

        async def client() -> None:
            for place, job in waiting:
                answer = await http.post("/policies/run", json=job.body)
                if answer.status_code != httpx.codes.OK:
                    sys.exit(f"{job.row}, prompt {job.number}: {answer.status_code} {answer.text}")
                answers[place] = answer.json()
                if place % 50 == 0:
                    print(f"{place} of {len(jobs)} runs", file=sys.stderr, flush=True)

        await asyncio.gather(*(client() for _ in range(CONCURRENCY)))
    rows: dict[str, list[dict[str, Any]]] = {}
    for job, answer in zip(jobs, answers, strict=True):
        rows.setdefault(job.row, []).append(answer)
    return rows


def scores(text: str, task: dict[str, Any]) -> tuple[float, float, float, float]:
    """Whether `text` is an object, has one, and that one conforms; the share of its fields that are true."""
    found = _object(text[text.find("{") : text.rfind("}") + 1])
    if found is None:
        return 0.0, 0.0, 0.0, 0.0
    truth = task["answer"]
    right = sum(name in found and same(found[name], value) for name, value in truth.items())
    conforms = Draft202012Validator(task["schema"]).is_valid(found)
    return float(_object(text) is not None), 1.0, float(conforms), right / len(truth)


def _object(text: str) -> dict[str, Any] | None:
    try:
        value = json.loads(text)
    except ValueError:
        return None
    return value if isinstance(value, dict) else None


def same(given: Any, truth: str | int) -> bool:
    """Equal as a reader would have it: case and outer space of a string aside, `true` is no 1."""
    if isinstance(truth, str):
        return isinstance(given, str) and given.strip().casefold() == truth.strip().casefold()
    return isinstance(given, bool) is isinstance(truth, bool) and bool(given == truth)


def share(values: Sequence[float]) -> str:
    """The mean in per cent, with its interval."""
    each = np.array(values)
    drawn = np.random.default_rng(0).integers(0, len(each), (RESAMPLES, len(each)))
    low, high = np.quantile(each[drawn].mean(1), [0.025, 0.975])
    return f"**{100 * each.mean():.0f} %** ({100 * low:.0f}–{100 * high:.0f})"


def _tokens(answers: Sequence[dict[str, Any]]) -> str:
    return f"{np.mean([answer['total_tokens'] for answer in answers]):.0f}"


if __name__ == "__main__":
    main()
