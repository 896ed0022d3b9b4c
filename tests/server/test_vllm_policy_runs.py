"""Runs of policies over the served model: what the engine is asked, and what becomes of its errors."""

import asyncio

import pytest
from vllm.exceptions import VLLMValidationError

from policies.policy import RuntimePolicy
from policies.run import Runner
from server.errors import InvalidRequest, Unavailable
from server.vllm_wire import ChatRequest
from tests.server.vllm_policy_world import Engine, always, chat, policy_runs, raw_request, serving

pytestmark = pytest.mark.filterwarnings("ignore:max_tokens is deprecated")

FACTS = {"enabled": ["factuality"], "repair_on_failure": False}


def policy(**groups):
    return RuntimePolicy.model_validate(groups)


async def run(given, engine, **more):
    template = ChatRequest.model_validate(chat(**more))
    return await policy_runs(serving(engine)).run(given, template, raw_request())


def asks_for_facts(request):
    return request.structured_outputs is not None


async def test_the_question_for_facts_fits():
    """However long prompt and answer are, the engine gets a question that its context has room for."""
    engine = Engine(lambda request: [" ".join(["word"] * 700)] * request.n)
    long = [{"role": "user", "content": "why? " * 3000}]
    await run(policy(verifiers=FACTS), engine, messages=long, max_tokens=None)
    asked = [request for request in engine.requests if asks_for_facts(request)]
    assert len(asked) == 2
    for request in asked:
        assert len(request.messages[0]["content"]) < 3 * 512
        assert (request.truncate_prompt_tokens, request.truncation_side) == (504, "left")


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (InvalidRequest("too long"), "too long"),
        (VLLMValidationError("too long"), "too long"),
        (RuntimeError("secret"), "internal error; the server's log has the details"),
    ],
)
async def test_facts_that_cannot_be_judged_reject(error, reason):
    """The verifier counts as failed, with the reason; the answer is not lost."""

    def script(request):
        if asks_for_facts(request):
            raise error
        return ["an answer"]

    given = policy(verifiers=FACTS, optimization={"retry_on_failure": 0})
    winner = (await run(given, Engine(script))).winner
    assert (winner.answer.text, winner.verdict.accepted) == ("an answer", False)
    assert winner.verdict.reasons == (f"factuality_verifier: could not be judged: {reason}",)


async def test_a_vote_of_one_is_its_models():
    """Where the budget leaves one model of an ensemble, the engine is asked for that model."""
    engine = Engine(always("text"), lora=["small", "large"])
    sampling = {"method": "ensemble-sampling", "ensemble_models": ["small", "large"]}
    outcome = await run(policy(sampling=sampling, objective={"token_budget": 20}), engine, model="base")
    assert ([request.model for request in engine.requests], outcome.winner.model) == (["small"], "small")
    assert outcome.winner.answer.source[0].model == "base"


@pytest.mark.parametrize("seed", [3, None])
async def test_a_seed_is_known_to_the_run(seed, monkeypatch):
    """With one, time decides nothing."""
    known = []

    class Noting(Runner):
        async def run(self):
            known.append(self.seeded)
            return await super().run()

    monkeypatch.setattr("server.policy_runs.Runner", Noting)
    await run(policy(), Engine(always("text")), seed=seed)
    assert known == [seed is not None]


async def test_a_client_that_left_ends_the_run():
    """vLLM answers a cancelled call with an error object: no call follows it."""
    calls, entered = [], asyncio.Event()

    class Leaving(Engine):
        async def create_chat_completion(self, request, raw):
            calls.append(request)
            if len(calls) == 1:
                return await super().create_chat_completion(request, raw)
            entered.set()
            try:
                await asyncio.sleep(60)
            except asyncio.CancelledError:
                raise Unavailable("Client disconnected") from None

    given = policy(constraints={"json_mode": True}, optimization={"retry_on_failure": 2})
    task = asyncio.create_task(run(given, Leaving(always("no json"))))
    await entered.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert len(calls) == 2
