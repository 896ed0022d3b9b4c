"""Policies tried over HTTP: compare, evaluate and autotune, with runs that are scripted."""

import json
import threading
from collections.abc import Callable
from types import SimpleNamespace

import httpx
import pytest

from policies.enforced import Enforced
from policies.policy import RuntimePolicy
from policies.run import Answer, Kind, Outcome, Trial
from policies.verdict import Verdict
from server.errors import InvalidRequest, NotFound, Unavailable
from server.policies import MAX_BYTES
from server.routes import policies as module
from server.routes.policies import router
from tests.server.apps import routes_alone
from tests.server.directories import AnyModel, Plain, Unaddressed
from tests.server.steering_app import SignedIn, events


def outcome(text: str) -> Outcome:
    answer = Answer(text, tokens=2, method_used="top-k", finish_reason="stop")
    winner = Trial(
        answer=answer,
        verdict=Verdict(),
        kind=Kind.CANDIDATE,
        method="top-k",
        round=0,
        slot=0,
        latency_ms=1,
    )
    return Outcome(
        winner=winner,
        trials=(winner,),
        ranked=(winner,),
        constraint=Enforced(),
        latency_ms=1,
        tokens=2,
        rounds=1,
    )


class Template(Unaddressed, SimpleNamespace):
    model = None

    def model_copy(self, update):
        assert not update
        return self


class Behind:
    """Serving and runs in one: a prompt is answered with itself, unless `fails` says what its run raises."""

    def prompted(self, prompt, model, max_tokens, fields, **more):
        return Template(prompt=prompt)

    def __init__(self) -> None:
        self.fails: Callable[[RuntimePolicy, str, str], Exception | None] = lambda *_: None
        self.long_keep_alive = 0.0

    async def run(self, policy, template, raw, *, path):
        error = self.fails(policy, template.prompt, path)
        if error is not None:
            raise error
        return outcome(template.prompt)


@pytest.fixture
def behind():
    return Behind()


@pytest.fixture
async def client(behind):
    app = routes_alone(router)
    app.state.steersman = SimpleNamespace(serving=behind, policy_runs=behind, directory=Plain(AnyModel()))
    async with httpx.AsyncClient(
        transport=httpx.ASGITransport(SignedIn(app)), base_url="http://test"
    ) as http:
        yield http


async def test_a_search_is_laid_out_beside_the_loop(client, monkeypatch):
    """The grid of a search is made in a thread, and every point of it is tried."""
    threads = []
    inner = module.grid

    def grid(*arguments):
        threads.append(threading.current_thread())
        return inner(*arguments)

    monkeypatch.setattr(module, "grid", grid)
    sent = {"prompts": ["p"], "search_space": {"sampling.temperature": [0.1, 0.2]}}
    response = await client.post("/policies/autotune", json=sent)
    assert len(response.json()["trials"]) == 2
    assert threads[0] is not threading.main_thread()


async def test_a_base_as_long_as_a_stored_policy(client):
    """A search begins with what could be stored; a longer base is refused by name."""
    frame = len(json.dumps({"metadata": {"x": ""}}))
    for extra, status in ((0, 200), (1, 422)):
        base = {"metadata": {"x": "x" * (MAX_BYTES - frame + extra)}}
        response = await client.post("/policies/autotune", json={"prompts": ["p"], "base_policy": base})
        assert response.status_code == status
    (problem,) = response.json()["detail"]
    assert problem["loc"] == ["body", "base_policy"]
    assert f"at most {MAX_BYTES} bytes" in problem["msg"]


async def test_one_policy_that_fails_leaves_the_others(client, behind):
    """compare has a result for each policy: what it came to, or its error with the path of its field."""

    def fails(policy, prompt, path):
        return InvalidRequest("no vector 'v'", param=f"{path}.steering") if policy.name == "bad" else None

    behind.fails = fails
    sent = {"prompt": "p", "policies": [{"name": "good"}, {"name": "bad"}, {"name": "good"}]}
    first, bad, last = (await client.post("/policies/compare", json=sent)).json()["results"]
    assert first["output"] == last["output"] == "p"
    assert (bad["accepted"], bad["error"], bad["param"]) == (False, "no vector 'v'", "policies.1.steering")


async def test_one_prompt_that_fails_leaves_the_others(client, behind):
    """evaluate counts it as not passed, and averages over the prompts that were answered."""
    behind.fails = lambda policy, prompt, path: Unavailable("busy") if prompt == "b" else None
    sent = {"prompts": ["a", "b", "c", "d"], "policy": {}}
    found = (await client.post("/policies/evaluate", json=sent)).json()
    assert [each.get("output", each.get("error")) for each in found["outputs"]] == ["a", "busy", "c", "d"]
    assert (found["num_prompts"], found["success_rate"], found["avg_score"]) == (4, 0.75, 1.0)
    assert (found["pass_count"], found["fail_count"], found["error_count"]) == (3, 1, 1)


@pytest.mark.parametrize(
    ("route", "sent"),
    [
        ("compare", {"prompt": "p", "policies": [{}, {}]}),
        ("evaluate", {"prompts": ["a", "b"], "policy": {}}),
        ("autotune", {"prompts": ["a", "b"], "search_space": {"sampling.temperature": [0.1, 0.2]}}),
    ],
)
async def test_what_all_runs_fail_with_is_the_answer(client, behind, route, sent):
    """Where every run fails alike the request does, with that error; where they differ each is told."""
    behind.fails = lambda policy, prompt, path: NotFound("model 'm' is not served here", param="model")
    response = await client.post(f"/policies/{route}", json=sent)
    assert (response.status_code, response.json()["detail"]) == (404, "model 'm' is not served here")
    count = iter(range(9))
    behind.fails = lambda policy, prompt, path: NotFound(f"no {next(count)}")
    response = await client.post(f"/policies/{route}", json=sent)
    assert response.status_code == 200
    assert all(f"no {index}" in response.text for index in range(2))


async def test_a_trial_that_fails_is_not_the_best(client, behind):
    """A point none of whose prompts could be run comes after one whose answers were rejected; errors name the
    prompt, and the axis or the base that the field is of."""

    def fails(policy, prompt, path):
        if policy.sampling.temperature == 0.1:
            return InvalidRequest("too cold", param=f"{path}.sampling.temperature")
        return (
            InvalidRequest("no such grammar", param=f"{path}.constraints.grammar") if prompt == "b" else None
        )

    behind.fails = fails
    space = {"sampling.temperature": [0.1, 0.2]}
    sent = {"prompts": ["a", "b"], "base_policy": {"name": "base"}, "search_space": space}
    found = (await client.post("/policies/autotune", json=sent)).json()
    cold, warm = found["trials"]
    param = "search_space.sampling.temperature"
    assert cold["errors"] == [{"prompt": at, "error": "too cold", "param": param} for at in (0, 1)]
    assert (cold["pass_count"], cold["fail_count"], cold["error_count"]) == (0, 2, 2)
    param = "base_policy.constraints.grammar"
    assert warm["errors"] == [{"prompt": 1, "error": "no such grammar", "param": param}]
    assert found["best_trial"] == warm


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (NotFound("not served"), "not served"),
        (ValueError("too long"), "too long"),
        (KeyError("x"), "internal"),
    ],
)
async def test_a_search_that_fails_ends_its_stream(client, behind, error, message):
    """Progress goes on over trials that fail, and where none could be run the last event is the error."""
    behind.fails = lambda policy, prompt, path: error
    space = {"sampling.temperature": [0.1, 0.2]}
    sent = {"prompts": ["a"], "search_space": space, "stream": True}
    *progress, last = events(await client.post("/policies/autotune", json=sent))
    assert [each["progress"]["done"] for each in progress] == [1, 2]
    assert last["status"] == "error"
    assert message in last["message"]
