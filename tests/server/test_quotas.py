"""The limits of keys in the database: what several processes are let in together."""

import asyncio
import json
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from server import quotas
from server.database import Database
from server.limits import RateLimits
from server.quotas import Ask, Quotas

ROOT = Path(__file__).parents[2]

# Another process: it asks as often as told, all at once, holds what it got, and says how much that was.
PROGRAM = """
import asyncio, json, sys, time
from server.database import Database
from server.limits import RateLimits
from server.limiter import Limiter
from server.quotas import Quotas

async def main(url, name, limits, times):
    limiter = Limiter(Quotas(Database(url), name))
    await limiter.admit("warm" + name, RateLimits(1000, 1000, 1000))
    print("ready", flush=True)
    sys.stdin.readline()
    began = time.time()
    asked = [limiter.admit("key", RateLimits(*limits)) for _ in range(times)]
    admitted = sum(each.refused is None for each in await asyncio.gather(*asked))
    print(json.dumps([admitted, began, time.time()]), flush=True)
    await asyncio.sleep(600)

asyncio.run(main(sys.argv[1], sys.argv[2], json.loads(sys.argv[3]), int(sys.argv[4])))
"""


class Others:
    """Processes of the tests' own on one database."""

    def __init__(self, url: str) -> None:
        self.url, self.running = url, []

    def start(self, *names: str, limits: RateLimits, times: int) -> None:
        for name in names:
            words = [sys.executable, "-c", PROGRAM, self.url, name, json.dumps(limits.each), str(times)]
            self.running.append(
                subprocess.Popen(words, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
            )
        for process in self.running:
            assert process.stdout.readline() == "ready\n"

    def ask(self) -> list[tuple[int, float, float]]:
        """All at once: how much each was let in, from when until when."""
        for process in self.running:
            process.stdin.write("\n")
            process.stdin.flush()
        return [tuple(json.loads(process.stdout.readline())) for process in self.running]

    def end(self, how: int = signal.SIGKILL) -> None:
        for process in self.running:
            process.send_signal(how)
            process.wait(10)
            process.stdin.close()
            process.stdout.close()
        self.running = []


@pytest.fixture
def others(store, database_url):
    made = Others(database_url)
    yield made
    made.end()


async def test_processes_are_let_in_n_times_together(others):
    """Three processes with fifteen requests each, at once, on a limit of 20: 20 together, and what comes back
    meanwhile."""
    others.start("one", "two", "three", limits=RateLimits(requests=20), times=15)
    told = await asyncio.to_thread(others.ask)
    seconds = max(end for _, _, end in told) - min(begin for _, begin, _ in told)
    admitted = sum(each for each, _, _ in told)
    assert 20 <= admitted <= 20 + int(seconds * 20 / 60)


async def test_a_killed_process_gives_back_what_ran(others, store):
    """Two hold all seven places; killed, they are forgotten with their leases, and not before."""
    limits = RateLimits(concurrent=7)
    others.start("one", "two", limits=limits, times=5)
    told = await asyncio.to_thread(others.ask)
    assert sum(each for each, _, _ in told) == 7
    mine = Quotas(store.database, "mine")
    assert not (await mine.take(Ask("key", limits, 0, 0))).admitted
    await asyncio.to_thread(others.end)
    assert not (await mine.take(Ask("key", limits, 0, 0))).admitted
    await age(store.database, quotas.LEASE_SECONDS)
    got = [(await mine.take(Ask("key", limits, running, 0))).admitted for running in range(8)]
    assert got == [True] * 7 + [False]


async def age(database: Database, seconds: float) -> None:
    """Let so much time pass for all that the database holds."""
    async with database.writing() as connection:
        rows = (await connection.exec_driver_sql("SELECT subject, running FROM quotas")).all()
        for subject, running in rows:
            leases = json.loads(running) if isinstance(running, str) else running
            older = {name: [count, until - seconds] for name, (count, until) in leases.items()}
            await connection.exec_driver_sql(
                f"UPDATE quotas SET at = at - {seconds}, running = '{json.dumps(older)}'"
                f" WHERE subject = '{subject}'"
            )


@pytest.fixture
def own(store):
    return Quotas(store.database, "0123abcd")


async def test_requests_come_back_with_time(own, store):
    """N at once, then one every 60/N seconds, and never more than N."""
    limits = RateLimits(requests=6)
    ask = Ask("key", limits, 0, 0)
    assert [(await own.take(ask)).admitted for _ in range(7)] == [True] * 6 + [False]
    await age(store.database, 10)
    assert [(await own.take(ask)).admitted for _ in range(2)] == [True, False]
    await age(store.database, 3600)
    assert [(await own.take(ask)).admitted for _ in range(7)] == [True] * 6 + [False]


async def test_tokens_may_be_owed(own, store):
    """What an answer used beyond the limit is paid back before the next request is let in."""
    ask = Ask("key", RateLimits(tokens=60), 0, 0)
    assert (await own.take(ask)).tokens == 60
    await own.tell(Ask("key", ask.limits, 0, 90))
    refused = await own.take(ask)
    assert not refused.admitted
    assert -30 <= refused.tokens < -29
    await age(store.database, 29)
    assert not (await own.take(ask)).admitted
    await age(store.database, 2)
    assert (await own.take(ask)).admitted


async def test_spent_tokens_are_told_along(own):
    """A request may bring what earlier ones used, and is refused for it."""
    ask = Ask("key", RateLimits(tokens=60), 0, 0)
    await own.take(ask)
    assert not (await own.take(Ask("key", ask.limits, 0, 60))).admitted


async def test_a_refusal_takes_nothing(own):
    """A request that tokens or running ones keep out leaves the requests of its minute."""
    limits = RateLimits(requests=10, concurrent=1)
    assert (await own.take(Ask("key", limits, 0, 0))).requests == 9
    refused = await own.take(Ask("key", limits, 1, 0))
    assert (refused.admitted, round(refused.requests)) == (False, 9)


async def test_what_a_process_says_runs_is_what_runs(own, store):
    """It is absolute, and other processes' is left alone; 0 is nobody."""
    other, limits = Quotas(store.database, "4567cdef"), RateLimits(concurrent=3)
    assert (await own.take(Ask("key", limits, 0, 0))).admitted
    assert (await other.take(Ask("key", limits, 1, 0))).admitted
    assert not (await own.take(Ask("key", limits, 1, 0))).admitted
    await other.tell(Ask("key", limits, 0, 0))
    assert (await own.take(Ask("key", limits, 1, 0))).admitted
    assert (await other.take(Ask("key", limits, 0, 0))).admitted
    assert not (await other.take(Ask("key", limits, 1, 0))).admitted


async def test_changed_limits_hold_from_the_next_request_on(own):
    """A bucket holds no more than its new limit; one that had none is filled."""
    assert (await own.take(Ask("key", RateLimits(requests=100), 0, 0))).requests == 99
    assert (await own.take(Ask("key", RateLimits(requests=5), 0, 0))).requests == 4
    assert (await own.take(Ask("key", RateLimits(requests=5, tokens=7), 0, 0))).tokens == 7


async def test_who_asks_no_more_is_forgotten(own, store):
    """After a day; nobody else."""
    await own.take(Ask("old", RateLimits(5, 5, 5), 0, 0))
    await age(store.database, 86_401)
    await own.take(Ask("new", RateLimits(5, 5, 5), 0, 0))
    await own.sweep()
    async with store.database.reading() as connection:
        rows = (await connection.exec_driver_sql("SELECT subject FROM quotas")).all()
    assert [row.subject for row in rows] == ["new"]


async def test_a_lease_that_is_renewed_stays(own, store):
    """A process that says again what runs is counted on, however long its requests take."""
    other, limits = Quotas(store.database, "4567cdef"), RateLimits(concurrent=1)
    await other.take(Ask("key", limits, 0, 0))
    for _ in range(3):
        await age(store.database, quotas.LEASE_SECONDS * 0.9)
        await other.tell(Ask("key", limits, 1, 0))
    assert not (await own.take(Ask("key", limits, 0, 0))).admitted
