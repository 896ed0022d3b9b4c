"""Run Python that a model wrote where it can harm nothing: bubblewrap around an interpreter, used once.

A sandbox is `bwrap` with namespaces of its own (no network, no other processes), a file system of nothing but
the interpreter and a small folder in memory, no environment, an unprivileged user and a filter of system
calls; `server/sandbox_runner.py` inside adds limits and a stricter filter, and runs one job. Some sandboxes
are started ahead. Killing `bwrap` ends pid 1 of the namespace, and the kernel ends the rest with it.

Every start proves all that by attacks (`server/sandbox_attacks.py`); where one succeeds there is no sandbox.
"""

import asyncio
import json
import logging
import math
import os
import platform
import shutil
import signal
import socket
import struct
import sys
import time
from collections import deque
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

from server import seccomp
from server.errors import Unavailable
from server.metrics import SANDBOX_IDLE, SANDBOX_RUNS, SANDBOX_SECONDS
from server.sandbox_attacks import Attack, attacks
from server.sandbox_layout import Layout
from server.turns import Turns

_RUNNER = Path(__file__).with_name("sandbox_runner.py")
_START_SECONDS = 20.0
_KILL_SECONDS = 5.0
_STOPPING = "the server is stopping"
_TAIL = 4096  # bytes kept of what is written to stderr
_ENVIRONMENT = {"PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"}
_HIDDEN = tuple(map(Path, ("/etc", "/home", "/proc", "/sys", "/var", "/run")))  # of any host

logger = logging.getLogger(__name__)


class Ended(StrEnum):
    PASSED = "passed"  # ran to its last line
    FAILED = "failed"  # an exception, or an exit before the last line
    TIMED_OUT = "timed_out"  # wall or CPU time
    MEMORY = "memory"
    OUTPUT = "output"
    KILLED = "killed"  # by a signal, its own or the kernel's


@dataclass(frozen=True, slots=True)
class Ran:
    """`stderr` is the end of what the code wrote there, its traceback included."""

    ended: Ended
    stderr: str
    seconds: float


@dataclass(frozen=True, slots=True)
class Limits:
    memory: int = 512 * 2**20  # bytes of address space
    scratch: int = 16 * 2**20  # bytes of files
    inodes: int = 1000  # files and folders
    output: int = 2**20  # bytes on stdout and stderr together
    threads: int = 32  # the first included
    descriptors: int = 64


@dataclass(frozen=True, slots=True)
class SandboxOff:
    """There is no sandbox on this host: `problem` says why, and where it can what to do."""

    problem: str


_LIMITS = Limits()


class Sandbox:
    """`warm` sandboxes are kept ready; at most `concurrent` run code, half of them for one owner, and the
    rest wait in order of arrival."""

    def __init__(self, *, warm: int = 2, concurrent: int = 4, limits: Limits = _LIMITS) -> None:
        self._warm, self._limits = warm, limits
        self._turns = Turns(concurrent, each=(concurrent + 1) // 2)
        self._idle: deque[asyncio.Task[_Cell]] = deque()  # started or starting
        self._starting: set[asyncio.Task[_Cell]] = set()
        self._cells: set[_Cell] = set()
        self._closed = False
        self._layout = Layout.of_this_host(limits.scratch)
        self._base_filter = seccomp.program(platform.machine(), processes=True)
        strict = seccomp.program(platform.machine(), processes=False)
        told = {
            "memory": limits.memory,
            "scratch": limits.scratch,
            "inodes": limits.inodes,
            "threads": limits.threads,
            "descriptors": limits.descriptors,
            "filter": strict.hex(),
        }
        interpreter = (str(self._layout.executable), "-I", "-S", "-B", "-X", "utf8")
        self._program = (*interpreter, "-c", _RUNNER.read_text(), json.dumps(told))

    @classmethod
    async def open(
        cls,
        *,
        warm: int = 2,
        concurrent: int = 4,
        limits: Limits = _LIMITS,
        hidden: Sequence[Path] = (),
    ) -> "Sandbox | SandboxOff":
        """A sandbox that has withstood every attack. `hidden` are paths that code must not read."""
        missing = _missing()
        if missing is not None:
            return SandboxOff(missing)
        sandbox = cls(warm=warm, concurrent=concurrent, limits=limits)
        try:
            problem = await sandbox._weakness(hidden)
        except BaseException:
            await sandbox.close()
            raise
        if problem is not None:
            await sandbox.close()
            return SandboxOff(problem)
        return sandbox

    async def run(self, code: str, seconds: float, owner: str = "") -> Ran:
        """Run `code` as a program of its own, for at most `seconds` of wall time and about as much CPU time.

        Raises Unavailable where no sandbox can be started.
        """
        ran = await self._run(code, seconds, max(1, math.ceil(seconds)), owner)
        SANDBOX_RUNS.labels(ran.ended.value).inc()
        SANDBOX_SECONDS.observe(ran.seconds)
        return ran

    async def close(self) -> None:
        """End everything, running code too: it is reported as killed."""
        self._closed = True
        self._idle.clear()
        await asyncio.gather(*(cell.end() for cell in self._cells))
        # Not cancelled: asyncio would kill a bwrap that is just starting, and leave its child behind.
        await asyncio.gather(*self._starting, return_exceptions=True)
        self._count_idle()

    async def _run(self, code: str, seconds: float, cpu_seconds: int, owner: str) -> Ran:
        async with self._turns.taken(owner):
            for _ in range(self._warm + 2):  # all that were warm may have died
                cell = await self._take()
                try:
                    ran = await cell.run(code, seconds, cpu_seconds, self._limits.output)
                finally:
                    await self._drop(cell)
                if ran is not None:
                    return ran
        raise Unavailable("sandboxes end before they can be used", retry_after=1)

    async def _take(self) -> "_Cell":
        if self._closed:
            raise Unavailable(_STOPPING)
        while self._idle and _failed(self._idle[0]):
            self._idle.popleft()  # what failed while nobody waited may work now
        starting = self._idle.popleft() if self._idle else self._begin()
        self._refill()
        try:
            return await asyncio.shield(starting)
        except asyncio.CancelledError:
            if not self._closed:
                self._idle.appendleft(starting)
            raise

    def _refill(self) -> None:
        while len(self._idle) < self._warm:
            self._idle.append(self._begin())
        self._count_idle()

    def _begin(self) -> "asyncio.Task[_Cell]":
        task = asyncio.create_task(self._start())
        self._starting.add(task)
        task.add_done_callback(self._begun)
        return task

    def _begun(self, task: "asyncio.Task[_Cell]") -> None:
        self._starting.discard(task)
        if not task.cancelled():
            task.exception()  # whoever takes it is told; where nobody does, it is no news
        self._count_idle()

    def _count_idle(self) -> None:
        SANDBOX_IDLE.set(sum(task.done() and not _failed(task) for task in self._idle))

    async def _start(self) -> "_Cell":
        ours, theirs = socket.socketpair()
        reader, writer = await asyncio.open_unix_connection(sock=ours)
        base_filter = os.memfd_create("seccomp")
        try:
            os.write(base_filter, self._base_filter)
            os.lseek(base_filter, 0, os.SEEK_SET)
            # The loop's own thread starts it, not one of a pool: `bwrap` dies with the thread that began it.
            process = await asyncio.create_subprocess_exec(
                *(*self._layout.command, "--seccomp", str(base_filter), "--"),
                *(*self._program, str(theirs.fileno())),
                stdin=asyncio.subprocess.DEVNULL,
                stdout=asyncio.subprocess.PIPE,
                stderr=asyncio.subprocess.PIPE,
                pass_fds=(base_filter, theirs.fileno()),
                env=_ENVIRONMENT,
                cwd="/",
                start_new_session=True,  # so that it leads a group, which `_Cell` kills
            )
        except OSError as error:
            writer.close()
            raise Unavailable(f"a sandbox cannot be started: {error}") from error
        except BaseException:
            writer.close()
            raise
        finally:
            theirs.close()
            os.close(base_filter)
        cell = _Cell(process, reader, writer)
        if self._closed:
            await cell.end()
            raise Unavailable(_STOPPING)
        self._cells.add(cell)
        try:
            await cell.ready()
        except BaseException:
            await self._drop(cell)
            raise
        return cell

    async def _drop(self, cell: "_Cell") -> None:
        self._cells.discard(cell)
        await cell.end()

    async def _weakness(self, hidden: Sequence[Path]) -> str | None:
        """The first property that does not hold."""
        layout = self._layout
        secret = [*_HIDDEN, _RUNNER.parent, Path.home(), Path(sys.prefix), *layout.masked, *hidden]
        secret = [path for path in secret if path not in (Path("/"), Path(sys.base_prefix))]
        tried = list(attacks(secret, layout.bound, self._limits.scratch, self._limits.memory))
        ends = await asyncio.gather(*map(self._withstands, tried))
        return next((problem for problem in ends if problem is not None), None)

    async def _withstands(self, attack: Attack) -> str | None:
        try:
            # Each is an owner of its own, so that they take every turn there is.
            ran = await self._run(attack.code, attack.seconds, attack.cpu_seconds, attack.broken)
        except Unavailable as error:
            return error.message
        if ran.ended == attack.ended:
            return None
        last = ran.stderr.strip().rpartition("\n")[2]
        return f"the sandbox does not hold: {attack.broken} ({ran.ended}{': ' * bool(last)}{last})"


def _failed(task: "asyncio.Task[_Cell]") -> bool:
    return task.done() and (task.cancelled() or task.exception() is not None)


def _missing() -> str | None:
    machine = platform.machine()
    if sys.platform != "linux" or machine not in seccomp.MACHINES:
        return f"sandboxes need Linux on {' or '.join(seccomp.MACHINES)}, not {sys.platform} on {machine}"
    if shutil.which("bwrap") is None:
        return "bubblewrap is not installed (apt-get install bubblewrap)"
    if os.geteuid() == 0 and shutil.which("setpriv") is None:
        return "setpriv is not installed, with which root becomes nobody (apt-get install util-linux)"
    return None


class _Cell:
    """One sandbox: bwrap, and in it the runner that waits for the only job it will get."""

    def __init__(
        self,
        process: asyncio.subprocess.Process,
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
    ) -> None:
        assert process.stdout is not None
        assert process.stderr is not None
        self._process, self._reader, self._writer = process, reader, writer
        self._written, self._most_written = 0, _LIMITS.output
        self._tail = b""
        self._over = asyncio.gather(
            self._drain(process.stdout, kept=0),
            self._drain(process.stderr, kept=_TAIL),
            process.wait(),
            return_exceptions=True,
        )

    async def ready(self) -> None:
        answer = b""
        with suppress(TimeoutError, OSError):
            async with asyncio.timeout(_START_SECONDS):
                answer = await self._reader.readline()
        if answer != b"ready\n":
            await self.end()  # after which the tail is whole
            last = self._tail.decode(errors="replace").strip().rpartition("\n")[2]
            raise Unavailable(f"a sandbox cannot be started: {last or 'it gives no answer'}")

    async def run(self, code: str, seconds: float, cpu_seconds: int, output: int) -> Ran | None:
        """None where the sandbox was dead before it took the job."""
        self._most_written = output
        job = code.encode(errors="surrogatepass")  # which the runner refuses to decode: the code's fault
        began, ended = False, Ended.KILLED
        started = time.monotonic()
        try:
            async with asyncio.timeout(seconds):
                self._writer.write(struct.pack(">II", cpu_seconds, len(job)) + job)
                began = await self._reader.readline() == b"began\n"
                answer = await self._reader.readline()
            ended = Ended(answer.decode().strip())
        except TimeoutError:
            began, ended = True, Ended.TIMED_OUT
        except (OSError, ValueError):  # it ended without a word
            pass
        finally:
            took = time.monotonic() - started
            await self.end()
        if self._written > output:
            ended = Ended.OUTPUT
        return Ran(ended, self._tail.decode(errors="replace"), took) if began else None

    async def end(self) -> None:
        """Kill the tree, and wait until nobody holds its output open."""
        self._kill()
        self._writer.close()
        ended, _ = await asyncio.wait([self._over], timeout=_KILL_SECONDS)
        if not ended:
            logger.error("a sandbox outlives its end: pid %d", self._process.pid)

    def _kill(self) -> None:
        # Its group, as bwrap's child does not die with it before it has been told to. By number, as
        # `process.kill` asks for the exit status first and so takes it from asyncio's watcher.
        if self._process.returncode is None:
            with suppress(ProcessLookupError):
                os.killpg(self._process.pid, signal.SIGKILL)

    async def _drain(self, stream: asyncio.StreamReader, kept: int) -> None:
        while part := await stream.read(2**16):
            self._written += len(part)
            if kept:
                self._tail = (self._tail + part)[-kept:]
            if self._written > self._most_written:
                self._kill()
