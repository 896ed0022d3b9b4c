"""A server that embeds, of the tests' own: what it was asked, and what it is told to answer instead."""

import asyncio
import base64
import hashlib
import struct
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

from aiohttp import web

NAMES = ("embedder", "org/other")
WIDTH = 4


def vector(text: Any) -> list[float]:
    """Four numbers of a text, exact in float32."""
    digest = hashlib.sha256(repr(text).encode()).digest()
    return [byte / 64 - 2 for byte in digest[:WIDTH]]


def packed(values: list[float]) -> str:
    """As OpenAI's base64 has them."""
    return base64.b64encode(struct.pack(f"<{len(values)}f", *values)).decode()


class Upstream:
    """`answer` stands for the usual one, where it is set; `left` counts callers who did not wait."""

    def __init__(self) -> None:
        self.asked: list[dict[str, Any]] = []
        self.headers: list[dict[str, str]] = []
        self.lists = 0
        self.answer: Callable[[web.Request], Awaitable[web.StreamResponse]] | None = None
        self.listing: Callable[[web.Request], Awaitable[web.StreamResponse]] | None = None
        self.always_floats = False
        self.left = 0
        self.open = self.most = 0
        self.port = 0

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    async def models(self, request: web.Request) -> web.StreamResponse:
        self.lists += 1
        if self.listing is not None:
            return await self.listing(request)
        return web.json_response({"object": "list", "data": [{"id": name} for name in NAMES]})

    async def embed(self, request: web.Request) -> web.StreamResponse:
        body = await request.json()
        self.asked.append(body)
        self.headers.append(dict(request.headers))
        self.open += 1
        self.most = max(self.most, self.open)
        try:
            if self.answer is not None:
                return await self.answer(request)
            given = body["input"]
            plain = body["encoding_format"] == "float" or self.always_floats
            data = [
                {"index": index, "embedding": vector(one) if plain else packed(vector(one))}
                for index, one in enumerate(given)
            ]
            usage = {"prompt_tokens": 3 * len(given), "total_tokens": 3 * len(given)}
            data.reverse()  # the order is in the index
            return web.json_response({"object": "list", "data": data, "model": body["model"], "usage": usage})
        except asyncio.CancelledError:
            self.left += 1
            raise
        finally:
            self.open -= 1


@asynccontextmanager
async def upstream() -> AsyncIterator[Upstream]:
    made, app = Upstream(), web.Application(client_max_size=64 * 1024**2)
    app.router.add_get("/v1/models", made.models)
    app.router.add_post("/v1/embeddings", made.embed)
    runner = web.AppRunner(app, handler_cancellation=True, shutdown_timeout=0.1)
    await runner.setup()
    listener = web.TCPSite(runner, "127.0.0.1", 0)
    await listener.start()
    made.port = runner.addresses[0][1]
    try:
        yield made
    finally:
        await runner.cleanup()


def answering(status: int, body: Any = None, **options: Any) -> Callable[[web.Request], Any]:
    async def answer(request: web.Request) -> web.StreamResponse:
        if isinstance(body, (str, bytes)):
            return web.Response(status=status, body=body, **options)
        return web.json_response(body, status=status, **options)

    return answer


async def until(true: Callable[[], bool], seconds: float = 5.0) -> None:
    async with asyncio.timeout(seconds):
        while not true():  # noqa: ASYNC110  # what is waited for is a plain attribute
            await asyncio.sleep(0.01)
