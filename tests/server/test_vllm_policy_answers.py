"""OpenAI streams of policies that judge: what is sent while they do, and when that fails."""

import asyncio
import json
from types import SimpleNamespace

import httpx
import pytest
from fastapi import FastAPI, Request
from vllm.exceptions import VLLMValidationError

from server import vllm_serving
from server.errors import Unavailable
from server.routes import policy_answers as module
from server.vllm_serving import Serving
from server.vllm_wire import ChatRequest
from tests.server.directories import AnyModel, Plain
from tests.server.steering_app import SignedIn

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")


class Runs:
    """Each run takes `seconds`, then fails."""

    def __init__(self, error: Exception, seconds: float) -> None:
        self.error, self.seconds = error, seconds

    async def run(self, policy, template, raw):
        await asyncio.sleep(self.seconds)
        raise self.error


async def streamed(monkeypatch, error, *, keep_alive=0.0, seconds=0.05) -> list[str]:
    """The lines of a judged stream whose run fails once the status is sent."""
    monkeypatch.setattr(module, "_PATIENCE_SECONDS", 0)
    nothing = dict.fromkeys(("chat", "completion", "models", "checker", "facts", "steering"))
    serving = Serving(**nothing, has_chat_template=True, keep_alive=keep_alive)
    app = FastAPI()

    @app.post("/v1/chat/completions")
    async def route(raw: Request):
        policy = {"constraints": {"json_mode": True}}
        request = ChatRequest.model_validate(
            {"messages": [{"role": "user", "content": "Hi"}], "policy": policy, "stream": True}
        )
        return await module.respond(request, raw)

    app.state.steersman = SimpleNamespace(
        serving=serving, policy_runs=Runs(error, seconds), directory=Plain(AnyModel())
    )
    async with httpx.AsyncClient(
        transport=httpx.ASGITransport(SignedIn(app)), base_url="http://test"
    ) as http:
        response = await http.post("/v1/chat/completions")
    assert response.status_code == 200
    return [line for line in response.text.split("\n\n") if line]


@pytest.mark.parametrize(
    ("error", "code", "message"),
    [
        (VLLMValidationError("maximum context length is 8 tokens", parameter="messages"), 400, "context"),
        (Unavailable("no sandbox"), 503, "no sandbox"),
        (KeyError("ours"), 500, "internal error"),
    ],
)
async def test_what_fails_late_is_told_by_its_meaning(monkeypatch, error, code, message):
    """After the status, a client error is still told as one, with its message; a defect as no more."""
    event, end = await streamed(monkeypatch, error)
    told = json.loads(event.removeprefix("data: "))["error"]
    assert told["code"] == code
    assert message in told["message"]
    assert end == "data: [DONE]"


async def test_a_stream_that_is_judged_is_kept_alive(monkeypatch):
    """Comments pass while candidates are judged, without a flag every 15 s, else as often as it says."""
    assert vllm_serving._LONG_KEEP_ALIVE == 15
    monkeypatch.setattr(vllm_serving, "_LONG_KEEP_ALIVE", 0.05)
    lines = await streamed(monkeypatch, Unavailable("no"), seconds=0.3)
    assert lines[:2] == [": keep-alive"] * 2
    monkeypatch.setattr(vllm_serving, "_LONG_KEEP_ALIVE", 60)
    assert ": keep-alive" not in await streamed(monkeypatch, Unavailable("no"), seconds=0.3)
    assert ": keep-alive" in await streamed(monkeypatch, Unavailable("no"), seconds=0.3, keep_alive=0.05)
