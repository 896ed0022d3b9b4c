"""What passes in a sandbox, and how the pool of them lives and ends."""

import asyncio
import dataclasses
import os
import sys
from pathlib import Path

import pytest
from prometheus_client import REGISTRY

from server import sandbox as module
from server.errors import Unavailable
from server.sandbox import Ended
from tests.server.sandboxes import HERE, SECONDS, gone, marked, own_limits, until

pytestmark = HERE


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
    owners = "ab" * 4
    runs = await asyncio.gather(*map(subject.run, codes, [SECONDS] * 8, owners))
    assert [ran.ended for ran in runs] == [Ended.PASSED] * 8
    assert most == 2
    assert all(abs(number - place) <= 1 for place, number in enumerate(order)), order


async def test_one_owner_has_half(own):
    """While one owner's code takes all the time it may, another's runs."""
    subject = own(warm=2, concurrent=2)
    waiting = [
        asyncio.create_task(subject.run("import time; time.sleep(3600)", 3600.0, "a")) for _ in range(4)
    ]
    await asyncio.sleep(0)
    assert (await subject.run("pass", SECONDS, "b")).ended == Ended.PASSED
    for task in waiting:
        task.cancel()
    await asyncio.gather(*waiting, return_exceptions=True)


async def test_the_server_goes_first(own):
    """Code runs at a lower priority than the server, and cannot raise it."""
    subject = own(warm=0)
    nice = min(19, os.nice(0) + 10)
    lower = f"import os\nassert os.nice(0) == {nice}, os.nice(0)"
    raised = "try:\n    os.nice(-1)\nexcept OSError:\n    pass\nelse:\n    raise AssertionError"
    ran = await subject.run(f"{lower}\n{raised}", SECONDS)
    assert ran.ended == Ended.PASSED, ran.stderr


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
