"""Where tokens leave the engine, a request that must begin by some time is told that it has begun."""

from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing
from typing import Any

from vllm.outputs import CompletionOutput, RequestOutput
from vllm.sampling_params import RequestOutputKind, SamplingParams

from server.deadline import Deadline, current_deadline

Generate = Callable[..., AsyncGenerator[RequestOutput, None]]


def beginning(generate: Generate) -> Generate:
    """`generate` that tells this context's deadline of its first token.

    Not a generator itself: the context is the one that calls, whoever iterates.
    """

    def timed(
        prompt: Any, params: SamplingParams, request_id: str, *args: Any, **kwargs: Any
    ) -> AsyncGenerator[RequestOutput, None]:
        deadline = current_deadline.get()
        if deadline is None or not deadline.waits:
            return generate(prompt, params, request_id, *args, **kwargs)
        final_only = params.output_kind == RequestOutputKind.FINAL_ONLY
        if final_only:  # vLLM would tell of no token before the last
            params = params.clone()
            params.output_kind = RequestOutputKind.CUMULATIVE
        outputs = _told(generate(prompt, params, request_id, *args, **kwargs), deadline)
        return final(outputs) if final_only else outputs

    return timed


async def _told(
    outputs: AsyncGenerator[RequestOutput, None], deadline: Deadline
) -> AsyncGenerator[RequestOutput, None]:
    async with aclosing(outputs):
        async for output in outputs:
            if any(part.token_ids for part in output.outputs):
                deadline.begins()
            yield output


async def final(outputs: AsyncGenerator[RequestOutput, None]) -> AsyncGenerator[RequestOutput, None]:
    """The last output alone, with the last of each choice, which come one by one."""
    choices: dict[int, CompletionOutput] = {}
    last: RequestOutput | None = None
    async with aclosing(outputs):
        async for output in outputs:
            last = output
            choices |= {part.index: part for part in output.outputs}
    if last is not None:
        last.outputs = [choices[index] for index in sorted(choices)]
        yield last
