"""A layout carried out by torch, on the host's word: CPUs."""

import sys
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from steering import ops
from steering.layout import Layout, Reading, Sighting, Stretch
from steering.program import Change, GateLine
from steering.spec import CaptureSpec, GateKind, Operation
from steering.watch import Watching

_SHORT = 8  # longer stretches run by themselves: their one line need not be copied per token

Index = slice | Tensor
Function = Callable[[Tensor], Tensor]


@dataclass(frozen=True, slots=True)
class _Addition:
    """Tokens `index` move by `delta`, `[tokens or 1, hidden]` in the model's own type, as most states are."""

    index: Index
    delta: Tensor

    def __call__(self, hidden: Tensor, _: Tensor | None) -> None:
        delta = self.delta.to(hidden.dtype)
        if isinstance(self.index, slice):
            hidden[self.index] += delta
        else:
            hidden.index_add_(0, self.index, delta)


@dataclass(frozen=True, slots=True)
class _Changes:
    """Tokens `index` go through `changes` in order, each with its gate or none."""

    index: Index
    changes: tuple[tuple[Function, Function | None], ...]

    def __call__(self, hidden: Tensor, residual: Tensor | None) -> None:
        mine = hidden[self.index]
        state = mine.float() if residual is None else mine.float() + residual[self.index].float()
        x = state
        for change, gate in self.changes:
            x = change(x) if gate is None else x + gate(state) * (change(x) - x)
        hidden[self.index] = (mine.float() + (x - state)).to(hidden.dtype)


Step = _Addition | _Changes


@dataclass(frozen=True, slots=True)
class _Sight:
    """Tokens `index` are scored by one detector, each for the watching beside it."""

    index: Index
    detector: ops.Detected
    watchings: tuple[Watching, ...]

    def __call__(self, hidden: Tensor, residual: Tensor | None) -> None:
        x = hidden[self.index].float()
        if residual is not None:
            x = x + residual[self.index].float()
        for watching, score in zip(self.watchings, ops.detect(x, self.detector).tolist(), strict=True):
            watching.take(score)


class TorchPass:
    """Called with what leaves each block; does nothing where the layout has nothing there."""

    def __init__(self, bank: Tensor, dtype: torch.dtype) -> None:
        self._bank, self._dtype = bank, dtype
        self.steps: dict[int, tuple[Step, ...]] = {}
        self._before: dict[int, tuple[Reading, ...]] = {}
        self._after: dict[int, tuple[Reading, ...]] = {}
        self._sights: dict[int, tuple[_Sight, ...]] = {}
        self.live: frozenset[int] = frozenset()

    def take(self, layout: Layout) -> None:
        self.steps = _steps(layout.stretches, self._bank, self._dtype)
        self._before = _by_layer([r for r in layout.readings if not r.capture.spec.after])
        self._after = _by_layer([r for r in layout.readings if r.capture.spec.after])
        self._sights = _sights(layout.sightings, self._bank)
        self.live = frozenset([*self.steps, *self._before, *self._after, *self._sights])

    def begin(self) -> None:
        """Scores are taken as they are made."""

    def settle(self) -> None:
        """Nothing is under way."""

    def collect(self) -> None:
        """Nothing is left to move: states were added as they were read."""

    def free_capture_lines(self, live: Iterable[CaptureSpec] = ()) -> int:  # noqa: ARG002
        """No end of them: sums are kept on the host."""
        return sys.maxsize

    def skips(self, layer: int) -> bool:
        """Whether a call for this layer would do nothing."""
        return layer not in self.live

    def __call__(self, hidden: Tensor, residual: Tensor | None, layer: int) -> None:
        if layer not in self.live:
            return
        for reading in self._before.get(layer, ()):
            _read(reading, hidden, residual, layer)
        for sight in self._sights.get(layer, ()):
            sight(hidden, residual)
        for step in self.steps.get(layer, ()):
            step(hidden, residual)
        for reading in self._after.get(layer, ()):
            _read(reading, hidden, residual, layer)


def _by_layer(readings: Sequence[Reading]) -> dict[int, tuple[Reading, ...]]:
    layers = {layer for reading in readings for layer in reading.capture.spec.layers}
    return {layer: tuple(r for r in readings if r.capture.wants(layer)) for layer in layers}


def _read(reading: Reading, hidden: Tensor, residual: Tensor | None, layer: int) -> None:
    span = slice(reading.start, reading.end)
    x = hidden[span].float()
    if residual is not None:
        x = x + residual[span].float()
    total = x.sum(dim=0, dtype=torch.float64).cpu().numpy()
    norms = float(x.norm(dim=-1).sum())
    reading.capture.add(reading.span, layer, total, norms, reading.end - reading.start)


Sighted = list[tuple[Sighting, Watching]]


def _sights(sightings: Sequence[Sighting], bank: Tensor) -> dict[int, tuple[_Sight, ...]]:
    groups: dict[tuple[int, int], Sighted] = {}
    for sighting in sightings:
        for watching in sighting.watchings:
            key = (watching.watch.layer, id(watching.detector))
            groups.setdefault(key, []).append((sighting, watching))
    found: dict[int, list[_Sight]] = {}
    for (layer, _), group in groups.items():
        found.setdefault(layer, []).append(_sight(group, bank))
    return {layer: tuple(sights) for layer, sights in found.items()}


def _sight(group: Sighted, bank: Tensor) -> _Sight:
    own = group[0][1].detector
    numbers = (own.bias, own.threshold, own.gain, own.shift, own.weight, own.offset, own.scaling)
    return _Sight(
        _index([(sighting.start, sighting.end) for sighting, _ in group], bank.device),
        ops.Detected(bank[own.read], *numbers),
        tuple(watching for each, watching in group for _ in range(each.start, each.end)),
    )


Group = list[tuple[Stretch, tuple[Change, ...]]]


def _steps(stretches: Sequence[Stretch], bank: Tensor, dtype: torch.dtype) -> dict[int, tuple[Step, ...]]:
    layers: dict[int, dict[object, Group]] = {}
    for stretch in stretches:
        own = stretch.start if stretch.end - stretch.start > _SHORT else None
        for layer, changes in stretch.program.items():
            shape = (own, *(change.shape for change in changes))
            layers.setdefault(layer, {}).setdefault(shape, []).append((stretch, changes))
    indices = _Indices(bank.device)
    return {
        layer: tuple(_step(group, indices, bank, dtype) for group in layers[layer].values())
        for layer in sorted(layers)
    }


def _step(group: Group, indices: "_Indices", bank: Tensor, dtype: torch.dtype) -> Step:
    index = indices.of(group)
    first = group[0][1]
    if all(changes == first for _, changes in group):
        columns: Sequence[Sequence[Change]] = [(change,) for change in first]
    else:
        rows = [changes for stretch, changes in group for _ in range(stretch.start, stretch.end)]
        columns = list(zip(*rows, strict=True))
    if all(change.operation is Operation.ADD and change.gate is None for change in first):
        delta, *others = [_numbers(column, "strength", bank) * _lines(column, bank) for column in columns]
        for other in others:
            delta += other
        if isinstance(index, Tensor):
            delta = delta.expand(len(index), -1)
        return _Addition(index, delta.to(dtype))
    return _Changes(index, tuple((_change(column, bank), _gate(column, bank)) for column in columns))


class _Indices:
    """Of the tokens of stretches; most layers of a batch are about the same ones."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._known: dict[tuple[int, ...], Index] = {}

    def of(self, group: Group) -> Index:
        key = tuple(stretch.start for stretch, _ in group)
        index = self._known.get(key)
        if index is None:
            spans = [(stretch.start, stretch.end) for stretch, _ in group]
            index = self._known[key] = _index(spans, self._device)
        return index


def _index(spans: Sequence[tuple[int, int]], device: torch.device) -> Index:
    """Of the tokens of `spans`, which do not overlap and stand in order."""
    tokens = [token for start, end in spans for token in range(start, end)]
    if tokens[-1] - tokens[0] == len(tokens) - 1:
        return slice(tokens[0], tokens[0] + len(tokens))
    return torch.tensor(tokens, device=device)


def _change(column: Sequence[Change], bank: Tensor) -> Function:
    first = column[0]
    strength = _numbers(column, "strength", bank)
    if first.units is not None:
        units = first.units
        latents = ops.Latents(bank[units.read], bank[units.write], units.bias, units.offset, units.threshold)
        if first.operation is Operation.UNITS:
            return lambda x: ops.units(x, latents, strength)
        least, most = _numbers(column, "low", bank), _numbers(column, "high", bank)
        return lambda x: ops.clamp_latents(x, latents, strength, least, most)
    lines = _lines(column, bank)
    if first.operation is Operation.ADD:
        return lambda x: ops.add(x, lines, strength)
    if first.operation is Operation.NORM_ADD:
        return lambda x: ops.norm_preserving_add(x, lines, strength)
    unit = lines / _numbers(column, "norm", bank)
    low, high = _numbers(column, "low", bank), _numbers(column, "high", bank)
    return lambda x: ops.clamp(x, unit, strength, low, high)


def _gate(column: Sequence[Change], bank: Tensor) -> Function | None:
    gates = [change.gate for change in column if change.gate is not None]
    if not gates:
        return None
    first, w = gates[0], _lines(gates, bank)
    bias, slope, threshold = (_numbers(gates, name, bank) for name in ("bias", "slope", "threshold"))
    kinds: dict[GateKind, Function] = {
        GateKind.COSINE: lambda x: ops.cosine_gate(x, w, threshold),
        GateKind.PROBE: lambda x: ops.probe_gate(x, w, bias, slope),
        GateKind.RAMP: lambda x: ops.ramp_gate(x, w, bias, slope, threshold),
    }
    gate = kinds[first.kind]
    return (lambda x: 1 - gate(x)) if first.inverted else gate


def _lines(column: Sequence[Change | GateLine], bank: Tensor) -> Tensor:
    return bank[torch.tensor([change.line for change in column], device=bank.device)]


def _numbers(column: Sequence[Change | GateLine], name: str, bank: Tensor) -> Tensor:
    values = [getattr(change, name) for change in column]
    return torch.tensor(values, dtype=torch.float32, device=bank.device).unsqueeze(1)
