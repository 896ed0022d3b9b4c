"""Relative doses: how far vectors move a state, in the state's own length."""

from collections.abc import Iterator, Mapping
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from steering.spec import Operation, Term
from steering.vector import SteeringVector


def summed(shifts: Mapping[int, NDArray[np.float32]], norms: NDArray[np.float32]) -> Iterator[float]:
    """Doses of all that was added up to each layer of `shifts`, where the states after it are shortest."""
    layers = sorted(shifts)
    total = np.zeros(1, np.float32)
    for layer, following in pairwise([*layers, len(norms)]):
        total = total + shifts[layer]
        yield float(np.linalg.norm(total) / norms[layer:following].min())


def dose(made: Term, vector: SteeringVector, layer: int, norm: float) -> float:
    """How far a state of length `norm` can move, in that length.

    A clamp's bound stands for the move to it. A strength beyond 0 to 1 moves the component, which is at most
    the state itself, that many times further.
    """
    strength = abs(made.strength)
    own = vector.layers[layer]
    if made.operation is Operation.UNITS and own.units is not None:
        return strength * float(np.linalg.norm(own.units.offset @ own.units.write)) / norm
    if not made.operation.bounds:
        return strength * vector.norms[layer] / norm
    bounds = [abs(bound) for bound in (made.low, made.high) if np.isfinite(bound)]
    if made.operation is Operation.LATENTS:  # a latent of length 1 moves its decoder row by as much
        return strength * max(bounds, default=0.0) * vector.norms[layer] / norm
    return strength * max(bounds, default=0.0) / norm + max(made.strength - 1, -made.strength, 0.0)
