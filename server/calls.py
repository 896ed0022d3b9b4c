"""One HTTP request as a call: it may run several engine requests, and still counts once."""

import asyncio
from contextvars import ContextVar
from dataclasses import dataclass, field

from starlette.types import ASGIApp, Receive, Scope, Send

from server.errors import SteersmanError
from server.limiter import Admission


@dataclass(slots=True)
class Call:
    """`counted`: in its key's usage. `queued`: the engine's queue had room for it. `failure` is what became
    of it before its first token, whatever the answer makes of that."""

    counted: bool = False
    queued: bool = False
    begun: bool = False
    failure: SteersmanError | None = None
    admission: Admission | None = None
    clocks: list[asyncio.Timeout] = field(default_factory=list)  # of engine requests that have not begun

    def spend(self, tokens: int) -> None:
        """Of the key's limit, where it has one."""
        if self.admission is not None:
            self.admission.spend(tokens)

    def begins(self) -> None:
        """The first token is there, so that nothing of it waits for its turn any more."""
        self.begun = True
        for clock in self.clocks:
            if not clock.expired():
                clock.reschedule(None)


current_call: ContextVar[Call | None] = ContextVar("current_call", default=None)


class Calls:
    """ASGI middleware: marks the engine requests of one HTTP request as one call."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        current_call.set(Call())
        await self._app(scope, receive, send)


def spend(tokens: int) -> None:
    """Tokens that the call of this context has used, beside the engine."""
    if (call := current_call.get()) is not None:
        call.spend(tokens)
