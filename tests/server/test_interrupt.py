import os
import signal
import subprocess
import sys

SCRIPT = """
import signal, subprocess, sys, time
from server import interrupt
interrupt.as_termination()
child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(2); print('whole', flush=True)"])
def stop(*_):
    child.wait()
    sys.exit(3)
signal.signal(signal.SIGTERM, stop)
print("ready", flush=True)
while True:
    time.sleep(0.1)
"""


def test_an_interrupt_is_a_termination_and_spares_the_children():
    """SIGINT to all processes, as from a terminal: the first meets SIGTERM, its child goes on to its end."""
    process = subprocess.Popen(
        [sys.executable, "-c", SCRIPT], stdout=subprocess.PIPE, text=True, start_new_session=True
    )
    assert process.stdout.readline() == "ready\n"
    os.killpg(process.pid, signal.SIGINT)
    assert process.communicate(timeout=30)[0] == "whole\n"
    assert process.returncode == 3
