"""How far a request moves the states, against their own length: told, warned of, and limited."""

import numpy as np
import pytest

from server.dose import dose
from server.errors import InvalidRequest
from steering.spec import Operation, Term
from steering.vector import Layer, SteeringVector, Units
from tests.server.steering_world import World


@pytest.mark.parametrize(
    ("entries", "dose"),
    [
        ([{"vector_id": "one"}], 0.5),  # layer 1: 1/2; layer 2: sqrt(2)/4
        ([{"vector_id": "one", "strength": -2}], 1.0),
        ([{"vector_id": "one", "layers": [2]}], 0.25),
        ([{"vector_id": "one", "operation": "norm-preserving-add"}], 0.5),
        # In one direction shifts add up, and they stay in the stream from layer to layer.
        ([{"vector": {"1": [1, 0, 0], "2": [3, 0, 0]}}], 1.0),
        ([{"vector": {"1": [0.5, 0, 0]}}, {"vector": {"1": [0.5, 0, 0]}}], 0.5),
        # Opposed ones cancel, but neither counts for less than it moves alone.
        ([{"vector": {"1": [2, 0, 0]}}, {"vector": {"1": [-2, 0, 0]}}], 1.0),
        ([{"vector_id": "one", "operation": "project-out"}], 0.0),
        ([{"vector_id": "one", "operation": "replace", "value": -3, "layers": [1]}], 1.5),
        ([{"vector_id": "one", "operation": "clamp", "low": -1, "high": 2, "strength": 0.5}], 0.5),
        ([{"vector_id": "one", "operation": "clamp", "high": 0.5}], 0.25),
        # Beyond 0 to 1 the component itself is moved further, which may be all of the state.
        ([{"vector_id": "one", "operation": "project-out", "strength": 1.5}], 0.5),
        ([{"vector_id": "one", "operation": "project-out", "strength": -0.75}], 0.75),
        ([{"vector_id": "one", "operation": "replace", "value": 1, "strength": 2, "layers": [1]}], 2.0),
    ],
)
async def test_doses(entries, dose):
    """The dose is the largest shift of the stream at any layer, against the length of the state there."""
    applied = await World().apply(*entries)
    assert applied.dose == pytest.approx(dose)


async def test_a_dose_above_the_safe_one_is_warned_of():
    """The text still comes, with a warning in header and evidence; at the safe dose there is none."""
    world = World(safe=0.5)
    assert (await world.apply({"vector_id": "one"})).warning is None
    applied = await world.apply({"vector_id": "one", "strength": 1.5})
    warning = "relative dose 0.75 is above 0.5: the text may degrade"
    assert applied.headers()["x-steersman-warning"] == warning
    assert applied.described()["warning"] == warning


async def test_a_dose_above_the_limit_is_refused():
    """Up to the limit a request runs; beyond it the error says how far, and nothing is held."""
    (await World(most=2.0).apply({"vector_id": "one", "strength": 4})).release()
    error = await World(most=2.0).refused(InvalidRequest, {"vector_id": "one", "strength": 4.1})
    assert (error.reason, error.param) == ("dose_too_high", "steering")
    assert "would be 2.05" in str(error)
    many = [{"vector": {"0": [0.9, 0, 0]}}] * 3
    assert "would be 2.70" in str(await World().refused(InvalidRequest, *many))
    worst = {"vector": {"0": [1e9, 1e9, 1e9]}, "strength": 1000}
    await World().refused(InvalidRequest, *[worst] * 16)
    projected = {"vector_id": "one", "operation": "project-out", "strength": 1000}
    assert "would be 999.00" in str(await World().refused(InvalidRequest, projected))


def test_latents_count_by_what_they_write():
    """A sparse vector's dose is how far its latents can move a state, whatever its direction says."""
    units = Units(
        read=np.eye(2, 3, dtype=np.float32),
        write=np.eye(2, 3, dtype=np.float32) * 2,
        bias=np.zeros(2, np.float32),
        offset=np.array([3, 4], np.float32),
        threshold=np.zeros(2, np.float32),
    )
    small = Layer(np.full(3, 1e-6, np.float32), None, units)
    vector = SteeringVector({1: small})
    doses = dose(Term(vector.digest, (1,), Operation.UNITS, 0.5), vector, 1, 20.0)
    assert doses == pytest.approx(0.5 * 10 / 20)
