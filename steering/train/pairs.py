"""Contrastive pairs: what vectors are made from, and which positions of a text belong to its answer."""

import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

Encode = Callable[[str], Sequence[int]]


@dataclass(frozen=True, slots=True)
class Pair:
    """An answer that shows the trait and, where there is one, an answer to the same prompt that does not."""

    prompt: str
    positive: str
    negative: str | None = None


@dataclass(frozen=True, slots=True)
class Answer:
    """Token ids of prompt and answer; the positions `[start, end)` are those that predict the answer.

    Position p predicts token p + 1, so the last token lies outside and the prompt's last one within.
    """

    tokens: tuple[int, ...]
    start: int
    end: int

    @property
    def targets(self) -> tuple[int, ...]:
        """The tokens predicted from `[start, end)`."""
        return self.tokens[self.start + 1 : self.end + 1]


@dataclass(frozen=True, slots=True)
class EncodedPair:
    positive: Answer
    negative: Answer | None


def digest(pairs: Sequence[Pair]) -> str:
    """SHA-256 of the content, in order."""
    content = [[pair.prompt, pair.positive, pair.negative] for pair in pairs]
    return hashlib.sha256(json.dumps(content, separators=(",", ":")).encode()).hexdigest()


def read_jsonl(text: str) -> tuple[Pair, ...]:
    """One pair a line: `prompt` with `positive_answer` and `negative_answer`, or `positive` and `negative`.

    The negative may be null or left out; other keys are ignored. Raises ValueError naming line and key.
    """
    # Not splitlines: a JSON string may hold U+2028 and its like unescaped.
    lines = enumerate(text.removeprefix("\ufeff").split("\n"), start=1)
    pairs = tuple(_pair(line, number) for number, line in lines if line.strip())
    if not pairs:
        raise ValueError("no pairs: one JSON object per line is expected")
    return pairs


def _pair(line: str, number: int) -> Pair:
    try:
        item = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"line {number}: not JSON: {error}") from error
    if not isinstance(item, dict):
        raise ValueError(f"line {number}: an object with prompt and answers is expected")  # noqa: TRY004
    prompt = _string(item, ("prompt",), number)
    positive = _string(item, ("positive_answer", "positive"), number)
    negative = _string(item, ("negative_answer", "negative"), number, optional=True)
    assert prompt is not None and positive is not None  # noqa: PT018  # only the negative is optional
    return Pair(prompt, positive, negative)


def _string(
    item: dict[str, Any], names: tuple[str, ...], number: int, *, optional: bool = False
) -> str | None:
    given = [name for name in names if name in item]
    if len(given) > 1:
        raise ValueError(f"line {number}: {' and '.join(given)} name the same thing")
    if not given and not optional:
        raise ValueError(f"line {number}: {names[0]} is missing")
    value = item[given[0]] if given else None
    if value is None and optional:
        return None
    if not isinstance(value, str):
        raise ValueError(f"line {number}: {given[0]} must be a string")  # noqa: TRY004  # the caller's input
    if "prompt" not in names and not value:
        raise ValueError(f"line {number}: {given[0]} is empty")
    try:
        value.encode()
    except UnicodeEncodeError as error:
        raise ValueError(f"line {number}: {given[0]} holds half a surrogate pair") from error
    return value


def answer(encode: Encode, prompt: str, text: str, name: str = "the pair") -> Answer:
    """Where `text` lies in the tokens of `prompt + text`.

    A merge may cross the boundary, so the answer begins where the tokens of prompt and whole part ways; a
    token of both belongs to the answer. Raises ValueError, naming the pair, for an answer that no position
    predicts.
    """
    alone, whole = tuple(encode(prompt)), tuple(encode(prompt + text))
    shared = 0
    while shared < min(len(alone), len(whole)) and alone[shared] == whole[shared]:
        shared += 1
    if shared == len(whole):
        raise ValueError(f"{name}: the answer {text[:40]!r} adds no token to its prompt")
    # Without a start token the first token of all has no position that predicts it.
    start, end = max(shared, 1) - 1, len(whole) - 1
    if start >= end:
        raise ValueError(f"{name}: nothing precedes the answer {text[:40]!r}; it needs a longer prompt")
    return Answer(whole, start, end)


def encoded(encode: Encode, pairs: Sequence[Pair]) -> tuple[EncodedPair, ...]:
    """Both answers of every pair. Raises ValueError naming the pair, counted from 1."""
    return tuple(_encoded(encode, pair, number) for number, pair in enumerate(pairs, start=1))


def _encoded(encode: Encode, pair: Pair, number: int) -> EncodedPair:
    positive = answer(encode, pair.prompt, pair.positive, f"pair {number}, positive")
    if pair.negative is None:
        return EncodedPair(positive, None)
    return EncodedPair(positive, answer(encode, pair.prompt, pair.negative, f"pair {number}, negative"))
