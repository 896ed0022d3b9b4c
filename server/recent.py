"""What was read from the database a moment ago."""

import time
from collections import OrderedDict
from collections.abc import Awaitable, Callable, Hashable
from typing import Generic, TypeVar

Key = TypeVar("Key", bound=Hashable)
Value = TypeVar("Value")


class Recent(Generic[Key, Value]):
    """Values read in the last `seconds`: what another process changes is seen that much later.

    Only hits are kept, so that what was just made is found at once, and the latest `limit` of them.
    """

    def __init__(
        self, seconds: float, limit: int = 1024, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._seconds, self._limit, self._clock = seconds, limit, clock
        self._known: OrderedDict[Key, tuple[float, Value]] = OrderedDict()
        self._changes = 0

    async def get(self, key: Key, read: Callable[[], Awaitable[Value | None]]) -> Value | None:
        expires, value = self._known.get(key, (0.0, None))
        now = self._clock()
        if value is not None and now < expires:
            return value
        changes = self._changes
        value = await read()
        # A read that began before a change may have seen what was there before it.
        if value is not None and changes == self._changes:
            self._known[key] = now + self._seconds, value
            self._known.move_to_end(key)
            if len(self._known) > self._limit:
                self._known.popitem(last=False)
        return value

    def forget(self) -> None:
        """After every change that this process makes."""
        self._changes += 1
        self._known.clear()
