"""Verdicts of a run: what each verifier adds, and what becomes of the others where one fails."""

import asyncio

import pytest

from policies.policy import RuntimePolicy
from policies.verdict import Text
from server.errors import Unavailable
from server.sandbox import Ended, Ran
from server.verification import Verification

TESTED = RuntimePolicy.model_validate(
    {"verifiers": {"enabled": ["unit_tests"], "code_unit_tests": ["assert f() == 1"]}}
)
FACTUAL = RuntimePolicy.model_validate({"verifiers": {"enabled": ["factuality"]}})


class Scripted:
    """A sandbox in which code that says `pass` passes, `wait` takes for ever and `fail` cannot be run."""

    def __init__(self) -> None:
        self.ran: list[str] = []
        self.owners: set[str] = set()
        self.left = 0

    async def run(self, code, seconds, owner=""):
        word = code.split()[0]
        self.ran.append(word)
        self.owners.add(owner)
        if word == "fail":
            await asyncio.sleep(0)
            raise Unavailable("no sandbox")
        if word == "wait":
            try:
                await asyncio.Event().wait()
            finally:
                self.left += 1
        return Ran(Ended.PASSED if word == "pass" else Ended.FAILED, "", 0.1)


def texts(*words):
    return [Text(word) for word in words]


async def test_a_failure_ends_what_the_others_do():
    """Where one text cannot be tested, the tests of its siblings end with it."""
    sandbox = Scripted()
    verify = Verification(TESTED, None, sandbox, None, masked_grammar=True)
    with pytest.raises(Unavailable):
        await verify(texts("wait", "fail", "wait"))
    assert sandbox.left == 2


async def test_an_opinion_that_cannot_be_had_rejects():
    """Where the model cannot be asked about one text, that one alone is rejected, with the reason."""
    sandbox = Scripted()

    async def factual(answer):
        ran = await sandbox.run(answer, 1)
        return float(ran.ended is Ended.PASSED)

    verify = Verification(FACTUAL, None, None, factual, masked_grammar=True)
    unasked, asked = await verify(texts("fail", "pass"))
    assert unasked.reason == "factuality_verifier: could not be judged: no sandbox"
    assert (unasked.accepted, asked.accepted) == (False, True)


async def test_every_text_has_its_verdict():
    """Verdicts come in the order of the texts."""
    verify = Verification(TESTED, None, Scripted(), None, masked_grammar=True)
    verdicts = await verify(texts("pass", "not", "pass"))
    assert [verdict.accepted for verdict in verdicts] == [True, False, True]
    assert verdicts[1].reason == "unit_tests_verifier: unit tests failed"


async def test_tests_are_run_for_whoever_asks():
    """The sandbox is told whose code it is; where a constraint is broken too, both count."""
    given = RuntimePolicy.model_validate(
        {
            "constraints": {"forbidden_terms": ["bad"]},
            "verifiers": {"enabled": ["unit_tests"], "code_unit_tests": ["assert f() == 1"]},
        }
    )
    sandbox = Scripted()
    verify = Verification(given, None, sandbox, None, masked_grammar=True, owner="me")
    passed, failed = await verify(texts("pass bad", "not bad"))
    assert sandbox.owners == {"me"}
    assert (passed.score, failed.score) == pytest.approx((0.0, -0.9))
