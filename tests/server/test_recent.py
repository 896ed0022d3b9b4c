"""What was read from the database a moment ago."""

import asyncio

from server.recent import Recent


class Clock:
    now = 100.0

    def __call__(self):
        return self.now


class Source:
    """Counts its reads; `value` is what is there."""

    def __init__(self, value="first"):
        self.value, self.reads = value, 0

    async def __call__(self):
        self.reads += 1
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
