"""Per-request arguments of every sampling method: the wire contract between server and worker.

The server builds these values and sends them flat in `SamplingParams.extra_args`; the worker reads them back.
Both sides share the ranges below. Nothing here imports torch or pydantic.
"""

import json
import secrets
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

Scalar = str | int | float


class ArgumentError(ValueError):
    """An argument outside its range; `field` is its flat key and the message states the range."""

    def __init__(self, field: str, allowed: str, value: object) -> None:
        super().__init__(f"{field} must be {allowed}, got {value!r}")
        self.field = field
        self.value = value


@dataclass(frozen=True, slots=True)
class Range:
    """Closed interval of numbers, open below where `above` is set; `integer` refuses fractions."""

    low: float
    high: float
    integer: bool = False
    above: bool = False

    def __str__(self) -> str:
        kind = "an integer" if self.integer else "a number"
        bound = f"in ({self.low:g}, {self.high:g}]" if self.above else f"in [{self.low:g}, {self.high:g}]"
        return f"{kind} {bound}"

    def check(self, field: str, value: object) -> None:
        """Raise `ArgumentError` unless `value` is a finite number of the right kind inside the range."""
        if not isinstance(value, int | float) or isinstance(value, bool) or not self._holds(value):
            raise ArgumentError(field, str(self), value)

    def _holds(self, value: float) -> bool:
        if self.integer and not isinstance(value, int):
            return False
        above_low = value > self.low if self.above else value >= self.low
        return above_low and value <= self.high  # NaN is neither, the bounds are finite


MAX_SIBLINGS: Final = 16
MAX_SUBSET_SIZE: Final = 32

TYPICAL_MASS: Final = Range(0, 1, above=True)
MIN_P: Final = Range(0, 1)
TOP_P: Final = Range(0, 1, above=True)
TOP_K: Final = Range(0, 2**31 - 1, integer=True)
SUBSET_SIZE: Final = Range(1, MAX_SUBSET_SIZE, integer=True)
BETA: Final = Range(0, 0.9)
GROUP: Final = Range(0, 2**63 - 1, integer=True)
SLOT: Final = Range(0, MAX_SIBLINGS - 1, integer=True)
SIBLINGS: Final = Range(1, MAX_SIBLINGS, integer=True)

# flat key → (field of the dataclass, range)
_TYPICAL_KEYS: Final = {"typical_p": ("mass", TYPICAL_MASS), "typical_min_p": ("min_p", MIN_P)}
_ADS_KEYS: Final = {
    "ads_subset_size": ("subset_size", SUBSET_SIZE),
    "ads_beta": ("beta", BETA),
    "ads_group": ("group", GROUP),
    "ads_slot": ("slot", SLOT),
    "ads_n": ("siblings", SIBLINGS),
    "ads_top_k": ("top_k", TOP_K),
    "ads_top_p": ("top_p", TOP_P),
    "ads_min_p": ("min_p", MIN_P),
}
FORBIDDEN_KEY: Final = "forbidden_terms"
MAX_TERMS: Final = 64
MAX_TERM_CHARACTERS: Final = 200
MAX_TERMS_CHARACTERS: Final = 4000  # of all terms together
# Only the server may set these: a client naming another's group would read its tokens' trace.
RESERVED_KEYS: Final = frozenset(_TYPICAL_KEYS) | frozenset(_ADS_KEYS) | {FORBIDDEN_KEY}


@dataclass(frozen=True, slots=True)
class TypicalArgs:
    """Locally typical sampling (arXiv 2202.00666): `mass`, 1 = off; then `min_p` of what is left, 0 = off."""

    mass: float
    min_p: float = 0.0

    def __post_init__(self) -> None:
        for key, (field, allowed) in _TYPICAL_KEYS.items():
            allowed.check(key, getattr(self, field))


@dataclass(frozen=True, slots=True)
class AdsArgs:
    """Adaptive Determinantal Sampling: pool of `subset_size` tokens, trade-off `beta`, 0 = plain top-m.

    `group` is one prompt's random id, `slot` this request's place among its `siblings`. The truncation
    (`top_k` 0 = off, `top_p` 1 = off, `min_p` 0 = off) is applied here; the engine's own must be off.
    """

    subset_size: int = 8
    beta: float = 0.3
    group: int = 0
    slot: int = 0
    siblings: int = 1
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0

    def __post_init__(self) -> None:
        for key, (field, allowed) in _ADS_KEYS.items():
            allowed.check(key, getattr(self, field))
        if self.slot >= self.siblings:
            raise ArgumentError("ads_slot", f"below ads_n = {self.siblings}", self.slot)


@dataclass(frozen=True, slots=True)
class ProcessorArgs:
    """What one request asks of the logits processors; None or nothing = method not used.

    `forbidden_terms` are kept out of the generated text, whatever their case.
    """

    typical: TypicalArgs | None = None
    ads: AdsArgs | None = None
    forbidden_terms: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        _check_terms(self.forbidden_terms)

    def to_extra_args(self) -> dict[str, Scalar]:
        """Flat form for `SamplingParams.extra_args`; no booleans or nesting, as vLLM's HTTP layer demands."""
        parts: tuple[tuple[object, Mapping[str, tuple[str, Range]]], ...] = (
            (self.typical, _TYPICAL_KEYS),
            (self.ads, _ADS_KEYS),
        )
        flat: dict[str, Scalar] = {
            key: getattr(part, field) for part, keys in parts if part for key, (field, _) in keys.items()
        }
        if self.forbidden_terms:
            flat[FORBIDDEN_KEY] = json.dumps(self.forbidden_terms)
        return flat

    @classmethod
    def from_extra_args(cls, mapping: Mapping[str, Any]) -> "ProcessorArgs":
        """Read the flat form back, foreign keys ignored.

        Raises `ArgumentError` for a value outside its range, or `typical_min_p` without `typical_p`.
        """
        typical = {field: mapping[key] for key, (field, _) in _TYPICAL_KEYS.items() if key in mapping}
        if typical and "mass" not in typical:
            raise ArgumentError("typical_p", f"{TYPICAL_MASS} where typical_min_p is given", None)
        ads = {field: mapping[key] for key, (field, _) in _ADS_KEYS.items() if key in mapping}
        return cls(
            TypicalArgs(**typical) if typical else None,
            AdsArgs(**ads) if ads else None,
            _terms(mapping[FORBIDDEN_KEY]) if FORBIDDEN_KEY in mapping else (),
        )


def _terms(encoded: object) -> tuple[str, ...]:
    try:
        terms = json.loads(encoded) if isinstance(encoded, str) else None
    except ValueError:
        terms = None
    if not isinstance(terms, list):
        raise ArgumentError(FORBIDDEN_KEY, "a JSON list of strings", encoded)
    return tuple(terms)


def _check_terms(terms: tuple[object, ...]) -> None:
    if len(terms) > MAX_TERMS:
        raise ArgumentError(FORBIDDEN_KEY, f"at most {MAX_TERMS} strings", len(terms))
    for term in terms:
        if not isinstance(term, str) or not 1 <= len(term) <= MAX_TERM_CHARACTERS:
            raise ArgumentError(FORBIDDEN_KEY, f"strings of 1 to {MAX_TERM_CHARACTERS} characters", term)
        if any("\ud800" <= character <= "\udfff" for character in term):
            raise ArgumentError(FORBIDDEN_KEY, "strings of Unicode characters, without lone surrogates", term)
    total = sum(len(term) for term in terms if isinstance(term, str))
    if total > MAX_TERMS_CHARACTERS:
        raise ArgumentError(FORBIDDEN_KEY, f"at most {MAX_TERMS_CHARACTERS} characters in all", total)


def fresh_group() -> int:
    """Random 63-bit id for one prompt's siblings: two prompts never share one by accident or by guessing."""
    return secrets.randbits(63)
