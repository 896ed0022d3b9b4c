"""The meter between requests and the store."""

import asyncio

import pytest

from server.errors import Unavailable
from server.usage import Usage, UsageMeter


class Recorder:
    """A store that fails as often as told, and adds up what it was given."""

    def __init__(self, failures: list[Exception]) -> None:
        self.failures = failures
        self.total: dict[str, Usage] = {}
        self.recorded = asyncio.Event()

    async def record_usage(self, usage, now) -> None:
        await asyncio.sleep(0)
        if self.failures:
            raise self.failures.pop()
        assert now.tzinfo is not None
        for key_id, used in usage.items():
            self.total[key_id] = self.total.get(key_id, Usage()) + used
        self.recorded.set()


async def test_a_failed_flush_keeps_the_counts(caplog):
    """Counts survive an outage, together with those added while the flush was failing."""
    meter, recorder = UsageMeter(), Recorder([Unavailable("away")])
    meter.add("a", prompt_tokens=1, completion_tokens=2)
    flush = asyncio.create_task(meter.flush(recorder))
    await asyncio.sleep(0)
    meter.add("a", prompt_tokens=10, completion_tokens=20)
    meter.add("b")
    await flush
    assert recorder.total == {}
    assert "kept" in caplog.text
    await meter.flush(recorder)
    await meter.flush(recorder)
    assert recorder.total == {"a": Usage(2, 11, 22), "b": Usage(1, 0, 0)}


async def test_a_flush_that_breaks_is_heard_and_keeps_the_counts():
    """An error that is no outage goes up, and still nothing is lost."""
    meter, recorder = UsageMeter(), Recorder([KeyError("bug")])
    meter.add("a")
    with pytest.raises(KeyError):
        await meter.flush(recorder)
    await meter.flush(recorder)
    assert recorder.total == {"a": Usage(1)}


async def test_the_meter_flushes_as_it_runs_and_when_it_is_stopped():
    """Counts arrive at the interval, and the last of them when the task is cancelled."""
    meter, recorder = UsageMeter(), Recorder([])
    running = asyncio.create_task(meter.run(recorder, 0.01))
    meter.add("a")
    await asyncio.wait_for(recorder.recorded.wait(), 5)
    meter.add("a")
    running.cancel()
    with pytest.raises(asyncio.CancelledError):
        await running
    assert recorder.total == {"a": Usage(2)}
