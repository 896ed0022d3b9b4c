"""What code in a sandbox must not be able to do: tried at every start, before anyone's code runs.

Each attack asserts that it fails, so it passes where the sandbox holds; those that only the sandbox can end
say how they must end.
"""

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, slots=True)
class Attack:
    """`broken` says what is wrong where it ends otherwise; `ended` is a value of `server.sandbox.Ended`."""

    broken: str
    code: str
    ended: str = "passed"
    seconds: float = 10.0
    cpu_seconds: int = 10


_REFUSED = """
def refused(call, *arguments):
    try:
        call(*arguments)
    except OSError:
        return
    raise AssertionError(f"{call.__name__}{arguments} worked")
"""

_WORKS = """
import asyncio, os, tempfile, threading
with tempfile.NamedTemporaryFile() as file:
    file.write(b"x" * 1000)
    file.flush()
    assert os.path.getsize(file.name) == 1000
done = []
thread = threading.Thread(target=done.append, args=[1])
thread.start()
thread.join()
assert done
asyncio.run(asyncio.sleep(0))
"""

_NETWORK = """
import _socket, os, socket
for family in (socket.AF_INET, socket.AF_INET6, socket.AF_UNIX, socket.AF_NETLINK, socket.AF_PACKET, 40):
    for kind in (socket.SOCK_STREAM, socket.SOCK_DGRAM, socket.SOCK_RAW):
        refused(socket.socket, family, kind)
refused(_socket.socketpair)
"""

_FILES = """
import os
def entries(path):
    try:
        if os.path.isdir(path):
            return [name for name in os.listdir(path) if os.path.join(path, name) not in bound]
        with open(path, "rb"):
            return [path]
    except OSError:
        return []
for path in hidden:
    assert not entries(path), f"{path} can be read"
"""

_ENVIRONMENT = """
import ctypes, os
assert not os.environ and not os.environb, dict(os.environ)
first = ctypes.POINTER(ctypes.c_char_p).in_dll(ctypes.CDLL(None), "environ")
assert not first or not first[0], first[0]
"""

_USER = """
import os
assert os.getresuid() == os.getresgid() == (65534,) * 3, (os.getresuid(), os.getresgid())
refused(os.setuid, 0)
refused(os.setgroups, [0])
refused(os.chroot, "/tmp")
"""

_SECCOMP = """
import ctypes
prctl = ctypes.CDLL(None).prctl
assert prctl(21, 0, 0, 0, 0) == 2, "no filter of system calls"  # PR_GET_SECCOMP
assert prctl(39, 0, 0, 0, 0) == 1, "privileges can be gained"  # PR_GET_NO_NEW_PRIVS
"""

_OUTSIDE = """
import os
for folder in [*bound, "/", "/dev", "/home", "/root", "/etc", "/var/tmp", "/dev/shm", "/proc", "/sys"]:
    refused(open, os.path.join(folder, "written"), "w")
    refused(os.mkdir, os.path.join(folder, "made"))
"""

_PROCESSES = """
import os, sys
refused(os.fork)
refused(os.posix_spawn, sys.executable, ["python"], {})
refused(os.execv, sys.executable, ["python"])
"""

_PARENT = """
import os, signal, time
assert os.getppid() == 1, os.getppid()
assert not os.path.exists("/proc/self")
for number in (signal.SIGKILL, signal.SIGSTOP, signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
    os.kill(1, number)
time.sleep(0.05)
refused(os.kill, 3, 0)
"""

_LIMITS = """
import resource
for name, most in limits.items():
    assert resource.getrlimit(getattr(resource, name))[1] <= most, name
    for wanted in (most + 4096, resource.RLIM_INFINITY):
        try:
            resource.setrlimit(getattr(resource, name), (wanted, wanted))
        except (ValueError, OSError):
            continue
        raise AssertionError(f"{name} can be raised")
"""

_SCRATCH = """
import os
def fill():
    for number in range(1000):
        with open(f"{number}", "wb") as file:
            for _ in range(64):
                file.write(bytes(2**16))
refused(fill)
assert sum(os.path.getsize(name) for name in os.listdir(".")) <= scratch
"""

_INODES = """
import os
for number in range(10**9):
    os.close(os.open(str(number), os.O_CREAT | os.O_WRONLY))
"""

_MEMORY = """
held = []
while True:
    held.append(bytes(2**24))
"""

_OUTPUT = """
import os
while True:
    os.write(1, b"x" * 4096)
"""

_SLEEP = """
import threading, time
for _ in range(4):
    threading.Thread(target=time.sleep, args=[3600]).start()
time.sleep(3600)
"""


def attacks(hidden: Sequence[Path], bound: Sequence[Path], scratch: int, memory: int) -> Iterator[Attack]:
    """`hidden` may not be read; `bound` are the host's folders and files that may."""
    facts = "".join(
        f"{name} = {json.dumps(value)}\n"
        for name, value in {
            "hidden": [str(path) for path in hidden],
            "bound": [str(path) for path in dict.fromkeys(p for b in bound for p in (b, *b.parents))],
            "limits": {"RLIMIT_AS": memory, "RLIMIT_FSIZE": scratch, "RLIMIT_CPU": 11, "RLIMIT_CORE": 0},
            "scratch": scratch,
        }.items()
    )
    start = facts + _REFUSED
    yield Attack("harmless code does not run", _WORKS)
    yield Attack("CPU time has no limit", "while True: pass", "timed_out", cpu_seconds=1)
    yield Attack("code reaches the network", start + _NETWORK)
    yield Attack("code reads the host's files", start + _FILES)
    yield Attack("code sees environment variables", _ENVIRONMENT)
    yield Attack("code runs as a privileged user", start + _USER)
    yield Attack("system calls are not filtered", _SECCOMP)
    yield Attack("code writes outside its folder", start + _OUTSIDE)
    yield Attack("code starts processes", start + _PROCESSES)
    yield Attack("code reaches other processes", start + _PARENT)
    yield Attack("code raises its limits", start + _LIMITS)
    yield Attack("files take more room than allowed", start + _SCRATCH)
    yield Attack("the number of files has no limit", _INODES, "memory")
    yield Attack("memory has no limit", _MEMORY, "memory")
    yield Attack("output has no limit", _OUTPUT, "output")
    yield Attack("wall time has no limit", _SLEEP, "timed_out", seconds=0.3)
    yield Attack("leaving early counts as passing", "import os; os._exit(0)", "failed")
