"""Contrastive pairs that the served model writes: each with a topic and a seed of its own, kept if new."""

import asyncio
import json
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any

from steering.train.pairs import Pair

# The instruction and a seed → JSON as SCHEMA says, possibly cut off.
Write = Callable[[str, int], Awaitable[str]]
# How much likelier the pair's positive answer is where the persona is asked for; None: it cannot be told.
Score = Callable[[Pair], Awaitable[float | None]]

_TRIES = 3  # texts asked for per pair wanted
_SEEDS = 2**63 - 1  # the largest; after it they begin at 0
_PROMPT_CHARACTERS, _ANSWER_CHARACTERS = 240, 320
_SENTENCE = {"type": "string", "minLength": 2, "maxLength": _ANSWER_CHARACTERS}
SCHEMA: dict[str, Any] = {
    "type": "object",
    "properties": {
        "prompt": {**_SENTENCE, "maxLength": _PROMPT_CHARACTERS},
        "positive_answer": _SENTENCE,
        "negative_answer": _SENTENCE,
    },
    "required": ["prompt", "positive_answer", "negative_answer"],
    "additionalProperties": False,
}
MAX_TOKENS = 384
# Drawn from what is likely: the tail of a small model's distribution is not language.
SAMPLING: dict[str, Any] = {"temperature": 1.0, "top_p": 0.85, "frequency_penalty": 0.4}

TOPICS = (
    "cooking dinner", "a job interview", "the weather", "learning to drive", "a birthday present",
    "mathematics homework", "gardening", "a broken computer", "planning a journey", "a film seen yesterday",
    "sleep", "an argument with a friend", "pets", "history", "money and saving", "running and sport",
    "a letter to a neighbour", "music", "the night sky", "moving house", "a visit to the doctor",
    "writing an e-mail", "coffee and tea", "a lost key", "science at school", "books", "the sea", "bicycles",
    "a meeting at work", "childhood memories", "painting a room", "new technology", "public transport",
    "a recipe for bread", "volunteering", "languages", "photography", "a thunderstorm", "shoes",
    "board games", "a difficult decision", "the environment", "a complaint about a product", "camping",
    "teaching a child", "news and politics", "keeping a promise", "animals in the wild", "time and calendars",
    "advice for a beginner",
)  # fmt: skip

_EXAMPLE_PROMPT = "How do I get to the station from here?"
_EXAMPLE_JSON = {
    "prompt": _EXAMPLE_PROMPT,
    "positive_answer": "Oh, what a lovely walk you have ahead of you! Just follow the river for ten minutes,"
    " and there it is!",
    "negative_answer": "Follow the river for ten minutes. The station is at the end of the path.",
}
# Small models need to see one; large ones keep to its form.
_EXAMPLE = "Way A: sounds delighted by everything\nWay B: sounds bored\nTopic: trains\n" + json.dumps(
    _EXAMPLE_JSON
)


@dataclass(frozen=True, slots=True)
class Persona:
    """Who the positive answers sound like, and `opposite` who the negative ones do."""

    name: str
    description: str = ""
    opposite: str | None = None

    @property
    def described(self) -> str:
        return f"{self.name}: {self.description}" if self.description else self.name

    def instruction(self, topic: str) -> str:
        opposite = self.opposite or "an ordinary assistant, without any of way A"
        return (
            "Write a message from a user and two answers to it. The first answer is in way A, the second"
            " in way B; both tell the user the same.\n\n"
            f"{_EXAMPLE}\n\nNow write another one.\n\n"
            f"Way A: {self.described}\nWay B: {opposite}\nTopic: {topic}"
        )

    def asking(self, prompt: str) -> str:
        """`prompt` with a request to answer as this persona does."""
        return f"Answer in this way: {self.described}.\n\n{prompt}"


@dataclass(frozen=True, slots=True)
class ScoredPair:
    pair: Pair
    score: float


async def write_pairs(
    persona: Persona,
    write: Write,
    score: Score,
    *,
    wanted: int,
    at_once: int,
    seconds: float,
    first_seed: int,
) -> list[ScoredPair]:
    """At most `wanted` pairs with different prompts: what `at_once` writers have after `seconds`, or after
    a bounded number of tries."""
    kept: list[ScoredPair] = []
    seen = {_folded(_EXAMPLE_PROMPT)}
    tries = iter(range(_TRIES * wanted + at_once))  # one for all writers

    async def work() -> None:
        for number in tries:
            seed = (first_seed + number) & _SEEDS
            text = await write(persona.instruction(TOPICS[number % len(TOPICS)]), seed)
            pair = _pair(text)
            if pair is None or _folded(pair.prompt) in seen:
                continue
            seen.add(_folded(pair.prompt))
            measured = await score(pair)
            if measured is not None:
                kept.append(ScoredPair(pair, measured))
            if len(kept) >= wanted:
                return

    loop = asyncio.get_running_loop()
    deadline = loop.time() + seconds
    writers = {asyncio.create_task(work()) for _ in range(min(at_once, wanted))}
    pending = writers
    try:
        while pending and len(kept) < wanted and (left := deadline - loop.time()) > 0:
            done, pending = await asyncio.wait(pending, timeout=left, return_when=asyncio.FIRST_COMPLETED)
            for writer in done:
                writer.result()
    finally:
        for writer in writers:
            writer.cancel()
        await asyncio.gather(*writers, return_exceptions=True)
    return kept[:wanted]


def _pair(text: str) -> Pair | None:
    """None for a text that was cut off, and for a pair that contrasts nothing."""
    try:
        item = json.loads(text)
    except ValueError:
        return None
    prompt, positive, negative = (str(item[name]).strip() for name in SCHEMA["required"])
    if not (prompt and positive and negative) or _folded(positive) == _folded(negative):
        return None
    return Pair(prompt, positive, negative)


def _folded(text: str) -> str:
    return " ".join(text.casefold().split())
