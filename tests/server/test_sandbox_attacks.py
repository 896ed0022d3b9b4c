"""The sandbox, attacked: what code does to it, and what is left afterwards."""

import asyncio
import os
import random
import signal
import sys
import time
from pathlib import Path

import psutil
import pytest

from server import sandbox as module
from server import seccomp
from server.sandbox import Ended, Limits
from tests.server.sandboxes import HERE, SECONDS, gone, marked, own_limits, until

pytestmark = HERE


# Attacks


async def test_no_network(sandbox):
    """No socket of any kind is to be had, and a listening server of the host gets no visitor."""
    visited = []
    server = await asyncio.start_server(lambda *_: visited.append(1), "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    code = f"""
import socket, urllib.request
for family in (socket.AF_INET, socket.AF_INET6, socket.AF_UNIX, socket.AF_NETLINK):
    try:
        socket.socket(family, socket.SOCK_STREAM)
    except PermissionError:
        continue
    raise AssertionError(family)
try:
    urllib.request.urlopen("http://127.0.0.1:{port}/", timeout=1)
except OSError:
    pass
else:
    raise AssertionError("connected")
"""
    ran = await sandbox.run(code, SECONDS)
    server.close()
    assert ran.ended == Ended.PASSED, ran.stderr
    assert not visited


@pytest.fixture
def database():
    """A file that everyone may read, in a folder that everyone may."""
    path = Path("/tmp", f"steersman-{os.getpid()}.db")
    path.write_text("secret")
    path.chmod(0o644)
    yield path
    path.unlink()


async def test_no_database_and_no_environment(sandbox, database, monkeypatch):
    """Neither a database that everyone may read nor the server's environment can be read from within."""
    monkeypatch.setenv("STEERSMAN_API_KEY", "secret-key")
    hidden = f"{database} {module.__file__} {sys.prefix}/lib /etc/passwd /proc/1/environ /proc/self/environ"
    hidden += " /root/.ssh /home /var/lib /sys/kernel /dev/mem /dev/sda /dev/vda /usr/bin/env /usr/share/doc"
    code = f"""
import os
assert dict(os.environ) == {{}}
for path in "{hidden}".split():
    assert not os.path.exists(path), path
for folder, _, files in os.walk("/"):
    assert not files or not folder.endswith(("site-packages", "dist-packages")), folder
"""
    ran = await sandbox.run(code, SECONDS)
    assert ran.ended == Ended.PASSED, ran.stderr


async def test_nothing_is_written_outside(sandbox):
    """Code that tries to write everywhere can do so in its own folder alone; the host sees none of it."""
    name = f"written-{random.randrange(10**9)}"
    code = f"""
import os
written = []
for folder, _, _ in os.walk("/"):
    try:
        open(os.path.join(folder, "{name}"), "w").close()
        written.append(folder)
    except OSError:
        pass
assert written == ["/tmp"], written
"""
    ran = await sandbox.run(code, SECONDS)
    assert ran.ended == Ended.PASSED, ran.stderr
    outside = [Path("/"), Path("/tmp"), Path("/dev"), Path("/mnt"), Path(sys.base_prefix), Path.home()]
    assert not [path for path in outside if (path / name).exists()]


FORK_BOMB = """
import os, time
made = 0
while True:
    try:
        if os.fork() == 0:
            made = 0
        else:
            made += 1
    except OSError:
        if made == 0:
            raise
        time.sleep(0.01)
"""


async def test_a_fork_bomb_does_not_start(own):
    """The first fork is refused."""
    limits = own_limits()
    ran = await own(limits=limits, warm=0).run(FORK_BOMB, SECONDS)
    assert ran.ended == Ended.FAILED
    assert "PermissionError" in ran.stderr
    assert not await gone(limits)


@pytest.fixture
def permissive(monkeypatch):
    """Without the filter that denies processes, to see what stands behind it."""
    program = seccomp.program
    monkeypatch.setattr(seccomp, "program", lambda machine, *, processes: program(machine, processes=True))


async def test_a_fork_bomb_is_bounded_and_ends(own, permissive):
    """Were processes allowed, a bomb would stay within the limit and end with its time."""
    limits = own_limits(threads=20)
    running = asyncio.create_task(own(limits=limits, warm=0).run(FORK_BOMB, 2.0))
    most = 0
    while not running.done():
        most = max(most, len(marked(limits)))
        await asyncio.sleep(0.05)
    assert (await running).ended in (Ended.TIMED_OUT, Ended.FAILED)
    assert 3 < most <= 20 + 5  # bwrap and what stands before it
    assert not await gone(limits)


async def test_sleeping_children_end_with_a_timeout(own, permissive):
    """Children that left their session and closed everything are dead after a time-out."""
    limits = own_limits()
    code = """
import os, time
for _ in range(5):
    if os.fork() == 0:
        os.setsid()
        if os.fork() == 0:
            os.closerange(0, 64)
            time.sleep(3600)
        os._exit(0)
time.sleep(3600)
"""
    running = asyncio.create_task(own(limits=limits, warm=0).run(code, 2.0))
    most = 0
    while not running.done():
        most = max(most, len(marked(limits)))
        await asyncio.sleep(0.05)
    assert (await running).ended == Ended.TIMED_OUT
    assert most >= 7
    assert not await gone(limits)


async def test_sleeping_threads_end_with_a_timeout(own):
    """Threads that ignore signals and sleep are dead after a time-out, and it is kept."""
    limits = own_limits()
    code = """
import signal, threading, time
for number in range(1, 65):
    try: signal.signal(number, signal.SIG_IGN)
    except (OSError, ValueError): pass
for _ in range(8):
    threading.Thread(target=time.sleep, args=[3600]).start()
time.sleep(3600)
"""
    started = time.monotonic()
    ran = await own(limits=limits, warm=0).run(code, 0.5)
    assert ran.ended == Ended.TIMED_OUT
    assert 0.5 <= ran.seconds < 2
    assert time.monotonic() - started < 20
    assert not await gone(limits)


async def test_a_thread_bomb_is_bounded(sandbox):
    """There are no more threads than the limit allows."""
    code = """
import threading, time
made = 0
try:
    while True:
        threading.Thread(target=time.sleep, args=[3600], daemon=True).start()
        made += 1
except RuntimeError:
    assert 4 <= made < 32, made
"""
    ran = await sandbox.run(code, SECONDS)
    assert ran.ended == Ended.PASSED, ran.stderr


@pytest.mark.parametrize(
    "code",
    [
        "x = []\nwhile True: x.append(bytearray(10**7))",
        "x = b'x' * 2**40",
        "x = 'a'\nwhile True: x += x",
        "x = [0]\nwhile True: x *= 2",
    ],
)
async def test_a_memory_bomb_ends(own, code):
    """Memory ends at the limit: the whole tree never holds more than it and the interpreter."""
    limits = Limits(memory=2**27 + 4096 * random.randrange(1, 10_000))
    running = asyncio.create_task(own(limits=limits, warm=0).run(code, SECONDS))
    most = 0
    while not running.done():
        for process in marked(limits):
            try:
                most = max(most, process.memory_info().rss)
            except psutil.NoSuchProcess:
                continue
        await asyncio.sleep(0.02)
    assert (await running).ended == Ended.MEMORY
    assert most <= limits.memory


@pytest.mark.parametrize(
    "code",
    [
        "import mmap\nx = []\nwhile True: x.append(mmap.mmap(-1, 2**24))",
        "import os\nos.memfd_create('x')",
        "import os\nwhile True: os.write(os.open('f', os.O_CREAT | os.O_APPEND | os.O_WRONLY), bytes(2**20))",
        "import os\nfor n in range(10**6): os.write(os.open(str(n), os.O_CREAT | os.O_WRONLY), bytes(2**20))",
        "import ctypes\nassert ctypes.CDLL(None).shmget(0, 2**20, 0o1600) == -1\n1 / 0",
    ],
)
async def test_no_other_memory(sandbox, code):
    """Shared mappings, anonymous files, files and System V segments have limits too."""
    assert (await sandbox.run(code, SECONDS)).ended in (Ended.FAILED, Ended.MEMORY)


async def test_empty_files_are_bounded(sandbox):
    """Files without content, which hold memory of the kernel's, end the run at the limit."""
    code = "import os\nfor n in range(10**9): os.close(os.open(str(n), os.O_CREAT | os.O_WRONLY))"
    assert (await sandbox.run(code, SECONDS)).ended == Ended.MEMORY


@pytest.mark.parametrize("stream", [1, 2])
async def test_endless_output_ends(own, stream):
    """Output ends the run at its limit, on either stream, and no more than its tail is kept."""
    subject = own(limits=Limits(output=100_000), warm=0)
    ran = await subject.run(f"import os\nwhile True: os.write({stream}, b'x' * 1000)", SECONDS)
    assert ran.ended == Ended.OUTPUT
    assert len(ran.stderr) <= 4096
    assert ran.seconds < SECONDS / 2


async def test_much_output_counts_even_when_the_code_passes(own):
    """Code that ends well after writing too much has not passed."""
    ran = await own(limits=Limits(output=1000), warm=0).run("print('x' * 2000)", SECONDS)
    assert ran.ended == Ended.OUTPUT


async def test_some_output_is_fine(sandbox):
    """Prints within the limit change nothing, and are not taken for errors."""
    ran = await sandbox.run("print('x' * 10_000)", SECONDS)
    assert (ran.ended, ran.stderr) == (Ended.PASSED, "")


async def test_busy_code_ends_in_time(sandbox):
    """An endless loop, one that holds the interpreter included, ends at the limit of wall time."""
    for code in ("while True: pass", "10 ** 10 ** 8", "import re; re.match('(a+)+b', 'a' * 40)"):
        ran = await sandbox.run(code, 0.5)
        assert ran.ended == Ended.TIMED_OUT
        assert ran.seconds < 5


async def test_cpu_time_is_bounded_by_itself(sandbox):
    """CPU time has its own limit, which ignoring the kernel's warning does not lift."""
    code = "import signal; signal.signal(signal.SIGXCPU, signal.SIG_IGN)\nwhile True: pass"
    ran = await sandbox._run(code, 60.0, 1, "")
    assert ran.ended == Ended.TIMED_OUT
    assert ran.seconds < 59


async def test_signals_do_not_reach_the_server(sandbox):
    """No signal leaves the sandbox, and those to its pid 1 do not end it before the code does."""
    mine = os.getpid()
    received = []
    before = {number: signal.signal(number, lambda n, _: received.append(n)) for number in (10, 12)}
    code = f"""
import os, signal
assert os.getppid() == 1
for pid in [{mine}, {os.getppid()}, *range(2, 400)]:
    for number in (0, signal.SIGUSR1, signal.SIGUSR2):
        if pid != os.getpid():
            try:
                os.kill(pid, number)
            except ProcessLookupError:
                continue
            raise AssertionError(pid)
for number in range(1, 32):
    os.kill(1, number)
"""
    ran = await sandbox.run(code, SECONDS)
    for number, handler in before.items():
        signal.signal(number, handler)
    assert ran.ended == Ended.PASSED, ran.stderr
    assert not received


def status_of(process: psutil.Process) -> dict[str, str]:
    lines = Path(f"/proc/{process.pid}/status").read_text().splitlines()
    return dict(line.split(":", 1) for line in lines)


def namespace(pid: int, kind: str) -> int:
    return Path(f"/proc/{pid}/ns/{kind}").stat().st_ino


async def test_the_sandbox_runs_as_nobody(own):
    """Seen from the host, the code is never root, and has neither capabilities nor new privileges."""
    limits = own_limits()
    running = asyncio.create_task(own(limits=limits, warm=0).run("import time; time.sleep(3600)", 3.0))
    await until(lambda: len([p for p in marked(limits) if "python" in p.name()]) >= 2)
    inside = [p for p in marked(limits) if "python" in p.name()]
    for process in inside:
        status = status_of(process)
        assert "0" not in status["Uid"].split()
        assert int(status["CapEff"], 16) == int(status["CapPrm"], 16) == 0
        assert int(status["NoNewPrivs"]) == 1
        assert int(status["Seccomp"]) == 2
        for kind in ("net", "pid", "mnt", "ipc", "uts", "user"):
            assert namespace(process.pid, kind) != namespace(os.getpid(), kind), kind
    assert (await running).ended == Ended.TIMED_OUT
