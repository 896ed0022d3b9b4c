"""No process of vLLM's outlives the one that started it, however that one ended.

vLLM's engine is told of an orderly end alone: after a SIGKILL of the server, or the kernel's own for want of
memory, it would stay with its weights and its cache.
"""

import multiprocessing
import os
import signal
import threading
from multiprocessing.connection import wait


def end_with_parent() -> None:
    """vLLM calls it in each of its processes (`vllm.general_plugins`); nothing happens in the first."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        threading.Thread(target=_outlive, args=(parent.sentinel,), name="parent", daemon=True).start()


def _outlive(sentinel: int) -> None:
    # A thread, not the kernel's signal at a parent's death: that one comes when the thread ends which forked.
    wait([sentinel])
    os.kill(os.getpid(), signal.SIGKILL)
