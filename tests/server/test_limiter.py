"""One process and the limits that it shares: what it asks the database, and what it does without one."""

import asyncio

import pytest

from server.errors import Unavailable
from server.limiter import Limiter
from server.limits import UNLIMITED, RateLimits, Standing
from server.local_quotas import LocalQuotas
from server.quotas import Ask, Quotas


class Clock:
    now = 1000.0

    def __call__(self):
        return self.now


class Database:
    """Lets all in; notes what it is asked, and is away as long as told."""

    def __init__(self) -> None:
        self.taken, self.told, self.away, self.hold = [], [], False, None

    async def take(self, ask: Ask) -> Standing:
        await self._answer()
        self.taken.append(ask)
        limit = ask.limits.concurrent
        return Standing(limit is None or ask.running < limit, UNLIMITED, UNLIMITED)

    async def tell(self, ask: Ask) -> None:
        await self._answer()
        self.told.append(ask)

    async def sweep(self) -> None:
        await self._answer()

    async def _answer(self) -> None:
        if self.hold is not None:
            await self.hold.wait()
        await asyncio.sleep(0)
        if self.away:
            raise Unavailable("away")


@pytest.fixture
def clock():
    return Clock()


@pytest.fixture
def behind():
    return Database()


@pytest.fixture
def limiter(behind, clock):
    return Limiter(behind, clock=clock)


async def settled(limiter):
    await asyncio.gather(*limiter._tasks)


async def test_requests_alone_cost_one_statement(limiter, behind):
    """Nothing is told of their end."""
    admission = await limiter.admit("key", RateLimits(requests=5))
    admission.spend(100)
    admission.release()
    await settled(limiter)
    assert (len(behind.taken), behind.told) == (1, [])


async def test_the_end_and_the_tokens_are_told_together(limiter, behind):
    """One statement beside the answer; what was told is not told again."""
    limits = RateLimits(tokens=50, concurrent=5)
    admission = await limiter.admit("key", limits)
    admission.spend(30)
    admission.spend(12)
    admission.release()
    await settled(limiter)
    assert behind.told == [Ask("key", limits, running=0, spent=42)]
    await limiter.beat()
    assert len(behind.told) == 1


async def test_many_ends_are_told_at_once(limiter, behind):
    """What ends while a statement is on its way waits for one more, not for one each."""
    limits = RateLimits(concurrent=50)
    admissions = [await limiter.admit("key", limits) for _ in range(20)]
    behind.hold = asyncio.Event()
    for admission in admissions:
        admission.release()
        await asyncio.sleep(0)
    behind.hold.set()
    await settled(limiter)
    assert len(behind.told) <= 2
    assert behind.told[-1].running == 0


async def test_concurrent_requests_of_one_process_do_not_overtake(limiter, behind):
    """Each says how many run before it, however many ask at once."""
    limits = RateLimits(concurrent=3)
    admissions = await asyncio.gather(*(limiter.admit("key", limits) for _ in range(6)))
    assert [each.refused is None for each in admissions] == [True] * 3 + [False] * 3
    assert [ask.running for ask in behind.taken] == [0, 1, 2, 3, 3, 3]


async def test_tokens_that_come_after_the_end_are_told(limiter, behind):
    """An engine that is aborted counts late; by then the key may have been forgotten here."""
    admission = await limiter.admit("key", RateLimits(tokens=50))
    admission.release()
    await limiter.beat()
    assert limiter._held == {}
    admission.spend(7)
    await settled(limiter)
    assert [ask.spent for ask in behind.told] == [7]


async def test_late_tokens_leave_alone_what_runs(limiter, behind):
    """They are told with the requests that run by then."""
    limits = RateLimits(tokens=50, concurrent=5)
    early = await limiter.admit("key", limits)
    early.release()
    await settled(limiter)
    await limiter.beat()
    await limiter.admit("key", limits)
    early.spend(7)
    await settled(limiter)
    assert behind.told[-1] == Ask("key", limits, running=1, spent=7)


async def test_a_client_that_leaves_while_it_asks_gives_back(limiter, behind):
    """The statement may be under way by then: what it let in is let go of."""
    behind.hold = asyncio.Event()
    asking = asyncio.create_task(limiter.admit("key", RateLimits(concurrent=1)))
    await asyncio.sleep(0.01)
    asking.cancel()
    with pytest.raises(asyncio.CancelledError):
        await asking
    behind.hold.set()
    await asyncio.sleep(0.01)
    await settled(limiter)
    assert behind.told[-1].running == 0
    assert (await limiter.admit("key", RateLimits(concurrent=1))).refused is None


async def test_a_beat_says_what_still_runs(limiter, behind):
    """So its lease does not end; what runs no more is no longer said."""
    limits = RateLimits(concurrent=5)
    admission = await limiter.admit("key", limits)
    await limiter.admit("free", RateLimits(requests=5))
    await limiter.beat()
    await limiter.beat()
    assert behind.told == [Ask("key", limits, 1, 0)] * 2
    admission.release()
    await limiter.beat()
    await limiter.beat()
    assert [ask.running for ask in behind.told] == [1, 1, 0]


async def test_without_a_database_limits_hold_in_this_process(limiter, behind, clock, caplog):
    """Requests go on, by the same rules; the database is left in peace for a while, then told all of it."""
    limits = RateLimits(requests=2, tokens=50, concurrent=9)
    behind.away = True
    admissions = [await limiter.admit("key", limits) for _ in range(3)]
    assert [each.refused is None for each in admissions] == [True, True, False]
    assert "by this process alone" in caplog.text
    clock.now += 30
    admissions.append(await limiter.admit("key", limits))
    assert admissions[-1].refused is None
    admissions[0].spend(90)
    clock.now += 30
    assert (await limiter.admit("key", limits)).refused is not None
    behind.away = False
    clock.now += 30
    await limiter.admit("key", limits)
    assert (behind.taken[-1].running, behind.taken[-1].spent) == (3, 90)


async def test_a_database_that_hangs_is_away(limiter, behind, monkeypatch):
    """A request waits for it once, the next ones not at all."""
    monkeypatch.setattr("server.limiter._ANSWER_SECONDS", 0.05)
    behind.hold = asyncio.Event()
    async with asyncio.timeout(2):
        for _ in range(50):
            assert (await limiter.admit("key", RateLimits(requests=99))).refused is None
    assert behind.taken == []


async def test_what_is_untold_is_told_at_the_end(limiter, behind, clock):
    """Of a stopping process, though the database was away a moment ago."""
    limits = RateLimits(tokens=50)
    admission = await limiter.admit("key", limits)
    behind.away = True
    admission.spend(7)
    admission.release()
    await settled(limiter)
    running = asyncio.create_task(limiter.run(60))
    await asyncio.sleep(0)
    behind.away = False
    running.cancel()
    await asyncio.gather(running, return_exceptions=True)
    assert [ask.spent for ask in behind.told] == [7]


async def test_processes_share_what_runs(store):
    """What one lets go of another is let in for at once, on a real database."""
    limits = RateLimits(concurrent=2)
    one, two = (Limiter(Quotas(store.database, name)) for name in ("a1", "b2"))
    first, second = await one.admit("key", limits), await two.admit("key", limits)
    assert (await one.admit("key", limits)).refused is not None
    second.release()
    await settled(two)
    third = await one.admit("key", limits)
    assert third.refused is None
    first.release()
    third.release()
    await settled(one)
    assert [(await two.admit("key", limits)).refused is None for _ in range(3)] == [True, True, False]


def test_a_process_alone_goes_by_the_same_rules(clock):
    """N at once, then one every 60/N s; tokens may be owed; what runs is counted."""
    local = LocalQuotas(clock)
    ask = Ask("key", RateLimits(6, 60, 2), 0, 0)
    assert [local.take(ask).admitted for _ in range(7)] == [True] * 6 + [False]
    clock.now += 10
    assert not local.take(Ask("key", ask.limits, 2, 0)).admitted
    assert local.take(ask).admitted
    local.spend("key", ask.limits, 90)
    clock.now += 29
    assert not local.take(ask).admitted
    clock.now += 2
    assert local.take(ask).admitted
