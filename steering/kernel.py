"""A layout carried out by one kernel per layer, on what device buffers say: GPUs that replay graphs.

At the replay of a CUDA graph no Python runs, so the kernel reads everything from buffers that are allocated
once. A layout changes them on the host's side, in pinned copies, and is on its way to the device when `take`
returns.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any, Final

import torch
from torch import Tensor

from steering.capture import Capture
from steering.latch import Latches
from steering.layout import Layout, Reading, Sighting, Stretch
from steering.mirror import CapacityError, Mirror, Rows, TokenMap
from steering.program import Change, GateLine, Program
from steering.spec import CAPTURE_LINES, MAX_RANGES, MAX_TERMS, CaptureSpec, GateKind, Operation
from steering.table import UnitLines

PROGRAMS: Final = 2 * MAX_RANGES - 1  # so many stretches may the ranges of one request cut its tokens into

_OPERATIONS: Final = {operation: code for code, operation in enumerate(Operation)}
_GATES: Final = {kind: code for code, kind in enumerate(GateKind, 1)}
_COLUMNS: Final = 8  # of a change's integers, and of its floats, so that none straddles a sector of memory
_NO_GATE: Final = GateLine(GateKind.COSINE, 0, 0.0, 0.0, 0.0, inverted=False)


class GraphPass:
    """Called with what leaves each block, as `apply.TorchPass`, whose results it gives within rounding.

    **Capacity.** Each of `max_requests` runs at most `PROGRAMS` programs in one step, of at most MAX_TERMS
    changes per layer, of which all its programs share MAX_TERMS; latents fill the bank before their buffer.
    So no steering that `spec` allows overflows. Captures may: each takes a line of `capture_lines` for every
    span and layer until its request is gone, of CAPTURE_LINES for each layer by default. Admit one only where
    `free_capture_lines` has room for it; `take` raises CapacityError otherwise, as it does for batches above
    `max_tokens`.

    **Early exit.** A token with neither program nor reading nor watch at the layer is left untouched, bit for
    bit: its program returns after three to six loads. Where Python runs, a layer that the layout leaves alone
    launches nothing, except while a graph is captured (the replays need the kernel) and the first time it
    sees tensors of a kind (so that nothing is compiled during a capture).

    **Dummy runs** must find an empty layout: `take` an empty one before them if the last was not. To take a
    layout during a capture is an error; copies would become part of the graph.

    **Copies** are ordered by the current stream, the one of the model: steps already launched see the buffers
    as they were. `take` waits for the copies of the `take` before it, as vLLM does before it prepares a step,
    but not for the device; except where captures of requests that are gone must make room, which collects.

    **Drift** (`steering.latch`) moves in the kernel: what leaves a watch's block is scored before it is
    steered, and changes with a guard act from the step after the one that drifted. Each step must `begin`.

    **Captured sums** stay on the device until `collect`. Their order of addition, and so their last digits,
    differ from run to run.
    """

    def __init__(
        self,
        bank: Tensor,
        *,
        layers: int,
        max_tokens: int,
        max_requests: int,
        capture_lines: int | None = None,
    ) -> None:
        self._bank, self._layers, self._max_tokens = bank, layers, max_tokens
        self._programs = _Programs(bank, layers, min(PROGRAMS * max_requests, max_tokens), max_requests)
        self._captures = _Captures(bank, layers, capture_lines or CAPTURE_LINES * layers)
        self._latches = Latches(bank, max_tokens, max_requests)
        self._slot_of_token = TokenMap(max_tokens, bank.device)
        self._reading_of_token = TokenMap(max_tokens, bank.device)
        self._copied = torch.cuda.Event() if bank.device.type == "cuda" else None
        self._seen: set[tuple[object, ...]] = set()
        self.live: frozenset[int] = frozenset()

    def take(self, layout: Layout) -> None:
        """Make `layout` the one that the steps launched from now on see. Raises CapacityError."""
        parts: tuple[Stretch | Reading | Sighting, ...]
        parts = (*layout.stretches, *layout.readings, *layout.sightings)
        end = max((part.end for part in parts), default=0)
        if end > self._max_tokens:
            raise CapacityError(f"the batch has {end} tokens, the buffers {self._max_tokens}")
        if self._copied is not None:
            self._copied.synchronize()
        slots = self._programs.place([stretch.program for stretch in layout.stretches])
        readings = self._captures.place(layout.readings)
        self._latches.place(layout.sightings)
        self._slot_of_token.fill([(s.start, s.end, n) for s, n in zip(layout.stretches, slots, strict=True)])
        self._reading_of_token.fill(
            [(r.start, r.end, n) for r, n in zip(layout.readings, readings, strict=True)]
        )
        if self._copied is not None:
            self._copied.record()
        steered = {layer for stretch in layout.stretches for layer in stretch.program}
        watched = {each.watch.layer for sighting in layout.sightings for each in sighting.watchings}
        if watched:
            watched.add(0)  # where latches take what the step before has found
        self.live = frozenset(steered.union(watched, *(r.capture.spec.layers for r in layout.readings)))

    def __call__(self, hidden: Tensor, residual: Tensor | None, layer: int) -> None:
        kind = (hidden.dtype, hidden.stride(), residual is not None and (residual.dtype, residual.stride()))
        if layer not in self.live and kind in self._seen and not _capturing(hidden):
            return
        assert hidden.stride(-1) == 1
        assert hidden.shape == (len(hidden), self._bank.shape[1])
        assert len(hidden) <= self._max_tokens
        self._seen.add(kind)
        second = hidden if residual is None else residual
        block = 1 << (hidden.shape[1] - 1).bit_length()
        programs, captures, latches = self._programs, self._captures, self._latches
        _kernel()[(len(hidden),)](
            hidden,
            second,
            hidden.stride(0),
            second.stride(0),
            layer,
            self._bank,
            self._slot_of_token.device,
            programs.spans.device,
            programs.entries.device,
            programs.integers.device,
            programs.floats.device,
            programs.unit_lines.device,
            programs.unit_numbers,
            self._reading_of_token.device,
            captures.lines.device,
            captures.sums,
            captures.norms,
            captures.counts,
            latches.block_of_token.device,
            latches.integers.device,
            latches.floats.device,
            latches.state.device,
            latches.latent_lines.device,
            latches.latent_numbers,
            layers=self._layers,
            width=hidden.shape[1],
            block=block,
            has_residual=residual is not None,
            num_warps=min(max(block // 256, 1), 16),
        )

    def begin(self) -> None:
        """The step of the coming layout, the last one or one yet to be taken, is about to be launched."""
        self._latches.begin()

    def settle(self) -> None:
        """Bring every `Watching` up to the last step launched. Waits for that step if it was watched."""
        self._latches.settle()

    def collect(self) -> None:
        """Move what was captured so far to its `Capture` objects. Waits for the device."""
        self._captures.collect()

    def free_capture_lines(self, live: Iterable[CaptureSpec] = ()) -> int:
        """Lines left for another capture beside `live`: all that were admitted and are not retired."""
        return self._captures.capacity - sum(lines_of(spec) for spec in live)


def _capturing(tensor: Tensor) -> bool:
    return tensor.is_cuda and torch.cuda.is_current_stream_capturing()


def lines_of(spec: CaptureSpec) -> int:
    """How many capture lines a spec takes."""
    return len(spec.spans) * len(spec.layers)


@cache
def _kernel() -> Any:
    from steering.triton_steer import steer  # noqa: PLC0415  # Triton is slow to import, and not everywhere

    return steer


class _Programs:
    """Programs as rows of fixed tables, by their slots; slot 0 does nothing.

    What was placed stays, since the same programs come again step after step; when a table is full, only
    those of the coming step remain. Equal changes share a row, whosever they are.
    """

    def __init__(self, bank: Tensor, layers: int, programs: int, requests: int) -> None:
        device, changes = bank.device, requests * layers * MAX_TERMS
        # [slots, layers, 2]: the first entry and how many
        self.spans = Rows("programs", (programs + 1, layers, 2), device)
        # [entries, 2]: the change and its guard
        self.entries = Rows("changes of programs", (programs * layers * MAX_TERMS, 2), device)
        self.integers = Rows("different changes", (changes, _COLUMNS), device)
        self.floats = Rows("different changes", (changes, _COLUMNS), device, torch.float32)
        latents = 1 + len(bank) // 2  # each has two lines of the bank to itself
        self.unit_lines = Rows("latents", (latents, 2), device)
        self.unit_numbers = torch.zeros(latents, 4, device=device)  # bias, offset, threshold
        self._tables = (self.spans, self.entries, self.integers, self.floats, self.unit_lines)
        # An id is that of the object beside it, which therefore must stay.
        self._slots: dict[int, tuple[Program, int]] = {}
        self._units: dict[int, tuple[UnitLines, int]] = {}
        self._changes: dict[Change, int] = {}
        self._clear()

    def place(self, programs: Sequence[Program]) -> list[int]:
        """The slots of `programs`. Raises CapacityError where they alone are too many."""
        try:
            slots = [self._slot(program) for program in programs]
        except CapacityError:
            self._clear()
            slots = [self._slot(program) for program in programs]
        for table in self._tables:
            table.flush()
        return slots

    def _clear(self) -> None:
        for known in (self._slots, self._units, self._changes):
            known.clear()
        for table in self._tables:
            table.clear()
        self.spans.claim(1)

    def _slot(self, program: Program) -> int:
        if id(program) not in self._slots:
            slot = self.spans.claim(1)
            self.spans.host[slot] = 0
            for layer, changes in program.items():
                first = self.entries.claim(len(changes))
                self.entries.host[first : first + len(changes)] = [
                    (self._row(change), change.guard) for change in changes
                ]
                self.spans.host[slot, layer] = first, len(changes)
            self._slots[id(program)] = program, slot
        return self._slots[id(program)][1]

    def _row(self, change: Change) -> int:
        row = self._changes.get(change)
        if row is None:
            gate, kind = change.gate or _NO_GATE, _GATES[change.gate.kind] if change.gate else 0
            first, count = self._latents(change.units) if change.units is not None else (0, 0)
            row = self.integers.claim(1)
            self.floats.claim(1)
            operation = _OPERATIONS[change.operation]
            integers = (operation, change.line, kind, gate.line, gate.inverted, first, count)
            floats = (change.strength, change.low, change.high, change.norm)
            self.integers.host[row, : len(integers)] = integers
            self.floats.host[row, :7] = (*floats, gate.bias, gate.slope, gate.threshold)
            self._changes[change] = row
        return row

    def _latents(self, units: UnitLines) -> tuple[int, int]:
        count = len(units.read)
        if id(units) not in self._units:
            first = self.unit_lines.claim(count)
            lines = slice(first, first + count)
            self.unit_lines.host[lines] = torch.stack((units.read, units.write), dim=1).cpu().numpy()
            # These are on the device already.
            for column, numbers in enumerate((units.bias, units.offset, units.threshold)):
                self.unit_numbers[lines, column].copy_(numbers, non_blocking=True)
            self._units[id(units)] = units, first
        return self._units[id(units)][1], count


@dataclass(frozen=True, slots=True)
class _Held:
    """A capture with its lines, `[spans, layers]`."""

    capture: Capture
    lines: tuple[tuple[int, ...], ...]


class _Captures:
    """Sums of states, a line for each span and layer; line 0 is no one's. A span goes by its first line."""

    def __init__(self, bank: Tensor, layers: int, capacity: int) -> None:
        self._device, self.capacity = bank.device, capacity
        self.lines = Mirror((capacity + 1, layers), bank.device)  # negative: read after steering
        self.sums = torch.zeros(capacity + 1, bank.shape[1], device=bank.device)
        self.norms = torch.zeros(capacity + 1, device=bank.device)
        self.counts = torch.zeros(capacity + 1, dtype=torch.int32, device=bank.device)
        self._free = list(range(capacity, 0, -1))
        self._held: dict[int, _Held] = {}
        self._reading: set[int] = set()  # ids of the captures of the coming step

    def place(self, readings: Sequence[Reading]) -> list[int]:
        """The number of each reading. Raises CapacityError."""
        captures = {id(r.capture): r.capture for r in readings if r.capture.spec.layers}
        self._reading = set(captures)
        new = [capture for key, capture in captures.items() if key not in self._held]
        wanted = sum(lines_of(capture.spec) for capture in new)
        if wanted > len(self._free):
            self.collect()
        if wanted > len(self._free):
            raise CapacityError(f"a step captures more than {self.capacity} spans times layers")
        for capture in new:
            self._hold(capture)
        return [
            self._held[id(r.capture)].lines[r.span][0] if id(r.capture) in captures else 0 for r in readings
        ]

    def _hold(self, capture: Capture) -> None:
        layers = list(capture.spec.layers)
        lines = tuple(tuple(self._free.pop() for _ in layers) for _ in capture.spec.spans)
        sign = -1 if capture.spec.after else 1
        for span in lines:
            self.lines.host[span[0]] = 0
            self.lines.host[span[0], layers] = [sign * line for line in span]
            self.lines.send(span[0], span[0] + 1)
        self._held[id(capture)] = _Held(capture, lines)

    def collect(self) -> None:
        if not self._held:
            return
        if self._device.type == "cuda":
            torch.cuda.synchronize(self._device)
        for key, held in list(self._held.items()):
            self._move(held)
            if key not in self._reading:
                del self._held[key]
                self._free += [line for span in held.lines for line in span]

    def _move(self, held: _Held) -> None:
        index = torch.tensor(held.lines, device=self._device)
        sums, norms, counts = (part[index].cpu().numpy() for part in (self.sums, self.norms, self.counts))
        for part in (self.sums, self.norms, self.counts):
            part[index] = 0
        for span, row in enumerate(counts):
            for column, (layer, count) in enumerate(zip(held.capture.spec.layers, row, strict=True)):
                if count:
                    norm = float(norms[span, column])
                    held.capture.add(span, layer, sums[span, column], norm, int(count))
