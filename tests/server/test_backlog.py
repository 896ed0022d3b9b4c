"""What waits for the database, whatever it is; the recorder's tests say more."""

import asyncio

import pytest

from server.backlog import Backlog
from server.errors import Unavailable


def backlog(write, batch=2, drop=None):
    return Backlog("things", write, drop or (lambda items: None), batch=batch)


async def test_a_flush_waits_for_what_is_being_written():
    """Whoever reads afterwards finds it."""
    written, go = [], asyncio.Event()

    async def write(items):
        await go.wait()
        written.extend(items)

    subject = backlog(write)
    subject.add(1)
    first = asyncio.create_task(subject.flush())
    await asyncio.sleep(0)
    assert len(subject) == 0
    second = asyncio.create_task(subject.flush())
    await asyncio.sleep(0)
    assert not second.done()
    go.set()
    await asyncio.gather(first, second)
    assert written == [1]


async def test_a_flush_ends_though_more_keeps_coming():
    written = []

    async def write(items):
        written.extend(items)
        subject.add(written[-1] + 1)

    subject = backlog(write)
    subject.add(1)
    await asyncio.wait_for(subject.flush(), 5)
    assert (written, len(subject)) == ([1], 1)


async def test_what_is_lost_at_the_end_is_told(caplog):
    async def write(items):
        raise Unavailable("away")

    subject = backlog(write)
    subject.add(1)
    running = asyncio.create_task(subject.run(0.01))
    await asyncio.sleep(0.05)
    running.cancel()
    with pytest.raises(asyncio.CancelledError):
        await running
    assert "1 things are lost" in caplog.text
