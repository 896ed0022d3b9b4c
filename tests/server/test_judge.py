"""Verdicts by a process that can be ended."""

import asyncio
import time

import pytest

from policies.policy import RuntimePolicy
from policies.verdict import Text, judge
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
    texts = [Text(text) for text in ('{"a": 1}', "{}", "no json", '{"a": "ü\\n"}')]
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
    (verdict,) = await process([Text("a" * 40)], bomb)
    beating.cancel()
    assert not verdict.accepted
    assert "longer than 1 s" in verdict.reason
    assert time.monotonic() - started < 20  # the child's start included
    assert ticks >= 10
    assert (await process([Text("ab")], policy(regex_pattern="ab")))[0].accepted


async def test_a_job_given_up_leaves_no_answer_behind(process):
    """Cancelling a judgement does not hand its verdict to the next one."""
    await process([Text("ab")], policy(regex_pattern="ab"))
    slow = asyncio.create_task(process([Text("a" * 40)], policy(regex_pattern="^(a+)+b$")))
    await asyncio.sleep(0.1)
    slow.cancel()
    with pytest.raises(asyncio.CancelledError):
        await slow
    assert (await process([Text("ab")], policy(regex_pattern="ab")))[0].accepted


async def test_what_a_job_says_beside_its_text(process):
    """Whether a text was cut and a grammar masked reaches the process, and presets' constraints do too."""
    given = policy(grammar="'a' 'b'", forbidden_terms=["c"])
    texts = [Text("ba"), Text("ba", cut=True), Text("ab c")]
    for masked in (True, False):
        found = await process(texts, given, masked_grammar=masked)
        assert found == [judge(text, given, masked_grammar=masked) for text in texts]
    preset = RuntimePolicy.model_validate({"steering": {"preset": "json_compliance"}}).expanded()
    assert (await process([Text("no")], preset))[0] == judge(Text("no"), preset)
    assert not judge(Text("no"), preset).accepted


async def test_what_fails_to_be_judged_fails_every_verifier(process):
    """A job that outlasts its time is rejected by its constraint and by each verifier."""
    given = RuntimePolicy.model_validate(
        {"constraints": {"regex_pattern": "^(a+)+b$"}, "verifiers": {"enabled": ["regex", "code_compile"]}}
    )
    (verdict,) = await process([Text("a" * 40)], given)
    assert set(verdict.failed) == {"regex", "code_compile"}
    assert (verdict.constraints_ok, verdict.verifier_ok) == (False, False)
