"""Has A/B tests end once their scores say so: soon after scores came, and now and then."""

import asyncio
import logging
import time
from collections.abc import Sequence
from contextlib import suppress
from typing import Protocol

from server.campaign import Campaign
from server.errors import Unavailable

logger = logging.getLogger(__name__)

_QUIET_SECONDS = 1.0  # in which scores that come together are looked at once
_REST = 9  # times as long as a look took, before the next one
_IDLE_SECONDS = 30.0  # after which scores that other processes took are looked at


class Settled(Protocol):
    async def unsettled(self) -> Sequence[Campaign]: ...
    async def settle(self, campaign: Campaign) -> None: ...


class Settling:
    def __init__(self, campaigns: Settled) -> None:
        self._campaigns = campaigns
        self._came = asyncio.Event()

    def scores_came(self) -> None:
        self._came.set()

    async def run(self, quiet: float = _QUIET_SECONDS, idle: float = _IDLE_SECONDS) -> None:
        """Until cancelled."""
        took = 0.0
        while True:
            with suppress(TimeoutError):
                async with asyncio.timeout(idle):
                    await self._came.wait()
            await asyncio.sleep(max(quiet, took * _REST))
            self._came.clear()
            started = time.monotonic()
            await self.settle()
            took = time.monotonic() - started

    async def settle(self) -> None:
        """All that are active. While the database is away they wait for the next time."""
        try:
            for campaign in await self._campaigns.unsettled():
                await self._settle(campaign)
        except Unavailable as error:
            logger.warning("A/B tests could not be looked at yet: %s", error)

    async def _settle(self, campaign: Campaign) -> None:
        try:
            await self._campaigns.settle(campaign)
        except Unavailable:
            raise
        except Exception:  # one that cannot be judged, which must not keep the others from their end
            logger.exception("The A/B test %s could not be looked at", campaign.id)
