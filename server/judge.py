"""Judge texts by a client's own regex and schema, in a child process that can be ended.

Python's `re` backtracks and holds the interpreter while it does, and a schema may refer to itself in ways
that take exponential time. So neither is tried in the process that serves everyone.
"""

import asyncio
import json
import resource
import sys
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from policies.policy import RuntimePolicy
from policies.verdict import Text, Verdict, judge

_MEMORY = 2 * 2**30  # bytes of address space
_LINE = 64 * 2**20  # bytes of one job or answer at most
_START_SECONDS = 30.0


class JudgeProcess:
    """One child, started when first needed and replaced when a job outlasts `seconds` of wall time."""

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds
        self._process: asyncio.subprocess.Process | None = None
        self._turn = asyncio.Lock()

    async def __call__(
        self, texts: Sequence[Text], policy: RuntimePolicy, *, masked_grammar: bool = True
    ) -> list[Verdict]:
        """A verdict per text. All are rejections, which say so, where judging takes too long or fails."""
        job = json.dumps(
            {
                "texts": [asdict(text) for text in texts],
                "policy": policy.model_dump(mode="json", exclude_unset=True),
                "masked_grammar": masked_grammar,
            }
        )
        async with self._turn:
            process = await self._started()
            assert process.stdin is not None and process.stdout is not None  # noqa: PT018  # both are pipes
            try:
                process.stdin.write(job.encode() + b"\n")
                await process.stdin.drain()
                answer = await asyncio.wait_for(process.stdout.readline(), self._seconds)
                return [Verdict(**fields) for fields in json.loads(answer)]
            except TimeoutError:
                reason = f"judging took longer than {self._seconds:g} s"
            except (OSError, ValueError):
                reason = "judging failed; the regex or schema needs too much memory"
            except asyncio.CancelledError:
                await self._end()
                raise
            await self._end()
        # Nothing was found good: as if every verifier had failed.
        failed = dict.fromkeys(policy.verifiers.enabled or ["syntax"], reason)
        return [Verdict(reason, failed) for _ in texts]

    async def close(self) -> None:
        async with self._turn:
            await self._end()

    async def _started(self) -> asyncio.subprocess.Process:
        if self._process is None or self._process.returncode is not None:
            self._process = await asyncio.create_subprocess_exec(
                *(sys.executable, "-m", "server.judge"),
                stdin=asyncio.subprocess.PIPE,
                stdout=asyncio.subprocess.PIPE,
                limit=_LINE,
                start_new_session=True,
            )
            assert self._process.stdout is not None
            await asyncio.wait_for(self._process.stdout.readline(), _START_SECONDS)
        return self._process

    async def _end(self) -> None:
        process, self._process = self._process, None
        if process is not None and process.returncode is None:
            process.kill()
            await process.wait()


def main() -> None:
    """Jobs in, a line each; verdicts out. Ends with its input, so that it cannot outlive the server."""
    resource.setrlimit(resource.RLIMIT_AS, (_MEMORY, _MEMORY))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    print("ready", flush=True)
    for line in sys.stdin:
        job = json.loads(line)
        policy = RuntimePolicy.model_validate(job["policy"])
        masked = job["masked_grammar"]
        verdicts = [judge(Text(**text), policy, masked_grammar=masked) for text in job["texts"]]
        print(json.dumps([_plain(verdict) for verdict in verdicts]), flush=True)


def _plain(verdict: Verdict) -> dict[str, Any]:
    return {"broken": verdict.broken, "failed": dict(verdict.failed)}


if __name__ == "__main__":
    main()
