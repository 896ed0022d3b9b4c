"""POST /policies/run: what the policy's steering becomes, in an application with this route alone."""

from types import SimpleNamespace

import httpx
import pytest
from fastapi import FastAPI

from policies.sampling import Method, Plan
from policies.steering import SteeringEntry
from server.policy_runs import PolicyRuns
from server.routes.policies import router
from server.sandbox import SandboxOff
from tests.server.directories import AnyModel, Plain, Unaddressed
from tests.server.steering_app import SignedIn

APPLIED = {"dose": 0.5, "fingerprint": "f"}


class Template(Unaddressed, SimpleNamespace):
    """The request that rounds are copied from, with nothing of its own."""

    seed, max_tokens, prompt, model = None, 8, "p", None
    top_k = top_p = min_p = typical_p = None

    def model_copy(self, update):
        return Template(**{**vars(self), **update})

    def steering_entries(self):
        return {}

    def forbid(self, terms, field):
        assert not terms


class Serving:
    """Says `yes`; `steering` is what the last request was steered by."""

    def plan(self, asked, names):
        return Plan(method_used=Method.TOP_K)

    def prompted(self, prompt, model, max_tokens, fields, **more):
        return Template()

    async def decode(self, sent, raw, planned, *, steering):
        self.steering = steering
        choice = SimpleNamespace(text="yes", finish_reason="stop")
        response = SimpleNamespace(choices=[choice], usage=SimpleNamespace(completion_tokens=1))
        described = SimpleNamespace(told=lambda: {"steering": APPLIED}) if steering else None
        return SimpleNamespace(response=response, steered=described, plan=planned)


@pytest.mark.parametrize(
    ("steering", "entries"),
    [
        ({}, {}),
        ({"preset": "json_compliance"}, {}),
        ({"preset": "brevity", "strength": 0}, {"policy.steering": {"preset": "brevity", "strength": 0.35}}),
        (
            {"enabled": True, "vector_id": "v", "strength": -2},
            {"policy.steering": {"vector_id": "v", "strength": -2}},
        ),
    ],
)
async def test_a_policy_steers_under_its_own_path(steering, entries):
    """Its one entry goes on under the name by which its client knows it; the answer says what was applied."""
    app, serving = FastAPI(), Serving()
    app.include_router(router)
    runs = PolicyRuns(serving, None, None, SandboxOff("off"))
    app.state.steersman = SimpleNamespace(serving=serving, policy_runs=runs, directory=Plain(AnyModel()))
    transport = httpx.ASGITransport(SignedIn(app))
    async with httpx.AsyncClient(transport=transport, base_url="http://test") as client:
        body = {"prompt": "p", "policy": {"steering": steering}}
        response = await client.post("/policies/run", json=body)
    expected = {path: SteeringEntry.model_validate(entry) for path, entry in entries.items()}
    assert (serving.steering or {}) == expected
    assert response.json().get("steering") == (APPLIED if entries else None)
