"""Which vectors are in the engine: loaded when a request needs them, unloaded when others need the room.

One owner per API process, each with its own share of the table, so that nobody waits for another process.
"""

import asyncio
from collections import OrderedDict
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Protocol

from server.errors import InvalidRequest, Unavailable
from server.metrics import STEERING_ROWS
from steering.vector import SteeringVector


class Loader(Protocol):
    async def load(self, digest: str, blob: bytes) -> None: ...
    async def unload(self, digests: Sequence[str]) -> None: ...


@dataclass(slots=True)
class _Entry:
    rows: int
    holders: int = 0


class Residency:
    """`rows` table lines are ours; a request that finds too few free waits up to `wait_seconds`.

    `wait_seconds` 0 refuses at once.
    """

    def __init__(self, loader: Loader, rows: int, wait_seconds: float) -> None:
        self._loader, self._rows, self._wait_seconds = loader, rows, wait_seconds
        self._entries: OrderedDict[str, _Entry] = OrderedDict()  # longest unused first
        self._freed = asyncio.Condition()
        self._waiting: set[asyncio.Task[Lease]] = set()
        self._used = 0
        self._loop = asyncio.get_running_loop()

    async def hold(self, vectors: Sequence[SteeringVector]) -> "Lease":
        """Keep `vectors` in the engine until the lease is released.

        Raises Unavailable where no room becomes free in time, InvalidRequest where there never is enough.
        """
        distinct = {vector.digest: vector for vector in vectors}
        needed = sum(vector.rows for vector in distinct.values())
        if needed > self._rows:
            raise InvalidRequest(
                f"the vectors take {needed} rows of a table of {self._rows} (--steering-rows)"
            )
        if all(digest in self._entries for digest in distinct):
            return self._lease(distinct)
        # On its own: a client that leaves while it loads must not leave our count and the table at odds.
        holding = asyncio.create_task(self._hold(distinct))
        self._waiting.add(holding)
        try:
            return await asyncio.shield(holding)
        except asyncio.CancelledError:
            if holding in self._waiting:
                holding.cancel()
            holding.add_done_callback(_give_back)
            raise
        finally:
            self._waiting.discard(holding)

    async def _hold(self, distinct: dict[str, SteeringVector]) -> "Lease":
        async with self._freed:
            if not self._fits(distinct):
                try:
                    async with asyncio.timeout(self._wait_seconds):
                        await self._freed.wait_for(lambda: self._fits(distinct))
                except TimeoutError:
                    raise Unavailable(
                        "all steering table rows are in use; try again", retry_after=1
                    ) from None
            self._waiting -= {asyncio.current_task()}
            await self._load(distinct)
            return self._lease(distinct)

    def _lease(self, distinct: dict[str, SteeringVector]) -> "Lease":
        for digest in distinct:
            self._entries[digest].holders += 1
            self._entries.move_to_end(digest)
        return Lease(self, tuple(distinct))

    def _fits(self, distinct: dict[str, SteeringVector]) -> bool:
        held = sum(
            entry.rows for digest, entry in self._entries.items() if entry.holders > 0 or digest in distinct
        )
        missing = sum(vector.rows for digest, vector in distinct.items() if digest not in self._entries)
        return held + missing <= self._rows

    async def _load(self, distinct: dict[str, SteeringVector]) -> None:
        missing = {digest: vector for digest, vector in distinct.items() if digest not in self._entries}
        if not missing:
            return
        try:
            await self._make_room(sum(vector.rows for vector in missing.values()), keep=distinct)
            for digest, vector in missing.items():
                await self._loader.load(digest, vector.blob)
                self._entries[digest] = _Entry(vector.rows)
                self._used += vector.rows
        finally:
            STEERING_ROWS.set(self._used)

    async def _make_room(self, rows: int, keep: dict[str, SteeringVector]) -> None:
        victims: list[str] = []
        excess = self._used + rows - self._rows
        for digest, entry in self._entries.items():
            if excess <= 0:
                break
            if not entry.holders and digest not in keep:
                victims.append(digest)
                excess -= entry.rows
        # Gone from the count first: nobody may take what is being unloaded for resident.
        self._used -= sum(self._entries.pop(digest).rows for digest in victims)
        if victims:
            await self._loader.unload(victims)

    def release(self, digests: Sequence[str]) -> None:
        for digest in digests:
            self._entries[digest].holders -= 1
        with suppress(RuntimeError):  # the loop is closed: nobody waits any more
            self._loop.call_soon_threadsafe(self._wake_soon)

    def _wake_soon(self) -> None:
        self._waking = asyncio.ensure_future(self._wake())

    async def _wake(self) -> None:
        async with self._freed:
            self._freed.notify_all()


class Lease:
    """Releases once, at the latest when it is forgotten: a stream that no one began to read ends so."""

    def __init__(self, residency: Residency, digests: Sequence[str]) -> None:
        self._residency: Residency | None = residency
        self._digests = digests

    def release(self) -> None:
        residency, self._residency = self._residency, None
        if residency is not None:
            residency.release(self._digests)

    __del__ = release


def _give_back(holding: "asyncio.Task[Lease]") -> None:
    if not holding.cancelled() and holding.exception() is None:
        holding.result().release()
