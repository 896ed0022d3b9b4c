"""Which vectors are in the engine: leases, room, waiting, and what fails in the middle."""

import asyncio
import gc

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from prometheus_client import REGISTRY

from server.errors import InvalidRequest, SteersmanError, Unavailable
from server.residency import Residency
from steering.vector import SteeringVector


def vector(name: int, layers: int = 1) -> SteeringVector:
    """A vector of `layers` rows, each name with its own digest."""
    return SteeringVector.of({layer: np.array([name + 1, 1], np.float32) for layer in range(layers)})


class Table:
    """The engine's table: refuses what does not fit, and what is unloaded while somebody holds it.

    To unload what it did not take is no error there.
    """

    def __init__(self, rows: int) -> None:
        self.rows, self.used = rows, 0
        self.resident: dict[str, int] = {}
        self.loads: list[str] = []
        self.broken: set[str] = set()
        self.gate = asyncio.Event()
        self.gate.set()

    async def load(self, digest: str, blob: bytes) -> None:
        await self.gate.wait()
        await asyncio.sleep(0)
        if digest in self.broken:
            raise SteersmanError("no such luck")
        assert digest not in self.resident
        self.resident[digest] = SteeringVector.from_blob(blob).rows
        self.loads.append(digest)
        self.used += self.resident[digest]
        assert self.used <= self.rows

    async def unload(self, digests: list[str]) -> None:
        await asyncio.sleep(0)
        for digest in digests:
            assert digest in self.resident or digest in self.broken
            self.used -= self.resident.pop(digest, 0)


def opened(rows: int, wait: float = 5.0) -> tuple[Table, Residency]:
    table = Table(rows)
    return table, Residency(table, rows, wait)


async def settled() -> None:
    for _ in range(20):
        await asyncio.sleep(0)


async def test_a_vector_is_loaded_once():
    """Requests for one vector share it, at the same moment and one after another."""
    table, residency = opened(4)
    first, second = await asyncio.gather(residency.hold([vector(1)]), residency.hold([vector(1)]))
    first.release()
    second.release()
    (await residency.hold([vector(1), vector(1)])).release()
    assert table.loads == [vector(1).digest]


async def test_the_longest_unused_goes_first():
    """Room is made by unloading what nobody holds, the longest unused first, and no more than needed."""
    table, residency = opened(3)
    held = await residency.hold([vector(0)])
    for name in (1, 2, 1):
        (await residency.hold([vector(name)])).release()
    (await residency.hold([vector(3)])).release()
    assert set(table.resident) == {vector(name).digest for name in (0, 1, 3)}
    held.release()


async def test_what_is_wanted_is_not_unloaded_to_make_room_for_the_rest():
    """A request for a resident and a new vector keeps the first while it makes room for the second."""
    table, residency = opened(2)
    for name in (1, 2):
        (await residency.hold([vector(name)])).release()
    lease = await residency.hold([vector(1), vector(3)])
    assert set(table.resident) == {vector(1).digest, vector(3).digest}
    assert table.loads.count(vector(1).digest) == 1
    lease.release()


async def test_more_than_the_table_is_refused_at_once():
    """A request that could never fit does not wait."""
    _, residency = opened(2, wait=60)
    with pytest.raises(InvalidRequest, match="take 3 rows"):
        await residency.hold([vector(1, layers=3)])


async def test_a_request_waits_for_room():
    """When rows are exhausted a request waits, and gets its turn as soon as they are released."""
    table, residency = opened(2)
    lease = await residency.hold([vector(1, layers=2)])
    waiting = asyncio.create_task(residency.hold([vector(2)]))
    await settled()
    assert not waiting.done()
    lease.release()
    (await asyncio.wait_for(waiting, 1)).release()
    assert set(table.resident) == {vector(2).digest}


@pytest.mark.parametrize("wait", [0.0, 0.02])
async def test_waiting_ends_with_a_refusal(wait):
    """After `wait_seconds`, at once where they are 0, the request is refused and told when to come back."""
    _, residency = opened(1, wait)
    lease = await residency.hold([vector(1)])
    with pytest.raises(Unavailable, match="all steering table rows are in use") as refused:
        await asyncio.wait_for(residency.hold([vector(2)]), 1)
    assert refused.value.retry_after == 1
    (await residency.hold([vector(1)])).release()
    lease.release()
    (await residency.hold([vector(2)])).release()


async def test_a_small_request_is_not_kept_by_a_large_one():
    """While one request waits for much room, another that fits goes on."""
    _, residency = opened(3)
    lease = await residency.hold([vector(1)])
    large = asyncio.create_task(residency.hold([vector(2, layers=3)]))
    await settled()
    (await asyncio.wait_for(residency.hold([vector(3)]), 1)).release()
    lease.release()
    (await asyncio.wait_for(large, 1)).release()


async def test_a_lease_is_released_once():
    """Releasing again changes nothing for others that hold the same vector."""
    _, residency = opened(1, wait=0)
    first, second = await residency.hold([vector(1)]), await residency.hold([vector(1)])
    first.release()
    first.release()
    with pytest.raises(Unavailable):
        await residency.hold([vector(2)])
    second.release()
    (await residency.hold([vector(2)])).release()


async def test_a_forgotten_lease_is_released():
    """A lease that is lost gives its vector free and wakes who waits for it."""
    _, residency = opened(1)
    lease = await residency.hold([vector(1)])
    waiting = asyncio.create_task(residency.hold([vector(2)]))
    await settled()
    del lease
    gc.collect()
    (await asyncio.wait_for(waiting, 1)).release()


async def test_a_lease_may_be_forgotten_in_another_thread():
    """The collector may run anywhere; who waits is woken all the same."""
    _, residency = opened(1)
    leases = [await residency.hold([vector(1)])]
    waiting = asyncio.create_task(residency.hold([vector(2)]))
    await settled()
    await asyncio.to_thread(leases.clear)
    (await asyncio.wait_for(waiting, 1)).release()


def test_a_lease_may_outlive_its_loop():
    """A lease forgotten after the server has stopped raises nothing."""
    lease = asyncio.run(_held())
    lease.release()


async def _held():
    _, residency = opened(1)
    return await residency.hold([vector(1)])


async def test_a_cancelled_waiter_is_gone():
    """A client that leaves while it waits takes nothing: its vector is not loaded when room comes."""
    table, residency = opened(1)
    lease = await residency.hold([vector(1)])
    waiting = asyncio.create_task(residency.hold([vector(2)]))
    await settled()
    waiting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await waiting
    lease.release()
    await settled()
    assert set(table.resident) == {vector(1).digest}
    assert len(asyncio.all_tasks()) == 1
    (await residency.hold([vector(3)])).release()


async def test_a_client_that_leaves_while_it_loads():
    """The load goes on to its end, so that count and table agree, and the vector is free afterwards."""
    table, residency = opened(1, wait=0.5)
    table.gate.clear()
    loading = asyncio.create_task(residency.hold([vector(1)]))
    await settled()
    loading.cancel()
    with pytest.raises(asyncio.CancelledError):
        await loading
    table.gate.set()
    (await residency.hold([vector(2)])).release()
    assert table.loads == [vector(1).digest, vector(2).digest]
    assert set(table.resident) == {vector(2).digest}


async def test_a_failed_load_loses_no_row_and_blocks_nobody():
    """What was loaded before the failure stays usable, what was not is not counted, and others go on."""
    table, residency = opened(2, wait=0)
    table.broken.add(vector(2).digest)
    with pytest.raises(SteersmanError, match="no such luck"):
        await residency.hold([vector(1), vector(2)])
    (await residency.hold([vector(3, layers=2)])).release()
    table.broken.clear()
    (await residency.hold([vector(1), vector(2)])).release()
    assert table.used == 2


async def test_a_failure_ends_no_other_request():
    """Of two requests at once, the one whose vector cannot be loaded fails alone."""
    table, residency = opened(2)
    table.broken.add(vector(2).digest)
    good, bad = await asyncio.gather(
        residency.hold([vector(1)]), residency.hold([vector(2)]), return_exceptions=True
    )
    assert isinstance(bad, SteersmanError)
    good.release()


async def test_a_thousand_vectors_in_turn():
    """Many vectors pass through a small table, and nothing remains of those that left."""
    table, residency = opened(8)

    async def use(name: int) -> None:
        lease = await residency.hold([vector(name, layers=1 + name % 3), vector(name % 7)])
        await asyncio.sleep(0)
        lease.release()

    numbers = iter(range(1000))

    async def worker() -> None:
        for number in numbers:
            await use(number)

    await asyncio.wait_for(asyncio.gather(*(worker() for _ in range(12))), 60)
    assert residency._used == table.used <= 8
    assert residency._entries.keys() == table.resident.keys()
    assert not any(entry.holders for entry in residency._entries.values())


uses = st.lists(
    st.tuples(
        st.lists(st.tuples(st.integers(0, 5), st.integers(1, 3)), min_size=1, max_size=3),
        st.integers(0, 4),
        st.sampled_from(["release", "forget", "cancel", "twice"]),
    ),
    max_size=25,
)


@example(
    [([(0, 3), (1, 1)], 0, "release"), ([(2, 1), (0, 1)], 1, "cancel"), ([(0, 2)], 0, "release")], {2}, 0.0
)
@given(uses, st.sets(st.integers(0, 5), max_size=2), st.sampled_from([0.0, 5.0]))
def test_any_use_leaves_the_table_whole(plan, broken, wait):
    """However requests come, fail, leave and are forgotten: held vectors are resident, and in the end the
    count agrees with the table and all of it can be had."""

    async def run() -> None:
        table, residency = opened(6, wait)
        table.broken = {vector(name, rows).digest for name in broken for rows in (1, 2, 3)}

        async def one(names: list[tuple[int, int]], pause: int, end: str) -> None:
            wanted = [vector(*name) for name in names]
            try:
                lease = await residency.hold(wanted)
            except SteersmanError:
                return
            try:
                for _ in range(pause):
                    assert {each.digest for each in wanted} <= table.resident.keys()
                    await asyncio.sleep(0)
            finally:
                if end != "forget":
                    lease.release()
                if end == "twice":
                    lease.release()

        tasks = []
        for names, pause, end in plan:
            task = asyncio.create_task(one(names, pause, end))
            tasks.append(task)
            for _ in range(pause):
                await asyncio.sleep(0)
            if end == "cancel":
                task.cancel()
        await asyncio.wait_for(asyncio.gather(*tasks, return_exceptions=True), 10)
        assert not [task.exception() for task in tasks if not task.cancelled() and task.exception()]
        await settled()
        table.broken.clear()
        (await asyncio.wait_for(residency.hold([vector(9, 3), vector(8, 3)]), 1)).release()
        assert residency._used == table.used == 6
        assert residency._entries.keys() == table.resident.keys()

    asyncio.run(run())


async def test_the_page_says_how_full_the_table_is():
    """Its lines, those in use and the vectors in them, also after one that the engine did not take."""

    def told():
        names = ("rows", "rows_used", "vectors_loaded")
        return [REGISTRY.get_sample_value(f"steersman_steering_{name}") for name in names]

    table, residency = opened(4)
    assert told()[0] == 4
    (await residency.hold([vector(0), vector(1, layers=2)])).release()
    assert told() == [4, 3, 2]
    table.broken.add(vector(2).digest)
    with pytest.raises(SteersmanError):
        await residency.hold([vector(2)])
    await settled()
    assert told() == [4, 3, 2]
