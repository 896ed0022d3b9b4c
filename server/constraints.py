"""Every constraint a client sends is compiled here before the engine sees it.

The engine compiles without a limit, and follows grammars in the loop that serves everyone. So each constraint
is first tried in a process of its own (see `server.vllm_grammar`), bounded in time and memory; both answers
are remembered, so that a constraint in daily use costs one look-up.
"""

import asyncio
import hashlib
import json
import os
import socket
import subprocess
import sys
import tempfile
import time
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from policies.constraint import Constraint
from server.errors import InvalidRequest, Unavailable
from server.metrics import CONSTRAINT_HITS, CONSTRAINT_MISSES, CONSTRAINT_SECONDS

_START_SECONDS = 120.0
_GRACE_SECONDS = 2.0  # for a job's own end to reach us
_JOBS = 2  # at once; more would take the engine's cores
_VERDICTS = 4096
_DOUBT_SECONDS = 60.0  # a refusal for time or a crash may be the machine's fault, so it is not kept for long

Pack = Callable[[], bytes]


@dataclass(frozen=True, slots=True)
class Verdict:
    """`reason` is None where the constraint is accepted; `expires` is on the monotonic clock."""

    reason: str | None
    expires: float = float("inf")


@dataclass(slots=True)
class ConstraintChecker:
    """Bounds each check to `seconds` of wall time, from its start in the compiling process.

    `vllm_config` is vLLM's configuration, as the engine has it: its tokenizer and backend decide.
    """

    vllm_config: Any
    seconds: float
    _verdicts: "OrderedDict[bytes, Verdict]" = field(default_factory=OrderedDict)
    _running: dict[bytes, "asyncio.Task[Verdict]"] = field(default_factory=dict)
    _slots: asyncio.Semaphore = field(default_factory=lambda: asyncio.Semaphore(_JOBS))
    _process: "asyncio.Task[_Process] | None" = None

    def start(self) -> None:
        """Begin to start the compiling process, without waiting; the first check does where nobody has."""
        if self._process is None:
            self._process = asyncio.create_task(_Process.started(self.vllm_config))

    async def close(self) -> None:
        """End the compiling process and every check."""
        for task in self._running.values():
            task.cancel()
        await asyncio.gather(*self._running.values(), return_exceptions=True)
        if self._process is not None:
            started, self._process = self._process, None
            (process,) = await asyncio.gather(started, return_exceptions=True)
            if isinstance(process, _Process):
                await asyncio.to_thread(process.stop)

    async def check(self, constraint: Constraint, param: str) -> None:
        """Raises InvalidRequest with the compiler's reason, naming the field `param`, and Unavailable while
        no compiling process can be had.
        """
        verdict = await self._verdict(constraint)
        if verdict.reason is not None:
            raise InvalidRequest(verdict.reason, param=param, code="invalid_constraint")

    async def _verdict(self, constraint: Constraint) -> Verdict:
        digest = hashlib.sha256(f"{constraint.kind}\0{constraint.spec}".encode()).digest()
        known = self._verdicts.get(digest)
        if known is not None and known.expires > time.monotonic():
            self._verdicts.move_to_end(digest)
            CONSTRAINT_HITS.inc()
            return known
        CONSTRAINT_MISSES.inc()
        task = self._running.get(digest)
        if task is None:
            task = self._running[digest] = asyncio.create_task(self._judge(digest, constraint))
            task.add_done_callback(lambda _: self._running.pop(digest))
        # One asker who leaves must not end the check for the others.
        return await asyncio.shield(task)

    async def _judge(self, digest: bytes, constraint: Constraint) -> Verdict:
        async with self._slots:
            self.start()
            assert self._process is not None
            with CONSTRAINT_SECONDS.labels(constraint.kind).time():
                verdict = await self._run(self._process, constraint)
        self._verdicts[digest] = verdict
        if len(self._verdicts) > _VERDICTS:
            self._verdicts.popitem(last=False)
        return verdict

    async def _run(self, starting: "asyncio.Task[_Process]", constraint: Constraint) -> Verdict:
        try:
            process = await asyncio.shield(starting)
            return await process.run(constraint, self.seconds)
        except (OSError, TimeoutError) as error:
            # The next check starts afresh.
            if self._process is starting:
                self._process = None
            if starting.done() and not starting.cancelled() and starting.exception() is None:
                await asyncio.to_thread(starting.result().stop)
            raise Unavailable("Constraints cannot be checked at the moment.", retry_after=10) from error


@dataclass(frozen=True, slots=True)
class _Process:
    popen: "subprocess.Popen[bytes]"
    requests: socket.socket

    @classmethod
    async def started(cls, vllm_config: Any) -> "_Process":
        return await asyncio.to_thread(cls._spawn, vllm_config)

    @classmethod
    def _spawn(cls, vllm_config: Any) -> "_Process":
        from server.vllm_grammar import packed  # noqa: PLC0415  # imports vLLM, which may take seconds

        ours, theirs = socket.socketpair()
        root = str(Path(__file__).resolve().parent.parent)
        path = os.pathsep.join(filter(None, (root, os.environ.get("PYTHONPATH"))))
        with tempfile.TemporaryFile() as config, theirs:
            config.write(packed(vllm_config))
            config.seek(0)
            popen = subprocess.Popen(  # noqa: S603  # our own module
                [sys.executable, "-m", "server.vllm_grammar", str(theirs.fileno())],
                stdin=config,
                pass_fds=[theirs.fileno()],
                env={**os.environ, **_ENVIRONMENT, "PYTHONPATH": path},
                start_new_session=True,  # a terminal's ^C is for the server, which then closes us
            )
        return cls(popen, ours)

    async def run(self, constraint: Constraint, seconds: float) -> Verdict:
        """Raises OSError or TimeoutError where no job came to life."""
        ours, theirs = socket.socketpair()
        reader, writer = await asyncio.open_connection(sock=ours)
        try:
            with theirs:
                # One byte into a buffer that holds a few at most: it does not block.
                socket.send_fds(self.requests, [b"+"], [theirs.fileno()])
            job = {"kind": constraint.kind, "spec": constraint.spec, "seconds": seconds}
            writer.write(json.dumps(job).encode() + b"\n")
            async with asyncio.timeout(_START_SECONDS):
                await reader.readexactly(1)
            return await _answer(reader, seconds)
        except asyncio.IncompleteReadError as error:
            raise ConnectionError("the compiling process is gone") from error
        finally:
            writer.close()

    def stop(self) -> None:
        """Jobs end by their own clocks."""
        self.requests.close()
        self.popen.kill()
        self.popen.wait()


# It forks, so it must stay single-threaded; and its log is not the server's.
_ENVIRONMENT = {
    "OMP_NUM_THREADS": "1",
    "OPENBLAS_NUM_THREADS": "1",
    "MKL_NUM_THREADS": "1",
    "TOKENIZERS_PARALLELISM": "false",
    "VLLM_LOGGING_LEVEL": "ERROR",
    "VLLM_PLUGINS": "",
}


async def _answer(reader: asyncio.StreamReader, seconds: float) -> Verdict:
    began = time.monotonic()
    try:
        async with asyncio.timeout(seconds + _GRACE_SECONDS):
            answer = await reader.read()
    except TimeoutError:
        answer = b""
    if answer:
        return Verdict(json.loads(answer)["reason"])
    if time.monotonic() - began < seconds:
        reason = "The compiler crashed on it, or ran out of memory."
    else:
        reason = (
            f"It did not compile within {seconds:g} seconds. Slow are, above all, many different lengths "
            "(maxLength, repetitions in patterns)."
        )
    return Verdict(reason, expires=time.monotonic() + _DOUBT_SECONDS)
