"""The sandbox, attacked: what code does to it, and what is left afterwards."""

import asyncio
import dataclasses
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
from prometheus_client import REGISTRY

from server import sandbox as module
from server import sandbox_layout, seccomp
from server.errors import Unavailable
from server.sandbox import Ended, Limits, Sandbox, SandboxOff
from server.sandbox_attacks import Attack, attacks


def why_not() -> str | None:
    """Why bubblewrap does not work here at all, be it installed or not."""
    bwrap = shutil.which("bwrap")
    if bwrap is None:
        return "no bwrap to run code in: apt-get install bubblewrap"
    command = [bwrap, "--unshare-user", "--unshare-pid", "--unshare-net", "--ro-bind", "/", "/", "true"]
    tried = subprocess.run(command, capture_output=True, text=True, check=False, timeout=30)
    return f"this host lets no one make namespaces: {tried.stderr.strip()}" if tried.returncode else None


NOT_HERE = why_not()
pytestmark = pytest.mark.skipif(NOT_HERE is not None, reason=NOT_HERE or "")

SECONDS = 20.0  # for code that ends by itself: the machine may be busy


def marked(limits: Limits) -> list[psutil.Process]:
    """Living processes of sandboxes with these limits, which stand in their command line."""
    found = []
    for process in psutil.process_iter():
        try:
            words = process.cmdline()
            dead = process.status() == psutil.STATUS_ZOMBIE
        except psutil.NoSuchProcess:
            continue
        if not dead and any(f'"memory": {limits.memory}' in word for word in words[-3:]):
            found.append(process)
    return found


async def gone(limits: Limits, seconds: float = 5.0) -> list[psutil.Process]:
    """Those of `marked` that are alive when no more end."""
    deadline = time.monotonic() + seconds
    while (left := marked(limits)) and time.monotonic() < deadline:  # noqa: ASYNC110  # the kernel sets no event
        await asyncio.sleep(0.02)
    return left


async def until(condition, seconds: float = 20.0) -> None:
    async with asyncio.timeout(seconds):
        while not condition():  # noqa: ASYNC110  # nor do other processes
            await asyncio.sleep(0.02)


def own_limits(**changes) -> Limits:
    """Limits that no other sandbox of this host has, so that its processes can be told."""
    return Limits(memory=2**28 + 4096 * random.randrange(1, 10_000), **changes)


@pytest.fixture(scope="module")
async def sandbox():
    opened = await Sandbox.open(warm=2, concurrent=4)
    assert isinstance(opened, Sandbox), opened.problem
    yield opened
    await opened.close()


@pytest.fixture
async def own():
    """Makes sandboxes that are closed after the test, without the proof that `open` asks for."""
    made = []

    def make(**options) -> Sandbox:
        made.append(Sandbox(**options))
        return made[-1]

    yield make
    for subject in made:
        await subject.close()


# Verdicts


async def test_code_that_runs_to_its_end_passes(sandbox):
    """A program whose assertions hold passes, and says how long it took."""
    ran = await sandbox.run("def double(x):\n    return 2 * x\nassert double(2) == 4", SECONDS)
    assert (ran.ended, ran.stderr) == (Ended.PASSED, "")
    assert 0 < ran.seconds < SECONDS


async def test_a_failure_shows_its_line(sandbox):
    """A failing assertion fails with its own traceback: its source line, none of the runner's frames."""
    ran = await sandbox.run("x = 1\nassert x == 2, f'x is {x}'", SECONDS)
    assert ran.ended == Ended.FAILED
    assert "assert x == 2" in ran.stderr
    assert ran.stderr.endswith("AssertionError: x is 1\n")
    assert "exec(" not in ran.stderr


WRITE_EVERYWHERE = """
import os
for descriptor in range(64):
    try:
        os.write(descriptor, b"passed\\n")
    except OSError:
        pass
"""


@pytest.mark.parametrize(
    "code",
    [
        "import sys; sys.exit(0)",
        "import os; os._exit(0)",
        "raise SystemExit",
        "raise KeyboardInterrupt",
        "exit(0)",
        "def broken(:",
        "\0",
        "\ud800",
        "import os; os.closerange(0, 4096)",
        WRITE_EVERYWHERE,
        f"{WRITE_EVERYWHERE}\nos._exit(0)",
        "print('passed'); import sys; print('passed', file=sys.stderr); sys.exit()",
        "import os, threading, time; threading.Thread(target=os._exit, args=[0]).start(); time.sleep(60)",
        "import os, signal; os.kill(os.getpid(), signal.SIGKILL)",
        "import ctypes; ctypes.string_at(0)",
        "def endless(): endless()\nendless()",
        "class Bad(Exception):\n  def __str__(self): raise SystemExit(0)\nraise Bad",
    ],
)
async def test_leaving_early_does_not_pass(sandbox, code):
    """No exit, closed descriptor, forged word, crash or syntax error counts as passing."""
    assert (await sandbox.run(code, SECONDS)).ended in (Ended.FAILED, Ended.KILLED, Ended.MEMORY)


async def test_harmless_code_works(sandbox):
    """Threads, asyncio, modules of the library, files in the folder and modules made there work."""
    code = """
import asyncio, collections, concurrent.futures, dataclasses, datetime, decimal, json, math, pathlib
import random, re, sqlite3, sys, unittest
with concurrent.futures.ThreadPoolExecutor(4) as pool:
    assert sum(pool.map(abs, range(-10, 0))) == 55
async def both():
    return await asyncio.gather(asyncio.sleep(0, 1), asyncio.to_thread(int, "2"))
assert asyncio.run(both()) == [1, 2]
pathlib.Path("mine.py").write_text("answer = 42")
import mine
assert mine.answer == 42
assert sqlite3.connect("x.db").execute("select 1").fetchone() == (1,)
@dataclasses.dataclass
class Point:
    x: int
assert Point(1) == Point(1) and Point.__module__ == __name__ == "__main__"
class Test(unittest.TestCase):
    def test(self):
        self.assertEqual(1, 1)
assert unittest.main(exit=False, argv=["x"]).result.wasSuccessful()
assert len(json.dumps("ü" * 3, ensure_ascii=False).encode()) == 8
"""
    ran = await sandbox.run(code, SECONDS)
    assert ran.ended == Ended.PASSED, ran.stderr


@pytest.mark.parametrize(
    ("tests", "ended"),
    [
        ("def test(self): self.assertEqual(1, 1)", Ended.PASSED),
        ("def test(self): self.assertEqual(1, 2)", Ended.FAILED),
        ("def test(self): raise SystemExit(0)", Ended.FAILED),
        ("pass", Ended.FAILED),
    ],
)
@pytest.mark.parametrize("call", ["unittest.main()", "unittest.main(exit=False)"])
async def test_unittest_says_how_it_ended(sandbox, tests, call, ended):
    """`unittest.main()` passes where every test does and there is one, though it would end the process."""
    code = f"import unittest\nclass Test(unittest.TestCase):\n    {tests}\n{call}\n"
    ran = await sandbox.run(code, SECONDS)
    assert ran.ended == ended, ran.stderr


async def test_runs_share_nothing(sandbox):
    """What one run leaves behind in its folder or in modules, no other sees."""
    write = "import json, os; assert not os.listdir('.'); open('left', 'w').close(); json.x = 1"
    read = "import json, os; assert not os.listdir('.'); assert not hasattr(json, 'x')"
    runs = await asyncio.gather(*(sandbox.run(code, SECONDS) for code in (write, read, write, read)))
    assert [ran.ended for ran in runs] == [Ended.PASSED] * 4


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
    ran = await sandbox._run(code, 60.0, 1)
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


# The pool


async def test_at_most_so_many_run(own, monkeypatch):
    """No more than `concurrent` run at once; the others wait in order of arrival, and all are served."""
    subject = own(warm=1, concurrent=2)
    running, most, order = 0, 0, []
    inner = module._Cell.run

    async def counted(cell, code, *arguments):
        nonlocal running, most
        order.append(int(code.partition("#")[2]))
        running += 1
        most = max(most, running)
        try:
            return await inner(cell, code, *arguments)
        finally:
            running -= 1

    monkeypatch.setattr(module._Cell, "run", counted)
    codes = [f"import time; time.sleep(0.2) #{number}" for number in range(8)]
    runs = await asyncio.gather(*(subject.run(code, SECONDS) for code in codes))
    assert [ran.ended for ran in runs] == [Ended.PASSED] * 8
    assert most == 2
    assert all(abs(number - place) <= 1 for place, number in enumerate(order)), order


async def test_a_sandbox_that_died_idle_is_not_handed_out(own):
    """Sandboxes killed while they wait are replaced, and the next run knows nothing of it."""
    limits = own_limits()
    subject = own(limits=limits, warm=2)
    await subject.run("pass", SECONDS)
    await until(lambda: all(task.done() for task in subject._idle))
    dead = {process.pid for process in marked(limits)}
    for process in marked(limits):
        process.kill()
    await gone(limits)
    ran = await subject.run("pass", SECONDS)
    assert ran.ended == Ended.PASSED
    await until(lambda: len(subject._idle) == 2 and all(task.done() for task in subject._idle))
    assert not dead & {process.pid for process in marked(limits)}


async def test_a_start_that_failed_is_tried_again(own):
    """What kept sandboxes from starting is told to the caller of that moment, not to later ones."""
    subject = own(warm=2)
    layout = subject._layout
    subject._layout = dataclasses.replace(layout, command=("/no/such/program",))
    with pytest.raises(Unavailable, match=r"cannot be started: .*No such file"):
        await subject.run("pass", SECONDS)
    await until(lambda: all(task.done() for task in subject._idle))
    subject._layout = layout
    assert (await subject.run("pass", SECONDS)).ended == Ended.PASSED


async def test_a_cancelled_run_leaves_nothing(own):
    """A caller who leaves takes the sandbox along, and its turn goes to the next one."""
    limits = own_limits()
    subject = own(limits=limits, warm=0, concurrent=1)
    running = asyncio.create_task(subject.run("import time; time.sleep(3600)", 3600.0))
    await until(lambda: len([p for p in marked(limits) if "python" in p.name()]) >= 2)
    running.cancel()
    with pytest.raises(asyncio.CancelledError):
        await running
    assert not await gone(limits)
    assert (await subject.run("pass", SECONDS)).ended == Ended.PASSED


async def test_a_caller_who_leaves_while_a_sandbox_starts(own):
    """Leaving before the sandbox is ready neither loses it nor blocks the next caller."""
    limits = own_limits()
    subject = own(limits=limits, warm=1, concurrent=1)
    for pause in (0, 0.001, 0.01):
        waiting = asyncio.create_task(subject.run("pass", SECONDS))
        await asyncio.sleep(pause)
        waiting.cancel()
        await asyncio.gather(waiting, return_exceptions=True)
    assert (await subject.run("pass", SECONDS)).ended == Ended.PASSED
    await subject.close()
    assert not await gone(limits)


async def test_close_ends_everything(own):
    """Closing kills idle and busy sandboxes; whoever asks later is refused."""
    limits = own_limits()
    subject = own(limits=limits, warm=2)
    running = asyncio.create_task(subject.run("import time; time.sleep(3600)", 3600.0))
    await until(lambda: len([p for p in marked(limits) if "python" in p.name()]) >= 4)
    await subject.close()
    assert (await running).ended == Ended.KILLED
    assert not await gone(limits)
    with pytest.raises(Unavailable):
        await subject.run("pass", SECONDS)


async def test_closing_at_any_moment_of_a_start(own):
    """A sandbox that is ended while it starts, wherever it is in that, leaves no process behind."""
    limits = own_limits()
    for step in range(40):
        subject = own(limits=limits, warm=3)
        subject._refill()
        await asyncio.sleep(step / 1000)
        await asyncio.wait_for(subject.close(), 4)
    assert not await gone(limits)


async def test_sandboxes_end_with_the_server(tmp_path):
    """A server that is killed leaves no sandbox behind, neither idle nor busy."""
    limits = own_limits()
    program = f"""
import asyncio
from server.sandbox import Limits, Sandbox
async def main():
    sandbox = Sandbox(warm=2, limits=Limits(memory={limits.memory}))
    await sandbox.run("import time; time.sleep(3600)", 3600.0)
asyncio.run(main())
"""
    server = await asyncio.create_subprocess_exec(
        *(sys.executable, "-c", program), cwd=Path(module.__file__).parents[1]
    )
    await until(lambda: len([p for p in marked(limits) if "python" in p.name()]) >= 4)
    server.kill()
    await server.wait()
    assert not await gone(limits)


async def test_runs_are_counted(sandbox):
    """Each run counts under how it ended; idle sandboxes are shown."""

    def value(name, **labels):
        return REGISTRY.get_sample_value(name, labels) or 0

    failed = value("steersman_sandbox_runs_total", outcome="failed")
    timed = value("steersman_sandbox_seconds_count")
    await sandbox.run("1 / 0", SECONDS)
    assert value("steersman_sandbox_runs_total", outcome="failed") == failed + 1
    assert value("steersman_sandbox_seconds_count") == timed + 1
    await until(lambda: value("steersman_sandbox_idle") == 2)


async def test_other_loops():
    """The loop that uvicorn brings serves it as asyncio's own does."""
    pytest.importorskip("uvloop")
    program = """
import asyncio, uvloop
from server.sandbox import Ended, Sandbox
async def main():
    sandbox = Sandbox(warm=1)
    assert (await sandbox.run("pass", 20.0)).ended == Ended.PASSED
    assert (await sandbox.run("import time; time.sleep(3600)", 0.2)).ended == Ended.TIMED_OUT
    assert (await sandbox.run("while True: print('x' * 1000)", 20.0)).ended == Ended.OUTPUT
    await sandbox.close()
uvloop.run(main())
"""
    ran = await asyncio.create_subprocess_exec(
        *(sys.executable, "-c", program), cwd=Path(module.__file__).parents[1]
    )
    assert await ran.wait() == 0


# The proof at start


async def test_the_proof_finds_a_hole(monkeypatch):
    """Where one property does not hold there is no sandbox, and the reason names it."""
    program = seccomp.program
    monkeypatch.setattr(seccomp, "program", lambda machine, *, processes: program(machine, processes=True))
    off = await Sandbox.open(warm=0)
    assert isinstance(off, SandboxOff)
    assert off.problem.startswith("the sandbox does not hold: code starts processes (failed: ")


async def test_the_proof_looks_at_the_paths_it_is_given(tmp_path):
    """A secret within what every sandbox sees is found; a host like that has no sandbox."""
    off = await Sandbox.open(warm=0, hidden=[Path(os.__file__)])
    assert isinstance(off, SandboxOff)
    assert "code reads the host's files" in off.problem
    assert os.__file__ in off.problem


@pytest.mark.parametrize(
    ("lost", "kept"),
    [
        # the filter still stands between the code and a network
        ("--unshare-all", ["--unshare-pid", "--unshare-ipc", "--unshare-uts"]),
        ("--clearenv", []),  # bwrap is given no secrets, and the runner clears what there is
        ("--new-session", []),  # there is no terminal
    ],
)
async def test_layers_stand_alone(monkeypatch, lost, kept):
    """Of two layers that keep the same promise, one is enough for code to be kept in."""
    flags = [flag for flag in sandbox_layout._ISOLATION if flag != lost]
    monkeypatch.setattr(sandbox_layout, "_ISOLATION", (*flags, *kept))
    opened = await Sandbox.open(warm=0)
    assert isinstance(opened, Sandbox), opened.problem
    await opened.close()


async def test_no_bwrap(monkeypatch):
    """Without bubblewrap the reason says what to install."""
    monkeypatch.setattr(shutil, "which", lambda name: None if name == "bwrap" else f"/usr/bin/{name}")
    off = await Sandbox.open()
    assert off == SandboxOff("bubblewrap is not installed (apt-get install bubblewrap)")


async def test_an_unknown_machine(monkeypatch):
    """Where there is no filter for the architecture there is no sandbox."""
    monkeypatch.setattr(module.platform, "machine", lambda: "riscv64")
    off = await Sandbox.open()
    assert isinstance(off, SandboxOff)
    assert "not linux on riscv64" in off.problem


async def test_a_host_that_refuses_bwrap(monkeypatch):
    """Where bwrap cannot do its work, the reason is its own last line, and a run is refused with it."""
    refused = (*sandbox_layout._ISOLATION, "--ro-bind", "/no/such/path", "/x")
    monkeypatch.setattr(sandbox_layout, "_ISOLATION", refused)
    off = await Sandbox.open()
    assert isinstance(off, SandboxOff)
    assert "cannot be started: bwrap: Can't find source path /no/such/path" in off.problem
    subject = Sandbox()
    with pytest.raises(Unavailable, match="no/such/path"):
        await subject.run("pass", SECONDS)
    await subject.close()


def test_every_attack_says_what_it_breaks():
    """Each attack is a program of its own, with a distinct reason and an ending that exists."""
    tried = list(attacks([Path("/secret")], [Path("/usr/lib")], 2**20, 2**28))
    assert len({attack.broken for attack in tried}) == len(tried)
    for attack in tried:
        assert isinstance(attack, Attack)
        assert attack.ended in set(Ended)
        compile(attack.code, "attack", "exec")
    assert json.dumps(["/usr/lib", "/usr", "/"]) in tried[2].code
