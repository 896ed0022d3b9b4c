"""What holds while a request is steered, and after it: vectors in the engine, and evidence."""

import asyncio
import gc

import pytest
from prometheus_client import REGISTRY

from server.errors import NotFound, Unavailable
from tests.server.steering_world import ONE, World, directions


async def test_one_vector_by_id():
    """A stored vector is loaded, held until it is released, and told of in full."""
    world = World()
    applied = await world.apply(
        {"vector_id": "one", "strength": 0.5, "tokens": "generated", "token_start": 3}
    )
    (term,) = applied.spec.terms
    assert (term.vector, term.layers, term.strength) == (ONE.digest, (1, 2), 0.5)
    assert world.held == world.engine.resident == {ONE.digest}
    await applied.count()
    assert applied.described() == {
        "fingerprint": applied.spec.fingerprint(),
        "vectors": [
            {
                "id": "one",
                "name": "name of one",
                "digest": ONE.digest,
                "operation": "add",
                "strength": 0.5,
                "layers": [1, 2],
                "tokens": "generated",
                "token_start": 3,
                "relative_dose": {"1": 0.25, "2": 0.125},
            }
        ],
        "dose": 0.25,
        "prompt_tokens": 7,
        "generated_tokens": 5,
    }
    assert applied.headers() == {"x-steersman-steering": applied.spec.fingerprint()}
    applied.release()
    applied.release()
    assert world.held == set()
    assert world.engine.asked == [applied.spec.trace]
    assert world.engine.forgotten == []


async def test_each_request_has_its_own_trace():
    """The same effect has the same fingerprint, but evidence of its own."""
    world = World()
    first, second = await world.apply({"vector_id": "one"}), await world.apply({"vector_id": "one"})
    assert first.spec.fingerprint() == second.spec.fingerprint()
    assert first.spec.trace != second.spec.trace


async def test_a_full_table_refuses_and_loses_nothing():
    """Where no row is free the request gets Unavailable; when it is, the same request runs."""
    world = World(rows=2)
    first = await world.apply({"vector_id": "one"})
    with pytest.raises(Unavailable) as refused:
        await world.apply({"vector_id": "other", "strength": 0.1})
    assert refused.value.retry_after == 1
    first.release()
    (await world.apply({"vector_id": "other", "strength": 0.1})).release()
    assert world.held == set()


async def test_evidence_that_is_missing_is_an_error():
    """A request that the worker did not steer is Unavailable, never an answer; its lease ends too."""
    world = World()
    applied = await world.apply({"vector_id": "one"})
    world.engine.problem = "the request ran unsteered"
    with pytest.raises(Unavailable, match="unsteered"):
        await applied.count()
    applied.release()
    assert (world.held, world.engine.forgotten) == (set(), [])


async def test_an_aborted_requests_evidence_is_dropped():
    """Released without having been counted, the worker is told to forget it, once."""
    world = World()
    applied = await world.apply({"vector_id": "one"})
    applied.release()
    applied.release()
    assert world.engine.forgotten == [applied.spec.trace]


async def test_a_forgotten_request_holds_nothing():
    """What was applied to a request that nobody finished gives its vectors free when it is collected."""
    world = World()
    applied = await world.apply({"vector_id": "one"})
    del applied
    await asyncio.sleep(0)  # the loop lets go of the task's last result
    gc.collect()
    assert world.held == set()


async def test_counting_is_measured():
    """Steered tokens by phase, and vectors by operation, add up in the metrics."""

    def value(name: str, **labels: str) -> float:
        return REGISTRY.get_sample_value(name, labels) or 0.0

    before = (
        value("steersman_steered_tokens_total", phase="prompt"),
        value("steersman_steered_tokens_total", phase="generated"),
        value("steersman_steering_requests_total", operation="clamp"),
    )
    world = World()
    applied = await world.apply(
        {"vector_id": "one", "operation": "project-out"}, {"vector_id": "other", "strength": 0.1}
    )
    await applied.count()
    applied.release()
    after = (
        value("steersman_steered_tokens_total", phase="prompt"),
        value("steersman_steered_tokens_total", phase="generated"),
        value("steersman_steering_requests_total", operation="clamp"),
    )
    assert [late - early for early, late in zip(before, after, strict=True)] == [7, 5, 1]


async def test_a_vector_deleted_while_it_is_used():
    """A request goes on with what it began with; the next one does not find it."""
    world = World()
    applied = await world.apply({"vector_id": "one"})
    del world.stored.vectors["one"]
    await applied.count()
    assert applied.described()["vectors"][0]["id"] == "one"
    applied.release()
    await world.refused(NotFound, {"vector_id": "one"})


async def test_a_client_that_leaves_while_its_vector_loads():
    """The vector ends up free, whatever the moment."""
    world = World(wait=5)
    for steps in range(12):
        task = asyncio.create_task(world.apply({"vector_id": "one"}))
        for _ in range(steps):
            await asyncio.sleep(0)
        task.cancel()
        done = await asyncio.gather(task, return_exceptions=True)
        if not isinstance(done[0], BaseException):
            done[0].release()
        for _ in range(12):
            await asyncio.sleep(0)
        assert world.held == set()
        world.stored.vectors["one"] = directions(l1=[steps + 1, 0, 0])
