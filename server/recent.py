"""What was read from the database a moment ago, or before it went away."""

import asyncio
import time
from collections import OrderedDict
from collections.abc import Awaitable, Callable, Hashable
from typing import Generic, TypeVar

from server.errors import NotFound, Unavailable

# While the database is away, or does not answer in time, what was read before holds for so long: a restart or
# a failover of it stops no request whose key, vectors and names were in use.
OUTAGE_SECONDS = 600.0
PATIENCE_SECONDS = 1.0

Key = TypeVar("Key", bound=Hashable)
Value = TypeVar("Value")


class Recent(Generic[Key, Value]):
    """Values read in the last `seconds`: what another process changes is seen that much later.

    Only hits are kept, so that what was just made is found at once, and the latest `limit` of them. They hold
    for OUTAGE_SECONDS more where the database does not answer.
    """

    def __init__(
        self, seconds: float, limit: int = 1024, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._seconds, self._limit, self._clock = seconds, limit, clock
        self._known: OrderedDict[Key, tuple[float, Value]] = OrderedDict()
        self._changes = 0

    async def get(self, key: Key, read: Callable[[], Awaitable[Value | None]]) -> Value | None:
        """Raises what `read` does; Unavailable only where nothing is known."""
        expires, known = self._known.get(key, (0.0, None))
        now = self._clock()
        if known is not None and now < expires:
            return known
        changes = self._changes
        holds = known is not None and now < expires + OUTAGE_SECONDS
        try:
            async with asyncio.timeout(PATIENCE_SECONDS if holds else None):
                value = await read()
        except (Unavailable, TimeoutError) as error:
            if holds and changes == self._changes:
                return known
            if holds and isinstance(error, TimeoutError):
                raise Unavailable("The database does not answer.", retry_after=1) from error
            raise
        except NotFound:
            self._known.pop(key, None)
            raise
        if value is None:
            self._known.pop(key, None)
        # A read that began before a change may have seen what was there before it.
        elif changes == self._changes:
            self._known[key] = now + self._seconds, value
            self._known.move_to_end(key)
            if len(self._known) > self._limit:
                self._known.popitem(last=False)
        return value

    def forget(self) -> None:
        """After every change that this process makes."""
        self._changes += 1
        self._known.clear()
