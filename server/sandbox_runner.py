"""The program inside a sandbox: waits for one job, runs it in a child of its own, and says how it ended.

It is given to the interpreter as text, so it uses nothing but the standard library. As pid 1 of its namespace
it cannot be killed from within, and its own end takes every other process along.

What "passed" means: the child writes a nonce when the code has run to its last line, and this process, which
the code cannot write to, compares it. So leaving early, by whatever exit, and writing to any descriptor do
not pass. But the nonce lies in the memory of the code's own process: code that walks the interpreter's frames
to find it can pass without a test having run, as it could replace the functions under test. The sandbox
protects the host from the code; how honest a verdict is depends on tests that check what they ask for.
"""

import ctypes
import json
import linecache
import os
import resource
import select
import signal
import socket
import struct
import sys
import traceback
import types
from contextlib import suppress
from typing import Any, NoReturn

_FILE = "<unit test>"
_MEMORY_EXIT = 86
_TICK = 0.05  # seconds between looks at the number of files
_FRAMES = 20  # of a traceback at most
_PR_SET_SECCOMP, _SECCOMP_MODE_FILTER = 22, 2
_M_ARENA_MAX = -8


def main(settings: str, control: int) -> None:
    limits: dict[str, Any] = json.loads(settings)
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # Python's handler would let the code interrupt us
    # A heap per thread would take 64 MiB of address space each.
    libc = ctypes.CDLL(None, use_errno=True)
    libc.mallopt(_M_ARENA_MAX, 1)
    os.environ.clear()  # bwrap and Python's own start leave PWD and LC_CTYPE
    os.write(control, b"ready\n")
    cpu_seconds, length = struct.unpack(">II", _read(control, 8))
    code = _read(control, length)
    os.write(control, b"began\n")
    nonce = os.urandom(16)
    heard, says = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            os.close(control)
            os.close(heard)
            _confine(libc, limits, cpu_seconds)
            _execute(code, says, nonce)
        except BaseException as error:  # noqa: BLE001  # a fork must never return from here
            _complain(error)
        finally:
            os._exit(1)
    os.close(says)
    os.write(control, _watch(child, heard, nonce, limits["inodes"], cpu_seconds) + b"\n")


def _read(descriptor: int, length: int) -> bytes:
    parts = b""
    while len(parts) < length:
        part = os.read(descriptor, length - len(parts))
        if not part:
            sys.exit()  # the server is gone
        parts += part
    return parts


def _confine(libc: ctypes.CDLL, limits: dict[str, Any], cpu_seconds: int) -> None:
    for name, soft, hard in (
        ("RLIMIT_AS", limits["memory"], limits["memory"]),
        ("RLIMIT_FSIZE", limits["scratch"], limits["scratch"]),
        ("RLIMIT_NOFILE", limits["descriptors"], limits["descriptors"]),
        ("RLIMIT_NPROC", limits["threads"] + 1, limits["threads"] + 1),  # with pid 1
        ("RLIMIT_CPU", cpu_seconds, cpu_seconds + 1),  # the first only warns whoever handles SIGXCPU
        ("RLIMIT_SIGPENDING", 64, 64),
        ("RLIMIT_MSGQUEUE", 0, 0),
        ("RLIMIT_MEMLOCK", 0, 0),
        ("RLIMIT_CORE", 0, 0),
    ):
        resource.setrlimit(getattr(resource, name), (soft, hard))
    os.nice(10)  # the server and the engine go first
    program = bytes.fromhex(limits["filter"])
    lines = ctypes.create_string_buffer(program, len(program))
    # struct sock_fprog: how many lines, and where
    given = struct.pack("@HP", len(program) // 8, ctypes.addressof(lines))
    if libc.prctl(_PR_SET_SECCOMP, _SECCOMP_MODE_FILTER, given, 0, 0) != 0:
        raise OSError(ctypes.get_errno(), "the filter of system calls is refused")


def _execute(code: bytes, says: int, nonce: bytes) -> NoReturn:
    module = types.ModuleType("__main__")
    sys.modules["__main__"] = module
    sys.argv = [_FILE]
    sys.path.append(os.getcwd())  # noqa: PTH109  # pathlib would be one more import
    socket.socketpair = _pair  # type: ignore[assignment]  # pipes, as `_pair` says
    try:
        text = code.decode()
        linecache.cache[_FILE] = (len(text), None, text.splitlines(keepends=True), _FILE)
        if "unittest" in text:
            _let_unittest_return()
        exec(compile(text, _FILE, "exec"), module.__dict__)  # noqa: S102  # what the sandbox is for
    except MemoryError:
        os._exit(_MEMORY_EXIT)
    except BaseException as error:  # noqa: BLE001  # SystemExit too: leaving early is not passing
        _complain(error)
        os._exit(1)
    _flush()
    os.write(says, nonce)
    os._exit(0)


def _let_unittest_return() -> None:
    """`unittest.main()` ends its process whatever the tests did; here only where they did not all pass."""
    import unittest  # noqa: PLC0415  # a tenth of a second, for code that uses it

    class Program(unittest.TestProgram):
        def runTests(self) -> None:  # noqa: N802  # unittest's name
            self.exit = False
            super().runTests()
            if not self.result.wasSuccessful() or not self.result.testsRun:
                sys.exit(1)

    # The types of a library's names do not foresee that somebody replaces them.
    unittest.TestProgram = unittest.main = Program  # type: ignore[misc]


def _complain(error: BaseException) -> None:
    _flush()
    frames = error.__traceback__.tb_next if error.__traceback__ else None  # without our own
    lines = traceback.format_exception(type(error), error, frames, limit=-_FRAMES)
    os.write(2, "".join(lines).encode(errors="replace"))


def _flush() -> None:
    for stream in (sys.stdout, sys.stderr):
        with suppress(BaseException):  # the code may have closed or replaced it
            stream.flush()


def _watch(child: int, heard: int, nonce: bytes, inodes: int, cpu_seconds: int) -> bytes:
    """How the child ended: a value of `server.sandbox.Ended`.

    Files without content take no room of a tmpfs, but kernel memory; so they are counted here.
    """
    ended = os.pidfd_open(child)
    waiting, said = [ended, heard], b""
    while True:
        ready, _, _ = select.select(waiting, [], [], _TICK)
        if heard in ready:
            part = os.read(heard, 4096)
            said = (said + part)[: len(nonce) + 1]
            if not part:
                waiting.remove(heard)
        if said == nonce:
            return b"passed"
        scratch = os.statvfs(".")
        if scratch.f_files - scratch.f_ffree > inodes:
            return b"memory"
        if ended in ready and heard not in waiting:
            break
    _, status, usage = os.wait4(child, 0)
    if os.WIFSIGNALED(status):
        spent = usage.ru_utime + usage.ru_stime >= cpu_seconds
        return b"timed_out" if spent or os.WTERMSIG(status) == signal.SIGXCPU else b"killed"
    return b"memory" if os.WEXITSTATUS(status) == _MEMORY_EXIT else b"failed"


class _End:
    """One end of a pipe, with as much of a socket's face as asyncio's event loop needs."""

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor

    def fileno(self) -> int:
        return self._descriptor

    def setblocking(self, flag: bool) -> None:
        os.set_blocking(self._descriptor, flag)

    def recv(self, size: int) -> bytes:
        return os.read(self._descriptor, size)

    def send(self, data: bytes) -> int:
        return os.write(self._descriptor, data)

    def close(self) -> None:
        os.close(self._descriptor)


def _pair(*_: object) -> tuple[_End, _End]:
    """In place of `socket.socketpair`, which the filter denies: asyncio wakes its loop through one.

    What is sent into the second can be received from the first, not the other way around.
    """
    receives, sends = os.pipe()
    return _End(receives), _End(sends)


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]))
