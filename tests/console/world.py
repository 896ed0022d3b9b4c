"""The console's own files before a server that says what a test has it say: no engine, and no model."""

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import uvicorn
from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse, StreamingResponse

from server.routes.console import router
from tests.conftest import free_port

KEY = f"ax_{'0' * 48}"
FACTS = {
    "model": "org/model",
    "max_model_len": 2048,
    "modalities": ["image"],
    "speculative": False,
    "steering": {"layers": 4, "width": 3, "safe_dose": 1.0, "max_dose": 2.0},
    "unsteerable": None,
    "unwatchable": None,
    "observes": True,
    "interactions": "asked",
    "role": "owner",
}


@dataclass
class World:
    """`pieces` are what is answered, `pause` seconds apart; `said` what was asked, with its headers."""

    pieces: Sequence[str] = ("Hello", ", ", "you.")
    pause: float = 0.0
    lists: dict[str, Any] = field(default_factory=dict)
    said: list[Any] = field(default_factory=list)
    url: str = ""
    _server: uvicorn.Server | None = None
    _task: "asyncio.Task[None] | None" = None

    def app(self) -> FastAPI:
        app = FastAPI()
        app.include_router(router)

        @app.get("/health")
        async def health() -> dict[str, str]:
            return {}

        @app.post("/v1/chat/completions")
        async def chat(request: Request) -> Any:
            self.said.append(await request.json())
            return StreamingResponse(self._stream(), media_type="text/event-stream")

        @app.get("/{path:path}")
        async def anything(path: str, request: Request) -> Any:
            if request.headers.get("authorization") != f"Bearer {KEY}":
                detail = "This API key is unknown or was revoked."
                return JSONResponse({"detail": detail, "error": {"message": detail}}, 401)
            return self.lists.get(path, FACTS if path == "capabilities" else EMPTY.get(path, []))

        return app

    async def _stream(self) -> AsyncIterator[str]:
        started = asyncio.get_running_loop().time()
        for index, piece in enumerate(self.pieces):
            # By the clock, so that what sending takes does not slow the feed.
            late = started + index * self.pause - asyncio.get_running_loop().time()
            if late > 0:
                await asyncio.sleep(late)
            chunk = {"choices": [{"index": 0, "delta": {"content": piece}, "finish_reason": None}]}
            yield f"data: {json.dumps(chunk)}\n\n"
        end = {"choices": [{"index": 0, "delta": {}, "finish_reason": "stop"}]}
        yield f"data: {json.dumps(end)}\n\ndata: [DONE]\n\n"

    async def start(self, port: int | None = None) -> None:
        port = port or free_port()
        self.url = f"http://127.0.0.1:{port}"
        config = uvicorn.Config(self.app(), port=port, log_level="error", lifespan="off")
        self._server = uvicorn.Server(config)
        # Signals are pytest's.
        self._server.capture_signals = contextlib.nullcontext
        self._task = asyncio.create_task(self._server.serve())
        while not self._server.started:  # noqa: ASYNC110  # uvicorn tells it by nothing else
            await asyncio.sleep(0.02)

    async def stop(self) -> None:
        assert self._server is not None
        assert self._task is not None
        self._server.should_exit = self._server.force_exit = True
        await self._task


EMPTY: dict[str, Any] = {
    "v1/models": {"data": []},
    "saes": {"saes": []},
    "observability/requests": {"requests": [], "total": 0, "limit": 50, "offset": 0},
    "observability/usage": {"days": []},
    "auth/api-keys/balance": {"requests": 0, "prompt_tokens": 0, "completion_tokens": 0},
}
