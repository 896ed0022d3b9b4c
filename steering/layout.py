"""Which tokens of the coming forward pass are changed how, and which states are kept.

Filled once per step on the host, from scheduler output alone, so that every rank comes to the same. In a
steady decode, where nothing but the positions moves on, the last layout is used again.
"""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from itertools import product
from typing import Final

import numpy as np
from numpy.typing import NDArray

from steering.capture import Capture
from steering.program import NotResident, Program, Segment, Span, detector, guarded, segments, spans
from steering.spec import CaptureSpec, SteeringSpec
from steering.table import VectorTable
from steering.watch import Watching

Counts = NDArray[np.integer]

NEVER_SEEN: Final = "the worker never saw this request"


@dataclass(frozen=True, slots=True)
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
    """Tokens `[start, end)` of the batch are the next ones that `watchings`, all of one request, score."""

    start: int
    end: int
    watchings: tuple[Watching, ...]


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
    """Positions in the intervals `computed`, in order, are; those between came from the prefix cache.

    `segments` knows since when its watches act, `guarded` leaves that to the device.
    """

    spec: SteeringSpec
    prompt_tokens: int
    segments: tuple[Segment, ...] = ()
    guarded: tuple[Segment, ...] = ()
    watchings: tuple[Watching, ...] = ()
    problem: str | None = None
    computed: list[tuple[int, int]] = field(default_factory=list)
    fired: int = 0  # watches whose terms are among the segments

    @property
    def _since(self) -> list[int | None]:
        return [each.since for each in self.watchings]

    @property
    def due(self) -> bool:
        """Whether a watch's terms must join the segments."""
        return self.fired < sum(since is not None for since in self._since)

    def update(self, table: VectorTable) -> None:
        if self.due:
            since = self._since
            self.segments = segments(spans(self.spec, self.prompt_tokens, since), table)
            self.fired = len(since) - since.count(None)

    def reach(self, start: int, end: int) -> None:
        """Positions in `[start, end)` are computed."""
        first, last = self.computed.pop() if self.computed else (start, start)
        if last < start:
            self.computed.append((first, last))
            first = start
        self.computed.append((first, max(last, end)))

    @property
    def evidence(self) -> Evidence:
        prompt = generated = 0
        acting = spans(self.spec, self.prompt_tokens, self._since) if self.problem is None else ()
        for span, (start, end) in product(acting, self.computed):
            low, high = _overlap(span, start, end)
            prompt += max(0, min(high, self.prompt_tokens) - low)
            generated += max(0, high - max(low, self.prompt_tokens))
        return Evidence(prompt, generated, self.problem, self.watchings)


@dataclass(slots=True)
class _Steady:
    """While the batch stays as it was and every position within these bounds, so does the layout."""

    requests: list[str] = field(default_factory=list)
    scheduled: Counts = field(default_factory=lambda: np.zeros(0, np.int32))
    low: Counts = field(default_factory=lambda: np.zeros(0, np.int64))
    high: Counts = field(default_factory=lambda: np.zeros(0, np.int64))
    reached: Counts = field(default_factory=lambda: np.zeros(0, np.int32))  # the furthest end so far
    steered: list[tuple[int, int, _Steered]] = field(default_factory=list)  # row, first position
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
        """Take over how far the steps since the last change came."""
        for row, first, steered in self.steered:
            steered.reach(first, int(self.reached[row]))


_EMPTY = Layout()
_MAX_RESULTS = 1024
_FAR = int(np.iinfo(np.int64).max)


class Batch:
    """The steered and captured requests of this worker, and the layout of its coming step.

    Where the pass has latches of its own (`latching`), scores come late, and decoded tokens leave it to them
    whether a watch's terms act. All scores must be there (see `GraphPass.settle`) when a request is resumed.
    """

    def __init__(self, table: VectorTable, *, latching: bool = False) -> None:
        self._table, self._latching = table, latching
        self._steered: dict[str, _Steered] = {}
        self._captures: dict[str, Capture] = {}
        self._traces: dict[str, list[_Steered]] = {}
        self._done: dict[str, Capture] = {}
        self._steady = _Steady()
        self.layout = _EMPTY

    def admit(self, request: str, spec: SteeringSpec, prompt_tokens: int) -> None:
        """A vector that is missing becomes evidence: its request fails in the server, the engine runs on."""
        steered = _Steered(spec, prompt_tokens)
        if spec.trace:  # else nobody asks, and it would stay for good
            self._traces.setdefault(spec.trace, []).append(steered)
        try:
            steered.segments = segments(spans(spec, prompt_tokens), self._table)
            possible = segments(guarded(spec, prompt_tokens), self._table)  # what may have to act later
            steered.watchings = tuple(
                Watching(watch, detector(watch, self._table), prompt_tokens) for watch in spec.watches
            )
        except NotResident as error:
            steered.problem = str(error)
            return
        if self._latching and steered.watchings:
            steered.guarded = possible
        self._steered[request] = steered

    def capture(self, request: str, spec: CaptureSpec) -> None:
        while len(self._done) >= _MAX_RESULTS:  # of requests that were aborted, whose states nobody asks for
            del self._done[next(iter(self._done))]
        self._captures[request] = self._done[spec.id] = Capture(spec)

    @property
    def vectors(self) -> set[str]:
        """Digests that requests use which are not gone yet."""
        return {digest for steered in self._steered.values() for digest in steered.spec.vectors}

    @property
    def capturing(self) -> list[CaptureSpec]:
        """Of the requests that are not gone."""
        return [capture.spec for capture in self._captures.values()]

    def retire(self, request: str) -> None:
        steered = self._steered.pop(request, None)
        for watching in steered.watchings if steered is not None else ():
            watching.over = True
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

    def watches(self, requests: Iterable[str]) -> bool:
        """Whether one of these requests is watched."""
        return any(request in self._steered and self._steered[request].watchings for request in requests)

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
                seen = self._sighting(steered, first, first + count, offset - first)
                sightings += seen
                # Tokens that are computed again keep to what they were: their host knows since when.
                decoded = count == 1 and seen and steered.guarded
                acting = steered.guarded if decoded else steered.segments
                stretches += _stretches(acting, first, first + count, offset - first)
                steady.steered.append((row, first, steered))
                steady.low[row], steady.high[row] = first, _next_cut(steered, acting, first)
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

    def _sighting(self, steered: _Steered, first: int, end: int, shift: int) -> list[Sighting]:
        """None, or one."""
        if not steered.watchings:
            return []
        low = max(first, steered.watchings[0].next)
        if self._latching:  # a device scores one token of a request in a step; none has more that are new
            low = max(low, end - 1)
        return [Sighting(low + shift, end + shift, steered.watchings)] if low < end else []


def _stretches(acting: Sequence[Segment], first: int, end: int, shift: int) -> list[Stretch]:
    """Of one request whose token at each position in `[first, end)` is the batch's at position + shift."""
    found = []
    for segment in acting:
        low, high = _overlap(segment, first, end)
        if low < high:
            found.append(Stretch(low + shift, high + shift, segment.program))
    return found


def _overlap(part: Segment | Span, first: int, end: int) -> tuple[int, int]:
    """Empty where the first is not below the second."""
    return int(max(first, part.low)), int(min(end, part.high))


def _next_cut(steered: _Steered, acting: Sequence[Segment], position: int) -> int:
    """The first position where something else begins: a segment, its end, the generated text, new scores."""
    cuts = [cut for segment in acting for cut in (segment.low, segment.high)]
    cuts += [watching.next for watching in steered.watchings]
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


def _total(requests: Sequence[_Steered]) -> Evidence:
    parts = [steered.evidence for steered in requests]
    problems = [part.problem for part in parts if part.problem]
    return Evidence(
        sum(part.prompt_tokens for part in parts),
        sum(part.generated_tokens for part in parts),
        problems[0] if problems else (None if parts else NEVER_SEEN),
        tuple(watching for part in parts for watching in part.watchings),
    )
