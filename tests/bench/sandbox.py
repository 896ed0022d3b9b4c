"""Milliseconds that a small unit test takes in a sandbox: median of runs, from the warm pool and without one.

    PYTHONPATH=. python tests/bench/sandbox.py [--runs 30]

A warm run is measured when the pool is full again, as it is between requests.
"""

import argparse
import asyncio
import statistics
import time

from server.sandbox import Ended, Sandbox, SandboxOff

CODE = """
def median(values):
    ordered = sorted(values)
    middle = len(ordered) // 2
    return ordered[middle] if len(ordered) % 2 else (ordered[middle - 1] + ordered[middle]) / 2

assert median([3, 1, 2]) == 2
assert median([4, 1, 3, 2]) == 2.5
"""


async def measure(sandbox: Sandbox, runs: int, pause: float) -> list[float]:
    took = []
    for _ in range(runs):
        await asyncio.sleep(pause)
        started = time.perf_counter()
        ran = await sandbox.run(CODE, 10.0)
        took.append(1000 * (time.perf_counter() - started))
        assert ran.ended == Ended.PASSED, ran
    return took


async def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--runs", type=int, default=30)
    runs = parser.parse_args().runs
    started = time.perf_counter()
    for name, warm, pause in (("warm", 2, 0.3), ("cold", 0, 0.0)):
        sandbox = await Sandbox.open(warm=warm)
        if isinstance(sandbox, SandboxOff):
            raise SystemExit(sandbox.problem)
        opened = time.perf_counter() - started
        took = await measure(sandbox, runs, pause)
        await sandbox.close()
        print(f"{name}: median {statistics.median(took):.1f} ms, slowest {max(took):.1f} ms of {runs} runs")
        started = time.perf_counter()
        print(f"      self-test {opened:.2f} s")


if __name__ == "__main__":
    asyncio.run(main())
