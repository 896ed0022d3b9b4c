"""What waits for the database: written in batches and in order, beside the answers."""

import asyncio
import logging
import time
from collections import deque
from collections.abc import Awaitable, Callable
from typing import Generic, TypeVar

from server.errors import Unavailable

logger = logging.getLogger(__name__)

Item = TypeVar("Item")

SECONDS = 1.0  # between writes
_IDLE_SECONDS = 600.0  # after which there is a write without items


class Backlog(Generic[Item]):
    """`write` is given the oldest items, `batch` of them at most; none at the start, and now and then while
    none come, for what is to be deleted with time.

    While it raises Unavailable they wait for the next time. Any other exception is a defect: `drop` is told
    of the items, and those after them are written.
    """

    def __init__(
        self,
        what: str,
        write: Callable[[list[Item]], Awaitable[None]],
        drop: Callable[[list[Item]], None],
        *,
        batch: int,
    ) -> None:
        self._what, self._write, self._drop, self._batch = what, write, drop, batch
        self._waiting: deque[Item] = deque()
        self._one_at_a_time = asyncio.Lock()

    def __len__(self) -> int:
        return len(self._waiting)

    def add(self, item: Item) -> None:
        self._waiting.append(item)

    async def flush(self) -> None:
        """What is here by now is written afterwards, unless the database is unavailable."""
        async with self._one_at_a_time:
            left = len(self._waiting)
            while left:
                batch = [self._waiting.popleft() for _ in range(min(self._batch, left))]
                left -= len(batch)
                if not await self._hand_over(batch):
                    return

    async def run(self, interval: float = SECONDS) -> None:
        """Flush every `interval` seconds until cancelled; what came since is flushed then."""
        due = 0.0
        try:
            while True:
                if self._waiting or time.monotonic() >= due:
                    await (self.flush() if self._waiting else self._without_items())
                    due = time.monotonic() + _IDLE_SECONDS
                await asyncio.sleep(interval)
        finally:
            await self.flush()
            if self._waiting:
                logger.error("%d %s are lost: the database was away to the end", len(self), self._what)

    async def _without_items(self) -> None:
        async with self._one_at_a_time:
            await self._hand_over([])

    async def _hand_over(self, batch: list[Item]) -> bool:
        waits = bool(batch)
        try:
            await self._write(batch)
            waits = False
        except Unavailable as error:
            logger.warning("%d %s could not be recorded yet: %s", len(batch), self._what, error)
            return False
        except Exception:  # a defect, which must not end the recording of all that comes later
            logger.exception("%d %s could not be recorded and are dropped", len(batch), self._what)
            self._drop(batch)
            waits = False
        finally:
            if waits:
                self._waiting.extendleft(reversed(batch))
        return True
