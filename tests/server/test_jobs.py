"""The queue of steering jobs, on SQLite and on a real PostgreSQL server."""

import asyncio
from datetime import UTC, datetime, timedelta

import pytest
from sqlalchemy import select, update

from server.database import Database
from server.errors import Conflict, NotFound
from server.jobs import KEPT, LEASE, MAX_ATTEMPTS, JobRow, Jobs, Status
from server.store import DEFAULT_ACCOUNT

REQUEST = {"prompts": ["p"], "method": "caa"}


@pytest.fixture
async def jobs(store):
    """Jobs of a database without any."""
    return Jobs(store.database)


async def submit(jobs, *more):
    return await jobs.submit(DEFAULT_ACCOUNT, "caa", REQUEST, *more)


async def abandon(jobs, job_id):
    """As if the owner of the job had stopped long ago."""
    async with jobs._database.writing() as connection:
        await connection.execute(
            update(JobRow).where(JobRow.id == job_id).values(heartbeat_at=datetime.now(UTC) - 2 * LEASE)
        )


async def status(jobs, job_id):
    return (await jobs.get(None, job_id)).status


async def test_a_job_runs_and_completes(jobs):
    """A job waits, is claimed with its request, shows its progress, and ends with its result."""
    job_id = await submit(jobs)
    waiting = await jobs.get(DEFAULT_ACCOUNT, job_id)
    assert (waiting.kind, waiting.status, waiting.progress) == ("caa", Status.QUEUED, None)
    claimed = await jobs.claim("me")
    assert (claimed.id, claimed.account_id, claimed.kind) == (job_id, DEFAULT_ACCOUNT, "caa")
    assert (claimed.request, claimed.attempts) == (REQUEST, 1)
    assert await jobs.heartbeat(job_id, "me", {"done": 3, "of": 9})
    running = await jobs.get(DEFAULT_ACCOUNT, job_id)
    assert (running.status, running.progress, running.finished_at) == (
        Status.RUNNING,
        {"done": 3, "of": 9},
        None,
    )
    assert await jobs.heartbeat(job_id, "me")
    assert (await jobs.get(None, job_id)).progress == {"done": 3, "of": 9}
    assert await jobs.finish(job_id, "me", result={"steering_vector_id": "v"})
    ended = await jobs.get(DEFAULT_ACCOUNT, job_id)
    assert (ended.status, ended.result, ended.error) == (Status.COMPLETE, {"steering_vector_id": "v"}, None)
    assert ended.finished_at >= ended.created_at
    assert not await jobs.finish(job_id, "me", error="late")
    assert await jobs.claim("me") is None


async def test_a_job_fails_with_a_reason(jobs):
    """An error ends the job, and is what a client reads."""
    job_id = await submit(jobs)
    await jobs.claim("me")
    assert await jobs.finish(job_id, "me", error="the pairs are all equal")
    ended = await jobs.get(None, job_id)
    assert (ended.status, ended.error, ended.result) == (Status.ERROR, "the pairs are all equal", None)


async def test_jobs_are_taken_in_order(jobs):
    """The oldest waiting job comes first; a list has the newest first and can be narrowed to a status."""
    ids = [await submit(jobs) for _ in range(3)]
    assert [(await jobs.claim("me")).id for _ in range(2)] == ids[:2]
    assert [job.id for job in await jobs.list(DEFAULT_ACCOUNT)] == ids[::-1]
    assert [job.id for job in await jobs.list(DEFAULT_ACCOUNT, status=Status.QUEUED)] == ids[2:]
    assert [job.id for job in await jobs.list(DEFAULT_ACCOUNT, limit=1, offset=1)] == [ids[1]]


async def test_each_job_is_claimed_once(jobs, database_url):
    """Many processes that claim at the same moment get different jobs, and together all of them."""
    ids = {await submit(jobs) for _ in range(5)}
    databases = [Database(database_url) for _ in range(8)]
    workers = [Jobs(database) for database in databases]
    for each in workers:
        await each.list(None)  # so that all have a connection when it begins
    claimed = await asyncio.gather(*(each.claim(f"p{n}") for n, each in enumerate(workers)))
    while len([job for job in claimed if job]) < 5:  # a locked row is passed over; the next turn gets it
        job = await workers[0].claim("p0")
        assert job is not None
        claimed.append(job)
    for database in databases:
        await database.close()
    taken = [job.id for job in claimed if job]
    assert sorted(taken) == sorted(ids)


async def test_a_job_that_its_owner_left_is_taken_over(jobs):
    """While heartbeats come nobody else gets it; afterwards another process does, from the beginning."""
    job_id = await submit(jobs)
    await jobs.claim("old")
    await jobs.heartbeat(job_id, "old", {"done": 5})
    assert await jobs.claim("new") is None
    await abandon(jobs, job_id)
    assert (await jobs.claim("new")).attempts == 2
    assert (await jobs.get(None, job_id)).progress is None
    assert not await jobs.heartbeat(job_id, "old", {"done": 6})
    assert not await jobs.finish(job_id, "old", result={})
    assert await jobs.finish(job_id, "new", result={"x": 1})
    assert (await jobs.get(None, job_id)).result == {"x": 1}


async def test_an_abandoned_job_is_taken_over_once(jobs, database_url):
    """Of several processes that see the same abandoned job, one gets it."""
    job_id = await submit(jobs)
    await jobs.claim("old")
    await abandon(jobs, job_id)
    databases = [Database(database_url) for _ in range(6)]
    claimed = await asyncio.gather(*(Jobs(each).claim(f"p{n}") for n, each in enumerate(databases)))
    for database in databases:
        await database.close()
    assert [job.attempts for job in claimed if job] == [2]


async def test_a_job_that_ends_every_process_is_given_up(jobs):
    """After the last attempt the job is an error that says so, and the next job gets its turn."""
    job_id, next_id = await submit(jobs), await submit(jobs)
    for attempt in range(MAX_ATTEMPTS):
        assert (await jobs.claim(f"p{attempt}")).id == job_id
        await abandon(jobs, job_id)
    assert (await jobs.claim("last")).id == next_id
    given_up = await jobs.get(None, job_id)
    assert given_up.status is Status.ERROR
    assert "stopped 3 times" in given_up.error
    assert given_up.finished_at is not None


async def test_a_released_job_waits_again(jobs):
    """A process that stops in good order hands its job back, which is not an attempt lost."""
    job_id = await submit(jobs)
    await jobs.claim("me")
    assert not await jobs.release(job_id, "somebody")
    assert await jobs.release(job_id, "me")
    assert await status(jobs, job_id) is Status.QUEUED
    assert (await jobs.claim("next")).attempts == 1


async def test_a_released_job_may_have_to_wait(jobs):
    """Until its time has come other jobs have their turn, whoever asks; then it comes with what was left."""
    first, second = await submit(jobs), await submit(jobs)
    await jobs.claim("me")
    left = {"stage": "waiting", "tries": 1}
    assert await jobs.release(first, "me", after=timedelta(hours=1), progress=left)
    assert (await jobs.get(None, first)).progress == left
    assert (await jobs.claim("next")).id == second
    assert await jobs.claim("next") is None
    async with jobs._database.writing() as connection:
        now = datetime.now(UTC)
        await connection.execute(update(JobRow).where(JobRow.id == first).values(heartbeat_at=now))
    claimed = await jobs.claim("next")
    assert (claimed.id, claimed.attempts, claimed.left) == (first, 1, left)
    assert (await jobs.get(None, first)).progress is None


async def test_what_a_dead_process_told_was_not_left(jobs):
    """The progress of an abandoned job says nothing to whoever takes it over."""
    job_id = await submit(jobs)
    assert (await jobs.claim("old")).left is None
    await jobs.heartbeat(job_id, "old", {"tries": 5})
    await abandon(jobs, job_id)
    assert (await jobs.claim("new")).left is None


@pytest.mark.parametrize("end", ["finish", "cancel", "give up"])
async def test_an_ended_job_forgets_its_request(jobs, end):
    """Which may be megabytes, and is of no use to anybody."""
    job_id = await submit(jobs)
    for attempt in range(MAX_ATTEMPTS if end == "give up" else 1):
        await jobs.claim(f"p{attempt}")
        await abandon(jobs, job_id)
    if end == "finish":
        await jobs.finish(job_id, "p0", result={})
    elif end == "cancel":
        await jobs.cancel(None, job_id)
    else:
        assert await jobs.claim("last") is None
    assert (await status(jobs, job_id)).ended
    async with jobs._database.reading() as connection:
        assert (await connection.execute(select(JobRow.request))).scalar() == {}


async def test_a_job_waits_for_its_model(jobs):
    """A server claims jobs for its own model and for any, and leaves those for others alone."""
    theirs, mine, any_ = await submit(jobs, "theirs"), await submit(jobs, "mine"), await submit(jobs)
    assert [(await jobs.claim("me", "mine")).id for _ in range(2)] == [mine, any_]
    assert await jobs.claim("me", "mine") is None
    assert await jobs.claim("me") is None
    assert (await jobs.claim("them", "theirs")).id == theirs


async def test_cancelling_ends_a_waiting_and_a_running_job(jobs):
    """A cancelled job is never claimed; the owner of a running one learns it at the next heartbeat."""
    waiting, running = await submit(jobs), await submit(jobs)
    assert (await jobs.cancel(DEFAULT_ACCOUNT, waiting)).status is Status.CANCELLED
    assert (await jobs.claim("me")).id == running
    await jobs.cancel(DEFAULT_ACCOUNT, running)
    assert not await jobs.heartbeat(running, "me", {"done": 1})
    assert not await jobs.finish(running, "me", result={})
    assert not await jobs.release(running, "me")
    ended = await jobs.cancel(DEFAULT_ACCOUNT, running)
    assert (ended.status, ended.result) == (Status.CANCELLED, None)
    assert await jobs.claim("me") is None


async def test_what_has_ended_cannot_be_cancelled(jobs):
    """A complete or failed job stays what it is, and the conflict names its status."""
    job_id = await submit(jobs)
    await jobs.claim("me")
    await jobs.finish(job_id, "me", result={})
    with pytest.raises(Conflict, match="ended already: complete"):
        await jobs.cancel(DEFAULT_ACCOUNT, job_id)
    assert await status(jobs, job_id) is Status.COMPLETE


async def test_jobs_of_other_accounts_are_out_of_reach(jobs):
    """Another account neither sees nor cancels a job; an unknown account submits none."""
    job_id = await submit(jobs)
    for attempt in (jobs.get("other", job_id), jobs.cancel("other", job_id), jobs.get(None, "nothing")):
        with pytest.raises(NotFound):
            await attempt
    assert await jobs.list("other") == []
    assert await status(jobs, job_id) is Status.QUEUED
    with pytest.raises(NotFound, match="account 'nobody'"):
        await jobs.submit("nobody", "caa", REQUEST)


async def test_ended_jobs_go_after_a_month(jobs):
    """When the next one comes; what ended lately and what still waits stays, however old."""
    old, late, waiting = [await submit(jobs) for _ in range(3)]
    for job in (old, late):
        await jobs.claim("me")
        await jobs.finish(job, "me", error="x")
    async with jobs._database.writing() as connection:
        long_ago = datetime.now(UTC) - 2 * KEPT
        await connection.execute(update(JobRow).values(created_at=long_ago))
        await connection.execute(update(JobRow).where(JobRow.id == old).values(finished_at=long_ago))
    new = await submit(jobs)
    assert {job.id for job in await jobs.list(None)} == {late, waiting, new}


def test_a_status_knows_whether_it_is_the_last():
    """A job that waits or runs has not ended; every other one has."""
    assert [status for status in Status if not status.ended] == [Status.QUEUED, Status.RUNNING]
