"""The training methods and what each of them needs."""

from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum

from steering.train.pairs import Pair


class Negatives(StrEnum):
    REQUIRED = "required"
    OPTIONAL = "optional"
    BACKGROUND = "background"  # states of unrelated text can stand in for them


class States(StrEnum):
    """What is captured in the engine beforehand."""

    NONE = "none"
    MEAN = "mean"  # one state per text, the mean over the positions that predict its answer
    TOKENS = "tokens"  # a state for each of these positions


@dataclass(frozen=True, slots=True)
class Method:
    negatives: Negatives
    states: States


METHODS = {
    "caa": Method(Negatives.REQUIRED, States.MEAN),
    "few-shot": Method(Negatives.OPTIONAL, States.NONE),
    "asas": Method(Negatives.REQUIRED, States.TOKENS),
    "steering-perceptrons": Method(Negatives.BACKGROUND, States.TOKENS),
}


def checked(name: str, pairs: Sequence[Pair]) -> Method:
    """Raises ValueError for an unknown method, and for pairs that it cannot learn from."""
    if name not in METHODS:
        raise ValueError(f"method must be one of {', '.join(METHODS)}, not {name!r}")
    if not pairs:
        raise ValueError("at least one pair is needed")
    if METHODS[name].negatives is Negatives.REQUIRED:
        for number, pair in enumerate(pairs, start=1):
            if pair.negative is None:
                raise ValueError(f"pair {number} has no negative answer; {negatives_needed(name)}")
    return METHODS[name]


def negatives_needed(name: str) -> str:
    others = [other for other, method in METHODS.items() if method.negatives is not Negatives.REQUIRED]
    return f"{name} compares both answers, while {' and '.join(others)} can learn from positives alone"
