"""Lives of watched requests, step by step, for any pass: what it makes of states, and what it told."""

import numpy as np
import torch

from steering.spec import Operation, SteeringSpec, Tokens
from steering.vector import Scaling
from tests.steering.random_layouts import states

TOKENS = 16  # of the longest step, padding included


def watched_life(world, subject, width, run, *, late=False):
    """Three requests, two of them watched: prompts, decoding, one preempted and computed again.

    What each step made of the same states, and the watches' scores, levels and beginnings.
    """
    rng = np.random.default_rng(7)
    prompts = {"a": 5, "b": 3, "c": 4}
    scalings = list(Scaling)
    for name, count in (("a", 3), ("b", 1)):
        watches = tuple(world.watch(rng, scalings[number], terms=number % 3 != 2) for number in range(count))
        term = world.term(rng, Operation.ADD, tokens=Tokens(end=prompts[name] + 6))
        world.batch.admit(name, SteeringSpec((term,), name, watches=watches), prompts[name])
    world.batch.admit("c", SteeringSpec((world.term(rng, Operation.CLAMP),), "c"), prompts["c"])
    if late:  # as a device whose copies have not arrived yet
        follow = subject._latches._follow
        subject._latches._follow = lambda *, wait: follow(wait=True) if wait else None
    computed, results = dict.fromkeys(prompts, 0), []
    chunks = [{"a": 3, "b": 3}, {"a": 2, "b": 1, "c": 4}, *[{"a": 1, "b": 1, "c": 1}] * 6]
    chunks += [{"b": 1, "c": 1}, {"b": 1}]  # a is preempted
    chunks += [{"a": 7, "b": 1}, {"a": 1, "c": 1}, {"a": 4, "b": 1}, *[{"a": 1, "c": 1, "b": 1}] * 6]
    for step, chunk in enumerate(chunks):
        if step == 8:
            computed["a"] = 0
        if step == 10:
            subject.settle()
        subject.begin()
        scheduled = np.array(list(chunk.values()), np.int32)
        before = np.array([computed[name] for name in chunk], np.int64)
        if world.batch.prepare(list(chunk), scheduled, before):
            subject.take(world.layout)
        hidden, residual = states(
            TOKENS, width, torch.float32, residual=True, device=world.bank.device, seed=step
        )
        results.append(run(hidden, residual))
        for name, count in chunk.items():
            computed[name] += count
    subject.settle()
    told = world.batch.evidence(list(prompts))
    return results, told


def agree(told, reference, tolerance=1e-5):
    """Whether evidence and watches say the same; some of them must have drifted."""
    since = []
    for name, evidence in told.items():
        other = reference[name]
        assert evidence.prompt_tokens == other.prompt_tokens
        assert evidence.generated_tokens == other.generated_tokens
        for mine, theirs in zip(evidence.watchings, other.watchings, strict=True):
            assert len(mine.scores) == len(theirs.scores) > 10
            assert np.allclose(mine.scores, theirs.scores, atol=tolerance)
            assert abs(mine.level - theirs.level) < tolerance
            assert mine.since == theirs.since
            since.append(mine.since)
    return len(since) - since.count(None) >= 2
