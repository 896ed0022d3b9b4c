"""The vectors that are resident on the device, as lines of one fixed table."""

from collections.abc import Collection, Iterator
from dataclasses import dataclass
from itertools import islice

import numpy as np
import torch
from torch import Tensor

from steering.vector import Array, Detector, Layer, Scaling, SteeringVector, Units, VectorError, tensors


class TableFull(Exception):
    """No room for another vector until one is unloaded."""


@dataclass(frozen=True, slots=True)
class ProbeLine:
    line: int
    bias: float
    slope: float


@dataclass(frozen=True, slots=True)
class UnitLines:
    """Lines of a layer's latents, `[latents]` each; the scalars as in `steering.vector.Units`."""

    read: Tensor
    write: Tensor
    bias: Tensor
    offset: Tensor
    threshold: Tensor


@dataclass(frozen=True, slots=True, eq=False)
class DetectorLines:
    """Lines `[latents]` of what a detector reads, and its numbers as in `steering.vector.Detector`."""

    read: Tensor
    bias: Tensor
    threshold: Tensor
    gain: Tensor
    shift: Tensor
    weight: Tensor
    offset: float
    scaling: Scaling


@dataclass(frozen=True, slots=True)
class ResidentLayer:
    """`direction` is a line; `norm` its length."""

    direction: int
    norm: float
    probe: ProbeLine | None
    units: UnitLines | None
    detector: DetectorLines | None


@dataclass(frozen=True, slots=True)
class Resident:
    layers: dict[int, ResidentLayer]
    lines: tuple[int, ...]


class VectorTable:
    """`bank` is `[lines, width]` float32, allocated once: captured graphs keep its address.

    Line 0 stays zero and stands for no vector.
    """

    def __init__(self, lines: int, width: int, device: torch.device) -> None:
        self.bank = torch.zeros(lines + 1, width, dtype=torch.float32, device=device)
        self._free = list(range(lines, 0, -1))
        self._resident: dict[str, Resident] = {}
        self._owners: dict[str, set[str]] = {}

    @property
    def lines(self) -> int:
        """How many there are for vectors."""
        return len(self.bank) - 1

    @property
    def free_lines(self) -> int:
        return len(self._free)

    def __len__(self) -> int:
        return len(self._resident)

    def find(self, digest: str) -> Resident | None:
        return self._resident.get(digest)

    def load(self, digest: str, blob: bytes, layers: int, owner: str = "") -> None:
        """Raises VectorError for bytes that are not what `digest` names or do not fit, and TableFull.

        A vector stays until each `owner` that loaded it has unloaded it: API processes share one table.
        """
        if digest in self._resident:
            self._owners[digest].add(owner)
            return
        vector = SteeringVector.from_blob(blob)
        if vector.digest != digest:
            raise VectorError(f"the bytes received hash to {vector.digest}, not {digest}")
        if vector.width != self.bank.shape[1]:
            raise VectorError(f"the vector is {vector.width} wide, the model {self.bank.shape[1]}")
        if not all(0 <= index < layers for index in vector.layers):
            raise VectorError(f"the model has layers 0 to {layers - 1}")
        if vector.rows > len(self._free):
            raise TableFull(f"{vector.rows} lines wanted, {len(self._free)} free")
        taken = [self._free.pop() for _ in range(vector.rows)]
        pending = iter(taken)
        try:
            placed = {index: self._place(layer, pending) for index, layer in vector.layers.items()}
        except BaseException:
            self._free += reversed(taken)
            raise
        self._resident[digest] = Resident(placed, tuple(taken))
        self._owners[digest] = {owner}

    def unload(self, digest: str, owner: str = "", in_use: Collection[str] = ()) -> None:
        """An unknown digest is no error. What requests still use is freed by a later `sweep`."""
        self._owners.get(digest, set()).discard(owner)
        self.sweep(in_use)

    def sweep(self, in_use: Collection[str] = ()) -> None:
        """Free the lines of vectors that nobody owns, but for those `in_use` by requests not yet gone."""
        for digest in [digest for digest, owners in self._owners.items() if not owners]:
            if digest not in in_use:
                del self._owners[digest]
                self._free += reversed(self._resident.pop(digest).lines)

    def _place(self, layer: Layer, lines: Iterator[int]) -> ResidentLayer:
        rows = tensors(layer)
        taken = [next(lines) for _ in rows]
        stacked = torch.from_numpy(np.stack(rows)).to(self.bank.device)
        self.bank[torch.tensor(taken, device=self.bank.device)] = stacked
        norm = float(np.linalg.norm(layer.direction.astype(np.float64)))
        rest = iter(taken[1:])
        probe, units, detector = None, None, None
        if layer.probe:
            probe = ProbeLine(next(rest), layer.probe.bias, layer.probe.slope)
        if layer.units:
            count = len(layer.units.bias)
            read, write = (torch.tensor(list(islice(rest, count))) for _ in range(2))
            units = UnitLines(read, write, *self._numbers(layer.units, "bias", "offset", "threshold"))
        if layer.detector:
            own = layer.detector
            parts = self._numbers(own, "bias", "threshold", "gain", "shift", "weight")
            bias, threshold, gain, shift, weight = parts
            read = torch.tensor(list(rest))
            detector = DetectorLines(read, bias, threshold, gain, shift, weight, own.offset, own.scaling)
        return ResidentLayer(taken[0], norm, probe, units, detector)

    def _numbers(self, part: Units | Detector, *names: str) -> list[Tensor]:
        arrays: list[Array] = [getattr(part, name) for name in names]
        return [torch.from_numpy(array.copy()).to(self.bank.device) for array in arrays]
