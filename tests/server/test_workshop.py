"""Jobs that make vectors: run one at a time, looked up, cancelled, handed back, taken over."""

import asyncio
from contextlib import asynccontextmanager
from types import SimpleNamespace

import numpy as np
import pytest

from server import workshop
from server.errors import InvalidRequest, SteersmanError, Unavailable
from server.jobs import MAX_ATTEMPTS, Jobs, Status
from server.store import DEFAULT_ACCOUNT, Store
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


@pytest.fixture(autouse=True)
def haste(monkeypatch):
    """Looks at the queue and heartbeats come often."""
    monkeypatch.setattr(workshop, "_IDLE_SECONDS", 0.05)
    monkeypatch.setattr(workshop, "_BEAT_SECONDS", 0.05)
    monkeypatch.setattr(workshop, "_PROGRESS_SECONDS", 0.0)


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


@pytest.fixture
async def made(tmp_path):
    """Jobs and vectors of an empty SQLite file; their own tests run on both kinds of database."""
    store = Store(f"sqlite:///{tmp_path / 'steersman.db'}")
    await asyncio.to_thread(store.migrate)
    yield Jobs(store.database), Vectors(store.database)
    await store.close()


async def test_a_job_becomes_a_vector(made):
    """A submitted request is trained as it was sent, stored for its account, and its job names the vector."""
    jobs, vectors = made
    trainer = Trainer()
    shop = Workshop(jobs, vectors, trainer)
    job = await shop.submit(REQUEST, DEFAULT_ACCOUNT)
    assert (await jobs.get(DEFAULT_ACCOUNT, job)).status is Status.QUEUED
    async with running(shop):
        record = await ended(jobs, job)
    assert (record.status, record.error) == (Status.COMPLETE, None)
    stored = await vectors.get(DEFAULT_ACCOUNT, record.result["steering_vector_id"])
    assert (stored.account_id, stored.method) == (DEFAULT_ACCOUNT, "caa")
    assert trainer.seen == [REQUEST]


async def test_what_cannot_succeed_is_refused_before_it_queues(made):
    """Layers that the model has not are refused at once, and leave no job."""
    jobs, vectors = made
    shop = Workshop(jobs, vectors, Trainer())
    with pytest.raises(InvalidRequest, match="no such layer"):
        await shop.submit(REQUEST.model_copy(update={"layer_idxs": [10]}), DEFAULT_ACCOUNT)
    assert await jobs.list(None) == []


async def test_jobs_run_in_turn(made):
    """Several jobs queue: one at a time, in order, and progress can be looked up meanwhile."""
    jobs, vectors = made
    trainer = Trainer()
    trainer.go.clear()
    shop = Workshop(jobs, vectors, trainer)
    ids = [await shop.submit(named(name), DEFAULT_ACCOUNT) for name in "abc"]
    async with running(shop):

        async def told() -> bool:
            return (await jobs.get(None, ids[0])).progress == {"stage": "states", "done": 1}

        await until(told)
        assert (await jobs.get(None, ids[1])).status is Status.QUEUED
        trainer.go.set()
        for job in ids:
            assert (await ended(jobs, job)).status is Status.COMPLETE
    assert (trainer.started, trainer.most) == (["a", "b", "c"], 1)


async def test_a_submission_wakes_the_workshop(made, monkeypatch):
    """A job in one's own process begins at once, not at the next look at the queue."""
    monkeypatch.setattr(workshop, "_IDLE_SECONDS", 60.0)
    jobs, vectors = made
    shop = Workshop(jobs, vectors, Trainer())
    async with running(shop):
        for _ in range(3):
            await asyncio.sleep(0.02)
            job = await shop.submit(REQUEST, DEFAULT_ACCOUNT)
            assert (await ended(jobs, job)).status is Status.COMPLETE


@pytest.mark.parametrize(
    ("failure", "told"),
    [
        (InvalidRequest("pair 3, positive: nothing to learn", param="prompts"), "pair 3, positive: nothing"),
        (SteersmanError("a capture came back short: 4 states are missing"), "a capture came back short"),
        (RuntimeError("secret /root/path"), "internal error; the server's log has the details"),
    ],
)
async def test_a_failed_job_says_why(made, failure, told, caplog):
    """What a client can put right reaches it word for word; what is internal stays in the log."""
    jobs, vectors = made
    shop = Workshop(jobs, vectors, Trainer(failure=failure))
    job = await shop.submit(REQUEST, DEFAULT_ACCOUNT)
    async with running(shop):
        record = await ended(jobs, job)
    assert record.status is Status.ERROR
    assert record.error.startswith(told)
    assert ("secret" in caplog.text) == isinstance(failure, RuntimeError)
    assert "secret" not in record.error


async def test_a_failed_job_stops_no_other(made):
    """After a failure the next job runs."""
    jobs, vectors = made
    trainer = Trainer(failure=RuntimeError("broken"))
    shop = Workshop(jobs, vectors, trainer)
    first = await shop.submit(REQUEST, DEFAULT_ACCOUNT)
    async with running(shop):
        await ended(jobs, first)
        trainer.failure = None
        second = await shop.submit(REQUEST, DEFAULT_ACCOUNT)
        assert (await ended(jobs, second)).status is Status.COMPLETE


async def test_a_running_job_is_cancelled(made):
    """Who works on a cancelled job stops, no vector is stored, and the next job gets its turn."""
    jobs, vectors = made
    trainer = Trainer()
    trainer.go.clear()
    shop = Workshop(jobs, vectors, trainer)
    first, second = [await shop.submit(named(name), DEFAULT_ACCOUNT) for name in "ab"]
    async with running(shop):

        async def begun() -> bool:
            return trainer.running == 1

        await until(begun)
        await jobs.cancel(DEFAULT_ACCOUNT, first)

        async def turned() -> bool:
            return trainer.started == ["a", "b"]

        await until(turned)
        trainer.go.set()
        assert (await ended(jobs, second)).status is Status.COMPLETE
    assert (await jobs.get(None, first)).status is Status.CANCELLED
    assert len(await vectors.list(DEFAULT_ACCOUNT)) == 1


async def test_a_job_cancelled_at_its_very_end_leaves_no_vector(made, monkeypatch):
    """Cancelled after its last heartbeat, a job that finished all the same leaves nothing behind."""
    monkeypatch.setattr(workshop, "_BEAT_SECONDS", 60.0)
    jobs, vectors = made
    trainer = Trainer()
    trainer.go.clear()
    shop = Workshop(jobs, vectors, trainer)
    job = await shop.submit(REQUEST, DEFAULT_ACCOUNT)
    async with running(shop):

        async def begun() -> bool:
            return trainer.running == 1

        await until(begun)
        await jobs.cancel(DEFAULT_ACCOUNT, job)
        trainer.go.set()
        after = await shop.submit(named("after"), DEFAULT_ACCOUNT)
        record = await ended(jobs, after)
    assert [each.id for each in await vectors.list(None)] == [record.result["steering_vector_id"]]
    assert (await jobs.get(None, job)).status is Status.CANCELLED


async def test_a_stopping_server_hands_its_job_back(made):
    """On shutdown the job at hand returns to the queue, as a fresh attempt for the next process."""
    jobs, vectors = made
    trainer = Trainer()
    trainer.go.clear()
    shop = Workshop(jobs, vectors, trainer)
    job = await shop.submit(REQUEST, DEFAULT_ACCOUNT)
    async with running(shop):

        async def begun() -> bool:
            return trainer.running == 1

        await until(begun)
    assert trainer.running == 0
    assert (await jobs.get(None, job)).status is Status.QUEUED
    assert (await jobs.claim("next", "f")).attempts == 1


async def test_two_processes_share_the_queue(made):
    """Each job runs in one process, and both processes work."""
    jobs, vectors = made
    trainers = Trainer(), Trainer()
    shops = [Workshop(jobs, vectors, trainer) for trainer in trainers]
    for trainer in trainers:
        trainer.go.clear()
    ids = [await shops[0].submit(named(str(number)), DEFAULT_ACCOUNT) for number in range(4)]
    async with running(*shops):

        async def both() -> bool:
            return all(trainer.running for trainer in trainers)

        await until(both)
        for trainer in trainers:
            trainer.go.set()
        for job in ids:
            assert (await ended(jobs, job)).status is Status.COMPLETE
    assert sorted(trainers[0].started + trainers[1].started) == ["0", "1", "2", "3"]
    assert len(await vectors.list(None)) == 4


async def test_a_job_waits_for_a_server_of_its_model(made):
    """A process that serves another model leaves the job alone."""
    jobs, vectors = made
    ours, theirs = (Workshop(jobs, vectors, Trainer(name)) for name in ("f", "g"))
    job = await ours.submit(REQUEST, DEFAULT_ACCOUNT)
    async with running(theirs):
        await asyncio.sleep(0.2)
        assert (await jobs.get(None, job)).status is Status.QUEUED
        async with running(ours):
            assert (await ended(jobs, job)).status is Status.COMPLETE


async def test_a_job_whose_engine_is_away_waits_for_it(made, caplog):
    """What may be tried again is: the job returns to the queue without losing an attempt."""
    jobs, vectors = made
    trainer = Trainer(failure=Unavailable("the engine has stopped"))
    shop = Workshop(jobs, vectors, trainer)
    job = await shop.submit(REQUEST, DEFAULT_ACCOUNT)
    async with running(shop):

        async def tried_again() -> bool:
            return len(trainer.started) > MAX_ATTEMPTS

        await until(tried_again)
        trainer.failure = None
        assert (await ended(jobs, job)).status is Status.COMPLETE


async def test_a_job_whose_engine_stays_away_is_given_up(made, monkeypatch):
    """After a number of tries it ends with the engine's reason, and the next job has its turn."""
    monkeypatch.setattr(workshop, "_IDLE_SECONDS", 0.001)
    jobs, vectors = made
    trainer = Trainer(failure=Unavailable("all steering table rows are in use"))
    shop = Workshop(jobs, vectors, trainer)
    first, second = [await shop.submit(REQUEST, DEFAULT_ACCOUNT) for _ in range(2)]
    async with running(shop):
        for job in (first, second):
            record = await ended(jobs, job)
            assert record.status is Status.ERROR
            assert record.error == "given up: all steering table rows are in use"
    assert len(trainer.started) == 2 * workshop._MAX_TRIES


class Away:
    """Jobs whose database is away for the calls named in `failing`."""

    def __init__(self, jobs: Jobs) -> None:
        self._jobs = jobs
        self.failing: set[str] = set()
        self.called: set[str] = set()

    def __getattr__(self, name: str):
        method = getattr(self._jobs, name)

        async def call(*args, **kwargs):
            self.called.add(name)
            if name in self.failing:
                raise Unavailable("the database does not answer")
            return await method(*args, **kwargs)

        return call


async def test_the_database_may_go_and_come_back(made):
    """While the database is away the workshop waits, and goes on when it is back."""
    jobs, vectors = made
    away = Away(jobs)
    shop = Workshop(away, vectors, Trainer())
    job = await shop.submit(REQUEST, DEFAULT_ACCOUNT)
    away.failing = {"claim"}
    async with running(shop):
        await asyncio.sleep(0.2)
        away.failing = set()
        assert (await ended(jobs, job)).status is Status.COMPLETE


async def test_progress_and_heartbeats_may_fail(made):
    """A job whose progress cannot be told for a while is not lost by it."""
    jobs, vectors = made
    away = Away(jobs)
    trainer = Trainer()
    trainer.go.clear()
    shop = Workshop(away, vectors, trainer)
    job = await shop.submit(REQUEST, DEFAULT_ACCOUNT)
    away.failing = {"heartbeat"}
    async with running(shop):
        await asyncio.sleep(0.2)
        assert trainer.running == 1
        trainer.go.set()
        assert (await ended(jobs, job)).status is Status.COMPLETE


async def test_an_end_that_cannot_be_recorded_stops_no_later_job(made, caplog):
    """When the database goes just as a job ends, the workshop lives on; the job's lease will run out."""
    jobs, vectors = made
    away = Away(jobs)
    shop = Workshop(away, vectors, Trainer())
    first = await shop.submit(REQUEST, DEFAULT_ACCOUNT)
    away.failing = {"finish"}
    async with running(shop) as (task,):

        async def tried() -> bool:
            return "finish" in away.called

        await until(tried)
        await asyncio.sleep(0.1)
        assert not task.done()
        away.failing = set()
        second = await shop.submit(REQUEST, DEFAULT_ACCOUNT)
        assert (await ended(jobs, second)).status is Status.COMPLETE
    assert (await jobs.get(None, first)).status is Status.RUNNING


async def test_a_stopping_server_may_have_lost_its_database(made):
    """A shutdown ends although the job at hand cannot be handed back."""
    jobs, vectors = made
    away = Away(jobs)
    trainer = Trainer()
    trainer.go.clear()
    shop = Workshop(away, vectors, trainer)
    await shop.submit(REQUEST, DEFAULT_ACCOUNT)
    async with running(shop):

        async def begun() -> bool:
            return trainer.running == 1

        await until(begun)
        away.failing = {"release"}
    assert "release" in away.called


async def test_a_defect_ends_no_workshop(made, caplog):
    """An exception nobody foresaw is logged, and jobs go on."""
    jobs, vectors = made

    class Broken(Away):
        async def claim(self, *args):
            if "claim" in self.failing:
                raise TypeError("a defect")
            return await self._jobs.claim(*args)

    broken = Broken(jobs)
    broken.failing = {"claim"}
    shop = Workshop(broken, vectors, Trainer())
    job = await shop.submit(REQUEST, DEFAULT_ACCOUNT)
    async with running(shop):
        await asyncio.sleep(0.1)
        broken.failing = set()
        assert (await ended(jobs, job)).status is Status.COMPLETE
    assert "a defect" in caplog.text
