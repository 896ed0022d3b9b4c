"""Which behaviours a request is watched for, and what its answer says of them."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from enum import StrEnum
from types import MappingProxyType
from typing import Any, Final, Protocol

import numpy as np
from numpy.typing import NDArray

from policies.steering import SteeringEntry
from server.errors import Conflict, InvalidRequest
from server.metrics import BEHAVIOR_CORRECTIONS, DRIFT
from steering.drift import SMOOTHING, drift
from steering.sae.baseline import Baseline
from steering.spec import MAX_WATCHES
from steering.vector import SteeringVector

EVERYWHERE: Final = "--behaviors"  # the path of what every request is watched for


class Mode(StrEnum):
    """What drift above the threshold leads to."""

    MONITOR = "monitor"  # it is told
    ONLINE = "online"  # the correction acts from the next token on
    REGENERATE = "regenerate"  # the answer is dropped and generated again, with the correction from its start


@dataclass(frozen=True, slots=True)
class WatchList:
    """By name or id. Those of `forced` are corrected in any case, and watched as well. `levels`: the drift of
    every token is told."""

    names: tuple[str, ...] = ()
    forced: tuple[str, ...] = ()
    mode: Mode = Mode.ONLINE
    levels: bool = False


@dataclass(frozen=True, slots=True)
class Watched:
    """One behaviour of one request, which names it at `path`.

    `correction` acts from the start where it is `always` to, else as `mode` says. A client has it `forced`.
    """

    id: str
    owner: str  # the account that has its vector
    name: str
    detector: SteeringVector
    layer: int
    threshold: float
    smoothing: float
    correction: SteeringEntry | None
    path: str
    mode: Mode
    forced: bool = False
    always: bool = False
    levels: bool = False

    @property
    def acts(self) -> bool:
        """Whether the correction is in the engine's hands."""
        return self.always or self.mode is Mode.ONLINE


class Record(Protocol):
    """A stored behaviour: see `server.behaviors.BehaviorRecord`."""

    @property
    def id(self) -> str: ...
    @property
    def account_id(self) -> str: ...
    @property
    def name(self) -> str: ...
    @property
    def layer(self) -> int: ...
    @property
    def baseline(self) -> Baseline | None: ...
    @property
    def steering_vector_id(self) -> str: ...
    @property
    def strength(self) -> float | None: ...


class Stored(Protocol):
    async def recent(
        self, account_id: str, fingerprint: str, names: Sequence[str], field: str = ...
    ) -> Sequence[Record]: ...
    async def everywhere(self, fingerprint: str, ids: Sequence[str]) -> Sequence[Record]: ...
    async def detector(self, record: Any) -> SteeringVector: ...


@dataclass(frozen=True, slots=True)
class Monitor:
    """`everywhere` are the behaviours that all requests are watched for, by id; see --behaviors."""

    behaviors: Stored
    fingerprint: str
    everywhere: WatchList = WatchList()

    async def watched(self, asked: WatchList | None, account_id: str) -> tuple[Watched, ...]:
        """Each behaviour once: what forces it wins over what watches it, the request over the server.

        Raises NotFound for behaviours that the account does not have, Conflict for those that cannot be
        watched, or corrected where that is asked for.
        """
        asked = asked or WatchList()
        found: dict[str, Watched] = {}
        for field, names, forced in (
            ("force_steering", asked.forced, True),
            ("behavior_names", asked.names, False),
        ):
            records = await self.behaviors.recent(account_id, self.fingerprint, names, field)
            for record in records:
                if record.id not in found:
                    watched = await self._watched(record, asked.mode, field, forced=forced)
                    found[record.id] = replace(watched, levels=asked.levels)
        for record in await self.behaviors.everywhere(self.fingerprint, self.everywhere.names):
            if record.id not in found:
                found[record.id] = await self._watched(record, self.everywhere.mode, EVERYWHERE)
        if len(found) > MAX_WATCHES:
            raise InvalidRequest(
                f"at most {MAX_WATCHES} behaviors are watched, not {len(found)}"
                + ("; the server itself watches some" if self.everywhere.names else ""),
                param="behavior_names" if asked.names else "force_steering",
            )
        return tuple(found.values())

    async def _watched(self, record: Record, mode: Mode, path: str, *, forced: bool = False) -> Watched:
        baseline = record.baseline
        if baseline is None:
            raise Conflict(
                f"the behaviour {record.name!r} was made by another version of this server: POST"
                " /behaviors/recompute-baselines makes it anew",
                param=path,
            )
        correction = None
        if forced or mode is not Mode.MONITOR:
            if record.strength is None:
                raise Conflict(
                    f"the behaviour {record.name!r} has no correction that neutral text bears;"
                    " it can be watched with mode 'monitor'",
                    param=path,
                )
            correction = SteeringEntry(vector_id=record.steering_vector_id, strength=record.strength)
        return Watched(
            id=record.id,
            owner=record.account_id,
            name=record.name,
            detector=await self.behaviors.detector(record),
            layer=record.layer,
            threshold=baseline.threshold,
            smoothing=SMOOTHING,
            correction=correction,
            path=path,
            mode=mode,
            forced=forced,
            always=forced,
        )


@dataclass(frozen=True, slots=True)
class Scores:
    """Of one behaviour in one engine request: `values` `[tokens]`, one for each generated token that was fed
    back, and after how many of them its drift was above the threshold, if ever."""

    values: NDArray[np.float32]
    fired: int | None


@dataclass(frozen=True, slots=True)
class Drift:
    """What became of one behaviour in one answer, or in several that were generated together.

    `before` is the drift of the answer that was dropped for this one.
    """

    watched: Watched
    scores: tuple[Scores, ...]
    before: "Drift | None" = None

    @property
    def levels(self) -> list[NDArray[np.float64]]:
        return [drift(each.values, self.watched.smoothing) for each in self.scores]

    @property
    def drifted(self) -> bool:
        return any(each.fired is not None for each in self.scores)

    @property
    def to_regenerate(self) -> bool:
        return self.drifted and self.watched.mode is Mode.REGENERATE and not self.watched.always

    @property
    def corrections(self) -> int:
        """How often the correction was switched on."""
        if self.watched.always:
            return len(self.scores)
        if self.watched.mode is Mode.ONLINE:
            return sum(each.fired is not None for each in self.scores)
        return 0

    def observe(self) -> None:
        # Metrics are open to all: what an account calls its behaviours is not for them.
        name = self.watched.name if self.watched.path == EVERYWHERE else "custom"
        for levels in self.levels:
            if len(levels):
                DRIFT.labels(name).observe(float(levels.max()))
        if self.corrections:
            mode = "forced" if self.watched.forced else self.watched.mode.value
            BEHAVIOR_CORRECTIONS.labels(name, mode).inc(self.corrections)

    def described(self) -> dict[str, Any]:
        levels = np.concatenate([np.zeros(0), *self.levels])
        fired = [each.fired for each in self.scores if each.fired is not None]
        described: dict[str, Any] = {
            "id": self.watched.id,
            "name": self.watched.name,
            "mode": self.watched.mode.value,
            "threshold": round(self.watched.threshold, 4),
            "tokens": len(levels),
            "max_drift": round(float(levels.max()), 4) if len(levels) else None,
            "mean_drift": round(float(levels.mean()), 4) if len(levels) else None,
            "drifted": bool(fired),
            "drifted_after": min(fired) if fired else None,
            "forced": self.watched.forced,
            "corrected": self.corrections > 0,
            "corrections": self.corrections,
        }
        if self.watched.levels:
            described["levels"] = [[round(float(each), 4) for each in levels] for levels in self.levels]
        if self.before is not None:
            dropped = self.before.described()
            kept = ("tokens", "max_drift", "mean_drift", "drifted", "drifted_after")
            described["before"] = {name: dropped[name] for name in kept}
        return described


def corrected(found: Sequence[Drift]) -> tuple[Watched, ...] | None:
    """What is watched when the answer is generated again, those that drifted corrected; None: it is kept."""
    if not any(each.to_regenerate for each in found):
        return None
    return tuple(replace(each.watched, always=each.watched.always or each.to_regenerate) for each in found)


def drifts(
    watched: Sequence[Watched], scores: Sequence[Scores], before: Mapping[str, Drift] = MappingProxyType({})
) -> tuple[Drift, ...]:
    """`scores` are those of all watched behaviours in order, for each engine request in turn."""
    count = len(watched)
    return tuple(
        Drift(each, tuple(scores[index::count]), before.get(each.id)) for index, each in enumerate(watched)
    )
