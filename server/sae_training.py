"""Training an autoencoder on states of a running server: planned, resumable, told how far it is."""

import fcntl
import json
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import IO, Any, Final

from tqdm import tqdm

from server.corpus import Corpus, Passage
from server.remote_states import TEXTS_AT_ONCE, RemoteStates, batches
from steering.sae.errors import CorruptSae, SaeError
from steering.sae.sae import SparseAutoencoder
from steering.sae.saelens import replace_file
from steering.sae.train import Options, Progress, fit
from steering.sae.weights import read_json
from steering.vector import Array

CHECKPOINT: Final = "checkpoint.safetensors"
_PLAN: Final = "plan.json"
_CAPTURED: Final = "captured.txt"
_LOCK: Final = "lock"


@dataclass(frozen=True, slots=True)
class Plan:
    """What one training is, down to the order of its texts: a checkpoint goes on with the same plan alone."""

    model_fingerprint: str
    model_name: str
    layer: int
    corpus: str  # digest
    tokens: int
    latents: int
    active: int
    passes: int
    max_tokens: int
    texts_at_once: int = TEXTS_AT_ONCE

    @property
    def options(self) -> Options:
        # In a short training too, latents that never fire are to come back.
        dead_after = min(50_000, max(self.tokens // 5, 1))
        return Options(
            rows=self.tokens,
            latents=self.latents,
            active=self.active,
            passes=self.passes,
            dead_after=dead_after,
        )


class Training:
    """Its `folder` holds the plan, the checkpoint, and how many states each batch of texts had: what was
    learned from before an interruption is not captured again.

    Raises SaeError where `folder` holds another training.
    """

    def __init__(self, folder: Path, plan: Plan) -> None:
        self.folder, self.plan = folder, plan
        folder.mkdir(parents=True, exist_ok=True)
        self._lock = _locked(folder / _LOCK)
        try:
            self._begin()
            self._captured = _numbers(folder / _CAPTURED)
        except BaseException:
            self._lock.close()
            raise

    @property
    def resumed(self) -> bool:
        return (self.folder / CHECKPOINT).exists()

    def fit(self, corpus: Corpus, states: RemoteStates, meter: "Meter") -> SparseAutoencoder:
        """Interrupted, it goes on from the last block of states that was learned from.

        Raises SaeError for states that cannot be learned from, RemoteError where the server fails.
        """

        def source(skip: int) -> Iterator[Array]:
            meter.begin(skip)
            for array in self._states(corpus.learnt, states, skip):
                meter.captured(len(array))
                yield array

        return fit(
            source,
            self.plan.options,
            f"blocks.{self.plan.layer}.hook_resid_post",
            model=self.plan.model_name,
            checkpoint=self.folder / CHECKPOINT,
            every=1,
            on_progress=meter.learned,
        )

    def close(self) -> None:
        self._lock.close()

    def _states(self, passages: Sequence[Passage], states: RemoteStates, skip: int) -> Iterator[Array]:
        """From state number `skip` on."""
        for number, batch in enumerate(batches(passages)):
            known = self._captured[number] if number < len(self._captured) else None
            if known is not None and known <= skip:
                skip -= known
                continue
            rows = states.of(batch).states
            if known is None:
                self._note(len(rows))
            elif known != len(rows):
                raise SaeError(
                    f"batch {number} of the texts had {known} tokens before, and has {len(rows)} now"
                )
            yield rows[skip:]
            skip = 0

    def _note(self, count: int) -> None:
        self._captured.append(count)
        with (self.folder / _CAPTURED).open("a") as file:
            file.write(f"{count}\n")

    def _begin(self) -> None:
        path, plan = self.folder / _PLAN, asdict(self.plan)
        if not path.exists():
            replace_file(path, json.dumps(plan, indent=2).encode())
            return
        begun = read_json(path)
        other = [name for name, value in plan.items() if begun.get(name) != value]
        if other:
            raise SaeError(
                f"{self.folder} holds a training begun with another {', '.join(other)}: go on with that "
                f"({', '.join(f'{name} {begun.get(name)}' for name in other)}), or begin anew with --restart"
            )


def planned_tokens(folder: Path) -> int | None:
    """Those of a training that was begun in `folder`. Raises CorruptSae for what is no plan."""
    path = folder / _PLAN
    if not path.exists():
        return None
    tokens = read_json(path).get("tokens")
    if not isinstance(tokens, int):
        raise CorruptSae(f"{path} is damaged: begin anew with --restart")
    return tokens


def _locked(path: Path) -> IO[str]:
    """Open as long as the process lives, or the training does."""
    lock = path.open("w")
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        lock.close()
        raise SaeError(f"another process is training in {path.parent}") from error
    return lock


def _numbers(path: Path) -> list[int]:
    """A line that was cut short counts for nothing: its states were not learned from yet."""
    if not path.exists():
        return []
    lines = path.read_text().splitlines(keepends=True)
    whole = [line for line in lines if line.endswith("\n")]
    if len(whole) < len(lines):
        replace_file(path, "".join(whole).encode())
    try:
        return [int(line) for line in whole]
    except ValueError as error:
        raise CorruptSae(f"{path} is damaged: begin anew with --restart") from error


class Meter:
    """How far a training is: a bar on a terminal, else a line for each block of states."""

    def __init__(self, total: int, *, bar: bool | None = None) -> None:
        self._total, self._began = total, time.monotonic()
        self._show_bar = sys.stderr.isatty() if bar is None else bar
        self._bar: Any = None
        self._captured = 0

    def begin(self, done: int) -> None:
        self._captured, self._began = done, time.monotonic()
        if done:
            say(f"Going on after {done} of {self._total} states")
        if self._show_bar:
            self._bar = tqdm(total=self._total, initial=done, unit="states", smoothing=0.05)

    def captured(self, rows: int) -> None:
        rows = min(rows, self._total - self._captured)  # of the last batch, some are too many
        self._captured += rows
        if self._bar is not None:
            self._bar.update(rows)

    def learned(self, progress: Progress) -> None:
        told = f"explained {progress.explained:.1%}, dead {progress.dead:.1%}"
        if self._bar is not None:
            self._bar.set_postfix_str(told)
            return
        seconds = time.monotonic() - self._began
        say(f"{progress.rows:>8} of {progress.of} states, {told} ({seconds:.0f} s)")

    def close(self) -> None:
        if self._bar is not None:
            self._bar.close()


def say(line: str) -> None:
    sys.stderr.write(f"{line}\n")
    sys.stderr.flush()


class Timed:
    """Says how long each part of a command took."""

    def __init__(self, told: Callable[[str], None] = say) -> None:
        self._say, self._began = told, time.monotonic()

    def done(self, what: str) -> None:
        now = time.monotonic()
        self._say(f"{what}: {now - self._began:.0f} s")
        self._began = now
