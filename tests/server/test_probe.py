"""/readyz: when a server is sent requests, and when not."""

from types import SimpleNamespace

import httpx
import pytest

from server.drain import Drain
from server.probe import Probe
from server.routes.health import router
from tests.server.apps import routes_alone


async def asked(**state: object) -> httpx.Response:
    app = routes_alone(router)
    for name, value in state.items():
        setattr(app.state, name, value)
    transport = httpx.ASGITransport(app)
    async with httpx.AsyncClient(transport=transport, base_url="http://test") as client:
        return await client.get("/readyz")


def server(*, stopping: bool = False, errored: bool = False, names: tuple[str, ...] = ("m",)) -> object:
    drain = Drain()
    drain.stopping = stopping
    probe = Probe(drain, SimpleNamespace(errored=errored), SimpleNamespace(names=list(names)))
    return SimpleNamespace(probe=probe)  # and no database: nothing here may ask one


@pytest.mark.parametrize(
    ("world", "status", "told"),
    [
        ({}, 200, "ready"),
        ({"stopping": True}, 503, "draining"),
        ({"errored": True}, 503, "broken"),
        ({"stopping": True, "errored": True}, 503, "draining"),
        ({"names": ()}, 503, "loading"),
    ],
)
async def test_a_probe_is_told_why_not(world, status, told):
    """200 with a live engine and a model, else 503; a stopped engine is no broken one. No model is named."""
    answer = await asked(steersman=server(**world))
    assert (answer.status_code, answer.json()) == (status, {"status": told})


async def test_before_the_state_is_made_it_loads():
    """A port that listens early tells so."""
    answer = await asked()
    assert (answer.status_code, answer.json()) == (503, {"status": "loading"})
