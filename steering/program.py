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

    Changes of one `shape` run as one batch, each token with its own line and numbers. With a `guard` it acts
    once the request's watch of that number, from 1, has drifted.
    """

    operation: Operation
    line: int
    norm: float
    strength: float
    low: float
    high: float
    gate: GateLine | None = None
    units: UnitLines | None = None
    guard: int = field(default=0, compare=False)  # equal changes stand in one row, whatever guards them
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


@dataclass(frozen=True, slots=True)
class Span:
    """Positions `[low, high)`, at which `terms` act, each with its guard."""

    low: float
    high: float
    terms: tuple[tuple[Term, int], ...]


def spans(spec: SteeringSpec, prompt_tokens: int, fired: Sequence[int | None] = ()) -> tuple[Span, ...]:
    """Where something happens, in order.

    `fired` has, for each of the spec's watches, the position from which its terms act, if they do.
    """
    acting = [(term, 0, term.tokens.interval(prompt_tokens)) for term in spec.terms]
    for watch, since in zip(spec.watches, fired, strict=False):
        if since is not None:
            acting += [(term, 0, _since(since, term.tokens.interval(prompt_tokens))) for term in watch.terms]
    return _cut(acting)


def guarded(spec: SteeringSpec, prompt_tokens: int) -> tuple[Span, ...]:
    """Where something may happen: each watch's terms guarded by its number, whether it has drifted or not."""
    acting = [(term, 0, term.tokens.interval(prompt_tokens)) for term in spec.terms]
    for number, watch in enumerate(spec.watches, 1):
        acting += [(term, number, term.tokens.interval(prompt_tokens)) for term in watch.terms]
    return _cut(acting)


def _cut(acting: Sequence[tuple[Term, int, tuple[float, float]]]) -> tuple[Span, ...]:
    cuts = sorted({cut for _, _, interval in acting for cut in interval})
    found = []
    for low, high in pairwise(cuts):
        active = [(term, guard) for term, guard, (start, end) in acting if start <= low and high <= end]
        if active:
            found.append(Span(low, high, tuple(active)))
    return tuple(found)


def _since(position: int, interval: tuple[float, float]) -> tuple[float, float]:
    low, high = interval
    return max(low, position), max(high, position)


def segments(where: Sequence[Span], table: VectorTable) -> tuple[Segment, ...]:
    """What happens there. Raises NotResident."""
    return tuple(Segment(span.low, span.high, _program(span.terms, table)) for span in where)


def detector(watch: Watch, table: VectorTable) -> DetectorLines:
    """What `watch` reads. Raises NotResident."""
    lines = _layer(_resident(table, watch.vector), watch.layer, watch.vector).detector
    if lines is None:
        raise NotResident(f"vector {watch.vector} has no detector at layer {watch.layer}")
    return lines


def _program(terms: Sequence[tuple[Term, int]], table: VectorTable) -> Program:
    program: dict[int, list[Change]] = {}
    # Bounds must hold on what leaves the layer, so clamps come last.
    for term, guard in sorted(terms, key=lambda pair: pair[0].operation.bounds):
        resident = _resident(table, term.vector)
        for layer in term.layers:
            program.setdefault(layer, []).append(_change(term, guard, layer, resident, table))
    return {layer: tuple(changes) for layer, changes in program.items()}


def _change(term: Term, guard: int, layer: int, resident: Resident, table: VectorTable) -> Change:
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
        guard=guard,
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
