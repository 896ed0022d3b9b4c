from collections.abc import AsyncIterator
from typing import Any

import pytest

from tests.console.browsing import chromium
from tests.console.world import World


@pytest.fixture(scope="module")
async def browser() -> AsyncIterator[Any]:
    async with chromium() as started:
        yield started


@pytest.fixture
async def world() -> AsyncIterator[World]:
    made = World()
    await made.start()
    yield made
    await made.stop()
