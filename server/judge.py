"""Judge texts by a client's own regex and schema, in child processes that can be ended.

Python's `re` backtracks and holds the interpreter while it does, and a schema may refer to itself in ways
that take exponential time. So neither is tried in the process that serves everyone.
"""

import asyncio
import json
import resource
import sys
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import asdict
from typing import Any

from policies.policy import ConstraintControls, RuntimePolicy, VerifierControls
from policies.verdict import Text, Verdict, judge
from server.errors import Unavailable
from server.turns import Turns

_MEMORY = 2**30  # bytes of address space of each
_LINE = 64 * 2**20  # bytes of one answer at most
_START_SECONDS = 30.0
_CHILDREN = 3


class Judge:
    """Some children, each started when first needed and replaced when a text outlasts `seconds`.

    No owner has all of them at once, so that one whose texts take long leaves the others a child.
    """

    def __init__(self, seconds: float, *, memory: int = _MEMORY) -> None:
        self._seconds, self._memory = seconds, memory
        self._turns = Turns(_CHILDREN, each=_CHILDREN - 1)
        self._children: set[_Child] = set()
        self._idle: list[_Child] = []
        self._closed = False

    async def __call__(
        self, texts: Sequence[Text], policy: RuntimePolicy, *, masked_grammar: bool = True, owner: str = ""
    ) -> list[Verdict]:
        """A verdict per text: a rejection, which says so, where that one takes too long or too much memory.

        Raises Unavailable where no child can be had, or the second one fails too.
        """
        given = {
            # All that `judge` reads; an inline vector alone can be megabytes.
            "policy": policy.model_dump(
                mode="json", exclude_unset=True, include={"constraints", "verifiers"}
            ),
            "masked_grammar": masked_grammar,
        }
        verdicts: list[Verdict] = []
        failed = False
        while len(verdicts) < len(texts):
            job = {**given, "texts": [asdict(text) for text in texts[len(verdicts) :]]}
            try:
                async with self._turns.taken(owner), self._child() as child:
                    async for found in child.judged(job, self._seconds):
                        verdict = _rejection(policy, found) if isinstance(found, str) else found
                        verdicts.append(verdict)  # kept where a later text ends the child
            except TimeoutError:
                verdicts.append(_rejection(policy, f"judging took longer than {self._seconds:g} s"))
            except _ChildError as error:
                if failed or self._closed:
                    raise Unavailable(f"answers cannot be judged: {error}", retry_after=1) from error
                failed = True
        return verdicts

    async def close(self) -> None:
        self._closed = True
        await asyncio.gather(*(child.end() for child in self._children))

    @asynccontextmanager
    async def _child(self) -> AsyncIterator["_Child"]:
        """One for a single job: whatever ends the job early ends the child with it."""
        while self._idle and not self._idle[-1].alive:
            self._children.discard(self._idle.pop())
        child = self._idle.pop() if self._idle else await _Child.started(self._memory)
        self._children.add(child)
        done = False
        try:
            yield child
            done = True
        finally:
            if done and not self._closed:
                self._idle.append(child)
            else:
                self._children.discard(child)
                await child.end()


class _ChildError(Exception):
    """A child failed, and not the text it was given."""


class _Child:
    def __init__(self, process: asyncio.subprocess.Process) -> None:
        assert process.stdin is not None
        assert process.stdout is not None
        self._process, self._jobs, self._answers = process, process.stdin, process.stdout

    @classmethod
    async def started(cls, memory: int) -> "_Child":
        try:
            process = await asyncio.create_subprocess_exec(
                *(sys.executable, "-m", "server.judge", str(memory)),
                stdin=asyncio.subprocess.PIPE,
                stdout=asyncio.subprocess.PIPE,
                limit=_LINE,
                start_new_session=True,
            )
        except OSError as error:
            raise _ChildError(f"no process can be started: {error}") from error
        child = cls(process)
        try:
            await child._soon("ready")
        except BaseException:
            await child.end()
            raise
        return child

    @property
    def alive(self) -> bool:
        return self._process.returncode is None

    async def judged(self, job: dict[str, Any], seconds: float) -> AsyncIterator[Verdict | str]:
        """Verdicts in order, or why a text has none. Raises TimeoutError for a text that takes longer."""
        try:
            self._jobs.write(json.dumps(job).encode() + b"\n")
            await self._jobs.drain()
        except OSError as error:
            raise _ChildError("the process that judges has ended") from error
        await self._soon("began")
        for _ in job["texts"]:
            answer = json.loads(await asyncio.wait_for(self._line(), seconds))
            yield answer if isinstance(answer, str) else Verdict(**answer)

    async def end(self) -> None:
        if self.alive:
            self._process.kill()
        await self._process.wait()

    async def _soon(self, word: str) -> None:
        try:
            said = await asyncio.wait_for(self._line(), _START_SECONDS)
        except TimeoutError as error:
            raise _ChildError("the process that judges gives no answer") from error
        if said != word.encode():
            raise _ChildError("the process that judges says something else")

    async def _line(self) -> bytes:
        try:
            line = await self._answers.readline()
        except (OSError, ValueError) as error:  # ValueError: longer than `_LINE`
            raise _ChildError("the process that judges cannot be heard") from error
        if not line.endswith(b"\n"):
            raise _ChildError("the process that judges has ended")
        return line[:-1]


def _rejection(policy: RuntimePolicy, reason: str) -> Verdict:
    """Nothing was found good: as if every verifier had failed."""
    return Verdict(reason, dict.fromkeys(policy.verifiers.enabled or ["syntax"], reason))


def main() -> None:
    """Jobs in, a line each; "began" and a line per text out. Ends with its input, so that it cannot outlive
    the server."""
    memory = int(sys.argv[1])
    resource.setrlimit(resource.RLIMIT_AS, (memory, memory))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    print("ready", flush=True)
    for line in sys.stdin:
        job = json.loads(line)
        policy = _policy(job["policy"])
        print("began", flush=True)
        for text in job["texts"]:
            print(json.dumps(_answer(Text(**text), policy, job["masked_grammar"])), flush=True)


def _policy(groups: dict[str, Any]) -> RuntimePolicy:
    """Each group by itself: a field whose effect lies in another group is sound, as the whole policy was."""
    return RuntimePolicy.model_construct(
        constraints=ConstraintControls.model_validate(groups.get("constraints", {})),
        verifiers=VerifierControls.model_validate(groups.get("verifiers", {})),
    )


def _answer(text: Text, policy: RuntimePolicy, masked_grammar: bool) -> dict[str, Any] | str:
    try:
        verdict = judge(text, policy, masked_grammar=masked_grammar)
    except MemoryError:
        return "judging needs too much memory"
    return {"broken": verdict.broken, "failed": dict(verdict.failed)}


if __name__ == "__main__":
    main()
