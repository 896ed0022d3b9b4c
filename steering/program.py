"""A request's spec as the worker runs it: per stretch of tokens, the changes at each layer."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import pairwise

from steering.spec import Gate, GateKind, Operation, SteeringSpec, Term, Watch
from steering.table import DetectorLines, Resident, ResidentLayer, UnitLines, VectorTable


@dataclass(frozen=True, slots=True)
class GateLine:
    """A gate with its vector's line; see `steering.spec.GateKind` for what the numbers mean."""

    kind: GateKind
    line: int
    bias: float
    slope: float
    threshold: float
    inverted: bool


@dataclass(frozen=True, slots=True)
class Change:
    """One term at one layer: `line` of the table is its direction, of length `norm`.

    Changes of one `shape` run as one batch, each token with its own line and numbers.
    """

    operation: Operation
    line: int
    norm: float
    strength: float
    low: float
    high: float
    gate: GateLine | None = None
    units: UnitLines | None = None
    shape: tuple[object, ...] = field(init=False, compare=False)  # asked for at every change of the batch

    def __post_init__(self) -> None:
        # Latents differ in number, so theirs never share a batch.
        own = id(self.units) if self.units is not None else 0
        gate = (self.gate.kind, self.gate.inverted) if self.gate is not None else None
        object.__setattr__(self, "shape", (self.operation, gate, own))


Program = dict[int, tuple[Change, ...]]  # layer → changes, in order


@dataclass(frozen=True, slots=True)
class Segment:
    """Input tokens at positions in `[low, high)` run `program`."""

    low: float
    high: float
    program: Program


class NotResident(Exception):
    """A spec names a vector, or a part of one, that is not in the table."""


def segments(
    spec: SteeringSpec, table: VectorTable, prompt_tokens: int, fired: Sequence[int | None] = ()
) -> tuple[Segment, ...]:
    """The stretches in which something happens, in order. Raises NotResident.

    `fired` has, for each of the spec's watches, the position from which its terms act, if they do.
    """
    terms, intervals = list(spec.terms), [term.tokens.interval(prompt_tokens) for term in spec.terms]
    for watch, since in zip(spec.watches, fired, strict=False):
        if since is not None:
            terms += watch.terms
            intervals += [_since(since, term.tokens.interval(prompt_tokens)) for term in watch.terms]
    cuts = sorted({cut for interval in intervals for cut in interval})
    found = []
    for low, high in pairwise(cuts):
        active = [
            term for term, (start, end) in zip(terms, intervals, strict=True) if start <= low and high <= end
        ]
        if active:
            found.append(Segment(low, high, _program(active, table)))
    return tuple(found)


def _since(position: int, interval: tuple[float, float]) -> tuple[float, float]:
    low, high = interval
    return max(low, position), max(high, position)


def detector(watch: Watch, table: VectorTable) -> DetectorLines:
    """What `watch` reads. Raises NotResident."""
    lines = _layer(_resident(table, watch.vector), watch.layer, watch.vector).detector
    if lines is None:
        raise NotResident(f"vector {watch.vector} has no detector at layer {watch.layer}")
    return lines


def _program(terms: list[Term], table: VectorTable) -> Program:
    program: dict[int, list[Change]] = {}
    # Bounds must hold on what leaves the layer, so clamps come last.
    for term in sorted(terms, key=lambda term: term.operation.bounds):
        resident = _resident(table, term.vector)
        for layer in term.layers:
            program.setdefault(layer, []).append(_change(term, layer, resident, table))
    return {layer: tuple(changes) for layer, changes in program.items()}


def _change(term: Term, layer: int, resident: Resident, table: VectorTable) -> Change:
    own = _layer(resident, layer, term.vector)
    if term.operation.sparse and own.units is None:
        raise NotResident(f"vector {term.vector} has no latents at layer {layer}")
    return Change(
        operation=term.operation,
        line=own.direction,
        norm=own.norm,
        strength=term.strength,
        low=term.low,
        high=term.high,
        gate=_gate(term.gate, layer, table) if term.gate else None,
        units=own.units if term.operation.sparse else None,
    )


def _gate(gate: Gate, layer: int, table: VectorTable) -> GateLine:
    own = _layer(_resident(table, gate.vector), layer, gate.vector)
    if gate.kind is GateKind.COSINE:
        return GateLine(gate.kind, own.direction, 0.0, 1.0, gate.threshold, gate.inverted)
    if own.probe is None:
        raise NotResident(f"vector {gate.vector} has no probe at layer {layer}")
    slope = own.probe.slope if gate.kind is GateKind.PROBE else gate.slope
    return GateLine(gate.kind, own.probe.line, own.probe.bias, slope, gate.threshold, gate.inverted)


def _resident(table: VectorTable, digest: str) -> Resident:
    resident = table.find(digest)
    if resident is None:
        raise NotResident(f"vector {digest} is not resident")
    return resident


def _layer(resident: Resident, layer: int, digest: str) -> ResidentLayer:
    if layer not in resident.layers:
        raise NotResident(f"vector {digest} has no layer {layer}")
    return resident.layers[layer]
