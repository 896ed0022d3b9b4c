"""Watching on the device: drift and latches that a kernel moves, so that no decode step waits for the host.

With asynchronous scheduling a step is prepared before the host can know what the step before has scored. A
latch that the kernel sets, and reads from the next step on, needs no host.
"""

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from steering.layout import Sighting
from steering.mirror import CapacityError, Mirror, Rows, TokenMap
from steering.spec import MAX_WATCHES
from steering.table import DetectorLines
from steering.vector import Scaling
from steering.watch import Watching

COLUMNS: Final = 8  # of a watch's integers, of its floats and of a latent's
STATE: Final = 4  # score and level; whether the watch has drifted, now and at the step's begin
_SCALINGS: Final = {scaling: code for code, scaling in enumerate(Scaling)}

Watchings = tuple[Watching, ...]


@dataclass(frozen=True, slots=True)
class _Look:
    """What one step scored, on its way to the host: `state` holds the rows of each block that was seen."""

    state: Tensor
    copied: "torch.cuda.Event | None"
    blocks: tuple[tuple[int, Watchings], ...]


class Latches:
    """A block of MAX_WATCHES rows for each watched request, by its first row; the first block is no one's.

    A block's device state is the truth until it is given up; `Watching` follows it, a step or two behind.
    """

    def __init__(self, bank: Tensor, max_tokens: int, max_requests: int) -> None:
        device, rows = bank.device, (max_requests + 1) * MAX_WATCHES
        self.block_of_token = TokenMap(max_tokens, device)
        self.integers = Mirror((rows, COLUMNS), device)  # layer, first latent, latents, scaling, watches
        self.floats = Mirror((rows, COLUMNS), device, torch.float32)  # offset, smoothing, threshold
        self.state = Mirror((rows, STATE), device, torch.float32)
        self.latent_lines = Rows("latents that are watched", (len(bank),), device)
        # bias, threshold, gain, shift, weight
        self.latent_numbers = torch.zeros(len(bank), COLUMNS, device=device)
        self._blocks: dict[int, tuple[int, Watchings]] = {}  # an id is that of the object beside it
        self._detectors: dict[int, tuple[DetectorLines, int]] = {}
        self._coming: tuple[tuple[int, Watchings], ...] = ()
        self._launched = False
        self._looks: deque[_Look] = deque()
        self._spare: list[tuple[Tensor, torch.cuda.Event | None]] = []
        self._free: list[int] = []
        self._clear()

    def begin(self) -> None:
        """A step is about to be launched: send for what the step before it scored."""
        self._look()
        self._launched = True
        self._follow(wait=False)

    def settle(self) -> None:
        """Bring every `Watching` to the last step launched. Waits for the device where there is something."""
        self._look()
        self._launched = False
        self._follow(wait=True)

    def place(self, sightings: Sequence[Sighting]) -> None:
        """The coming step scores these. Raises CapacityError where they alone are too many."""
        for key in [key for key, (_, watchings) in self._blocks.items() if watchings[0].over]:
            self._free.append(self._blocks.pop(key)[0])
        try:
            blocks = [self._block(sighting.watchings) for sighting in sightings]
        except CapacityError:
            self._follow(wait=True)
            self._clear()
            blocks = [self._block(sighting.watchings) for sighting in sightings]
        self.latent_lines.flush()
        self._coming = tuple((block, each.watchings) for block, each in zip(blocks, sightings, strict=True))
        self.block_of_token.fill(
            [(each.start, each.end, block) for block, each in zip(blocks, sightings, strict=True)]
        )

    def _clear(self) -> None:
        self._blocks.clear()
        self._detectors.clear()
        self.latent_lines.clear()
        self._free = list(range(len(self.state.host) - MAX_WATCHES, 0, -MAX_WATCHES))

    def _block(self, watchings: Watchings) -> int:
        if id(watchings) not in self._blocks:
            if not self._free:
                raise CapacityError("a step watches more requests than the engine batches")
            block = self._free[-1]
            for row, watching in enumerate(watchings, block):
                own, watch = watching.detector, watching.watch
                latents = (self._latents(own), len(own.read), _SCALINGS[own.scaling])
                self.integers.host[row, :5] = (watch.layer, *latents, len(watchings))
                self.floats.host[row, :3] = (own.offset, watch.smoothing, watch.threshold)
                drifted = float(watching.since is not None)
                self.state.host[row] = (0.0, watching.level, drifted, drifted)
            for table in (self.integers, self.floats, self.state):
                table.send(block, block + len(watchings))
            self._blocks[id(watchings)] = self._free.pop(), watchings
        return self._blocks[id(watchings)][0]

    def _latents(self, detector: DetectorLines) -> int:
        if id(detector) not in self._detectors:
            count = len(detector.read)
            first = self.latent_lines.claim(count)
            self.latent_lines.host[first : first + count] = detector.read.numpy()
            parts = (detector.bias, detector.threshold, detector.gain, detector.shift, detector.weight)
            for column, numbers in enumerate(parts):  # these are on the device already
                self.latent_numbers[first : first + count, column].copy_(numbers, non_blocking=True)
            self._detectors[id(detector)] = detector, first
        return self._detectors[id(detector)][1]

    def _look(self) -> None:
        if not self._launched or not self._coming:
            return
        state, copied = self._spare.pop() if self._spare else self._buffer()
        end = max(block for block, _ in self._coming) + MAX_WATCHES
        state[:end].copy_(self.state.device[:end], non_blocking=True)
        if copied is not None:
            copied.record()
        self._looks.append(_Look(state, copied, self._coming))

    def _buffer(self) -> "tuple[Tensor, torch.cuda.Event | None]":
        cuda = self.state.device.device.type == "cuda"
        state = torch.zeros(self.state.device.shape, pin_memory=cuda)
        return state, torch.cuda.Event() if cuda else None

    def _follow(self, *, wait: bool) -> None:
        while self._looks:
            look = self._looks[0]
            if look.copied is not None:
                if wait:
                    look.copied.synchronize()
                elif not look.copied.query():
                    return
            rows: NDArray[np.float32] = look.state.numpy()
            for block, watchings in look.blocks:
                for watching, (score, level, drifted, _) in zip(
                    watchings, rows[block : block + len(watchings)].tolist(), strict=True
                ):
                    watching.follow(score, level, drifted=drifted > 0)
            self._looks.popleft()
            self._spare.append((look.state, look.copied))
