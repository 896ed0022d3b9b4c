"""Jobs that make vectors: run one at a time, looked up, cancelled, handed back, taken over."""

import asyncio
from datetime import timedelta

import pytest

from server import jobs as queue
from server import workshop
from server.errors import InvalidRequest, SteersmanError
from server.jobs import Status
from server.store import DEFAULT_ACCOUNT
from server.workshop import Workshop, failure
from tests.server.workshop_world import (
    REQUEST,
    Away,
    Trainer,
    begun,
    ended,
    named,
    running,
    until,
)


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
    ("raised", "told", "seen"),
    [
        (InvalidRequest("nothing to learn", param="prompts.3"), "nothing", (InvalidRequest, "prompts.3")),
        (SteersmanError("4 states are missing"), "4 states", (SteersmanError, None)),
        (RuntimeError("secret /root/path"), "internal error; the server's log", (SteersmanError, None)),
    ],
)
async def test_a_failed_job_says_why(made, raised, told, seen, caplog):
    """What a client can put right reaches it word for word, and is told from what it cannot; what is internal
    stays in the log."""
    jobs, vectors = made
    shop = Workshop(jobs, vectors, Trainer(failure=raised))
    job = await shop.submit(REQUEST, DEFAULT_ACCOUNT)
    async with running(shop):
        record = await ended(jobs, job)
    assert record.status is Status.ERROR
    assert record.error.startswith(told)
    assert (type(failure(record)), failure(record).param) == seen
    assert ("secret" in caplog.text) == isinstance(raised, RuntimeError)
    assert "secret" not in record.error


async def test_a_request_that_this_release_does_not_know(made):
    """One that was queued before an upgrade fails as it would if it came now."""
    jobs, vectors = made
    job = await jobs.submit(DEFAULT_ACCOUNT, workshop.KIND, REQUEST.model_dump() | {"prompts": []}, "f")
    async with running(Workshop(jobs, vectors, Trainer())):
        refused = failure(await ended(jobs, job))
    assert isinstance(refused, InvalidRequest)
    assert refused.param == "prompts"


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
        await begun(trainer)
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
        await begun(trainer)
        await jobs.cancel(DEFAULT_ACCOUNT, job)
        trainer.go.set()
        after = await shop.submit(named("after"), DEFAULT_ACCOUNT)
        record = await ended(jobs, after)
    assert [each.id for each in await vectors.list(None)] == [record.result["steering_vector_id"]]
    assert (await jobs.get(None, job)).status is Status.CANCELLED


async def test_a_job_that_was_taken_over_keeps_its_vector(made, monkeypatch):
    """Whoever finds out at the end that another process runs the job leaves it what was made."""
    monkeypatch.setattr(workshop, "_BEAT_SECONDS", 60.0)
    jobs, vectors = made
    trainer = Trainer()
    trainer.go.clear()
    shop = Workshop(jobs, vectors, trainer)
    job = await shop.submit(REQUEST, DEFAULT_ACCOUNT)
    async with running(shop):
        await begun(trainer)
        with monkeypatch.context() as patched:
            patched.setattr(queue, "LEASE", timedelta(0))
            assert (await jobs.claim("another", "f")).id == job
        trainer.go.set()
        after = await shop.submit(named("after"), DEFAULT_ACCOUNT)
        await ended(jobs, after)
    assert {each.id for each in await vectors.list(None)} == {job, after}
    assert await jobs.finish(job, "another", result={"steering_vector_id": job})


async def test_a_stopping_server_hands_its_job_back(made):
    """On shutdown the job at hand returns to the queue, as a fresh attempt for the next process."""
    jobs, vectors = made
    trainer = Trainer()
    trainer.go.clear()
    shop = Workshop(jobs, vectors, trainer)
    job = await shop.submit(REQUEST, DEFAULT_ACCOUNT)
    async with running(shop):
        await begun(trainer)
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


async def test_a_defect_ends_no_workshop(made, caplog):
    """An exception nobody foresaw is logged, and jobs go on."""
    jobs, vectors = made

    broken = Away(jobs)
    broken.failing, broken.failure = {"claim"}, TypeError("a defect")
    shop = Workshop(broken, vectors, Trainer())
    job = await shop.submit(REQUEST, DEFAULT_ACCOUNT)
    async with running(shop):
        await asyncio.sleep(0.1)
        broken.failing = set()
        assert (await ended(jobs, job)).status is Status.COMPLETE
    assert "a defect" in caplog.text
