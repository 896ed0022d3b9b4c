"""Verdicts by a process that can be ended."""

import asyncio
import time

import pytest

from policies.policy import RuntimePolicy
from policies.verdict import judge
from server.judge import JudgeProcess


def policy(**constraints):
    return RuntimePolicy.model_validate({"constraints": constraints})


@pytest.fixture
async def process():
    subject = JudgeProcess(1.0)
    yield subject
    await subject.close()


async def test_verdicts_are_those_of_the_pure_function(process):
    """Texts judged apart get what `judge` says of them, reasons and scores included."""
    given = policy(json_schema={"type": "object", "required": ["a"]})
    texts = ['{"a": 1}', "{}", "no json", '{"a": "ü\\n"}']
    assert await process(texts, given) == [judge(text, given) for text in texts]


async def test_a_catastrophic_regex_is_a_rejection_in_time(process):
    """Backtracking without end rejects within the limit, the loop stays free, and the next job is served."""
    bomb = policy(regex_pattern="^(a+)+b$")
    ticks = 0

    async def heart():
        nonlocal ticks
        while True:
            await asyncio.sleep(0.05)
            ticks += 1

    beating = asyncio.create_task(heart())
    started = time.monotonic()
    (verdict,) = await process(["a" * 40], bomb)
    beating.cancel()
    assert not verdict.accepted
    assert "longer than 1 s" in verdict.reason
    assert time.monotonic() - started < 20  # the child's start included
    assert ticks >= 10
    assert (await process(["ab"], policy(regex_pattern="ab")))[0].accepted


async def test_a_job_given_up_leaves_no_answer_behind(process):
    """Cancelling a judgement does not hand its verdict to the next one."""
    await process(["ab"], policy(regex_pattern="ab"))
    slow = asyncio.create_task(process(["a" * 40], policy(regex_pattern="^(a+)+b$")))
    await asyncio.sleep(0.1)
    slow.cancel()
    with pytest.raises(asyncio.CancelledError):
        await slow
    assert (await process(["ab"], policy(regex_pattern="ab")))[0].accepted
