"""Until when an answer must have begun: its first token, and all that a client waits for before it reads."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import aclosing, suppress
from contextvars import ContextVar
from typing import Any

from fastapi.responses import Response, StreamingResponse

from server.errors import RequestTimeout


class Deadline:
    """`seconds` for the whole answer, or where it is streamed for its start, and before that `first_token`
    for the first token of any of its engine requests; 0 and None: no limit."""

    def __init__(self, seconds: float, first_token: float | None = None) -> None:
        self.begun = first_token is None
        self._seconds, self._first_token = seconds, first_token
        self._until: float | None = None
        self._clock: asyncio.Timeout | None = None

    def begins(self) -> None:
        """The first token is there."""
        if not self.begun:
            self.begun = True
            if self._clock is not None and not self._clock.expired():
                self._clock.reschedule(self._until)

    async def within(self, answer: Callable[[], Awaitable[Response]]) -> Response:
        """What `answer` answers, in time. Raises RequestTimeout, after which it generates no more."""
        now = asyncio.get_running_loop().time()
        self._until = now + self._seconds if self._seconds else None
        first = None if self._first_token is None else now + self._first_token
        token = current_deadline.set(self)
        clock = asyncio.timeout_at(
            min((each for each in (first, self._until) if each is not None), default=None)
        )
        try:
            async with clock:
                self._clock = clock
                response = await answer()
                if isinstance(response, StreamingResponse) and self._limited:
                    response.body_iterator = await self._started(response.body_iterator)
                return response
        except Exception as error:
            # vLLM makes an error of its own of a cancellation
            if clock.expired():
                raise self._missed() from error
            raise
        finally:
            self._clock = None
            current_deadline.reset(token)

    @property
    def _limited(self) -> bool:
        return bool(self._seconds) or self._first_token is not None

    async def _started(self, events: Any) -> AsyncIterator[str]:
        """`events`, of which the first is there; where a first token is asked for, that too."""
        ahead = list[str]()
        try:
            async for event in events:
                ahead.append(event)
                if self.begun or not event.startswith(":"):
                    break
        except BaseException:
            with suppress(Exception):
                await events.aclose()
            raise
        return _resumed(ahead, events)

    def _missed(self) -> RequestTimeout:
        first = self._first_token
        if self.begun or first is None or 0 < self._seconds <= first:
            return RequestTimeout(f"there was no answer within {self._seconds:g} s")
        return RequestTimeout(f"there was no token within {first * 1000:g} ms", param="max_ttft_ms")


# That of the request of this context.
current_deadline: ContextVar[Deadline | None] = ContextVar("current_deadline", default=None)


async def _resumed(ahead: list[str], events: Any) -> AsyncIterator[str]:
    async with aclosing(events):
        for event in ahead:
            yield event
        async for event in events:
            yield event
