"""Which tokens of the coming forward pass are changed how, and which states are kept.

Filled once per step on the host, from scheduler output alone, so that every rank comes to the same. In a
steady decode, where nothing but the positions moves on, the last layout is used again.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Final

import numpy as np
from numpy.typing import NDArray

from steering.capture import Capture
from steering.program import NotResident, Program, Segment, detector, segments
from steering.spec import CaptureSpec, SteeringSpec
from steering.table import VectorTable
from steering.watch import Watching

Counts = NDArray[np.integer]

NEVER_SEEN: Final = "the worker never saw this request"


@dataclass(slots=True)
class Evidence:
    """What was done for one request: input tokens steered in each phase, or why it could not be.

    A position counts once, however often it is computed; what the last step drafted in vain counts too.
    `watchings` are those of the spec's watches, in order, of each engine request behind it.
    """

    prompt_tokens: int = 0
    generated_tokens: int = 0
    problem: str | None = None
    watchings: tuple[Watching, ...] = ()


@dataclass(frozen=True, slots=True)
class Stretch:
    """Tokens `[start, end)` of the batch run `program`."""

    start: int
    end: int
    program: Program


@dataclass(frozen=True, slots=True)
class Reading:
    """Tokens `[start, end)` of the batch go to span `span` of `capture`."""

    start: int
    end: int
    capture: Capture
    span: int


@dataclass(frozen=True, slots=True)
class Sighting:
    """Tokens `[start, end)` of the batch are the next ones that `watching` scores."""

    start: int
    end: int
    watching: Watching


@dataclass(frozen=True, slots=True)
class Layout:
    """One forward pass: `stretches` do not overlap and stand in the batch's order."""

    stretches: tuple[Stretch, ...] = ()
    readings: tuple[Reading, ...] = ()
    sightings: tuple[Sighting, ...] = ()

    def __bool__(self) -> bool:
        return bool(self.stretches or self.readings or self.sightings)


@dataclass(slots=True)
class _Steered:
    """Positions below `seen` are counted, or were taken from the prefix cache."""

    segments: tuple[Segment, ...]
    prompt_tokens: int
    evidence: Evidence
    vectors: tuple[str, ...]
    spec: SteeringSpec
    watchings: tuple[Watching, ...] = ()
    seen: int = 0
    fired: int = 0  # watches whose terms are among the segments

    @property
    def due(self) -> bool:
        """Whether a watch's terms must join the segments."""
        return self.fired < sum(each.since is not None for each in self.watchings)

    def update(self, table: VectorTable) -> None:
        if self.due:
            since = [each.since for each in self.watchings]
            self.segments = segments(self.spec, table, self.prompt_tokens, since)
            self.fired = len(since) - since.count(None)

    def count(self, end: int) -> None:
        """All positions below `end` are computed."""
        for segment in self.segments:
            low, high = _overlap(segment, self.seen, end)
            self.evidence.prompt_tokens += max(0, min(high, self.prompt_tokens) - low)
            self.evidence.generated_tokens += max(0, high - max(low, self.prompt_tokens))
        self.seen = max(self.seen, end)


@dataclass(slots=True)
class _Steady:
    """While the batch stays as it was and every position within these bounds, so does the layout."""

    requests: list[str] = field(default_factory=list)
    scheduled: Counts = field(default_factory=lambda: np.zeros(0, np.int32))
    low: Counts = field(default_factory=lambda: np.zeros(0, np.int64))
    high: Counts = field(default_factory=lambda: np.zeros(0, np.int64))
    reached: Counts = field(default_factory=lambda: np.zeros(0, np.int32))  # the furthest end so far
    steered: list[tuple[int, _Steered]] = field(default_factory=list)  # by row
    watched: list[_Steered] = field(default_factory=list)  # those of them that may change

    def goes_on(self, requests: Sequence[str], scheduled: Counts, computed: Counts) -> bool:
        if len(scheduled) != len(self.scheduled) or requests != self.requests:
            return False
        ends = computed + scheduled
        same = np.array_equal(scheduled, self.scheduled) and bool((computed >= self.low).all())
        if not same or (ends > self.high).any() or any(steered.due for steered in self.watched):
            return False
        np.maximum(self.reached, ends, out=self.reached)
        return True

    def settle(self) -> None:
        """Add the steps since the last change to the evidence."""
        for row, steered in self.steered:
            steered.count(int(self.reached[row]))


_EMPTY = Layout()
_MAX_RESULTS = 1024
_FAR = int(np.iinfo(np.int64).max)


class Batch:
    """The steered and captured requests of this worker, and the layout of its coming step."""

    def __init__(self, table: VectorTable) -> None:
        self._table = table
        self._steered: dict[str, _Steered] = {}
        self._captures: dict[str, Capture] = {}
        self._traces: dict[str, list[Evidence]] = {}
        self._done: dict[str, Capture] = {}
        self._steady = _Steady()
        self.layout = _EMPTY

    def admit(self, request: str, spec: SteeringSpec, prompt_tokens: int) -> None:
        """A vector that is missing becomes evidence: its request fails in the server, the engine runs on."""
        evidence = Evidence()
        if spec.trace:  # else nobody asks, and it would stay for good
            self._traces.setdefault(spec.trace, []).append(evidence)
        try:
            found = segments(spec, self._table, prompt_tokens)
            segments(spec, self._table, prompt_tokens, [0] * len(spec.watches))  # what may have to act later
            watchings = tuple(
                Watching(watch, detector(watch, self._table), prompt_tokens) for watch in spec.watches
            )
        except NotResident as error:
            evidence.problem = str(error)
            return
        evidence.watchings = watchings
        self._steered[request] = _Steered(found, prompt_tokens, evidence, spec.vectors, spec, watchings)

    def capture(self, request: str, spec: CaptureSpec) -> None:
        while len(self._done) >= _MAX_RESULTS:  # of requests that were aborted, whose states nobody asks for
            del self._done[next(iter(self._done))]
        self._captures[request] = self._done[spec.id] = Capture(spec)

    @property
    def vectors(self) -> set[str]:
        """Digests that requests use which are not gone yet."""
        return {digest for steered in self._steered.values() for digest in steered.vectors}

    @property
    def capturing(self) -> list[CaptureSpec]:
        """Of the requests that are not gone."""
        return [capture.spec for capture in self._captures.values()]

    def retire(self, request: str) -> None:
        self._steered.pop(request, None)
        self._captures.pop(request, None)
        if request in self._steady.requests:  # another of its name may be next
            self._steady.settle()
            self._steady = _Steady()

    def prepare(self, requests: Sequence[str], scheduled: Counts, computed: Counts) -> bool:
        """Set `layout` for the batch of `requests` in order; True where it is another than before.

        `scheduled` and `computed` are token counts per request.
        """
        if not self._steered and not self._captures:
            return self.clear()
        if self._steady.goes_on(requests, scheduled, computed):
            return False
        self._steady.settle()
        self._rebuild(list(requests), scheduled.copy(), computed)
        return True

    def clear(self) -> bool:
        """No token of the coming step is ours; True where the last layout was not empty."""
        if self._steady.requests:
            self._steady.settle()
            self._steady = _Steady()
        changed, self.layout = bool(self.layout), _EMPTY
        return changed

    def evidence(self, traces: Sequence[str]) -> dict[str, Evidence]:
        """What was done for each trace, over all its engine requests; asking again finds nothing."""
        self._steady.settle()
        return {trace: _total(self._traces.pop(trace, ())) for trace in traces}

    def watched(self, traces: Sequence[str]) -> dict[str, tuple[Watching, ...]]:
        """How far the requests of each trace have drifted until now; they may go on."""
        return {trace: _total(self._traces.get(trace, ())).watchings for trace in traces}

    def captured(self, identity: str) -> Capture | None:
        return self._done.pop(identity, None)

    def held(self) -> dict[str, int]:
        """How much is kept for requests; nothing may remain when all are done."""
        return {
            "steered": len(self._steered),
            "captures": len(self._captures),
            "traces": len(self._traces),
            "captured": len(self._done),
        }

    def _rebuild(self, requests: list[str], scheduled: Counts, computed: Counts) -> None:
        stretches: list[Stretch] = []
        readings: list[Reading] = []
        sightings: list[Sighting] = []
        steady = _Steady(requests, scheduled, reached=computed + scheduled)
        steady.low = np.zeros(len(requests), np.int64)
        steady.high = np.full(len(requests), _FAR, np.int64)
        offset = 0
        for row, request in enumerate(requests):
            first, count = int(computed[row]), int(scheduled[row])
            steered = self._steered.get(request)
            if steered is not None:
                steered.update(self._table)
                sightings += _sightings(steered, first, first + count, offset - first)
                stretches += _stretches(steered, first, first + count, offset - first)
                steered.seen = max(steered.seen, first)
                steady.steered.append((row, steered))
                steady.low[row], steady.high[row] = first, _next_cut(steered, first)
                if steered.watchings:
                    steady.watched.append(steered)
                    if count > 1:  # of these some may have been scored before
                        steady.low[row] = _FAR
            capture = self._captures.get(request)
            if capture is not None:
                readings += _readings(capture, first, count, offset)
                steady.low[row] = _FAR  # never the same step twice
            offset += count
        self._steady, self.layout = steady, Layout(tuple(stretches), tuple(readings), tuple(sightings))


def _stretches(steered: _Steered, first: int, end: int, shift: int) -> list[Stretch]:
    """Of one request whose token at each position in `[first, end)` is the batch's at position + shift."""
    found = []
    for segment in steered.segments:
        low, high = _overlap(segment, first, end)
        if low < high:
            found.append(Stretch(low + shift, high + shift, segment.program))
    return found


def _sightings(steered: _Steered, first: int, end: int, shift: int) -> list[Sighting]:
    found = []
    for watching in steered.watchings:
        low = max(first, watching.next)
        if low < end:
            found.append(Sighting(low + shift, end + shift, watching))
    return found


def _overlap(segment: Segment, first: int, end: int) -> tuple[int, int]:
    """Empty where the first is not below the second."""
    return int(max(first, segment.low)), int(min(end, segment.high))


def _next_cut(steered: _Steered, position: int) -> int:
    """The first position where something else begins: a segment, its end, or the generated text."""
    cuts = [cut for segment in steered.segments for cut in (segment.low, segment.high)]
    later = [cut for cut in (*cuts, steered.prompt_tokens) if position < cut < math.inf]
    return int(min([*later, _FAR]))


def _readings(capture: Capture, first: int, count: int, offset: int) -> list[Reading]:
    found, new = [], max(first, capture.read)
    capture.read = max(new, first + count)
    for index, (start, end) in enumerate(capture.spec.spans):
        low, high = max(new, start), min(first + count, end)
        if low < high:
            found.append(Reading(offset + low - first, offset + high - first, capture, index))
    return found


def _total(parts: Sequence[Evidence]) -> Evidence:
    problems = [part.problem for part in parts if part.problem]
    return Evidence(
        sum(part.prompt_tokens for part in parts),
        sum(part.generated_tokens for part in parts),
        problems[0] if problems else (None if parts else NEVER_SEEN),
        tuple(watching for part in parts for watching in part.watchings),
    )
