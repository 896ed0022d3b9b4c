"""The compiling process: what it accepts and refuses, and that it never holds up the server."""

import asyncio
import os
import signal
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from prometheus_client import REGISTRY

from policies.constraint import (
    Constraint,
    from_choice,
    from_grammar,
    from_json_schema,
    from_regex,
    json_object,
)
from server.constraints import ConstraintChecker
from server.errors import InvalidRequest, Unavailable

SECONDS = 4.0


@pytest.fixture(scope="session")
def vllm_config(model_path: Path) -> Any:
    args = pytest.importorskip("vllm.engine.arg_utils")
    return args.AsyncEngineArgs(model=str(model_path), max_model_len=1024).create_engine_config()


@pytest.fixture(scope="module")
async def checker(vllm_config: Any) -> AsyncIterator[ConstraintChecker]:
    """A checker whose compiling process is up."""
    checker = ConstraintChecker(vllm_config, SECONDS)
    checker.start()
    await checker.check(json_object(), "warm-up")
    yield checker
    await checker.close()


@asynccontextmanager
async def heartbeat() -> AsyncIterator[list[float]]:
    """How late a task of the same loop woke up, each time."""
    late: list[float] = []

    async def beat() -> None:
        while True:
            due = time.monotonic() + 0.02
            await asyncio.sleep(0.02)
            late.append(time.monotonic() - due)

    task = asyncio.create_task(beat())
    yield late
    task.cancel()


def counted(what: str) -> float:
    return REGISTRY.get_sample_value(f"steersman_constraint_cache_{what}_total") or 0.0


async def refusal(checker: ConstraintChecker, constraint: Constraint) -> str:
    with pytest.raises(InvalidRequest) as refused:
        await checker.check(constraint, "field")
    assert (refused.value.param, refused.value.reason) == ("field", "invalid_constraint")
    return refused.value.message


def record(count: int, schema: Any) -> dict[str, Any]:
    names = [f"f{n}" for n in range(count)]
    properties = {name: schema(n) for n, name in enumerate(names)}
    return {"type": "object", "properties": properties, "required": names}


ACCEPTED = {
    "object": json_object(),
    "choice": from_choice(["yes", 'n"o', "may\nbe"]),
    "regex": from_regex(r"\d{3}-\d{4}"),
    "nested quantifiers": from_regex("(a|aa)*b"),
    "dots": from_regex(".*" * 20 + "x"),
    "ebnf": from_grammar('root ::= "yes" | "no" root'),
    "literal like a token set": from_grammar('root ::= "Token(5)" [Token(]'),
    "lark": from_grammar('start: "yes" | "no" start'),
    "recursive": from_json_schema(
        {
            "$defs": {"n": {"type": "object", "properties": {"next": {"$ref": "#/$defs/n"}}}},
            "$ref": "#/$defs/n",
        }
    ),
    "huge maxItems": from_json_schema({"type": "array", "items": {"type": "integer"}, "maxItems": 10**9}),
    "many values": from_json_schema({"enum": [f"value {n}" for n in range(3000)]}),
    "wide": from_json_schema(record(100, lambda _: {"type": "string"})),
    "formats": from_json_schema(
        record(4, lambda n: {"type": "string", "format": ("date-time", "uuid", "email", "uri")[n]})
    ),
    "pydantic": from_json_schema(
        {
            "title": "Order",
            "type": "object",
            "properties": {
                "id": {"title": "Id", "type": "integer", "minimum": 1},
                "note": {"anyOf": [{"type": "string", "maxLength": 40}, {"type": "null"}], "default": None},
                "tags": {"type": "array", "items": {"type": "string"}, "maxItems": 5},
            },
            "required": ["id"],
            "additionalProperties": False,
        }
    ),
}

REFUSED = {
    "bad regex": (from_regex("(a"), "parenthesis is not closed"),
    "lookahead": (from_regex("(?=a)b"), "Lookahead is not supported"),
    "ignored anchor": (from_regex("a$b"), "It is ignored"),
    "deep regex": (from_regex("(" * 20_000 + "a" + ")" * 20_000), "Nest layer"),
    "bad ebnf": (from_grammar("root ::= missing"), 'Rule "missing" is not defined'),
    "free text": (from_grammar("Answer politely, in two sentences."), "Lark error at line 1"),
    "token ids": (from_grammar("root ::= Token(5, 6)"), "sets of token ids"),
    "other token ids": (from_grammar("root ::= ExcludeToken(5, 6)"), "sets of token ids"),
    "type": (from_json_schema({"type": "strin"}), "$.type"),
    "reference": (from_json_schema({"$ref": "#/$defs/x"}), "Cannot find field $defs"),
    "elsewhere": (from_json_schema({"$ref": "https://example.com/x.json"}), "only into its own schema"),
    "negation": (from_json_schema({"not": {"type": "string"}}), "`not`"),
    "multiples": (from_json_schema(record(1, lambda _: {"type": "number", "multipleOf": 2})), "multipleOf"),
    "itself": (from_json_schema({"$ref": "#"}), "No text can satisfy"),
    "nothing": (from_json_schema({"enum": []}), "enum array must not be empty"),
}

BOMBS = {
    "repeated repetition": from_regex("(a{1,1000}){1,1000}"),
    "thrice repeated": from_grammar("root ::= (([a-z]{1,100000}){1,100000}){1,100000}"),
    "stars": from_grammar("root ::= a*\na ::= b*\nb ::= c*\nc ::= [a-z]*"),
    "ambiguity": from_grammar('root ::= root root | root root root | [a-z] | [a-z] [a-z] | ""'),
    "many lengths": from_json_schema(record(300, lambda n: {"type": "string", "maxLength": 100 + n})),
    "many patterns": from_json_schema(
        record(200, lambda n: {"type": "string", "pattern": f"^[a-z]{{1,{100 + n}}}.{{3,{200 + n}}}$"})
    ),
}


@pytest.mark.parametrize("name", ACCEPTED)
async def test_ordinary_constraints_pass(checker: ConstraintChecker, name: str):
    """What people send in production compiles within the bound."""
    await checker.check(ACCEPTED[name], "field")


@pytest.mark.parametrize("name", REFUSED)
async def test_refusals_carry_the_compilers_reason(checker: ConstraintChecker, name: str):
    """What does not compile, or would not be enforced, is the client's error and says what is wrong."""
    constraint, reason = REFUSED[name]
    assert reason in await refusal(checker, constraint)


@pytest.mark.parametrize("name", BOMBS)
async def test_bombs_end_within_the_bound(checker: ConstraintChecker, name: str):
    """A bomb is refused in bounded time, and the server's loop never waits for it."""
    began = time.monotonic()
    async with heartbeat() as late:
        await refusal(checker, BOMBS[name])
    assert time.monotonic() - began < SECONDS + 2
    assert max(late) < 1  # a busy machine delays any task; a loop that compiled would be late by seconds


async def test_a_verdict_is_remembered(checker: ConstraintChecker):
    """The second check of a constraint costs no compilation, whichever way the first one went."""
    slow = from_json_schema(record(300, lambda _: {"type": "string"}))
    await checker.check(slow, "a")
    await refusal(checker, from_regex("(b"))
    before = counted("hits"), counted("misses")
    began = time.perf_counter()
    for _ in range(100):
        await checker.check(slow, "b")
        await refusal(checker, from_regex("(b"))
    assert (time.perf_counter() - began) / 200 < 0.01  # a compilation takes tens of times that
    assert (counted("hits"), counted("misses")) == (before[0] + 200, before[1])


async def test_equal_constraints_at_once_are_one_job(checker: ConstraintChecker):
    """A burst with one new schema compiles it once; an asker who leaves takes nothing from the others."""
    slow = from_json_schema(record(301, lambda _: {"type": "string"}))
    askers = [asyncio.create_task(checker.check(slow, "field")) for _ in range(20)]
    await asyncio.sleep(0)
    assert len(checker._running) == 1
    askers[0].cancel()
    await asyncio.gather(*askers[1:])


async def test_a_bomb_leaves_others_their_turn(checker: ConstraintChecker):
    """While a bomb burns its time, another constraint gets its verdict."""
    bomb = asyncio.create_task(
        refusal(checker, from_json_schema(record(310, lambda n: {"type": "string", "maxLength": 900 + n})))
    )
    await asyncio.sleep(0.3)
    await checker.check(from_regex("other turn"), "field")
    assert not bomb.done()
    assert "did not compile within 4 seconds" in await bomb


def process_of(checker: ConstraintChecker) -> Any:
    assert checker._process is not None
    return checker._process.result()


async def test_a_dead_process_is_replaced(checker: ConstraintChecker):
    """When the compiling process is killed, one check is told to come back and the next finds a new one."""
    first = process_of(checker).popen
    os.kill(first.pid, signal.SIGKILL)
    await asyncio.sleep(0.1)
    with pytest.raises(Unavailable):
        await checker.check(from_regex("two"), "field")
    assert first.returncode == -signal.SIGKILL
    await checker.check(from_regex("two"), "field")
    assert process_of(checker).popen.pid != first.pid


async def test_nothing_outlives_a_killed_server(checker: ConstraintChecker):
    """A killed server cannot close anything: the process ends with its socket, a job by its own clock."""
    process = process_of(checker)
    bomb = asyncio.create_task(
        refusal(checker, from_json_schema(record(320, lambda n: {"type": "string", "maxLength": n + 99})))
    )
    await asyncio.sleep(0.5)
    (job,) = children(process.popen.pid)
    process.requests.close()  # as the kernel does when the parent dies
    await asyncio.to_thread(process.popen.wait, 5)
    assert alive(job)
    assert "did not compile" in await bomb
    await asyncio.sleep(0.5)
    assert not alive(job)


def children(pid: int) -> list[int]:
    return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def alive(pid: int) -> bool:
    """A zombie counts as dead: an orphan's reaper belongs to the host."""
    status = Path(f"/proc/{pid}/status")
    return status.exists() and "State:\tZ" not in status.read_text()
