"""Requests that must begin by some time, as the engine's tokens reach them."""

import asyncio
from types import SimpleNamespace

import pytest
from fastapi.responses import Response
from vllm.sampling_params import RequestOutputKind, SamplingParams

from server.deadline import Deadline, current_deadline
from server.errors import RequestTimeout
from server.vllm_first_token import beginning


class Engine:
    """Gives the tokens of each choice in turn, after an output of the prompt's own."""

    def __init__(self, choices=1, *, before=0.0, after=0.0) -> None:
        self.choices, self.before, self.after, self.kind, self.ended = choices, before, after, None, False

    async def generate(self, prompt, params, request_id):
        self.kind = params.output_kind
        try:
            yield output(0, [])
            await asyncio.sleep(self.before)
            for tokens in ([1], [1, 2]):
                for index in reversed(range(self.choices)):
                    yield output(index, tokens)
                await asyncio.sleep(self.after)
        finally:
            self.ended = True


def output(index, tokens):
    return SimpleNamespace(outputs=[SimpleNamespace(index=index, token_ids=tokens)])


async def asked(engine, deadline, kind=RequestOutputKind.FINAL_ONLY):
    """What the engine's outputs come to within a deadline."""
    seen = []

    async def answer():
        params = SamplingParams(output_kind=kind)
        async for each in beginning(engine.generate)("p", params, "id"):
            seen.append([(part.index, part.token_ids) for part in each.outputs])
        assert params.output_kind == kind, "the request's own stay as they are"
        return Response("x")

    await deadline.within(answer)
    return seen


@pytest.mark.parametrize("deadline", [Deadline(9, 9.0), Deadline(9, streams=True)])
async def test_the_final_output_has_every_choice(deadline):
    """In order, as vLLM itself gives it to those who want it alone."""
    engine = Engine(3)
    whole = [(index, [1, 2]) for index in range(3)]
    assert await asked(engine, deadline) == [whole]
    assert engine.kind == RequestOutputKind.CUMULATIVE


async def test_other_outputs_pass_as_they_come():
    """Of streams."""
    seen = await asked(engine := Engine(), Deadline(9, 9), RequestOutputKind.DELTA)
    assert seen == [[(0, [])], [(0, [1])], [(0, [1, 2])]]
    assert engine.kind == RequestOutputKind.DELTA


async def test_what_waits_for_no_first_token_is_not_touched():
    """The engine is asked as ever: with no deadline, or with one for the whole answer."""
    assert len(await asked(engine := Engine(), Deadline(9))) == 3
    assert engine.kind == RequestOutputKind.FINAL_ONLY
    engine = Engine()
    params = SamplingParams(output_kind=RequestOutputKind.FINAL_ONLY)
    outputs = [each async for each in beginning(engine.generate)("p", params, "id")]
    assert (len(outputs), engine.kind) == (3, RequestOutputKind.FINAL_ONLY)
    assert current_deadline.get() is None


@pytest.mark.parametrize("kind", [RequestOutputKind.FINAL_ONLY, RequestOutputKind.DELTA])
async def test_only_a_token_is_a_beginning(kind):
    """The prompt's own outputs are none; after the first one the rest has its time."""
    assert await asked(Engine(after=0.3), Deadline(0, 0.2), kind)
    late = Engine(before=9.0)
    with pytest.raises(RequestTimeout):
        await asked(late, Deadline(0, 0.2), kind)
    assert late.ended
