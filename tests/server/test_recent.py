"""What was read from the database a moment ago."""

import asyncio

import pytest

from server import recent as module
from server.errors import NotFound, Unavailable
from server.recent import Recent


class Clock:
    now = 100.0

    def __call__(self):
        return self.now


class Source:
    """Counts its reads; `value` is what is there."""

    def __init__(self, value="first"):
        self.value, self.reads, self.failure = value, 0, None

    async def __call__(self):
        self.reads += 1
        if self.failure is not None:
            raise self.failure
        return self.value


async def test_a_value_is_read_once_in_its_time():
    """Within `seconds` the source is not asked again, after them it is."""
    clock, source = Clock(), Source()
    recent = Recent(2.0, clock=clock)
    assert [await recent.get("k", source) for _ in range(3)] == ["first"] * 3
    assert source.reads == 1
    clock.now += 2.0
    source.value = "second"
    assert await recent.get("k", source) == "second"


async def test_what_was_not_there_is_asked_for_again():
    """A miss is not kept: what is made next is found at once."""
    source = Source(None)
    recent = Recent(2.0)
    assert await recent.get("k", source) is None
    source.value = "made"
    assert await recent.get("k", source) == "made"


async def test_a_change_is_seen_at_once():
    """After `forget` the source is asked, though the time is not over."""
    source = Source()
    recent = Recent(2.0)
    await recent.get("k", source)
    source.value = "second"
    recent.forget()
    assert await recent.get("k", source) == "second"


async def test_a_read_that_began_before_a_change_is_not_kept():
    """What it brings may be older than the change."""
    recent, source, going = Recent(2.0), Source("new"), asyncio.Event()

    async def slow():
        await going.wait()
        return "old"

    reading = asyncio.create_task(recent.get("k", slow))
    await asyncio.sleep(0)
    recent.forget()
    going.set()
    assert await reading == "old"
    assert await recent.get("k", source) == "new"


async def test_only_the_latest_are_kept():
    """Whatever clients name, memory is bounded."""
    recent, source = Recent(2.0, limit=2), Source()
    for key in ("a", "b", "c", "c"):
        await recent.get(key, source)
    assert source.reads == 3
    await recent.get("a", source)
    assert source.reads == 4


async def test_what_was_read_holds_while_the_source_is_away():
    """For ten minutes, of what was ever there; then, and for all else, the caller hears of it."""
    clock, source = Clock(), Source()
    recent = Recent(2.0, clock=clock)
    await recent.get("k", source)
    source.failure = Unavailable("away")
    clock.now += 2.0 + 599
    assert await recent.get("k", source) == "first"
    with pytest.raises(Unavailable):
        await recent.get("other", source)
    clock.now += 1
    with pytest.raises(Unavailable):
        await recent.get("k", source)


@pytest.mark.parametrize("gone", [None, NotFound("no such thing")])
async def test_what_is_known_to_be_gone_does_not_come_back(gone):
    """Neither by a source that is away afterwards, nor after a change of this process."""
    clock, source = Clock(), Source()
    recent = Recent(2.0, clock=clock)
    for key in ("k", "own"):
        await recent.get(key, source)
    clock.now += 2.0
    source.value, source.failure = None, gone
    if gone is None:
        assert await recent.get("k", source) is None
    else:
        with pytest.raises(NotFound):
            await recent.get("k", source)
    source.failure = Unavailable("away")
    with pytest.raises(Unavailable):
        await recent.get("k", source)
    recent.forget()
    with pytest.raises(Unavailable):
        await recent.get("own", source)


async def test_a_source_that_hangs_is_waited_for_a_moment(monkeypatch):
    """Where something is known; where a change came meanwhile that is not told either."""
    monkeypatch.setattr(module, "PATIENCE_SECONDS", 0.02)
    clock, source = Clock(), Source()
    recent = Recent(2.0, clock=clock)
    await recent.get("k", source)
    clock.now += 2.0
    hangs = asyncio.Event().wait
    assert await recent.get("k", hangs) == "first"
    waiting = asyncio.create_task(recent.get("k", hangs))
    await asyncio.sleep(0)
    recent.forget()
    with pytest.raises(Unavailable):
        await waiting
