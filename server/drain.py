"""A stopping server: new requests are refused, those it has may end within the limit."""

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Protocol

from starlette.types import ASGIApp, Receive, Scope, Send

from server.errors import Unavailable
from server.metrics import DRAINING
from server.refusal import refuse, route_path

_POLL_SECONDS = 0.05
_RETRY_SECONDS = 5
# Nothing was done for the request: a router may give it to another replica, whatever it asks.
_REFUSED = MappingProxyType({"x-steersman-draining": "1"})
# Of the limit, at most this is kept for telling clients that their requests were cut.
_LAST_SECONDS = 2.0
# What watches the server is answered to the end: a drain must not look like a death.
_WATCHING = frozenset({"/health", "/readyz", "/metrics", "/metrics/"})


class Shutdown(Protocol):
    def __call__(self, timeout: float | None = None) -> None: ...


@dataclass(slots=True)
class Drain:
    """The open requests of one API process, and whether it takes more.

    An engine told to drain ends the requests it knows. That is too little for an answer made of several, such
    as a beam search or a policy with retries; and a server that shares its engine with others is not waited
    for at all. So the HTTP requests are waited for, before the engine hears of it.
    """

    stopping: bool = field(default=False, init=False)
    open: int = field(default=0, init=False)

    def before(self, shutdown: Shutdown, cut: Callable[[], None]) -> Shutdown:
        """`shutdown`, after open requests ended or its `timeout` (seconds; None: not at all) neared its end.

        `cut` then fails what is left. The result blocks: it is for a thread beside the event loop.
        """

        def draining(timeout: float | None = None) -> None:
            if timeout is None:
                shutdown()
                return
            self.stopping = True
            DRAINING.set(1)
            last = min(_LAST_SECONDS, timeout / 4)
            if not self._ended_within(timeout - last):
                cut()
                self._ended_within(last)
            shutdown(timeout=last)

        return draining

    def _ended_within(self, seconds: float) -> bool:
        deadline = time.monotonic() + seconds
        while self.open and time.monotonic() < deadline:
            time.sleep(_POLL_SECONDS)
        return not self.open


@dataclass(frozen=True, slots=True)
class Draining:
    """ASGI middleware: counts open requests; while the server stops, 503 to all new ones but probes'."""

    app: ASGIApp
    drain: Drain

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or route_path(scope) in _WATCHING:
            await self.app(scope, receive, send)
        elif self.drain.stopping:
            error = Unavailable("the server is shutting down", retry_after=_RETRY_SECONDS)
            await refuse(scope, receive, send, error, close=True, headers=_REFUSED)
        else:
            self.drain.open += 1
            try:
                await self.app(scope, receive, send)
            finally:
                self.drain.open -= 1
