"""When A/B tests are looked at."""

import asyncio
import time
from types import SimpleNamespace

import pytest

from server.campaign_settling import Settling
from server.errors import Unavailable


class Looked:
    """Campaigns, and which of them were looked at; `fails` are errors by name."""

    def __init__(self, *names, fails=(), seconds=0.0):
        self.names, self.fails, self.seconds = names, dict(fails), seconds
        self.seen: list[str] = []
        self.rounds = 0

    async def unsettled(self):
        self.rounds += 1
        return [SimpleNamespace(id=name) for name in self.names]

    async def settle(self, campaign):
        if campaign.id in self.fails:
            raise self.fails[campaign.id]
        await asyncio.sleep(self.seconds)
        self.seen.append(campaign.id)


async def until(condition):
    async with asyncio.timeout(5):
        while not condition():  # noqa: ASYNC110  # what it waits for has no event
            await asyncio.sleep(0.01)


@pytest.fixture
async def running():
    tasks = []
    yield lambda settling, **times: tasks.append(asyncio.create_task(settling.run(**times)))
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)


async def test_scores_that_come_together_are_looked_at_once_and_soon(running):
    looked = Looked("a")
    settling = Settling(looked)
    running(settling, quiet=0.05, idle=60.0)
    for _ in range(10):
        settling.scores_came()
        await asyncio.sleep(0)
    await until(lambda: looked.seen == ["a"])
    await asyncio.sleep(0.2)
    assert looked.rounds == 1
    settling.scores_came()
    await until(lambda: looked.rounds == 2)


async def test_without_scores_of_its_own_a_process_looks_now_and_then(running):
    looked = Looked("a")
    running(Settling(looked), quiet=0.0, idle=0.05)
    await until(lambda: looked.rounds >= 3)


async def test_looks_that_take_long_leave_the_database_to_others_for_most_of_the_time(running):
    looked = Looked("a", seconds=0.1)
    settling = Settling(looked)
    running(settling, quiet=0.0, idle=0.0)
    await until(lambda: looked.seen == ["a"])
    begun = time.monotonic()
    await until(lambda: looked.rounds == 2)
    assert time.monotonic() - begun > 0.8


async def test_a_campaign_that_cannot_be_judged_does_not_keep_the_others_from_their_end(caplog):
    looked = Looked("a", "b", "c", fails={"b": KeyError("defect")})
    await Settling(looked).settle()
    assert looked.seen == ["a", "c"]
    assert "A/B test b could not be looked at" in caplog.text


async def test_while_the_database_is_away_campaigns_wait(caplog):
    looked = Looked("a", "b", fails={"a": Unavailable("The database does not answer.")})
    await Settling(looked).settle()
    assert looked.seen == []
    looked.fails.clear()
    await Settling(looked).settle()
    assert looked.seen == ["a", "b"]
