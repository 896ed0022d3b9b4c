"""How long the engine's queue may get, in requests and in time: beyond, a call gets 503 before it begins.

The length is vLLM's own `--max-num-queued-reqs`, which API servers of one engine count together. vLLM looks
at it for each engine request, where a stream has already been answered with 200; here a call is looked at
once, as it comes, and what it asks for later, as beams and policies do, is not refused halfway.
"""

import asyncio
import re
from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing
from dataclasses import dataclass, field
from typing import Any, Final

from starlette.types import ASGIApp, Message, Receive, Scope, Send
from vllm.exceptions import GracefulHTTPError
from vllm.outputs import RequestOutput
from vllm.sampling_params import RequestOutputKind, SamplingParams

from server.calls import Call, current_call
from server.errors import Unavailable
from server.limits import Limited
from server.metrics import RATE_LIMITED
from server.refusal import refuse, route_path
from server.vllm_errors import as_steersman
from server.vllm_first_token import Generate, final

Check = Callable[..., None]

_RETRY_SECONDS: Final = 2
_ENGINE: Final = re.compile(
    r"/(?:v1/(?:chat/completions|chat/completions/batch|completions|responses|messages)"
    r"|api/ai/chat/completions|api/v1/(?:chat/)?completions|generate|sampling/generate|sae/generate|steering/run"
    r"|policies/(?:run|[^/]+/run))/?"
)


@dataclass(slots=True)
class Queue:
    """The engine's queue, as one API process adds to it. `seconds`: how long a first token may be waited for;
    0: for ever."""

    seconds: float = 0.0
    check: Check | None = None
    _coming: set[int] = field(default_factory=set)  # calls with room that have not reached the engine

    def guard(self, engine_client: Any) -> None:
        """Have the engine client ask us in place of its own check."""
        self.check = engine_client.check_admission
        engine_client.check_admission = self.asked
        engine_client.generate = self.timed(engine_client.generate)

    def enter(self, call: Call) -> None:
        """Raises vLLM's GracefulHTTPError where there is no room."""
        if self.check is not None:
            self._checked(call, 1)
            self._coming.add(id(call))

    def leave(self, call: Call) -> None:
        self._coming.discard(id(call))

    def asked(self, n: int = 1, request_id: str | None = None) -> None:  # noqa: ARG002  # vLLM's signature
        """In place of `check_admission`. Work of our own, which has no call, waits its turn."""
        call = current_call.get()
        if call is None:
            return
        self.leave(call)
        if not call.queued:
            self._checked(call, n)

    def _checked(self, call: Call, n: int) -> None:
        assert self.check is not None
        try:
            self.check(n + len(self._coming))
        except GracefulHTTPError:
            RATE_LIMITED.labels(Limited.QUEUE).inc()
            raise
        call.queued = True

    def timed(self, generate: Generate) -> Generate:
        """`generate`, for no longer than `seconds` before the first token of its call.

        Not a generator itself: the context is the one that calls, whoever iterates.
        """

        def timed(
            prompt: Any, params: SamplingParams, request_id: str, *args: Any, **kwargs: Any
        ) -> AsyncGenerator[RequestOutput, None]:
            call = current_call.get()
            if not self.seconds or call is None or call.begun:
                return generate(prompt, params, request_id, *args, **kwargs)
            final_only = params.output_kind == RequestOutputKind.FINAL_ONLY
            if final_only:  # vLLM would tell of no token before the last
                params = params.clone()
                params.output_kind = RequestOutputKind.CUMULATIVE
            outputs = self._begun(generate(prompt, params, request_id, *args, **kwargs), call)
            return final(outputs) if final_only else outputs

        return timed

    async def _begun(
        self, outputs: AsyncGenerator[RequestOutput, None], call: Call
    ) -> AsyncGenerator[RequestOutput, None]:
        async with aclosing(outputs):
            try:
                async with asyncio.timeout(None if call.begun else self.seconds) as clock:
                    call.clocks.append(clock)
                    try:
                        first = await anext(outputs, None)
                    finally:
                        call.clocks.remove(clock)
            except TimeoutError:
                if not clock.expired():
                    raise
                if call.failure is None:
                    RATE_LIMITED.labels(Limited.QUEUE).inc()
                    call.failure = Unavailable(
                        f"The engine is busy: nothing of this began within {self.seconds:g} s.",
                        retry_after=_RETRY_SECONDS,
                    )
                raise call.failure from None
            call.begins()
            if first is not None:
                yield first
                async for output in outputs:
                    yield output


@dataclass(frozen=True, slots=True)
class Queueing:
    """ASGI middleware, within `Calls`: 503 for what finds no room, or waits too long for its first token.

    The start of a stream is kept back until its first event, so that a call that never began has that status.
    """

    app: ASGIApp
    queue: Queue

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        call = current_call.get()
        if scope["type"] != "http" or call is None or _ENGINE.fullmatch(route_path(scope)) is None:
            await self.app(scope, receive, send)
            return
        try:
            self.queue.enter(call)
        except GracefulHTTPError as error:
            await refuse(scope, receive, send, as_steersman(error))
            return
        wire = _Wire(call, scope, receive, send)
        try:
            await self.app(scope, receive, wire.send if self.queue.seconds else send)
        finally:
            self.queue.leave(call)


class _Wire:
    """An answer on its way out, in whose place the failure of its call may go."""

    def __init__(self, call: Call, scope: Scope, receive: Receive, send: Send) -> None:
        self._call, self._scope, self._receive, self._send = call, scope, receive, send
        self._start: Message | None = None
        self._sent = self._replaced = False

    async def send(self, message: Message) -> None:
        if self._replaced:
            return
        if self._call.failure is not None and not self._sent:
            self._replaced = True
            await refuse(self._scope, self._receive, self._send, self._call.failure)
        elif message["type"] == "http.response.start" and not self._call.begun:
            self._start = message
        else:
            if self._start is not None:
                start, self._start = self._start, None
                self._sent = True
                await self._send(start)
            self._sent = True
            await self._send(message)
