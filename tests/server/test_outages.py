"""Jobs that make vectors while the engine or the database is away: waited for, tried again, given up."""

import asyncio
from datetime import timedelta

from server import jobs as queue
from server import workshop
from server.errors import Unavailable
from server.jobs import MAX_ATTEMPTS, Status
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


async def test_other_jobs_have_their_turn_meanwhile(made, monkeypatch):
    """A job that waits for the engine keeps neither this process nor another one from the jobs behind it."""
    monkeypatch.setattr(workshop, "_RETRY_SECONDS", 60.0)
    jobs, vectors = made
    trainer = Trainer(failure=Unavailable("the engine is full"))
    shops = [Workshop(jobs, vectors, trainer) for _ in range(2)]
    first = await shops[0].submit(named("first"), DEFAULT_ACCOUNT)
    async with running(*shops):

        async def waits() -> bool:
            told = {"stage": "waiting", "reason": "the engine is full", "tries": 1}
            return (await jobs.get(None, first)).progress == told

        await until(waits)
        trainer.failure = None
        later = [await shop.submit(named("later"), DEFAULT_ACCOUNT) for shop in shops]
        for job in later:
            assert (await ended(jobs, job)).status is Status.COMPLETE
        assert (await jobs.get(None, first)).status is Status.QUEUED
    assert trainer.started == ["first", "later", "later"]


async def test_a_job_whose_engine_stays_away_is_given_up(made, monkeypatch):
    """After a number of tries, in whatever processes, it ends with the engine's reason: no client's fault."""
    monkeypatch.setattr(workshop, "_IDLE_SECONDS", 0.001)
    monkeypatch.setattr(workshop, "_RETRY_SECONDS", 0.001)
    jobs, vectors = made
    trainer = Trainer(failure=Unavailable("all steering table rows are in use"))
    shops = [Workshop(jobs, vectors, trainer) for _ in range(2)]
    first, second = [await shop.submit(REQUEST, DEFAULT_ACCOUNT) for shop in shops]
    async with running(*shops):
        for job in (first, second):
            record = await ended(jobs, job)
            assert record.status is Status.ERROR
            assert record.error == "given up: all steering table rows are in use"
            assert isinstance(failure(record), Unavailable)
    assert len(trainer.started) == 2 * workshop._MAX_TRIES


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


async def test_an_end_that_was_not_recorded_is_made_up_for(made, monkeypatch):
    """When the database goes between a vector and the end of its job, whoever takes the job over finds the
    vector, and neither learns it again nor stores a second one."""
    jobs, vectors = made
    away, trainer = Away(jobs), Trainer()
    shop = Workshop(away, vectors, trainer)
    away.failing = {"finish"}
    monkeypatch.setattr(queue, "LEASE", timedelta(seconds=0.2))
    job = await shop.submit(REQUEST, DEFAULT_ACCOUNT)
    async with running(shop):

        async def tried() -> bool:
            return "finish" in away.called

        await until(tried)
        away.failing = set()
        record = await ended(jobs, job)
    assert (record.status, record.result) == (Status.COMPLETE, {"steering_vector_id": job})
    assert [each.id for each in await vectors.list(None)] == [job]
    assert len(trainer.started) == 1


async def test_what_was_learnt_survives_a_short_outage(made, monkeypatch):
    """A database that is away just when a vector is to be stored is asked again: training takes minutes."""
    monkeypatch.setattr(workshop, "_STORE_SECONDS", (0.1,) * 50)
    jobs, vectors = made
    away, trainer = Away(vectors), Trainer()
    shop = Workshop(jobs, away, trainer)
    away.failing = {"add"}
    job = await shop.submit(REQUEST, DEFAULT_ACCOUNT)
    async with running(shop):

        async def tried() -> bool:
            return away.called.count("add") > 1

        await until(tried)
        away.failing = set()
        assert (await ended(jobs, job)).status is Status.COMPLETE
    assert len(trainer.started) == 1


async def test_a_stopping_server_may_have_lost_its_database(made):
    """A shutdown ends although the job at hand cannot be handed back."""
    jobs, vectors = made
    away = Away(jobs)
    trainer = Trainer()
    trainer.go.clear()
    shop = Workshop(away, vectors, trainer)
    await shop.submit(REQUEST, DEFAULT_ACCOUNT)
    async with running(shop):
        await begun(trainer)
        away.failing = {"release"}
    assert "release" in away.called
