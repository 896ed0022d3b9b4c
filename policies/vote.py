"""Majority vote over candidate texts."""

import json
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Candidate:
    """One finished text and the mean log-probability of its tokens, in nats."""

    text: str
    mean_logprob: float


def normalise(text: str) -> str:
    """The form under which two texts count as the same answer.

    JSON objects and arrays compare by value (key order, white space and 1 or 1.0 do not matter), other
    text without regard to case, surrounding punctuation and runs of white space.
    """
    try:
        value = json.loads(text, parse_float=_number)
        if isinstance(value, dict | list):
            return json.dumps(value, sort_keys=True, ensure_ascii=False)
    except (ValueError, RecursionError):
        pass  # not JSON, or a text that opens thousands of brackets: compared as text
    return re.sub(r"\s+", " ", text).strip(" .,;:!?\"'").casefold()


def _number(literal: str) -> float | int:
    value = float(literal)
    return int(value) if value.is_integer() else value


def majority(candidates: Sequence[Candidate]) -> int:
    """Index of the winner: most votes, then highest mean log-probability of any of its voters, then first.

    The index points at the most probable candidate among those that agree.
    """
    if not candidates:
        raise ValueError("a vote needs at least one candidate")
    ballots = [normalise(candidate.text) for candidate in candidates]
    votes = Counter(ballots)

    def rank(index: int) -> tuple[int, float]:
        return votes[ballots[index]], candidates[index].mean_logprob

    return max(range(len(candidates)), key=rank)
