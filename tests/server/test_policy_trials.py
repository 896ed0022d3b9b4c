"""Policies tried over HTTP: compare, evaluate and autotune, with runs that are scripted."""

import json
import threading
from types import SimpleNamespace

import httpx
import pytest

from policies.enforced import Enforced
from policies.run import Answer, Kind, Outcome, Trial
from policies.verdict import Verdict
from server.policies import MAX_BYTES
from server.routes import policies as module
from server.routes.policies import router
from tests.server.apps import routes_alone
from tests.server.steering_app import SignedIn


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
        retries=(),
        critiques=(),
        unavailable=(),
        constraint=Enforced(),
        stopped=None,
        latency_ms=1,
        tokens=2,
        rounds=1,
    )


class Template(SimpleNamespace):
    def model_copy(self, update):
        assert not update
        return self


class Behind:
    """Serving and runs in one: a prompt is answered with itself."""

    def prompted(self, prompt, model, max_tokens, fields, **more):
        return Template(prompt=prompt)

    async def run(self, policy, template, raw, *, path):
        return outcome(template.prompt)


@pytest.fixture
async def client():
    behind = Behind()
    app = routes_alone(router)
    app.state.steersman = SimpleNamespace(serving=behind, policy_runs=behind)
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
