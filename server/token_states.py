"""States of single tokens, from ordinary forward passes of the engine."""

from collections.abc import Sequence
from typing import Protocol

import numpy as np

from steering.spec import CAPTURE_LINES
from steering.vector import Array


class CapturedStates(Protocol):
    @property
    def means(self) -> Array: ...


class Engine(Protocol):
    async def capture(
        self, tokens: Sequence[int], spans: Sequence[tuple[int, int]], layers: Sequence[int]
    ) -> CapturedStates: ...


async def token_states(engine: Engine, tokens: Sequence[int], positions: range, layer: int) -> Array:
    """`[len(positions), hidden]`: what leaves block `layer` for those of `tokens` at `positions`.

    One forward pass for each MOST of them.
    """
    found: list[Array] = []
    for first in range(0, len(positions), MOST):
        wanted = positions[first : first + MOST]
        states = await engine.capture(
            tokens[: wanted[-1] + 1], [(position, position + 1) for position in wanted], [layer]
        )
        found.append(states.means[:, 0])
    return np.concatenate(found) if found else np.zeros((0, 0), np.float32)


MOST = 4 * CAPTURE_LINES  # in one pass: a GPU holds the states of several such texts
