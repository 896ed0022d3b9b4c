"""Runs the jobs that make vectors, one at a time in each process, whoever still waits for them."""

import asyncio
import logging
import time
import uuid
from collections.abc import Mapping
from contextlib import suppress
from datetime import timedelta
from typing import Any

from pydantic import ValidationError

from server.errors import InvalidBody, InvalidRequest, NotFound, SteersmanError, Unavailable
from server.jobs import ClaimedJob, JobRecord, Jobs, Status
from server.training import Trainer, TrainRequest
from server.vectors import NewVector, Vectors

logger = logging.getLogger(__name__)

KIND = "vector"
_INTERNAL = "internal error; the server's log has the details"
_IDLE_SECONDS = 2.0  # between looks at the queue: another process may have filled it, or died
_BEAT_SECONDS = 5.0
_MAX_TRIES = 8  # of a job that finds the engine away or full, each after twice the wait: four minutes
_RETRY_SECONDS = 2.0  # before the second of them
_STORE_SECONDS = (1.0, 2.0, 4.0, 8.0)  # between attempts at storing what took minutes to learn
_PROGRESS_SECONDS = 0.5


class Workshop:
    def __init__(self, jobs: Jobs, vectors: Vectors, trainer: Trainer) -> None:
        self._jobs, self._vectors, self._trainer = jobs, vectors, trainer
        self._owner = str(uuid.uuid4())
        self._submitted = asyncio.Event()

    async def submit(self, request: TrainRequest, account_id: str) -> str:
        """Returns the job's id. Raises InvalidRequest for what could not succeed."""
        self._trainer.layers(request)
        fingerprint = self._trainer.model.fingerprint
        job = await self._jobs.submit(account_id, KIND, request.model_dump(), fingerprint)
        self._submitted.set()
        return job

    async def run(self) -> None:
        """Until cancelled, which puts the job at hand back into the queue."""
        while True:
            self._submitted.clear()
            try:
                job = await self._jobs.claim(self._owner, self._trainer.model.fingerprint)
                if job is not None:
                    await self._work(job)
                    continue
            except Unavailable:
                logger.warning("The database is away; a job at hand begins anew when it is back")
            except Exception:  # whatever one job does, the next one must be run
                logger.exception("A job could not be run; others are")
            with suppress(TimeoutError):
                await asyncio.wait_for(self._submitted.wait(), _IDLE_SECONDS)

    async def _work(self, job: ClaimedJob) -> None:
        training = asyncio.create_task(self._train(job))
        beating = asyncio.create_task(self._beat(job, training))
        try:
            await asyncio.wait([training])
            await self._finish(job, training)
        except asyncio.CancelledError:
            training.cancel()
            await asyncio.wait([training])
            with suppress(Unavailable):
                await self._jobs.release(job.id, self._owner)
            raise
        finally:
            beating.cancel()

    async def _train(self, job: ClaimedJob) -> str:
        told = 0.0

        async def progress(what: Mapping[str, Any]) -> None:
            nonlocal told
            if time.monotonic() - told > _PROGRESS_SECONDS:
                told = time.monotonic()
                with suppress(Unavailable):
                    await self._jobs.heartbeat(job.id, self._owner, what)

        with suppress(NotFound):  # nearly always; but the end of an earlier run may not have been recorded
            return (await self._vectors.get(job.account_id, job.id)).id
        request = TrainRequest.model_validate(job.request)
        return await self._stored(await self._trainer.train(request, job.account_id, progress), job)

    async def _stored(self, new: NewVector, job: ClaimedJob) -> str:
        """Under the job's own id, so that it is there once however often this is tried."""
        for seconds in _STORE_SECONDS:
            try:
                return await self._vectors.add(new, job.id)
            except Unavailable:
                logger.warning("The vector of job %s cannot be stored yet", job.id)
                await asyncio.sleep(seconds)
        return await self._vectors.add(new, job.id)

    async def _beat(self, job: ClaimedJob, training: "asyncio.Task[str]") -> None:
        while True:
            await asyncio.sleep(_BEAT_SECONDS)
            with suppress(Unavailable):
                if not await self._jobs.heartbeat(job.id, self._owner):
                    training.cancel()
                    return

    async def _finish(self, job: ClaimedJob, training: "asyncio.Task[str]") -> None:
        try:
            vector_id = training.result()
        except asyncio.CancelledError:
            logger.info("Job %s is not ours any more", job.id)
            await self._discard(job)
        except Unavailable as error:  # of the engine, which stops, or is full: another attempt may do
            await self._postpone(job, error)
        except ValidationError as error:  # a request from before an upgrade
            await self._fail(job, InvalidBody.of(error.errors()))
        except SteersmanError as error:
            await self._fail(job, error)
        except Exception:  # a training method's own fault: told as such, with its traceback here
            logger.exception("Job %s failed", job.id)
            await self._fail(job, SteersmanError(_INTERNAL))
        else:
            if not await self._jobs.finish(job.id, self._owner, result={"steering_vector_id": vector_id}):
                await self._discard(job)

    async def _postpone(self, job: ClaimedJob, error: Unavailable) -> None:
        """Back into the queue, for longer each time, until it was tried often enough."""
        tries = (job.left or {}).get("tries", 0) + 1
        if tries >= _MAX_TRIES:
            await self._fail(job, Unavailable(f"given up: {error}"))
            return
        logger.warning("Job %s goes back into the queue: %s", job.id, error)
        told = {"stage": "waiting", "reason": error.message, "tries": tries}
        after = timedelta(seconds=_RETRY_SECONDS * 2 ** (tries - 1))
        await self._jobs.release(job.id, self._owner, after=after, progress=told)

    async def _fail(self, job: ClaimedJob, error: SteersmanError) -> None:
        told = {"type": error.type, "param": error.param}
        await self._jobs.finish(job.id, self._owner, result=told, error=error.message)

    async def _discard(self, job: ClaimedJob) -> None:
        """The vector of a job that was cancelled in its last moments. Who has taken one over needs it."""
        with suppress(NotFound):
            if (await self._jobs.get(None, job.id)).status is Status.CANCELLED:
                await self._vectors.delete(None, job.id)


def failure(record: JobRecord) -> SteersmanError:
    """What ended a failed job, as it was raised; a fault of the server's where nothing else is known."""
    told = record.result or {}
    message = record.error or _INTERNAL
    if told.get("type") == InvalidRequest.type:
        return InvalidRequest(message, param=told["param"])
    if told.get("type") == Unavailable.type:
        return Unavailable(message)
    return SteersmanError(message)
