"""Turns at something scarce, shared so that no one owner can have them all."""

import asyncio
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager


class Turns:
    """At most `total` at once, of which one owner has at most `each`; whoever waits comes in order.

    An owner is any text, such as an account's id.
    """

    def __init__(self, total: int, *, each: int) -> None:
        self._all = asyncio.Semaphore(total)
        self._each = each
        self._own: dict[str, asyncio.Semaphore] = {}
        self._asking: Counter[str] = Counter()

    @asynccontextmanager
    async def taken(self, owner: str) -> AsyncIterator[None]:
        # Its own first: what an owner has too much of waits there, and not before everyone else.
        own = self._own.setdefault(owner, asyncio.Semaphore(self._each))
        self._asking[owner] += 1
        try:
            async with own, self._all:
                yield
        finally:
            self._asking[owner] -= 1
            if not self._asking[owner]:
                del self._asking[owner], self._own[owner]
