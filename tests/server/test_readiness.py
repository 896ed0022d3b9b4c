"""What behaviours miss: their model, a baseline, a vector, a strength."""

from dataclasses import replace

import numpy as np
import pytest

from server.behaviors import Behaviors
from server.readiness import BehaviorPart, ReadinessState, readiness
from server.store import DEFAULT_ACCOUNT
from server.vectors import NewVector, Vectors
from steering.vector import SteeringVector
from tests.server.behavior_world import MINE, MODEL, WIDTH, new


@pytest.fixture
async def found(store):
    """Adds a behaviour with a vector, changes both as told, and says what is missing."""
    await store.first_key()
    behaviors, vectors = Behaviors(store.database), Vectors(store.database)

    async def found(
        *, lost=False, fingerprint=MODEL.fingerprint, account=DEFAULT_ACCOUNT, model=MODEL, **fields
    ):
        vector = SteeringVector.of({4: np.ones(WIDTH, np.float32)})
        made = NewVector(account, vector, "caa", "org/made", fingerprint)
        if account is None:
            made = replace(made, preset="brevity")
        vector_id = await vectors.add(made)
        if lost:
            await vectors.delete(None, vector_id)
        record = await behaviors.add(new(f"b-{vector_id}", steering_vector_id=vector_id, **fields))
        [readied] = await readiness(MINE, [record], vectors, model)
        return readied

    return found


def parts(found):
    return [each.part for each in found.missing]


@pytest.mark.parametrize("account", [DEFAULT_ACCOUNT, None])
async def test_a_behaviour_with_all_its_parts_is_ready(found, account):
    """Its vector may be the account's own, or a preset that all share."""
    ready = await found(account=account)
    assert (ready.state, ready.missing) == (ReadinessState.READY, ())
    assert ready.monitored
    assert ready.corrected


async def test_a_vector_without_a_fingerprint_fits_by_its_shape(found):
    assert (await found(fingerprint=None)).state is ReadinessState.READY


async def test_a_deleted_vector(found):
    """It is monitored still, and the message says which one is gone and what to do."""
    partial = await found(lost=True)
    assert (partial.state, parts(partial)) == (ReadinessState.PARTIAL, [BehaviorPart.VECTOR])
    assert partial.monitored
    assert not partial.corrected
    assert "was deleted" in partial.missing[0].message
    assert "recompute-baselines" in partial.missing[0].message


async def test_a_vector_of_another_model(found):
    partial = await found(fingerprint="e" * 64)
    assert parts(partial) == [BehaviorPart.VECTOR]
    assert "org/made" in partial.missing[0].message


async def test_no_safe_strength(found):
    partial = await found(strength=None)
    assert parts(partial) == [BehaviorPart.STRENGTH]
    assert partial.monitored
    assert not partial.corrected


async def test_all_that_is_missing_is_told(found):
    assert parts(await found(lost=True, strength=None)) == [BehaviorPart.VECTOR, BehaviorPart.STRENGTH]


async def test_another_model_s(found):
    """Nothing else matters then."""
    partial = await found(lost=True, model_fingerprint="e" * 64, model_name="org/old")
    assert parts(partial) == [BehaviorPart.MODEL]
    assert "'org/old'" in partial.missing[0].message
    assert not partial.monitored
    assert not partial.corrected


async def test_a_server_that_cannot_steer(found):
    partial = await found(model=None)
    assert parts(partial) == [BehaviorPart.MODEL]
    assert not partial.monitored


async def test_no_behaviours_need_nothing(store):
    await store.first_key()
    assert await readiness(MINE, [], Vectors(store.database), MODEL) == []


async def test_another_version_s_baseline(store):
    await store.first_key()
    behaviors, vectors = Behaviors(store.database), Vectors(store.database)
    vector_id = await vectors.add(
        NewVector(MINE, SteeringVector.of({4: np.ones(WIDTH, np.float32)}), "caa", "m", MODEL.fingerprint)
    )
    record = replace(await behaviors.add(new(steering_vector_id=vector_id)), baseline=None)
    [partial] = await readiness(MINE, [record], vectors, MODEL)
    assert parts(partial) == [BehaviorPart.BASELINE]
    assert not partial.monitored
    assert partial.corrected
