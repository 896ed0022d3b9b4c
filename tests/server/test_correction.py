"""The strength against a behaviour: the largest that neutral text bears, whatever it costs to find out."""

import numpy as np
import pytest

from policies.steering import SteeringEntry
from server.correction import SAFE_COST, correction, total_dose
from server.residency import Residency
from server.steering import SteeredModel
from steering.vector import SteeringVector
from tests.server.behavior_world import MODEL, WIDTH, Engine
from tests.server.steering_world import MODEL as OTHER
from tests.server.steering_world import World, directions

AXIS = np.eye(WIDTH, dtype=np.float32)
VECTOR = SteeringVector.of({3: AXIS[0] * 0.5, 5: AXIS[0] * 0.5})  # states are 4 long: a quarter of one
NEUTRAL = [[1, 5, 6], [1, 7]]


async def corrected(cost, vector=VECTOR):
    engine = Engine()
    engine.cost = cost
    residency = Residency(engine, 64, 1.0)
    found = await correction(engine, residency, MODEL, vector, NEUTRAL)
    assert not any(entry.holders for entry in residency._entries.values())
    return *found, engine.strengths


@pytest.mark.parametrize(
    "vector",
    [
        directions(l0=[0.5, 0, 0], l2=[0, 0.25, 0]),
        directions(l1=[1, 0, 0], l2=[1, 0, 0], l3=[-2, 0, 0]),
        directions(l3=[0, 0.1, 0.1]),
        directions(l0=[0.3, 0, 0], l1=[-0.3, 0, 0]),
    ],
)
async def test_the_dose_of_a_vector_is_what_requests_are_held_to(vector):
    """All layers together, against the shortest states that see the shift."""
    world = World()
    world.stored.vectors["tried"] = vector
    checked = await world.steering.check({"steering": SteeringEntry(vector_id="tried")}, "me")
    assert total_dose(vector, OTHER) == pytest.approx(checked.dose, rel=1e-5)


async def test_the_largest_bearable_dose():
    """Against the vector; doses of the ladder are tried upwards until one costs too much."""
    strength, tried, strengths = await corrected(lambda strength: -0.25 * strength)
    assert total_dose(VECTOR, MODEL) == 0.25
    # A strength of -1 costs 0.25 nats and is a dose of 0.25: 0.2 is borne, 0.3 is not.
    assert strength == pytest.approx(-0.8)
    assert [each.dose for each in tried] == [0.1, 0.15, 0.2, 0.3]
    assert strengths == pytest.approx([-0.4, -0.6, -0.8, -1.2])
    assert [each.cost for each in tried] == pytest.approx([0.1, 0.15, 0.2, 0.3])
    assert [each.bearable for each in tried] == [True, True, True, False]


async def test_a_dose_that_costs_nothing_is_bounded():
    strength, tried, _ = await corrected(lambda strength: 0.0)
    assert tried[-1].dose == 0.8
    assert strength == pytest.approx(-3.2)


@pytest.mark.parametrize("beyond", [9.0, float("nan")])
async def test_smaller_doses_where_the_first_is_not_borne(beyond):
    strength, tried, _ = await corrected(lambda strength: beyond if strength < -0.25 else SAFE_COST)
    assert [each.dose for each in tried] == [0.1, 0.05]
    assert strength == pytest.approx(-0.2)


@pytest.mark.parametrize("cost", [9.0, float("nan")])
async def test_no_strength_is_safe(cost):
    strength, tried, _ = await corrected(lambda strength: cost)
    assert strength is None
    assert [each.dose for each in tried] == [0.1, 0.05, 0.025]
    assert {each.cost for each in tried} == {9.0 if cost == 9.0 else None}


async def test_the_vector_is_given_free_when_the_engine_fails():
    def broken(strength):
        raise RuntimeError("engine gone")

    engine = Engine()
    engine.cost = broken
    residency = Residency(engine, 64, 1.0)
    with pytest.raises(RuntimeError, match="engine gone"):
        await correction(engine, residency, MODEL, VECTOR, NEUTRAL)
    assert not any(entry.holders for entry in residency._entries.values())


def test_states_of_unequal_length():
    """A shift is judged against the shortest states from its layer to the next one."""
    norms = np.array([8, 8, 8, 2, 8, 8], np.float32)
    model = SteeredModel("m", "f" * 64, 6, WIDTH, norms)
    assert total_dose(SteeringVector.of({1: AXIS[0]}), model) == 0.5
    assert total_dose(SteeringVector.of({4: AXIS[0]}), model) == 0.125
