"""The limits of keys, as one process holds to them together with the others of its database."""

import asyncio
import logging
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Final, Protocol

from server.errors import TooManyRequests, Unavailable
from server.limits import NO_LIMITS, RateLimits, Standing
from server.local_quotas import LocalQuotas
from server.metrics import RATE_LIMITED
from server.quotas import LEASE_SECONDS, Ask

_ANSWER_SECONDS: Final = 2.0  # the database is away if it does not answer by then
_AWAY_SECONDS: Final = 2.0  # and is left in peace for so long
_BEAT_SECONDS: Final = LEASE_SECONDS / 3
_SWEEP_SECONDS: Final = 3600.0

logger = logging.getLogger(__name__)


class QuotaStore(Protocol):
    async def take(self, ask: Ask) -> Standing: ...
    async def tell(self, ask: Ask) -> None: ...
    async def sweep(self) -> None: ...


@dataclass(slots=True)
class _Held:
    """What this process has of a subject. `spent` are tokens that the database was not told of yet."""

    subject: str
    limits: RateLimits
    running: int = 0
    spent: int = 0
    open: int = 0  # admissions, those that are being asked for too
    unsure: bool = False  # the database may have it that more run
    telling: bool = False
    # What a process says of its running requests is absolute, so one statement has to follow another.
    lock: asyncio.Lock = field(default_factory=asyncio.Lock)

    @property
    def tells(self) -> bool:
        return self.unsure or self.spent > 0 or (self.running > 0 and self.limits.concurrent is not None)

    def ask(self) -> Ask:
        return Ask(self.subject, self.limits, self.running, self.spent)


class Admission:
    """One request that was let in, or `refused`; `headers` say what is left."""

    def __init__(self, limiter: "Limiter", held: _Held, standing: Standing, *, counted: bool) -> None:
        self._limiter, self._held, self._counted = limiter, held, counted
        self._released = False
        self.headers = standing.headers(held.limits)
        self.refused: TooManyRequests | None = None
        if not standing.admitted:
            limited, self.refused = standing.refusal(held.limits)
            RATE_LIMITED.labels(limited).inc()

    def spend(self, tokens: int) -> None:
        """Tokens of the prompt or the answer; they may come after the request has ended."""
        self._limiter.spend(self._held, tokens, soon=self._released)

    def release(self) -> None:
        """The request has ended, however it did."""
        self._released = True
        self._limiter.release(self._held, counted=self._counted)


class Limiter:
    """Lets requests of keys with limits in, or not.

    Tokens are charged once they are used, and nothing is reserved for what an answer may come to: clients ask
    for far more than they use, or for no number at all, and would be refused what fits. So a request is let
    in while the bucket holds a token, and may leave it owing; the next ones wait until that is paid back.
    What is too much is at most what runs at once.

    A request costs one statement before it begins; one more, beside the answer, tells of its end and its
    tokens where that is limited. Without limits there is none. While the database does not answer, requests
    are let in by what this process alone has seen since then; what they used is told later.
    """

    def __init__(
        self,
        quotas: QuotaStore,
        default: RateLimits = NO_LIMITS,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._quotas, self.default, self._clock = quotas, default, clock
        self._local = LocalQuotas(clock)
        self._held: dict[str, _Held] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self._away_until = self._sweep_at = 0.0

    async def admit(self, subject: str, limits: RateLimits) -> Admission:
        """`limits` are those that hold. Whoever gets an admission releases it, unless it is refused."""
        held = self._held.setdefault(subject, _Held(subject, limits))
        held.limits = limits
        held.open += 1
        asking = asyncio.create_task(self._admitted(held))
        try:
            return await asyncio.shield(asking)
        except asyncio.CancelledError:
            # The statement may have let the request in by then.
            asking.add_done_callback(_give_back)
            raise

    async def _admitted(self, held: _Held) -> Admission:
        counted = held.limits.concurrent is not None
        try:
            if counted:
                async with held.lock:
                    standing = await self._take(held)
                    held.running += standing.admitted
            else:
                standing = await self._take(held)
        except BaseException:
            held.open -= 1
            raise
        if not standing.admitted:
            held.open -= 1
        return Admission(self, held, standing, counted=counted)

    async def _take(self, held: _Held) -> Standing:
        ask = held.ask()
        if self._clock() >= self._away_until:
            held.spent, held.unsure = 0, False  # it is told along
            try:
                async with asyncio.timeout(_ANSWER_SECONDS):
                    return await self._quotas.take(ask)
            except BaseException as error:
                held.spent += ask.spent
                held.unsure = True
                if not isinstance(error, Unavailable | TimeoutError):
                    raise
                self._is_away(error)
        held.unsure = True
        return self._local.take(ask)

    def spend(self, held: _Held, tokens: int, *, soon: bool) -> None:
        if held.limits.tokens is None:
            return
        held = self._held.setdefault(held.subject, held)  # it may have been forgotten since
        held.spent += tokens
        self._local.spend(held.subject, held.limits, tokens)
        if soon:
            self.tell_soon(held)

    def release(self, held: _Held, *, counted: bool) -> None:
        held.open -= 1
        if counted:
            held.running -= 1
            held.unsure = True
        self.tell_soon(held)

    def tell_soon(self, held: _Held, *, renews: bool = False) -> None:
        """Beside the answers; what comes until its turn is told along."""
        if held.tells and not held.telling:
            held.telling = True
            task = asyncio.create_task(self._tell(held, renews=renews))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

    async def _tell(self, held: _Held, *, renews: bool) -> None:
        async with held.lock:
            held.telling = False
            told = not renews and not held.unsure and not held.spent  # by a request that came in between
            if told or self._clock() < self._away_until:  # where it is away, `run` tries again
                return
            ask, unsure = held.ask(), held.unsure
            held.spent, held.unsure = 0, False
            try:
                async with asyncio.timeout(_ANSWER_SECONDS):
                    await self._quotas.tell(ask)
            except BaseException as error:
                held.spent += ask.spent
                held.unsure = unsure or ask.limits.concurrent is not None
                if not isinstance(error, Unavailable | TimeoutError):
                    raise
                self._is_away(error)

    def _is_away(self, error: Exception) -> None:
        self._away_until = self._clock() + _AWAY_SECONDS
        logger.warning("Limits are held by this process alone, the database does not answer: %s", error)

    async def run(self, interval: float = _BEAT_SECONDS) -> None:
        """Say every `interval` seconds what still runs, until cancelled; what is untold is told then."""
        try:
            while True:
                await asyncio.sleep(interval)
                await self.beat()
        finally:
            self._away_until = 0.0
            await self._tell_all()

    async def beat(self) -> None:
        await self._tell_all()
        for subject, held in list(self._held.items()):
            if not held.open and not held.tells and not held.telling and not held.lock.locked():
                del self._held[subject]
        if self._clock() >= self._sweep_at:
            self._sweep_at = self._clock() + _SWEEP_SECONDS
            try:
                await self._quotas.sweep()
            except Unavailable as error:
                self._is_away(error)

    async def _tell_all(self) -> None:
        for held in list(self._held.values()):
            self.tell_soon(held, renews=True)
        await asyncio.gather(*self._tasks, return_exceptions=True)


def _give_back(asking: "asyncio.Task[Admission]") -> None:
    if not asking.cancelled() and asking.exception() is None and asking.result().refused is None:
        asking.result().release()
