"""Judge the answers of a policy run: by their text, their code in the sandbox, the served model's opinion."""

import functools
from collections.abc import Awaitable, Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

from policies.policy import RuntimePolicy
from policies.verdict import Text, Verdict, code_of, judge
from server.errors import SteersmanError
from server.judge import Judge
from server.metrics import VERIFIER_RUNS, VERIFIER_SCORE, VERIFIER_SECONDS
from server.sandbox import Ended, Ran, Sandbox
from server.together import together
from server.tracing import spanned

FACTUAL = 0.5  # P(yes) from which an answer counts as factual
_REASON_CHARACTERS = 500

# The probability, between 0 and 1, that an answer is factual. Raises SteersmanError alone.
Factual = Callable[[str], Awaitable[float]]


@dataclass(frozen=True, slots=True)
class Verification:
    """`sandbox` and `factual` are there where the policy's verifiers need them. `owner` is the account that
    asks, which shares what judges with others."""

    policy: RuntimePolicy
    judge: Judge
    sandbox: Sandbox | None
    factual: Factual | None
    masked_grammar: bool
    owner: str = ""

    async def __call__(self, texts: Sequence[Text]) -> list[Verdict]:
        with _measured("text", len(texts)):
            verdicts = await self._by_text(texts)
        if self.sandbox is not None:
            with _measured("unit_tests", len(texts)):
                verdicts = await self._each(self._tested, texts, verdicts)
        if self.factual is not None:
            with _measured("factuality", len(texts)):
                verdicts = await self._each(self._fact_checked, texts, verdicts)
        for verdict in verdicts:
            VERIFIER_SCORE.observe(max(0.0, verdict.score))
            for name in self.policy.verifiers.enabled:
                VERIFIER_RUNS.labels(name, "failed" if name in verdict.failed else "passed").inc()
        return list(verdicts)

    async def _by_text(self, texts: Sequence[Text]) -> Sequence[Verdict]:
        constraints = self.policy.constraints
        hostile = (constraints.json_schema, constraints.regex_pattern, constraints.tool_schema)
        if any(each is not None for each in hostile) or "code_compile" in self.policy.verifiers.enabled:
            return await self.judge(texts, self.policy, masked_grammar=self.masked_grammar, owner=self.owner)
        return [judge(text, self.policy, masked_grammar=self.masked_grammar) for text in texts]

    async def _each(
        self,
        verifier: Callable[[Text, Verdict], Awaitable[Verdict]],
        texts: Sequence[Text],
        verdicts: Sequence[Verdict],
    ) -> list[Verdict]:
        """The first failure ends what the others still do."""
        pairs = zip(texts, verdicts, strict=True)
        return await together([functools.partial(verifier, *pair) for pair in pairs], at_once=len(texts))

    async def _tested(self, text: Text, verdict: Verdict) -> Verdict:
        if "unit_tests" in verdict.failed:  # another language, which is not run
            return verdict
        verifiers = self.policy.verifiers
        assert self.sandbox is not None
        code = "\n\n".join([code_of(text.text), *verifiers.code_unit_tests])
        # Where a constraint is broken too: the score, by which rejected answers are told apart, counts both.
        ran = await self.sandbox.run(code, verifiers.unit_test_timeout_ms / 1000, self.owner)
        return verdict.found("unit_tests", _fault(ran))

    async def _fact_checked(self, text: Text, verdict: Verdict) -> Verdict:
        assert self.factual is not None
        try:
            yes = await self.factual(text.text)
        except SteersmanError as error:  # nothing was found true: as if it were not
            return verdict.found("factuality", f"could not be judged: {error.message}")
        reason = None if yes >= FACTUAL else f"P(factual) is {yes:.2f}, below {FACTUAL:g}"
        return verdict.found("factuality", reason, yes)


@contextmanager
def _measured(verifiers: str, answers: int) -> Iterator[None]:
    with (
        VERIFIER_SECONDS.labels(verifiers).time(),
        spanned(f"verify {verifiers}", {"steersman.answers": answers}),
    ):
        yield


def _fault(ran: Ran) -> str | None:
    if ran.ended is Ended.PASSED:
        return None
    if ran.ended is Ended.TIMED_OUT:
        return "unit tests timed out"
    reasons = {Ended.MEMORY: "out of memory", Ended.OUTPUT: "too much output", Ended.KILLED: "killed"}
    said = ran.stderr.strip()[-_REASON_CHARACTERS:]
    return said or reasons.get(ran.ended, "unit tests failed")
