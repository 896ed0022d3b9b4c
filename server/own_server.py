"""A server of one's own, for as long as a command needs one."""

import asyncio
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Final
from urllib.error import URLError
from urllib.request import urlopen

from server.remote import RemoteError, Server
from server.store import Store

_START_SECONDS: Final = 900
_STOP_SECONDS: Final = 45
_POLL_SECONDS: Final = 0.5
_SHOWN: Final = 3000  # characters of a log


def answers(url: str) -> bool:
    """Whether a server runs there, whoever may ask it what."""
    try:
        with urlopen(f"{url.rstrip('/')}/health", timeout=2) as response:  # noqa: S310  # as the user wrote it
            return bool(response.status == 200)
    except (URLError, OSError, ValueError):
        return False


@contextmanager
def own_server(home: Path, flags: Sequence[str], say: Callable[[str], None]) -> Iterator[Server]:
    """`steersman serve` with `flags` on a free port, its models under `home`, its keys gone with it.

    Raises RemoteError where it does not start.
    """
    with TemporaryDirectory(prefix="steersman-") as folder:
        database = f"sqlite+aiosqlite:///{folder}/own.db"
        key, port, log = asyncio.run(_key(database)), _free_port(), Path(folder, "server.log")
        command = [sys.executable, "-m", "server", "serve", *flags, "--home", str(home)]
        command += ["--database-url", database, "--host", "127.0.0.1", "--port", str(port)]
        with log.open("wb") as output:
            process = subprocess.Popen(  # noqa: S603  # ourselves
                command,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,  # Ctrl-C is for the command, which then stops it
            )
        try:
            server = Server(f"http://127.0.0.1:{port}", key)
            _wait(server, process, log, say)
            yield server
        finally:
            _stop(process)


async def _key(database: str) -> str:
    store = Store(database)
    await asyncio.to_thread(store.migrate)
    try:
        key = await store.first_key()
        assert key is not None, "the database is new"
        return key
    finally:
        await store.close()


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _wait(server: Server, process: subprocess.Popen[bytes], log: Path, say: Callable[[str], None]) -> None:
    began = time.monotonic()
    say("Starting a server of our own …")
    while not answers(server.url):
        if process.poll() is not None or time.monotonic() - began > _START_SECONDS:
            tail = log.read_text(errors="replace")[-_SHOWN:]
            raise RemoteError(f"the server did not start; the end of its log:\n{tail}")
        time.sleep(_POLL_SECONDS)
    say(f"Serving after {time.monotonic() - began:.0f} s")


def _stop(process: subprocess.Popen[bytes]) -> None:
    if process.poll() is None:
        process.terminate()
        with suppress(subprocess.TimeoutExpired):
            process.wait(_STOP_SECONDS)
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()
