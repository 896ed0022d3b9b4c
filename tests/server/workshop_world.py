"""A workshop with what stands around it, for its tests: a trainer that obeys, a database that goes."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from types import SimpleNamespace

import numpy as np

from server import workshop
from server.errors import InvalidRequest, Unavailable
from server.jobs import Jobs
from server.store import Store
from server.training import TrainRequest
from server.vectors import NewVector, Vectors
from server.workshop import Workshop
from steering.vector import SteeringVector

REQUEST = TrainRequest(prompts=["p"], positive_answers=["a"], negative_answers=["b"], layer_idxs=[2])


class Trainer:
    """Trains when `go` is set, or raises `failure`; remembers what it was given."""

    def __init__(self, fingerprint: str = "f", failure: Exception | None = None) -> None:
        self.model = SimpleNamespace(fingerprint=fingerprint)
        self.failure = failure
        self.go = asyncio.Event()
        self.go.set()
        self.started: list[str] = []
        self.running = self.most = 0
        self.seen: list[TrainRequest] = []

    def layers(self, request: TrainRequest) -> tuple[int, ...]:
        if request.layer_idxs and max(request.layer_idxs) > 9:
            raise InvalidRequest("no such layer", param="layer_idxs")
        return (2,)

    async def train(self, request: TrainRequest, account_id: str, progress) -> NewVector:
        self.started.append(request.name or "")
        self.seen.append(request)
        self.running += 1
        self.most = max(self.most, self.running)
        try:
            await progress({"stage": "states", "done": len(self.started)})
            await self.go.wait()
            if self.failure is not None:
                raise self.failure
        finally:
            self.running -= 1
        return NewVector(account_id, SteeringVector.of({2: np.ones(3, np.float32)}), request.method)


class Away:
    """Jobs or vectors whose database is away for the calls named in `failing`."""

    def __init__(self, inner: Jobs | Vectors) -> None:
        self._inner = inner
        self.failing: set[str] = set()
        self.failure: Exception = Unavailable("the database does not answer")
        self.called: list[str] = []

    def __getattr__(self, name: str):
        method = getattr(self._inner, name)

        async def call(*args, **kwargs):
            self.called.append(name)
            if name in self.failing:
                raise self.failure
            return await method(*args, **kwargs)

        return call


def hurry(monkeypatch) -> None:
    """Looks at the queue, heartbeats and new attempts come often."""
    for name in ("_IDLE_SECONDS", "_BEAT_SECONDS", "_RETRY_SECONDS"):
        monkeypatch.setattr(workshop, name, 0.05)
    monkeypatch.setattr(workshop, "_STORE_SECONDS", (0.01,) * 4)
    monkeypatch.setattr(workshop, "_PROGRESS_SECONDS", 0.0)


@asynccontextmanager
async def database(folder: Path) -> AsyncIterator[tuple[Jobs, Vectors]]:
    """Jobs and vectors of an empty SQLite file; their own tests run on both kinds of database."""
    store = Store(f"sqlite:///{folder / 'steersman.db'}")
    await asyncio.to_thread(store.migrate)
    yield Jobs(store.database), Vectors(store.database)
    await store.close()


@asynccontextmanager
async def running(*shops: Workshop):
    tasks = [asyncio.create_task(shop.run()) for shop in shops]
    try:
        yield tasks
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.wait_for(asyncio.gather(*tasks, return_exceptions=True), 5)
        assert all(task.cancelled() for task in tasks)


async def until(holds):
    async with asyncio.timeout(10):
        while not await holds():  # noqa: ASYNC110  # what it waits for happens in a database
            await asyncio.sleep(0.01)


async def ended(jobs: Jobs, job: str):
    async def over() -> bool:
        return (await jobs.get(None, job)).status.ended

    await until(over)
    return await jobs.get(None, job)


def named(name: str) -> TrainRequest:
    return REQUEST.model_copy(update={"name": name})


async def begun(trainer: Trainer) -> None:
    async def busy() -> bool:
        return trainer.running > 0

    await until(busy)
