"""How strongly a vector may steer against a behaviour: as far as neutral text can bear it."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from server.evaluation import Engine, effect
from server.residency import Residency
from server.steering import SteeredModel
from steering.spec import SteeringSpec, Term
from steering.vector import SteeringVector

SAFE_COST = 0.25  # nats per token that neutral text may lose, as for presets
_FIRST_DOSE = 0.1
_HIGHER = (0.15, 0.2, 0.3, 0.4, 0.6, 0.8)
_LOWER = (0.05, 0.025)


@dataclass(frozen=True, slots=True)
class Tried:
    """`cost` is what neutral text lost in nats per token, None where its likelihood was no number."""

    dose: float
    strength: float
    cost: float | None

    @property
    def bearable(self) -> bool:
        return self.cost is not None and self.cost <= SAFE_COST


def total_dose(vector: SteeringVector, model: SteeredModel) -> float:
    """Relative dose of all of a vector's layers together at strength 1, as requests are held to it."""
    layers = sorted(vector.layers)
    rows = np.stack([vector.layers[layer].direction for layer in layers]).astype(np.float64)
    shifts = np.linalg.norm(np.cumsum(rows, axis=0), axis=1)
    shortest = [model.norms[layer:after].min() for layer, after in pairwise([*layers, model.layers])]
    return max(float((shifts / shortest).max()), *model.doses(vector).values())


async def correction(
    engine: Engine,
    residency: Residency,
    model: SteeredModel,
    vector: SteeringVector,
    neutral: Sequence[Sequence[int]],
) -> tuple[float | None, Sequence[Tried]]:
    """The largest strength below 0 that neutral texts bear, or None, and all that was tried.

    Doses are relative ones of the whole vector. Raises what the engine does.
    """
    whole, layers = total_dose(vector, model), tuple(sorted(vector.layers))
    tried: list[Tried] = []
    lease = await residency.hold([vector])
    try:
        plain = (await effect(engine, [], neutral, None)).neutral

        async def bearable(dose: float) -> bool:
            strength = -dose / whole
            spec = SteeringSpec((Term(vector.digest, layers, strength=strength),))
            cost = (await effect(engine, [], neutral, spec)).neutral - plain
            tried.append(Tried(dose, strength, cost if math.isfinite(cost) else None))
            return tried[-1].bearable

        rising = await bearable(_FIRST_DOSE)
        for dose in _HIGHER if rising else _LOWER:
            if await bearable(dose) is not rising:
                break
    finally:
        lease.release()
    borne = [each.strength for each in tried if each.bearable]
    return (min(borne) if borne else None), tried
