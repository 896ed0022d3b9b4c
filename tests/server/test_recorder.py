"""Calls on their way to the database, and the middleware that records them."""

import asyncio
from datetime import UTC, datetime, timedelta
from types import SimpleNamespace
from typing import Annotated

import httpx
import pytest
from fastapi import APIRouter, Body
from fastapi.responses import StreamingResponse
from prometheus_client import REGISTRY

from server import recorder as module
from server.errors import InvalidRequest, Unavailable
from server.observation import SNIPPET, Observation, observed
from server.recorder import ROUTES, Observing, Recorder
from server.redaction import Redaction
from server.routes import native, openai, oxen, policies, steering, watched
from server.routes.body import JsonRoute
from server.streams import failed, sse
from tests.server.apps import routes_alone
from tests.server.steering_app import SignedIn


class Keeper:
    """A store that fails as often as told, and keeps what it was given."""

    def __init__(self, *failures: Exception) -> None:
        self.failures, self.kept, self.limits = list(failures), [], []
        self.called = asyncio.Event()

    async def keep(self, requests, *, most, since) -> None:
        await asyncio.sleep(0)
        self.called.set()
        if self.failures:
            raise self.failures.pop(0)
        self.kept += requests
        self.limits.append((most, since))


def recorder(keeper, *, most=100, days=7.0):
    return Recorder(keeper, most=most, days=days)


def seen(identity="a", **fields):
    return Observation(id=identity, account_id="me", status=200, **fields)


def dropped():
    return REGISTRY.get_sample_value("steersman_observed_dropped_total")


def ids(keeper):
    return [each.id for each in keeper.kept]


# --- the recorder ---


async def test_calls_are_handed_over_in_order_with_the_limits():
    keeper = Keeper()
    subject = recorder(keeper, most=3, days=2)
    for index in range(5):
        subject.record(seen(str(index)))
    assert keeper.kept == []
    await subject.flush()
    assert ids(keeper) == ["0", "1", "2", "3", "4"]
    [(most, since)] = keeper.limits
    assert most == 3
    assert abs(datetime.now(UTC) - timedelta(days=2) - since) < timedelta(seconds=5)
    await subject.flush()
    assert len(keeper.limits) == 1


async def test_an_outage_keeps_the_calls_in_order(caplog):
    keeper = Keeper(Unavailable("away"))
    subject = recorder(keeper)
    subject.record(seen("a"))
    flush = asyncio.create_task(subject.flush())
    await keeper.called.wait()
    subject.record(seen("b"))
    await flush
    assert keeper.kept == []
    assert "not be recorded yet" in caplog.text
    await subject.flush()
    assert ids(keeper) == ["a", "b"]


async def test_a_full_queue_drops_and_counts(monkeypatch):
    """What came first is kept, and what is dropped is counted."""
    monkeypatch.setattr(module, "QUEUED", 2)
    keeper, before = Keeper(), dropped()
    subject = recorder(keeper)
    for index in range(5):
        subject.record(seen(str(index)))
    assert dropped() == before + 3
    await subject.flush()
    assert ids(keeper) == ["0", "1"]


async def test_a_defect_drops_its_batch_alone(monkeypatch, caplog):
    """It is logged and counted, and the calls after it are recorded."""
    monkeypatch.setattr(module, "_BATCH", 2)
    keeper, before = Keeper(KeyError("bug")), dropped()
    subject = recorder(keeper)
    for index in range(3):
        subject.record(seen(str(index)))
    await subject.flush()
    assert ids(keeper) == ["2"]
    assert dropped() == before + 2
    assert "KeyError" in caplog.text


async def test_it_records_as_it_runs_and_when_it_is_stopped():
    keeper = Keeper()
    subject = recorder(keeper)
    running = asyncio.create_task(subject.run(0.01))
    await asyncio.wait_for(keeper.called.wait(), 5)
    assert keeper.kept == []  # at the start it looks for what is too old
    keeper.called.clear()
    subject.record(seen("a"))
    await asyncio.wait_for(keeper.called.wait(), 5)
    subject.record(seen("b"))
    running.cancel()
    with pytest.raises(asyncio.CancelledError):
        await running
    assert ids(keeper) == ["a", "b"]


async def test_a_stop_amid_a_write_loses_nothing():
    class Slow(Keeper):
        async def keep(self, requests, **limits) -> None:
            self.called.set()
            if not self.failures:
                self.failures.append(TimeoutError())
                await asyncio.sleep(60)
            self.kept += requests

    keeper = Slow()
    subject = recorder(keeper)
    subject.record(seen("a"))
    running = asyncio.create_task(subject.run(0.01))
    await asyncio.wait_for(keeper.called.wait(), 5)
    running.cancel()
    with pytest.raises(asyncio.CancelledError):
        await running
    assert ids(keeper) == ["a"]


async def test_texts_are_made_fit_for_any_database():
    """Whatever a client or a model wrote, PostgreSQL can hold it; long names and errors are cut."""
    keeper = Keeper()
    subject = recorder(keeper)
    texts = {"prompt": "a\0b", "output": "\ud800", "model": "m" * 9999, "error": "e" * 9999}
    subject.record(seen("i" * 9999, **texts))
    await subject.flush()
    [kept] = keeper.kept
    assert (kept.prompt, kept.output) == ("a\ufffdb", "?")
    assert (len(kept.id), len(kept.model), len(kept.error)) == (128, 500, 2000)


async def test_texts_are_redacted_before_they_are_cut():
    """What an operator's patterns match is kept nowhere, not even its first half at the end of a snippet."""
    keeper = Keeper()
    subject = Recorder(keeper, most=100, days=7, redaction=Redaction([r"\d{4} \d{4}"]))
    number = "x" * (SNIPPET - 4) + "1234 5678"
    told = {"steering": {"note": "1234 5678"}}
    subject.record(seen(prompt=number, output="1234 5678.", error=number, told=lambda: told))
    await subject.flush()
    [kept] = keeper.kept
    assert kept.prompt == "x" * (SNIPPET - 4) + "[red"
    assert (kept.output, kept.steering) == ("[redacted].", {"note": "[redacted]"})
    assert kept.error == "x" * (SNIPPET - 4) + "[redacted]"


# --- the middleware ---

router = APIRouter(route_class=JsonRoute)
Json = Annotated[dict, Body()]


@router.post("/generate")
async def generate(body: Json):
    if body.get("refuse"):
        raise InvalidRequest("too hot", param="temperature")
    if body.get("break"):
        raise LookupError("unforeseen")
    observed().resolves("base")
    observed().counts(7, 2, "a pear")
    observed().tells(lambda: {"steering": {"dose": 1}, "behaviors": [{"name": "gloom"}]})
    return {}


@router.post("/v1/completions")
async def stream(body: Json):
    async def events():
        yield sse({"choices": []})
        for event in body.get("events", ()):
            yield event
        if body.get("wait"):
            await asyncio.sleep(60)

    return StreamingResponse(events(), media_type="text/event-stream")


@router.post("/policies/{policy_id}/run")
async def run(policy_id: str, body: Json):
    return {}


@router.get("/generate")
@router.post("/other")
async def other():
    return {}


@pytest.fixture
def world():
    keeper = Keeper()
    subject = recorder(keeper)
    app = SignedIn(Observing(routes_alone(router), subject))
    return SimpleNamespace(keeper=keeper, recorder=subject, app=app)


async def call(world, path, body=None, method="POST", **options):
    transport = httpx.ASGITransport(world.app, raise_app_exceptions=False)
    async with httpx.AsyncClient(transport=transport, base_url="http://test") as client:
        answer = await client.request(method, path, json=body, **options)
    await world.recorder.flush()
    return answer


async def test_an_answer_is_recorded_with_all_that_was_noted(world):
    await call(world, "/generate", {"prompt": "Name.", "model": "x"}, headers={"x-request-id": "mine"})
    [kept] = world.keeper.kept
    assert (kept.id, kept.account_id, kept.route, kept.status) == ("mine", "me", "/generate", 200)
    assert (kept.model, kept.prompt, kept.output, kept.stream) == ("base", "Name.", "a pear", False)
    assert (kept.prompt_tokens, kept.completion_tokens, kept.error) == (7, 2, None)
    assert (kept.steering, kept.behaviors) == ({"dose": 1}, [{"name": "gloom"}])
    assert 0 < kept.latency_ms < 60_000
    assert abs(datetime.now(UTC) - kept.created_at) < timedelta(minutes=1)


async def test_a_refusal_is_recorded_with_its_message(world):
    """What was asked too, once the body is parsed, be it valid or not."""
    await call(world, "/generate", {"prompt": "Name.", "refuse": True})
    await call(world, "/generate", ["no object"])
    await call(world, "/generate", content=b"{", headers={"content-type": "application/json"})
    refused, invalid, unparsed = world.keeper.kept
    assert (refused.status, refused.error, refused.prompt) == (422, "too hot", "Name.")
    assert (invalid.status, invalid.prompt) == (422, None)
    assert (unparsed.status, unparsed.prompt) == (422, None)
    assert "not valid JSON" in unparsed.error
    assert (refused.steering, refused.behaviors, refused.prompt_tokens) == (None, None, 0)


async def test_an_unforeseen_error_is_recorded_as_500_without_its_details(world):
    assert (await call(world, "/generate", {"break": True})).status_code == 500
    [kept] = world.keeper.kept
    assert kept.status == 500
    assert kept.error
    assert "unforeseen" not in kept.error


async def test_routes_are_named_by_their_template(world):
    await call(world, "/policies/p-1/run", {})
    assert [kept.route for kept in world.keeper.kept] == ["/policies/{policy_id}/run"]


async def test_what_generates_nothing_is_not_recorded(world):
    await call(world, "/other", {})
    await call(world, "/generate", method="GET")
    await call(world, "/nowhere", {})
    assert world.keeper.kept == []


@pytest.mark.parametrize(
    ("event", "error"),
    [
        (failed(Unavailable("gone")), "gone"),
        (sse({"status": "error", "message": "gone"}), "gone"),
        ('data: {"status": "error", "message": "gone"}\n\n', "gone"),
        ('event: error\ndata: {"type": "error", "code": "503", "message": "gone"}\n\n', "gone"),
        ('data: {"error": {"message": "gone", "code": 500}}\n\n', "gone"),
        ('data: {"error": "gone"}\n\n', "gone"),
        (sse({"choices": [{"text": '"error"'}]}), None),
        (sse({"status": "token", "token": "error"}), None),
    ],
)
async def test_a_stream_is_recorded_with_the_error_that_ended_it(world, event, error):
    """In the shape of every family of routes; its status is the one that was sent."""
    await call(world, "/v1/completions", {"events": [event], "prompt": "Name."})
    [kept] = world.keeper.kept
    assert (kept.stream, kept.status, kept.error, kept.prompt) == (True, 200, error, "Name.")


async def streamed(world, left):
    """Through ASGI, with a client that leaves after the first piece: it is told, or its socket breaks."""
    piece = asyncio.Event()
    messages = [{"type": "http.request", "body": b'{"wait": true}', "more_body": False}]

    async def receive():
        if messages:
            return messages.pop(0)
        await piece.wait()
        if left == "broken":
            await asyncio.sleep(60)
        return {"type": "http.disconnect"}

    async def send(message):
        if message["type"] == "http.response.body" and message.get("body"):
            piece.set()
            if left == "broken":
                raise OSError("reset")

    scope = {
        "type": "http",
        "asgi": {"version": "3.0", "spec_version": "2.4" if left == "broken" else "2.3"},
        "method": "POST",
        "path": "/v1/completions",
        "headers": [(b"content-type", b"application/json")],
        "query_string": b"",
    }
    await world.app(scope, receive, send)


@pytest.mark.parametrize("left", ["told", "broken"])
async def test_a_client_that_leaves_is_recorded_as_such(world, left):
    """499, whatever status its stream began with."""
    try:
        await asyncio.wait_for(streamed(world, left), 10)
    except Exception:  # noqa: BLE001  # on what the framework makes of a broken socket nothing depends
        assert left == "broken"
    await world.recorder.flush()
    [kept] = world.keeper.kept
    assert (kept.status, kept.stream, kept.error) == (499, True, None)


async def test_a_server_that_keeps_none_records_none(world):
    keeper = Keeper()
    off = recorder(keeper, most=0)
    world.app, world.recorder = SignedIn(Observing(routes_alone(router), off)), off
    await call(world, "/generate", {})
    assert keeper.limits == []
    running = asyncio.create_task(off.run(0.01))
    await asyncio.wait_for(keeper.called.wait(), 5)
    running.cancel()
    await asyncio.gather(running, return_exceptions=True)
    assert keeper.limits[0][0] == 0  # what was kept before is deleted


async def test_calls_side_by_side_are_kept_apart(world):
    await asyncio.gather(*(call(world, "/generate", {"prompt": str(index)}) for index in range(8)))
    assert sorted(kept.prompt for kept in world.keeper.kept) == [str(index) for index in range(8)]


def test_every_recorded_route_exists():
    """A route that is renamed would be forgotten here in silence."""
    modules = (openai, oxen, native, policies, steering, watched)
    paths = {route.path for module in modules for route in module.router.routes if "POST" in route.methods}
    assert paths >= ROUTES
