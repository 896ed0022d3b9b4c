"""A run on a scripted engine: what its calls were asked, and by what its texts are judged."""

from policies.policy import RuntimePolicy
from policies.run import Answer, MethodUnavailableError, Runner
from policies.sampling import EngineFacts, plan
from policies.verdict import Verdict, judge

GOOD, BAD, WORSE = '{"ok": true}', "[]", "no json"
JSON = {"json_mode": True}
ANYTHING = {"regex_pattern": ""}  # a constraint, by which every text could be rejected
UNREPAIRED = {"repair_on_failure": False}


def policy(**groups) -> RuntimePolicy:
    return RuntimePolicy.model_validate(groups)


def unrepaired(**groups) -> RuntimePolicy:
    return policy(verifiers=UNREPAIRED, **groups)


def revising(loops=1, **groups):
    return policy(optimization={"self_revision_loops": loops, "retry_on_failure": 0}, **groups)


class Engine:
    """Answers call by call from a script, and remembers what it was asked.

    A call's script is its texts; each may be an Answer, or text alone. `seconds` is how long each call takes,
    `missing` are methods that the engine does not have.
    """

    def __init__(self, *script, seconds=(), missing=(), tokens=3, logprob=None):
        self.script, self.asks, self.now = list(script), [], 100.0
        self.seconds, self.missing, self.tokens, self.logprob = list(seconds), set(missing), tokens, logprob

    def clock(self):
        return self.now

    async def __call__(self, ask):
        plan(ask.round.asked, EngineFacts())
        if ask.round.method in self.missing:
            raise MethodUnavailableError(LookupError(f"no {ask.round.method} here"))
        index = len(self.asks)
        self.asks.append(ask)
        self.now += self.seconds[min(index, len(self.seconds) - 1)] if self.seconds else 0
        texts = self.script[min(index, len(self.script) - 1)]
        return [
            text
            if isinstance(text, Answer)
            else Answer(text, self.tokens, ask.round.method, "stop", mean_logprob=self.logprob)
            for text in texts
        ]


async def run(given, engine, verify=None, max_tokens=64, **more):
    async def by_text(texts):
        return [judge(text, given) for text in texts]

    runner = Runner(given, engine, verify or by_text, max_tokens, clock=engine.clock, **more)
    return await runner.run()


def scoring(**scores):
    """A verifier that finds each text's failures in a table; what is not there is sound."""

    async def verify(texts):
        return [scores.get(text.text, Verdict()) for text in texts]

    return verify


def failing(*names, broken=None):
    return Verdict(broken, dict.fromkeys(names, "no"))
