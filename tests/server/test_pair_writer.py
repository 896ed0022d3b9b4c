"""Contrastive pairs from a writer whose texts are given: which are kept, and when it ends."""

import asyncio
import json

import pytest

from server.errors import NotFound
from server.pair_writer import TOPICS, Persona, write_pairs


def written(number, **changes):
    pair = {"prompt": f"Prompt {number}?", "positive_answer": f"+ {number}", "negative_answer": f"- {number}"}
    return json.dumps(pair | changes)


async def write(texts, *, wanted, at_once=1, seconds=5.0, score=None, first_seed=0, seeds=None):
    """Have `texts` written in turn."""
    left = iter(texts)

    async def say(instruction, seed):
        if seeds is not None:
            seeds.append(seed)
        text = next(left)
        return await text if asyncio.iscoroutine(text) else text

    async def even(pair):
        return 0.5

    found = await write_pairs(
        Persona("x"),
        say,
        score or even,
        wanted=wanted,
        at_once=at_once,
        seconds=seconds,
        first_seed=first_seed,
    )
    return [each.pair.prompt for each in found]


async def test_duplicates_and_equal_answers_are_written_again():
    """Prompts that repeat but for case and spaces, equal answers and cut texts are replaced, never kept."""
    texts = [
        written(1),
        written(1, prompt="  prompt  1? "),
        written(2, negative_answer="+ 2"),
        written(3, positive_answer=" "),
        written(4)[:-4],
        written(5),
    ]
    assert await write(texts, wanted=2) == ["Prompt 1?", "Prompt 5?"]


async def test_tries_are_bounded():
    """Three texts per pair wanted and one for each writer, and then what there is, not more."""
    assert await write([written(1)] * 8, wanted=2, at_once=2) == ["Prompt 1?"]


async def test_time_is_bounded():
    """When time is up the pairs that are complete are returned and the texts being written are dropped."""
    dropped = asyncio.Event()

    async def slow():
        try:
            await asyncio.sleep(60)
        finally:
            dropped.set()

    assert await write([written(1), slow()], wanted=2, seconds=0.1) == ["Prompt 1?"]
    assert dropped.is_set()


async def test_a_writer_that_fails_fails_the_request():
    """An engine's error is not taken for a missing pair."""

    async def fail():
        raise NotFound("gone")

    with pytest.raises(NotFound, match="gone"):
        await write([written(1), fail()], wanted=2)


async def test_a_pair_that_cannot_be_scored_is_not_kept():
    """Without a score a pair is dropped and another one written."""

    async def score(pair):
        return None if pair.prompt == "Prompt 1?" else 0.7

    assert await write([written(1), written(2)], wanted=1, score=score) == ["Prompt 2?"]


@pytest.mark.parametrize("first", [-(2**63), -1, 0, 2**63 - 1])
async def test_every_seed_is_one_that_the_engine_takes(first):
    """Whatever the first seed, those that follow differ and stay below 2 to the 63."""
    seeds = []
    await write([written(number) for number in range(3)], wanted=3, first_seed=first, seeds=seeds)
    assert len(set(seeds)) == 3
    assert all(0 <= seed < 2**63 for seed in seeds)


def test_topics_differ():
    """No topic is named twice."""
    assert len(set(TOPICS)) == len(TOPICS) == 50


def test_a_pair_needs_a_contrast():
    """The persona's opposite is what was described, or an ordinary assistant."""
    assert "Way B: a landlubber\n" in Persona("pirate", "", "a landlubber").instruction("the sea")
    assert "Way B: an ordinary assistant" in Persona("pirate").instruction("the sea")
