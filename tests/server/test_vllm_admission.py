"""How long the engine's queue may get: who is let into it, and who has waited too long."""

import asyncio
import json
from types import SimpleNamespace

import httpx
import pytest
from fastapi import APIRouter
from fastapi.responses import JSONResponse, StreamingResponse
from vllm.exceptions import QueueOverflowError
from vllm.sampling_params import RequestOutputKind, SamplingParams

from server.calls import Call, Calls, current_call
from server.limits import Limited
from server.metrics import RATE_LIMITED
from server.vllm_admission import Queue, Queueing
from tests.server.apps import routes_alone


class Engine:
    """As vLLM's client: it looks at its queue for each request, and answers after `before` seconds."""

    def __init__(self, most=None, *, before=0.0, between=0.05) -> None:
        self.most, self.before, self.between = most, before, between
        self.running, self.peak, self.aborted = 0, 0, 0
        self.busy = asyncio.Event()

    def check_admission(self, n=1, request_id=None):
        if self.most is not None and self.running + n > self.most:
            raise QueueOverflowError

    async def generate(self, prompt, params, request_id):
        self.check_admission(1, request_id)
        self.running += 1
        self.busy.set()
        self.peak = max(self.peak, self.running)
        try:
            await asyncio.sleep(self.before)
            for tokens in ([1], [1, 2]):
                if len(tokens) == 2 or params.output_kind != RequestOutputKind.FINAL_ONLY:
                    yield SimpleNamespace(outputs=[SimpleNamespace(index=0, token_ids=tokens)])
                await asyncio.sleep(self.between)
        except asyncio.CancelledError:
            self.aborted += 1
            raise
        finally:
            self.running -= 1


class World:
    """An application whose answers are of `calls` engine requests, one after another."""

    def __init__(self, engine, seconds=0.0, calls=1) -> None:
        self.engine, self.calls = engine, calls
        self.queue = Queue(seconds)
        self.queue.guard(engine)
        app = Calls(Queueing(routes_alone(self.router()), self.queue))
        transport = httpx.ASGITransport(app, raise_app_exceptions=False)
        self.client = httpx.AsyncClient(transport=transport, base_url="http://test")

    def router(self):
        router = APIRouter()

        @router.post("/v1/chat/completions")
        async def chat(stream: bool = False):
            await asyncio.sleep(0.01)  # what is prepared before the engine hears of it
            if stream:
                return StreamingResponse(self.events(), media_type="text/event-stream")
            try:
                tokens = [tokens async for tokens in self.tokens(RequestOutputKind.FINAL_ONLY)]
            except Exception:  # noqa: BLE001  # as vLLM's own serving answers what it does not know
                return JSONResponse({"error": {"message": "internal"}}, 500)
            return {"tokens": tokens}

        @router.post("/v1/embeddings")
        async def embeddings():
            return {}

        return router

    async def tokens(self, kind):
        for number in range(self.calls):
            params = SamplingParams(output_kind=kind)
            async for output in self.engine.generate("p", params, str(number)):
                yield output.outputs[0].token_ids

    async def events(self):
        try:
            async for tokens in self.tokens(RequestOutputKind.CUMULATIVE):
                yield f"data: {tokens}\n\n"
        except Exception:  # noqa: BLE001  # the same
            yield 'data: {"error": "internal"}\n\n'

    async def ask(self, *, stream=False):
        return await self.client.post("/v1/chat/completions", params={"stream": stream})


def counted():
    return RATE_LIMITED.labels(Limited.QUEUE)._value.get()


@pytest.mark.parametrize("stream", [False, True])
async def test_a_burst_beyond_the_queue_gets_503(stream):
    """Also where all come before the first has reached the engine; streams have the status too."""
    world, before = World(Engine(3)), counted()
    answers = await asyncio.gather(*(world.ask(stream=stream) for _ in range(8)))
    assert sorted(answer.status_code for answer in answers) == [200] * 3 + [503] * 5
    refused = next(answer for answer in answers if answer.status_code == 503)
    assert int(refused.headers["retry-after"]) >= 1
    assert refused.json()["error"]["type"] == "unavailable_error"
    assert (world.engine.peak, counted() - before) == (3, 5)
    assert (await world.ask(stream=stream)).status_code == 200, "the room is there again"


async def test_a_call_that_was_let_in_goes_on():
    """What it asks for later is not refused, though the queue has filled up since."""
    world = World(Engine(1), calls=3)
    first = asyncio.create_task(world.ask())
    await world.engine.busy.wait()
    world.engine.most = 0
    assert (await world.ask()).status_code == 503
    assert (await first).status_code == 200
    assert (await first).json() == {"tokens": [[1, 2]] * 3}


async def test_who_never_reaches_the_engine_takes_no_room():
    """A request that is refused before leaves its place."""
    world = World(Engine(1))
    for _ in range(3):
        assert (await world.client.post("/v1/chat/completions", params={"stream": "x"})).status_code == 400
    assert (await world.ask()).status_code == 200


async def test_embeddings_are_not_this_engine_s():
    """They are asked of another server, however full the queue is."""
    assert (await World(Engine(0)).client.post("/v1/embeddings")).status_code == 200


async def test_work_of_our_own_waits_its_turn():
    """What no call asked for, as a job's prompts, is not refused; a call that came another way is."""
    world = World(Engine(0))
    params = SamplingParams(output_kind=RequestOutputKind.CUMULATIVE)
    assert [1 async for _ in world.engine.generate("p", params, "1")] == [1, 1]
    token = current_call.set(Call())
    with pytest.raises(QueueOverflowError):
        await anext(world.engine.generate("p", params, "1"))
    current_call.reset(token)


@pytest.mark.parametrize("stream", [False, True])
async def test_what_waits_too_long_gets_503(stream):
    """Whatever the route makes of it; the engine is told to drop it."""
    world, before = World(Engine(before=5), seconds=0.1), counted()
    answer = await world.ask(stream=stream)
    assert (answer.status_code, answer.headers["retry-after"]) == (503, "2")
    assert answer.headers["content-type"] == "application/json"
    assert "within 0.1 s" in answer.json()["error"]["message"]
    assert (world.engine.aborted, world.engine.running, counted() - before) == (1, 0, 1)


@pytest.mark.parametrize("stream", [False, True])
async def test_what_begins_in_time_may_take_longer(stream):
    """The first token is what is waited for."""
    world = World(Engine(between=0.3), seconds=0.5)
    answer = await world.ask(stream=stream)
    assert answer.status_code == 200
    if stream:
        assert answer.text.count("data: ") == 2
        assert "error" not in answer.text
    else:
        assert answer.json() == {"tokens": [[1, 2]]}


async def test_later_requests_of_a_call_may_wait():
    """A call that has begun is not cut while its next attempt waits."""
    engine = Engine()
    world = World(engine, seconds=0.3, calls=2)
    task = asyncio.create_task(world.ask())
    await engine.busy.wait()
    engine.before = 0.5
    answer = await task
    assert (answer.status_code, json.loads(answer.text)) == (200, {"tokens": [[1, 2]] * 2})
