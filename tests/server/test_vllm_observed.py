"""What is recorded of calls that Steersman's own serving answers, steered, watched and under policies."""

import json
from contextlib import asynccontextmanager
from types import SimpleNamespace

import httpx
import pytest
from vllm.sampling_params import RequestOutputKind

from server.auth import Principal, current_principal
from server.candidates import counts_prompt
from server.observation import NOTED, Observation, current_observation
from server.recorder import Observing, Recorder
from server.routes import native, openai, policies, watched
from server.usage import Usage, UsageMeter
from server.vllm_meter import metered
from tests.server.apps import routes_alone
from tests.server.directories import Plain
from tests.server.steering_app import SignedIn
from tests.server.test_recorder import Keeper
from tests.server.vllm_policy_world import always, chat, in_turn, interaction_log, policy_runs
from tests.server.watched_world import LOUD, QUIET, World

pytestmark = pytest.mark.filterwarnings("ignore:max_tokens is deprecated")


@asynccontextmanager
async def opened(world):
    """A client whose calls are recorded in `client.kept` once `client.settle` was awaited."""
    keeper = Keeper()
    recorder = Recorder(keeper, most=100, days=1)
    app = routes_alone(openai.router, native.router, watched.router, policies.router)
    served = world.serving()
    app.state.steersman = SimpleNamespace(
        serving=served,
        policy_runs=policy_runs(served),
        interaction_log=interaction_log(),
        directory=Plain(served.models),
    )
    transport = httpx.ASGITransport(SignedIn(Observing(app, recorder)))
    async with httpx.AsyncClient(transport=transport, base_url="http://test") as http:
        http.kept, http.settle = keeper.kept, recorder.flush
        yield http


async def recorded(world, path, body):
    """The answer, and the one call that is recorded of it."""
    async with opened(world) as http:
        answer = await http.post(path, json=body)
        await http.settle()
        [kept] = http.kept
        return answer, kept


@pytest.mark.parametrize("stream", [False, True])
async def test_a_chat_is_recorded_with_its_model(stream):
    answer, kept = await recorded(World(always("a pear")), "/v1/chat/completions", chat(stream=stream))
    assert answer.status_code == kept.status == 200
    assert (kept.model, kept.prompt, kept.stream) == ("base", "Name a fruit.", stream)
    assert (kept.output, kept.steering, kept.behaviors, kept.error) == ("a pear", None, None, None)


async def test_an_unknown_model_is_recorded_as_it_was_named():
    answer, kept = await recorded(World(always("x")), "/v1/chat/completions", chat(model="gone"))
    assert (answer.status_code, kept.status, kept.model) == (404, 404, "gone")
    assert kept.error == answer.json()["error"]["message"]


async def test_a_field_of_the_wrong_type_leaves_the_prompt():
    answer, kept = await recorded(World(always("x")), "/v1/chat/completions", chat(temperature="hot"))
    assert (answer.status_code, kept.status, kept.prompt) == (400, 400, "Name a fruit.")
    assert "temperature" in kept.error


@pytest.mark.parametrize("stream", [False, True])
async def test_steering_is_recorded_as_the_answer_tells_it(stream):
    body = {"prompt": "Name.", "steering_vector_id": "one", "steering_strength": 0.1, "stream": stream}
    answer, kept = await recorded(World(always("a pear")), "/generate", body)
    assert answer.status_code == 200, answer.text
    assert kept.steering["vectors"][0]["id"] == "one"
    if not stream:
        assert kept.steering == answer.json()["steering"]
    assert kept.behaviors is None


@pytest.mark.parametrize("stream", [False, True])
async def test_an_answer_generated_again_is_recorded_by_its_last_attempt(stream):
    world = World(in_turn("dire", "a pear"), LOUD, QUIET)
    body = {"prompt": "Name.", "behavior_names": ["gloom"], "stream": stream}
    answer, kept = await recorded(world, "/sae/generate", body)
    assert answer.status_code == 200, answer.text
    [told] = kept.behaviors
    assert (told["name"], told["before"]["drifted"], told["drifted"]) == ("gloom", True, False)
    assert (kept.route, kept.output, kept.stream) == ("/sae/generate", "a pear", stream)
    if not stream:
        assert kept.behaviors == answer.json()["behaviors"]


async def test_the_best_of_several_candidates_is_recorded():
    world = World(in_turn(("poor", -9.0), ("good", -0.1), ("fair", -3.0)))
    answer, kept = await recorded(world, "/v1/chat/completions", chat(best_of=3))
    assert answer.json()["choices"][0]["message"]["content"] == kept.output == "good"


async def test_a_policys_winner_is_recorded_with_its_evidence():
    policy = {"steering": {"enabled": True, "vector_id": "one", "strength": 0.1}}
    answer, kept = await recorded(
        World(always("a pear")), "/policies/run", {"prompt": "Name.", "policy": policy}
    )
    assert answer.status_code == 200, answer.text
    assert (kept.prompt, kept.output, kept.model) == ("Name.", "a pear", "base")
    assert kept.steering == answer.json()["steering"]


async def test_a_policys_run_is_recorded_without_words():
    """Its candidates with their scores and the names of the verifiers that failed them, in rounds."""
    policy = {"verifiers": {"enabled": ["code_compile"], "repair_on_failure": False}}
    body = {"prompt": "Name.", "policy": policy}
    answer, kept = await recorded(World(in_turn(("a secret", -1.0), ("a = 1", -1.0))), "/policies/run", body)
    assert answer.status_code == 200, answer.text
    (run,) = kept.policies
    assert (run["outcome"], run["stopped"], run["rounds"]) == ("accepted", None, 2)
    tried = [(each["round"], each["failed"], each["chosen"]) for each in run["candidates"]]
    assert tried == [(0, ["code_compile"], False), (1, [], True)]
    assert "secret" not in json.dumps(run)


def output(tokens, text):
    part = SimpleNamespace(index=0, token_ids=tokens, text=text)
    return SimpleNamespace(prompt_token_ids=[1, 2, 3], outputs=[part])


@pytest.mark.parametrize("delta", [True, False])
@pytest.mark.parametrize("counted", [True, False])
@pytest.mark.parametrize(
    ("principal", "counter"),
    [
        (Principal("key", "me", None, None), "key"),
        (Principal(None, "me", None, None, "session"), "me"),
    ],
)
async def test_tokens_and_text_are_noted_as_the_engine_gives_them(delta, counted, principal, counter):
    """Of deltas the sum, else the last; tokens as the usage of the key, or of the session's account, has
    them, also when the client leaves."""
    pieces = ["a ", "pear ", "x" * NOTED, "y"]

    async def generate(*_):
        for index, piece in enumerate(pieces):
            text = piece if delta else "".join(pieces[: index + 1])
            yield output([0] if delta else [0] * (index + 1), text)

    meter, observation, spent = UsageMeter(), Observation(), []
    tenants = SimpleNamespace(spent=lambda *what: spent.append(what))
    tokens = [
        (current_principal, current_principal.set(principal)),
        (current_observation, current_observation.set(observation)),
        (counts_prompt, counts_prompt.set(counted)),
    ]
    kind = RequestOutputKind.DELTA if delta else RequestOutputKind.CUMULATIVE
    generated = metered(generate, meter, tenants)(None, SimpleNamespace(output_kind=kind), "id")
    try:
        async for _ in generated:
            pass
    finally:
        for variable, token in tokens:
            variable.reset(token)
    assert observation.output == "".join(pieces)[:NOTED]
    used = meter._pending[counter]
    assert used == Usage(1, 3 if counted else 0, 4)
    assert spent == [("me", used.prompt_tokens, used.completion_tokens)]
    assert (observation.prompt_tokens, observation.completion_tokens) == (
        used.prompt_tokens,
        used.completion_tokens,
    )
