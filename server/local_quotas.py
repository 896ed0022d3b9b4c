"""What keys have left of their limits in this process alone: what holds while the database is away."""

import time
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass

from server.limits import MINUTE, UNLIMITED, RateLimits, Standing
from server.quotas import Ask

_MOST = 10_000  # subjects remembered; those untouched for longest are forgotten


@dataclass(slots=True)
class _Buckets:
    requests: float
    tokens: float
    at: float

    def refill(self, limits: RateLimits, now: float) -> None:
        minutes = max(0.0, now - self.at) / MINUTE
        requests, tokens = limits.requests or UNLIMITED, limits.tokens or UNLIMITED
        self.requests = min(requests, self.requests + requests * minutes)
        self.tokens = min(tokens, self.tokens + tokens * minutes)
        self.at = now


class LocalQuotas:
    """The rules of `Quotas`, without other processes: N of them let in up to N times as much."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._known: OrderedDict[str, _Buckets] = OrderedDict()

    def take(self, ask: Ask) -> Standing:
        limits, now = ask.limits, self._clock()
        buckets = self._known.setdefault(ask.subject, _Buckets(UNLIMITED, UNLIMITED, now))
        self._known.move_to_end(ask.subject)
        if len(self._known) > _MOST:
            self._known.popitem(last=False)
        buckets.refill(limits, now)
        running = limits.concurrent is None or ask.running < limits.concurrent
        admitted = buckets.requests >= 1 and buckets.tokens >= 1 and running
        buckets.requests -= admitted
        return Standing(admitted, buckets.requests, buckets.tokens)

    def spend(self, subject: str, limits: RateLimits, tokens: int) -> None:
        """Of a subject that took while the database was away."""
        if (buckets := self._known.get(subject)) is not None:
            buckets.refill(limits, self._clock())
            buckets.tokens -= tokens
