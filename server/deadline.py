"""Until when an answer must have begun: its first token, and all that a client waits for before it reads."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextvars import ContextVar
from typing import Any

from fastapi.responses import Response, StreamingResponse

from server.errors import RequestTimeout


class Deadline:
    """`seconds` for the whole answer, or where it is streamed for its start, and before that `first_token`
    for the first token of any of its engine requests; 0 and None: no limit."""

    def __init__(self, seconds: float, first_token: float | None = None) -> None:
        self.begun = first_token is None
        self._token = asyncio.Event()
        self._seconds, self._first_token = seconds, first_token
        self._until: float | None = None
        self._clock: asyncio.Timeout | None = None

    def begins(self) -> None:
        """The first token is there."""
        self._token.set()
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
        """`events`, once it is under way: by its first event, or the first token of what is judged before."""
        ahead = list[str]()
        token = asyncio.create_task(self._token.wait())
        pulled = asyncio.create_task(_next(events))
        try:
            while True:
                await asyncio.wait([pulled, token], return_when=asyncio.FIRST_COMPLETED)
                event = pulled.result() if pulled.done() else None
                if event is None:
                    return _resumed(ahead, pulled, events)
                ahead.append(event)
                pulled = asyncio.create_task(_next(events))
                if self.begun or not event.startswith(":"):
                    return _resumed(ahead, pulled, events)
        except BaseException:
            await _closed(pulled, events)
            raise
        finally:
            token.cancel()

    def _missed(self) -> RequestTimeout:
        first = self._first_token
        if self.begun or first is None or 0 < self._seconds <= first:
            return RequestTimeout(f"there was no answer within {self._seconds:g} s")
        return RequestTimeout(f"there was no token within {first * 1000:g} ms", param="max_ttft_ms")


# That of the request of this context.
current_deadline: ContextVar[Deadline | None] = ContextVar("current_deadline", default=None)


async def _next(events: Any) -> str | None:
    event: str | None = await anext(events, None)
    return event


async def _resumed(ahead: list[str], pulled: "asyncio.Task[str | None]", events: Any) -> AsyncIterator[str]:
    """`ahead`, the event that is being pulled, and the rest."""
    try:
        for event in ahead:
            yield event
        if (last := await pulled) is not None:
            yield last
            async for event in events:
                yield event
    finally:
        await _closed(pulled, events)


async def _closed(pulled: "asyncio.Task[str | None]", events: Any) -> None:
    pulled.cancel()
    await asyncio.gather(pulled, return_exceptions=True)
    await events.aclose()
