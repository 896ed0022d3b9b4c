"""Verdicts by processes that can be ended."""

import asyncio
import os
import signal
import time

import pytest

from policies.policy import RuntimePolicy
from policies.verdict import Text, judge
from server import judge as module
from server.errors import Unavailable
from server.judge import Judge


def policy(**constraints):
    return RuntimePolicy.model_validate({"constraints": constraints})


@pytest.fixture
async def process():
    subject = Judge(1.0)
    yield subject
    await subject.close()


BOMB = {"regex_pattern": "^(a+)+b$"}
SLOW, QUICK = Text("a" * 40), Text("aab")


async def test_verdicts_are_those_of_the_pure_function(process):
    """Texts judged apart get what `judge` says of them, reasons and scores included."""
    given = policy(json_schema={"type": "object", "required": ["a"]})
    texts = [Text(text) for text in ('{"a": 1}', "{}", "no json", '{"a": "ü\\n"}')]
    assert await process(texts, given) == [judge(text, given) for text in texts]


async def test_what_takes_effect_elsewhere_is_no_fault(process):
    """Of a policy that is sound as a whole only the groups that judge are sent, and those are judged by."""
    given = RuntimePolicy.model_validate(
        {
            "constraints": {"json_mode": True, "json_schema": {"type": "object"}},
            "verifiers": {"enabled": ["syntax"], "rerank": False, "max_retries": 3},
            "optimization": {"best_of_n": 3},
        }
    )
    assert await process([Text("{}"), Text("no")], given) == [judge(Text(t), given) for t in ("{}", "no")]


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


async def test_each_text_has_its_own_time(process):
    """A text that takes too long is rejected alone: those before and after it get their own verdicts."""
    verdicts = await process([QUICK, SLOW, QUICK, SLOW, QUICK], policy(**BOMB))
    assert [verdict.accepted for verdict in verdicts] == [True, False, True, False, True]
    assert all("longer than 1 s" in verdicts[index].reason for index in (1, 3))


async def test_a_text_may_need_too_much_memory():
    """It is rejected for that, alone, and by a child that goes on."""
    process = Judge(20.0, memory=256 * 2**20)
    try:
        hungry = Text("a" * 2_000_000)
        verdicts = await process([hungry, Text("abc")], policy(regex_pattern=r"\A(?:(a)|b)*c"))
        assert [verdict.accepted for verdict in verdicts] == [False, True]
        assert "too much memory" in verdicts[0].reason
        assert len(process._children) == 1
    finally:
        await process.close()


async def test_a_client_that_leaves_during_the_start(process):
    """Cancelling while the child starts leaves nothing behind: the next client gets its verdict."""
    early = asyncio.create_task(process([QUICK], policy(**BOMB)))
    await asyncio.sleep(0.02)
    early.cancel()
    with pytest.raises(asyncio.CancelledError):
        await early
    (verdict,) = await process([QUICK], policy(**BOMB))
    assert verdict.accepted


@pytest.fixture
def killed(monkeypatch):
    """Children die of their jobs while this is above 0; each that does counts it down."""
    left = {"deaths": 0}
    inner = module._Child._soon

    async def soon(child, word):
        await inner(child, word)
        if word == "began" and left["deaths"]:
            left["deaths"] -= 1
            os.kill(child._process.pid, signal.SIGKILL)

    monkeypatch.setattr(module._Child, "_soon", soon)
    return left


async def test_a_child_that_fails_is_replaced_once(process, killed):
    """Its failure says nothing of the text: a second child judges, and where that fails too nobody has."""
    slow = policy(**BOMB)
    killed["deaths"] = 1
    (verdict,) = await process([SLOW], slow)
    assert "longer than" in verdict.reason
    killed["deaths"] = 2
    with pytest.raises(Unavailable, match="cannot be judged"):
        await process([SLOW], slow)
    assert (await process([QUICK], slow))[0].accepted


async def test_no_child_can_be_started(process, monkeypatch):
    """Where the interpreter does not start, or says nothing, judging is unavailable."""
    for program in ("/bin/false", "/nowhere/python"):
        monkeypatch.setattr(module.sys, "executable", program)
        with pytest.raises(Unavailable, match="cannot be judged"):
            await process([QUICK], policy(**BOMB))


async def test_a_dead_child_is_not_used(process):
    """One that died between two jobs is replaced before anything is asked of it."""
    await process([QUICK], policy(**BOMB))
    (child,) = process._idle
    os.kill(child._process.pid, signal.SIGKILL)
    await child._process.wait()
    assert (await process([QUICK], policy(**BOMB)))[0].accepted
    assert len(process._children) == 1


async def test_no_owner_has_every_child(process):
    """While one account's texts take all the time they may, another's is judged."""
    many = [asyncio.create_task(process([SLOW] * 2, policy(**BOMB), owner="a")) for _ in range(4)]
    await asyncio.sleep(0.1)
    (verdict,) = await process([QUICK], policy(**BOMB), owner="b")
    assert verdict.accepted
    assert not any(task.done() for task in many)
    for task in many:
        task.cancel()
    await asyncio.gather(*many, return_exceptions=True)
    assert process._children == set(process._idle)


async def test_only_what_is_read_is_sent(process, monkeypatch):
    """A child is told constraints and verifiers, and neither vectors nor anything else of the policy."""
    sent = []
    inner = module._Child.judged

    def judged(child, job, seconds):
        sent.append(job["policy"])
        return inner(child, job, seconds)

    monkeypatch.setattr(module._Child, "judged", judged)
    given = RuntimePolicy.model_validate(
        {
            "metadata": {"x": 1},
            "steering": {"enabled": True, "vector": {"1": [0.5]}},
            "constraints": {"json_schema": {}},
            "verifiers": {"enabled": ["json_schema"]},
        }
    )
    texts = [Text("{}"), Text("no")]
    assert await process(texts, given) == [judge(text, given) for text in texts]
    assert sent == [{"constraints": {"json_schema": {}}, "verifiers": {"enabled": ["json_schema"]}}]
