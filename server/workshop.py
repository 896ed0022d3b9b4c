"""Runs the jobs that make vectors, one at a time in each process, whoever still waits for them."""

import asyncio
import logging
import time
import uuid
from collections import Counter
from collections.abc import Mapping
from contextlib import suppress
from typing import Any

from pydantic import ValidationError

from server.errors import SteersmanError, Unavailable
from server.jobs import ClaimedJob, Jobs
from server.training import Trainer, TrainRequest
from server.vectors import Vectors

logger = logging.getLogger(__name__)

KIND = "vector"
INTERNAL = "internal error; the server's log has the details"
_IDLE_SECONDS = 2.0  # between looks at the queue: another process may have filled it, or died
_BEAT_SECONDS = 5.0
_MAX_TRIES = 8  # of a job that finds the engine away or full, each after twice the wait: four minutes
_PROGRESS_SECONDS = 0.5


class Workshop:
    def __init__(self, jobs: Jobs, vectors: Vectors, trainer: Trainer) -> None:
        self._jobs, self._vectors, self._trainer = jobs, vectors, trainer
        self._owner = str(uuid.uuid4())
        self._submitted = asyncio.Event()
        self._tries: Counter[str] = Counter()  # by job, of those that found the engine unavailable

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

        request = TrainRequest.model_validate(job.request)
        return await self._vectors.add(await self._trainer.train(request, job.account_id, progress))

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
            logger.info("Job %s was cancelled", job.id)
        except Unavailable as error:  # of the engine, which stops, or is full: another attempt may do
            self._tries[job.id] += 1
            if self._tries[job.id] >= _MAX_TRIES:
                del self._tries[job.id]
                await self._jobs.finish(job.id, self._owner, error=f"given up: {error}")
                return
            logger.warning("Job %s goes back into the queue: %s", job.id, error)
            await self._jobs.release(job.id, self._owner)
            await asyncio.sleep(_IDLE_SECONDS * 2 ** (self._tries[job.id] - 1))
        except (SteersmanError, ValidationError) as error:
            await self._jobs.finish(job.id, self._owner, error=str(error))
        except Exception:  # a training method's own fault: told as such, with its traceback here
            logger.exception("Job %s failed", job.id)
            await self._jobs.finish(job.id, self._owner, error=INTERNAL)
        else:
            if not await self._jobs.finish(job.id, self._owner, result={"steering_vector_id": vector_id}):
                # It was cancelled, or taken over, since the last heartbeat.
                await self._vectors.delete(job.account_id, vector_id)
