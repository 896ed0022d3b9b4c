"""Ctrl-C at a terminal."""

import os
import signal
import threading
from multiprocessing import resource_tracker


def as_termination() -> None:
    """From now on SIGINT stops this process as SIGTERM does, and is nothing to the processes it starts.

    A terminal sends SIGINT to all of them at once, at which vLLM's workers exit with work in hand. Here they
    inherit it blocked, and one thread takes it for this process. To be called before other threads exist.
    """
    resource_tracker.ensure_running()  # as it starts, it unblocks SIGINT
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    threading.Thread(target=_relay, name="interrupt", daemon=True).start()


def _relay() -> None:
    while True:
        signal.sigwait({signal.SIGINT})
        os.kill(os.getpid(), signal.SIGTERM)
