"""What becomes of a process whose parent was killed."""

import signal
import subprocess
import sys

import psutil

PROGRAM = """
import multiprocessing, threading, time
from server.orphans import end_with_parent

def child(pipe):
    end_with_parent()
    pipe.send(1)
    time.sleep(60)

if __name__ == "__main__":
    end_with_parent()  # nobody's child: nothing happens
    ours, theirs = multiprocessing.Pipe()
    made = multiprocessing.get_context("spawn").Process(target=child, args=(theirs,))
    # A thread that ends is no parent that dies.
    thread = threading.Thread(target=made.start)
    thread.start()
    thread.join()
    ours.recv()
    time.sleep(0.2)
    print(made.pid, made.is_alive(), flush=True)
    time.sleep(60)
"""


def test_it_ends_at_once(tmp_path):
    """It lives as long as its parent does, and no longer."""
    (tmp_path / "program.py").write_text(PROGRAM)
    parent = subprocess.Popen([sys.executable, tmp_path / "program.py"], stdout=subprocess.PIPE, text=True)
    pid, alive = parent.stdout.readline().split()
    assert alive == "True"
    child = psutil.Process(int(pid))
    parent.send_signal(signal.SIGKILL)
    parent.wait()
    parent.stdout.close()
    psutil.wait_procs([child], timeout=10)
    assert not child.is_running() or child.status() == psutil.STATUS_ZOMBIE
