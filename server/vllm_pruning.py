"""Successive halving among the candidates of a request: at checkpoints the less likely half ends.

Works where tokens come out of the engine, so that constraints, steering and sampling methods are untouched;
ending a candidate aborts its engine request.
"""

import math
from collections.abc import AsyncGenerator, Callable, Sequence
from contextlib import aclosing
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Any

from vllm.outputs import RequestOutput
from vllm.sampling_params import RequestOutputKind, SamplingParams

from server.candidates import sibling

Generate = Callable[..., AsyncGenerator[RequestOutput, None]]


@dataclass(slots=True)
class Heat:
    """`candidates` of one request run together; at each of `checkpoints`, token counts, half of those that
    are left goes on. `pruned` says at how many tokens a candidate was ended."""

    candidates: int
    checkpoints: Sequence[int]
    pruned: dict[int, int] = field(default_factory=dict)
    _sums: dict[int, list[float]] = field(default_factory=dict)
    _done: set[int] = field(default_factory=set)
    _stage: int = 0

    def goes_on(self, slot: int, logprobs: Sequence[float], *, finished: bool) -> bool:
        """Take note of a candidate's tokens so far; False: it is out."""
        sums = self._sums.setdefault(slot, [])
        for value in logprobs[len(sums) :]:
            sums.append((sums[-1] if sums else 0.0) + value)
        if finished:
            self._done.add(slot)
        while self._stage < len(self.checkpoints) and self._reached(self.checkpoints[self._stage]):
            self._halve(self.checkpoints[self._stage])
            self._stage += 1
        if slot in self.pruned and not finished:
            self.pruned[slot] = len(sums)
            return False
        return True

    def left(self, slot: int) -> None:
        """A candidate that failed or was cancelled is waited for no longer."""
        self._done.add(slot)
        self._sums.setdefault(slot, [])

    def _reached(self, tokens: int) -> bool:
        racing = [slot for slot in range(self.candidates) if slot not in self.pruned]
        return all(slot in self._done or len(self._sums.get(slot, ())) >= tokens for slot in racing)

    def _halve(self, tokens: int) -> None:
        racing = [slot for slot in range(self.candidates) if slot not in self.pruned]

        def mean(slot: int) -> float:
            sums = self._sums[slot][:tokens]
            return sums[-1] / len(sums) if sums else -math.inf

        ranked = sorted(racing, key=mean, reverse=True)
        for slot in ranked[math.ceil(len(ranked) / 2) :]:
            # What was complete by then costs nothing more; that it wrote on faster than others saves none.
            if slot not in self._done or len(self._sums[slot]) > tokens:
                self.pruned[slot] = len(self._sums[slot])


current_heat: ContextVar[Heat | None] = ContextVar("current_heat", default=None)


def pruning(generate: Generate) -> Generate:
    """`generate` that ends a candidate of this context's heat when it is out.

    Not a generator itself: the context is the one that calls, whoever iterates.
    """

    def racing(
        prompt: Any, params: SamplingParams, request_id: str, *args: Any, **kwargs: Any
    ) -> AsyncGenerator[RequestOutput, None]:
        heat = current_heat.get()
        if heat is None:
            return generate(prompt, params, request_id, *args, **kwargs)
        params = params.clone()
        params.output_kind = RequestOutputKind.CUMULATIVE
        return _raced(generate(prompt, params, request_id, *args, **kwargs), heat, sibling.get())

    return racing


async def _raced(
    outputs: AsyncGenerator[RequestOutput, None], heat: Heat, slot: int
) -> AsyncGenerator[RequestOutput, None]:
    try:
        async with aclosing(outputs):
            async for output in outputs:
                yield output
                if not heat.goes_on(slot, _logprobs(output), finished=output.finished):
                    return
    finally:
        heat.left(slot)


def _logprobs(output: RequestOutput) -> list[float]:
    completion = output.outputs[0]
    rows = completion.logprobs or []
    return [row[token].logprob for token, row in zip(completion.token_ids, rows, strict=False)]
