"""Sandboxes to test with: whether this host has any, and which of their processes live."""

import asyncio
import random
import shutil
import subprocess
import time

import psutil
import pytest

from server.sandbox import Limits


def why_not() -> str | None:
    """Why bubblewrap does not work here at all, be it installed or not."""
    bwrap = shutil.which("bwrap")
    if bwrap is None:
        return "no bwrap to run code in: apt-get install bubblewrap"
    command = [bwrap, "--unshare-user", "--unshare-pid", "--unshare-net", "--ro-bind", "/", "/", "true"]
    tried = subprocess.run(command, capture_output=True, text=True, check=False, timeout=30)
    return f"this host lets no one make namespaces: {tried.stderr.strip()}" if tried.returncode else None


NOT_HERE = why_not()
HERE = pytest.mark.skipif(NOT_HERE is not None, reason=NOT_HERE or "")

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
