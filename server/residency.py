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
from server.metrics import STEERING_CAPACITY, STEERING_LOADED, STEERING_ROWS
from steering.vector import SteeringVector


class Loader(Protocol):
    async def load(self, digest: str, blob: bytes) -> None: ...
    async def unload(self, digests: Sequence[str]) -> None: ...


@dataclass(slots=True)
class _Entry:
    """`loading` is done when the engine has the vector."""

    rows: int
    loading: "asyncio.Task[None]"
    holders: int = 0


class Residency:
    """`rows` table lines are ours; a request that finds too few free waits up to `wait_seconds`.

    `wait_seconds` 0 refuses at once. Room is counted before the engine is asked, and without a pause in
    between, so that vectors of many requests load side by side: the engine answers once per step.
    """

    def __init__(self, loader: Loader, rows: int, wait_seconds: float) -> None:
        self._loader, self._rows, self._wait_seconds = loader, rows, wait_seconds
        self._entries: OrderedDict[str, _Entry] = OrderedDict()  # longest unused first
        self._freed = asyncio.Event()
        self._evicting: asyncio.Task[None] | None = None  # the last one, which waits for those before
        self._used = 0
        self._loop = asyncio.get_running_loop()
        STEERING_CAPACITY.set(rows)

    async def hold(self, vectors: Sequence[SteeringVector]) -> "Lease":
        """Keep `vectors` in the engine until the lease is released.

        Raises Unavailable where no room becomes free in time, InvalidRequest where there never is enough.
        """
        distinct = {vector.digest: vector for vector in vectors}
        needed = sum(vector.rows for vector in distinct.values())
        if needed > self._rows:
            raise InvalidRequest(
                f"the vectors take {needed} rows; the table has {self._rows} (--steering-rows)"
            )
        if not self._fits(distinct):
            await self._room(distinct)
        lease = self._reserve(distinct)
        try:
            # Shielded: whoever leaves must not stop a load that others wait for.
            for entry in lease.entries:
                await asyncio.shield(entry.loading)
        except BaseException:
            lease.release()
            raise
        return lease

    async def _room(self, distinct: dict[str, SteeringVector]) -> None:
        try:
            async with asyncio.timeout(self._wait_seconds):
                while not self._fits(distinct):
                    self._freed.clear()
                    await self._freed.wait()
        except TimeoutError:
            raise Unavailable("all steering table rows are in use; try again", retry_after=1) from None

    def _fits(self, distinct: dict[str, SteeringVector]) -> bool:
        held = sum(
            entry.rows for digest, entry in self._entries.items() if entry.holders > 0 or digest in distinct
        )
        missing = sum(vector.rows for digest, vector in distinct.items() if digest not in self._entries)
        return held + missing <= self._rows

    def _reserve(self, distinct: dict[str, SteeringVector]) -> "Lease":
        missing = {digest: vector for digest, vector in distinct.items() if digest not in self._entries}
        self._evict(sum(vector.rows for vector in missing.values()), keep=distinct)
        for digest, vector in missing.items():
            loading = asyncio.create_task(self._load(vector, self._evicting))
            loading.add_done_callback(_noted)
            self._entries[digest] = _Entry(vector.rows, loading)
            self._used += vector.rows
        self._tell()
        entries = [self._entries[digest] for digest in distinct]
        for digest, entry in zip(distinct, entries, strict=True):
            entry.holders += 1
            self._entries.move_to_end(digest)
        return Lease(self, entries)

    def _evict(self, rows: int, keep: dict[str, SteeringVector]) -> None:
        """Make room for `rows` of what nobody holds, longest unused first."""
        victims: list[str] = []
        excess = self._used + rows - self._rows
        for digest, entry in self._entries.items():
            if excess <= 0:
                break
            if not entry.holders and digest not in keep:
                victims.append(digest)
                excess -= entry.rows
        if victims:
            entries = [self._entries.pop(digest) for digest in victims]
            self._used -= sum(entry.rows for entry in entries)
            self._evicting = asyncio.create_task(self._unload(victims, entries, self._evicting))
            self._evicting.add_done_callback(_noted)

    async def _unload(
        self, victims: Sequence[str], entries: Sequence[_Entry], before: "asyncio.Task[None] | None"
    ) -> None:
        """After all that was begun: a vector may have been evicted, asked for and evicted again."""
        earlier = [entry.loading for entry in entries] + ([before] if before else [])
        await asyncio.gather(*map(asyncio.shield, earlier), return_exceptions=True)
        await self._loader.unload(victims)

    async def _load(self, vector: SteeringVector, evicting: "asyncio.Task[None] | None") -> None:
        try:
            if evicting is not None:
                await asyncio.wait([evicting])
            await self._loader.load(vector.digest, vector.blob)
        except BaseException:
            self._forget(vector.digest)
            raise

    def _forget(self, digest: str) -> None:
        """Of a vector that the engine did not take: whoever asks next has it loaded anew."""
        entry = self._entries.get(digest)
        if entry is not None and entry.loading is asyncio.current_task():
            del self._entries[digest]
            self._used -= entry.rows
            self._tell()
            self._freed.set()

    def _tell(self) -> None:
        STEERING_ROWS.set(self._used)
        STEERING_LOADED.set(len(self._entries))

    def release(self, entries: Sequence[_Entry]) -> None:
        for entry in entries:
            entry.holders -= 1
        with suppress(RuntimeError):  # the loop is closed: nobody waits any more
            self._loop.call_soon_threadsafe(self._freed.set)


def _noted(task: "asyncio.Task[None]") -> None:
    """Whoever waits for it raises its error; where nobody does, it is no news."""
    if not task.cancelled():
        task.exception()


class Lease:
    """Releases once, at the latest when it is forgotten: a stream that no one began to read ends so."""

    def __init__(self, residency: Residency, entries: Sequence[_Entry]) -> None:
        self._residency: Residency | None = residency
        self.entries = entries

    def release(self) -> None:
        residency, self._residency = self._residency, None
        if residency is not None:
            residency.release(self.entries)

    __del__ = release
