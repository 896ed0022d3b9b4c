"""How much a key may ask for in a minute and at once, what is left of it, and how clients are told."""

import math
from dataclasses import dataclass
from enum import StrEnum

from server.errors import TooManyRequests

MINUTE = 60.0
UNLIMITED = 1e12  # a bucket that no client empties
MAX_LIMIT = 2**31 - 1


class Limited(StrEnum):
    """What a request was refused for; the labels of `RATE_LIMITED`."""

    REQUESTS = "requests"
    TOKENS = "tokens"
    CONCURRENCY = "concurrency"
    QUEUE = "queue"


@dataclass(frozen=True, slots=True)
class RateLimits:
    """Requests and tokens a minute, requests at once. None: the server's default; 0: none, whatever that is.

    A limit of N a minute is a bucket that holds N and fills up in a minute: N at once, then one every 60/N s.
    """

    requests: int | None = None
    tokens: int | None = None
    concurrent: int | None = None

    def over(self, default: "RateLimits") -> "RateLimits":
        """What holds for a key of these limits: no zeros are left."""
        return RateLimits(
            *(
                (general if own is None else own) or None
                for own, general in zip(self.each, default.each, strict=True)
            )
        )

    @property
    def each(self) -> tuple[int | None, int | None, int | None]:
        return self.requests, self.tokens, self.concurrent

    def __bool__(self) -> bool:
        return any(self.each)

    def exceeds(self, ceiling: "RateLimits") -> bool:
        """Whether one of these allows more than `ceiling`, of which None and 0 are no limit."""
        return any(
            most and (own == 0 or (own or 0) > most)
            for own, most in zip(self.each, ceiling.each, strict=True)
        )


NO_LIMITS = RateLimits()


@dataclass(frozen=True, slots=True)
class Standing:
    """Whether a request was let in, and what the buckets hold after that; tokens may be owed."""

    admitted: bool
    requests: float
    tokens: float

    def headers(self, limits: RateLimits) -> dict[str, str]:
        """OpenAI's x-ratelimit headers, of the limits that there are."""
        told: dict[str, str] = {}
        for name, most, left in (
            ("requests", limits.requests, self.requests),
            ("tokens", limits.tokens, self.tokens),
        ):
            if most is not None:
                told[f"x-ratelimit-limit-{name}"] = str(most)
                told[f"x-ratelimit-remaining-{name}"] = str(max(0, math.floor(left)))
                told[f"x-ratelimit-reset-{name}"] = duration((most - left) / most * MINUTE)
        return told

    def refusal(self, limits: RateLimits) -> tuple[Limited, TooManyRequests]:
        """Why a request was not let in, and what its client is told."""
        if limits.requests is not None and self.requests < 1:
            seconds = _seconds(1 - self.requests, limits.requests)
            message = f"This key may make {limits.requests} requests a minute"
            return Limited.REQUESTS, _too_many(message, seconds)
        if limits.tokens is not None and self.tokens < 1:
            seconds = _seconds(1 - self.tokens, limits.tokens)
            message = f"This key may use {limits.tokens} tokens a minute, prompts included"
            return Limited.TOKENS, _too_many(message, seconds)
        message = f"This key may have {limits.concurrent} requests running at once"
        return Limited.CONCURRENCY, _too_many(message, 1)


def _seconds(missing: float, a_minute: int) -> int:
    return max(1, math.ceil(missing / a_minute * MINUTE))


def _too_many(message: str, seconds: int) -> TooManyRequests:
    return TooManyRequests(f"{message}: try again in {seconds} s.", retry_after=seconds)


def duration(seconds: float) -> str:
    """As OpenAI writes one: 20ms, 1.5s, 6m0s."""
    milliseconds = max(0, math.ceil(seconds * 1000 - 1e-6))
    if milliseconds < 1000:
        return f"{milliseconds}ms"
    minutes, rest = divmod(milliseconds / 1000, 60)
    return f"{int(minutes)}m{round(rest, 3):g}s" if minutes else f"{round(rest, 3):g}s"
