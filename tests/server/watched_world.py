"""Watched requests over Steersman's own serving: texts from a script, scores from another."""

from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

import httpx
import numpy as np

from server.applied import Counted
from server.errors import NotFound, Unavailable
from server.monitor import Monitor, Scores, WatchList
from server.residency import Residency
from server.routes.native import router as native
from server.routes.openai import router as openai
from server.routes.watched import router as watched
from server.steering import Steering
from server.vllm_serving import Serving
from steering.vector import Detector, Layer, SteeringVector
from tests.server import steering_world
from tests.server.apps import routes_alone
from tests.server.directories import Plain
from tests.server.steering_app import SignedIn
from tests.server.steering_world import MODEL, WIDTH, Stored
from tests.server.vllm_policy_world import Engine, Script, interaction_log, serving

THRESHOLD = 1.0
QUIET, LOUD = [0.5] * 8, [0.5, 0.5, 40.0, 0.5]  # with drift below, and from the third token on above


def detector(number: int) -> SteeringVector:
    one = np.ones(1, np.float32)
    read = np.full((1, WIDTH), 1.0 + number, np.float32)
    return SteeringVector({2: Layer(read[0], detector=Detector(read, one, one, one, one, one, 0.0))})


@dataclass(frozen=True)
class Behavior:
    """As `server.behaviors.BehaviorRecord`; `one` of the vectors steers against it."""

    id: str
    name: str
    number: int
    strength: float | None = -0.5
    steering_vector_id: str = "one"
    account_id: str = "me"
    layer: int = 2
    baseline: Any = field(default_factory=lambda: SimpleNamespace(threshold=THRESHOLD))


class Behaviors:
    def __init__(self) -> None:
        made = [
            Behavior("b1", "gloom", 1),
            Behavior("b2", "haste", 2),
            Behavior("b3", "frail", 3, strength=None),
            Behavior("b4", "old", 4, baseline=None),
            Behavior("b5", "bereft", 5, steering_vector_id="gone"),
        ]
        self.known = {key: each for each in made for key in (each.id, each.name)}

    async def recent(self, account_id, fingerprint, names, field="behavior_names"):
        for index, name in enumerate(names):
            if account_id != "me" or name not in self.known:
                raise NotFound(f"no {name}", param=f"{field}.{index}")
        return [self.known[name] for name in dict.fromkeys(names)]

    async def everywhere(self, fingerprint, ids):
        if not set(ids) <= self.known.keys():
            raise Unavailable("not there")
        return [self.known[each] for each in ids]

    async def detector(self, record: Behavior) -> SteeringVector:
        return detector(record.number)


class SteeringEngine(steering_world.Engine):
    """Scores in turn, one list per behaviour and answer."""

    def __init__(self, scores: Sequence[Sequence[float]]) -> None:
        super().__init__()
        self.left = [list(each) for each in scores]
        self.told: dict[str, tuple[Scores, ...]] = {}
        self.watches = 1

    async def watched(self, trace: str) -> tuple[Scores, ...]:
        if trace not in self.told:
            self.told[trace] = tuple(_scores(self._next()) for _ in range(self.watches))
        return self.told[trace]

    async def evidence(self, trace: str) -> Counted:
        self.asked.append(trace)
        found = await self.watched(trace)
        del self.told[trace]
        return Counted(0, 0, found)

    def _next(self) -> list[float]:
        return self.left.pop(0) if len(self.left) > 1 else self.left[0]


def _scores(values: Sequence[float]) -> Scores:
    level, fired = 0.0, None
    for count, value in enumerate(values, 1):
        level += (value - level) / 16
        if fired is None and level > THRESHOLD:
            fired = count
    return Scores(np.array(values, np.float32), fired)


class World:
    def __init__(
        self,
        script: Script,
        *scores: Sequence[float],
        everywhere: WatchList | None = None,
        engine: Any = None,
    ) -> None:
        self.engine, self.steering_engine = engine or Engine(script), SteeringEngine(scores or [QUIET])
        stored = Stored()
        self.residency = Residency(self.steering_engine, 32, 0.0)
        self.steering = _Noting(
            self.steering_engine, stored, stored, self.residency, MODEL, safe_dose=1.0, max_dose=2.0
        )
        self.monitor = Monitor(Behaviors(), MODEL.fingerprint, everywhere or WatchList())

    def serving(self) -> Serving:
        bare = serving(self.engine)
        names = Serving.__dataclass_fields__
        return Serving(
            **{name: getattr(bare, name) for name in names}
            | {"steering": self.steering, "unsteerable": None, "monitor": self.monitor}
        )

    @property
    def specs(self) -> list[Any]:
        return self.steering.specs

    @asynccontextmanager
    async def opened(self) -> AsyncIterator[httpx.AsyncClient]:
        app = routes_alone(openai, native, watched)
        app.state.steersman = SimpleNamespace(
            serving=(serving := self.serving()),
            interaction_log=interaction_log(),
            directory=Plain(serving.models),
        )
        transport = httpx.ASGITransport(SignedIn(app))
        async with httpx.AsyncClient(transport=transport, base_url="http://test") as http:
            yield http
        assert {entry.holders for entry in self.residency._entries.values()} <= {0}


class _Noting(Steering):
    """Keeps the specs that it made."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.specs: list[Any] = []

    async def apply(self, *args: Any, **kwargs: Any) -> Any:
        applied = await super().apply(*args, **kwargs)
        self.specs.append(applied.spec)
        return applied
