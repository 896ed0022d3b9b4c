"""From chat completions to the interaction log: beside the answers, and not without bound."""

import asyncio
import logging
import time
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from enum import StrEnum
from typing import Protocol

from server.backlog import SECONDS, Backlog
from server.errors import NotSupported, Unavailable
from server.interactions import Interaction
from server.metrics import INTERACTIONS_DROPPED
from server.redaction import NOTHING_REDACTED, Redaction
from server.transcript import Transcript

logger = logging.getLogger(__name__)

WAITING = 1024  # answers that wait for the database, beside those that were generated meanwhile
WAITING_BYTES = 64 * 1024 * 1024
PATIENCE_SECONDS = 10.0
_BATCH = 128
_PRUNE_SECONDS = 60.0
_RETRY_SECONDS = 5


class Keep(StrEnum):
    """Which chat completions are kept: those that ask by `store`, all but those that decline, or none."""

    ASKED = "asked"
    ALL = "all"
    NONE = "none"


class Keeper(Protocol):
    async def keep(self, interactions: Sequence[Interaction]) -> None: ...
    async def prune(self, *, most: int, since: datetime) -> None: ...


class InteractionLog:
    """Answers of this process on their way to the database, which keeps `most` of all for `days`.

    What waits is in memory: a process that is killed loses it, up to `SECONDS` of answers, or while the
    database is away all that wait. A process that stops writes them first.
    """

    def __init__(
        self,
        keeper: Keeper,
        *,
        which: Keep,
        most: int,
        days: float,
        redaction: Redaction = NOTHING_REDACTED,
    ) -> None:
        self.redaction = redaction
        self._keeper, self._which, self._most, self._age = keeper, which, most, timedelta(days=days)
        self._backlog = Backlog[Transcript]("interactions", self._write, self._drop, batch=_BATCH)
        self._bytes = 0
        self._room = asyncio.Event()
        self._prune_due = 0.0

    def require_storing(self) -> None:
        """Raises NotSupported where nothing is stored, what clients upload included."""
        if self._which is Keep.NONE:
            raise NotSupported("this server stores no interactions: it was started with --interactions none")

    @property
    def full(self) -> bool:
        return len(self._backlog) >= WAITING or self._bytes >= WAITING_BYTES

    async def admit(self, store: bool | None, *, unasked: bool = False) -> bool:
        """Whether the answer to a request is to be kept; to be asked before it is generated. `unasked`: it is
        of a kind that is kept unless it declines, where anything is kept.

        In a full log a request that asks to be stored waits for room; one that is stored unasked is not, and
        counted. Raises Unavailable where no room comes in time, NotSupported where nothing is stored.
        """
        if self._which is Keep.NONE and store:
            raise NotSupported(
                "this server stores no chat completions: it was started with --interactions none",
                param="store",
            )
        unasked = unasked or self._which is Keep.ALL
        if self._which is Keep.NONE or store is False or not (store or unasked):
            return False
        if self.full and not store:
            INTERACTIONS_DROPPED.labels("full").inc()
            return False
        try:
            async with asyncio.timeout(PATIENCE_SECONDS):
                while self.full:
                    self._room.clear()
                    await self._room.wait()
        except TimeoutError as error:
            raise Unavailable(
                "too many chat completions wait to be stored: try again, or send `store: false`",
                retry_after=_RETRY_SECONDS,
            ) from error
        return True

    def add(self, transcript: Transcript) -> None:
        """Of an answer that was admitted and has ended."""
        self._bytes += transcript.size
        self._backlog.add(transcript)

    async def flush(self) -> None:
        """Afterwards the database has what was added by now, unless it is unavailable."""
        await self._backlog.flush()

    async def run(self, interval: float = SECONDS) -> None:
        """Flush every `interval` seconds until cancelled; what came since is flushed then."""
        await self._backlog.run(interval)

    async def _write(self, batch: list[Transcript]) -> None:
        if time.monotonic() >= self._prune_due:
            await self._keeper.prune(most=self._most, since=datetime.now(UTC) - self._age)
            self._prune_due = time.monotonic() + _PRUNE_SECONDS
        await self._keep(await asyncio.to_thread(self._settled, batch))
        self._leave(batch)

    async def _keep(self, interactions: Sequence[Interaction]) -> None:
        """One that the database does not take leaves the others theirs."""
        try:
            await self._keeper.keep(interactions)
        except Unavailable:
            raise
        except Exception as error:  # noqa: BLE001  # a defect, of which those beside it know nothing
            if len(interactions) == 1:
                _defect(interactions[0].id, error)
                return
            for each in interactions:
                await self._keep([each])

    def _settled(self, batch: Sequence[Transcript]) -> list[Interaction]:
        settled = []
        for each in batch:
            try:
                settled.append(each.interaction(self.redaction))
            except Exception as error:  # noqa: BLE001  # so it is here
                _defect(each.observation.id, error)
        return settled

    def _drop(self, batch: list[Transcript]) -> None:
        INTERACTIONS_DROPPED.labels("defect").inc(len(batch))
        self._leave(batch)

    def _leave(self, batch: list[Transcript]) -> None:
        self._bytes -= sum(each.size for each in batch)
        self._room.set()


def _defect(name: str, error: Exception) -> None:
    logger.error("The interaction %s could not be stored and is dropped", name, exc_info=error)
    INTERACTIONS_DROPPED.labels("defect").inc()
