"""How much each API key was used: counted in memory, handed to the store from time to time."""

import asyncio
import logging
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Protocol

from server.errors import Unavailable

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Usage:
    """Finished requests and their tokens."""

    requests: int = 0
    prompt_tokens: int = 0
    completion_tokens: int = 0

    def __add__(self, other: "Usage") -> "Usage":
        return Usage(
            self.requests + other.requests,
            self.prompt_tokens + other.prompt_tokens,
            self.completion_tokens + other.completion_tokens,
        )


class UsageStore(Protocol):
    async def record_usage(self, usage: Mapping[str, Usage], now: datetime) -> None:
        """Add to the counters of each key id. Raises Unavailable."""


class UsageMeter:
    """Counts of this process that the store does not have yet, by key id."""

    def __init__(self) -> None:
        self._pending: dict[str, Usage] = {}

    def add(
        self, key_id: str, *, requests: int = 1, prompt_tokens: int = 0, completion_tokens: int = 0
    ) -> None:
        used = Usage(requests, prompt_tokens, completion_tokens)
        self._pending[key_id] = self._pending.get(key_id, Usage()) + used

    async def flush(self, store: UsageStore) -> None:
        """Hand the counts over; while the store is unavailable they are kept for the next time."""
        taken, self._pending = self._pending, {}
        if not taken:
            return
        recorded = False
        try:
            await store.record_usage(taken, datetime.now(UTC))
            recorded = True
        except Unavailable as error:
            logger.warning("Usage of %d keys could not be recorded, kept: %s", len(taken), error)
        finally:
            if not recorded:
                for key_id, used in taken.items():
                    self._pending[key_id] = self._pending.get(key_id, Usage()) + used

    async def run(self, store: UsageStore, interval: float) -> None:
        """Flush every `interval` seconds until cancelled; what came since is flushed then."""
        try:
            while True:
                await asyncio.sleep(interval)
                await self.flush(store)
        finally:
            await self.flush(store)
