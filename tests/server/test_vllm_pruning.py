"""Successive halving of candidates while they are decoded."""

import asyncio
from types import SimpleNamespace

import pytest
from vllm.sampling_params import RequestOutputKind, SamplingParams

from server.candidates import gather
from server.vllm_pruning import Heat, current_heat, pruning


def output(logprobs, *, finished):
    rows = [{7: SimpleNamespace(logprob=value)} for value in logprobs]
    completion = SimpleNamespace(token_ids=[7] * len(rows), logprobs=rows)
    return SimpleNamespace(outputs=[completion], finished=finished)


def race(heat, texts):
    """Feed tokens in turn; how many each candidate made."""
    made = dict.fromkeys(range(len(texts)), 0)
    going = set(made)
    while going:
        for slot in sorted(going):
            made[slot] += 1
            finished = made[slot] == len(texts[slot])
            if not heat.goes_on(slot, texts[slot][: made[slot]], finished=finished) or finished:
                going.discard(slot)
    return made


def test_the_less_likely_half_ends_at_each_checkpoint():
    """Of eight, four go on after the first checkpoint, two after the second, the likeliest to its end."""
    texts = [[-float(slot)] * 16 for slot in range(8)]
    heat = Heat(8, (2, 4, 8))
    made = race(heat, texts)
    assert made[0] == 16
    assert {slot for slot in range(8) if slot not in heat.pruned} == {0}
    assert sorted(heat.pruned) == list(range(1, 8))
    assert all(made[slot] <= 3 for slot in range(4, 8))
    assert all(heat.pruned[slot] == made[slot] for slot in heat.pruned)


def test_a_candidate_is_measured_up_to_the_checkpoint():
    """What a faster one wrote beyond it does not count."""
    heat = Heat(2, (2,))
    assert heat.goes_on(0, [-1.0, -1.0, -9.0, -9.0], finished=False)
    assert not heat.goes_on(1, [-2.0, -2.0], finished=False)
    assert heat.pruned == {1: 2}


def test_what_is_complete_stays():
    """A candidate that ended before the checkpoint is never pruned, however unlikely it was."""
    heat = Heat(2, (3,))
    race(heat, [[-5.0], [-1.0] * 6])
    assert not heat.pruned


def test_speed_saves_nobody():
    """One that finished beyond the checkpoint before a slower one reached it is out as any other."""
    for fast_first in (True, False):
        heat = Heat(2, (2,))
        fast = ([-5.0] * 4, True) if fast_first else ([-5.0] * 2, False)
        heat.goes_on(0, fast[0], finished=fast[1])
        heat.goes_on(1, [-1.0] * 2, finished=False)
        assert heat.pruned == {0: len(fast[0])}


def test_nobody_waits_for_one_that_failed():
    """A candidate that is gone does not hold up the checkpoint of the others."""
    heat = Heat(4, (1,))
    heat.left(0)
    assert heat.goes_on(1, [-1.0], finished=False)
    assert heat.goes_on(2, [-2.0], finished=False)
    assert not heat.goes_on(3, [-3.0], finished=False)


@pytest.mark.parametrize("racing", [True, False])
async def test_requests_of_a_heat_are_ended_in_the_engine(racing):
    """The engine's generator of a pruned candidate is closed, which aborts its request; without a heat
    nothing changes, the parameters included."""
    closed, kinds = [], []

    async def engine(prompt, params, request_id):
        kinds.append(params.output_kind)
        made = []
        try:
            for count in range(1, 9):
                made.append(-float(prompt))
                await asyncio.sleep(0)
                yield output(made, finished=count == 8)
        finally:
            if len(made) < 8:
                closed.append(prompt)

    async def request(prompt):
        params = SamplingParams(logprobs=0)
        outputs = pruning(engine)(prompt, params, f"r{prompt}")
        return [len(each.outputs[0].token_ids) async for each in outputs][-1]

    token = current_heat.set(Heat(4, (2, 4)) if racing else None)
    try:
        made = await gather([lambda p=p: request(p) for p in range(4)], [True] * 4)
    finally:
        current_heat.reset(token)
    assert made[0] == 8
    assert sorted(closed) == ([1, 2, 3] if racing else [])
    assert set(kinds) == {RequestOutputKind.CUMULATIVE}
