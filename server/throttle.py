"""How often somebody may try: attempts that come back with time, counted by this process."""

import ipaddress
import math
import time
from collections import OrderedDict
from collections.abc import Callable, Hashable
from dataclasses import dataclass

from server.errors import TooManyRequests

_MOST = 10_000  # names remembered; those untouched for longest are forgotten


@dataclass(frozen=True, slots=True)
class Limit:
    """`burst` attempts at once, and one more every `seconds`."""

    burst: int
    seconds: float


class Attempts:
    """What each name has left of a limit."""

    def __init__(self, limit: Limit, clock: Callable[[], float] = time.monotonic) -> None:
        self._limit, self._clock = limit, clock
        self._whole: OrderedDict[Hashable, float] = OrderedDict()  # when a name has all attempts again

    def wait(self, name: Hashable) -> float:
        """Seconds until `name` may try."""
        missing = self._whole.get(name, 0.0) - self._clock()
        return max(0.0, missing - (self._limit.burst - 1) * self._limit.seconds)

    def take(self, name: Hashable) -> None:
        """One attempt, whether there is one left or not."""
        self._whole[name] = max(self._whole.get(name, 0.0), self._clock()) + self._limit.seconds
        self._whole.move_to_end(name)
        if len(self._whole) > _MOST:
            self._whole.popitem(last=False)

    def give_back(self, name: Hashable) -> None:
        if name in self._whole:
            self._whole[name] -= self._limit.seconds


_BY_EMAIL_AND_NETWORK = Limit(10, 30)
_BY_NETWORK = Limit(50, 5)
# Wide enough that one guesser elsewhere does not lock an account's owner out.
_BY_EMAIL = Limit(100, 5)
_SIGNUPS_BY_NETWORK = Limit(20, 60)


class Throttle:
    """Of guesses at passwords and of signups; a network is an IPv4 address or the /64 of an IPv6 one."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._both = Attempts(_BY_EMAIL_AND_NETWORK, clock)
        self._networks = Attempts(_BY_NETWORK, clock)
        self._emails = Attempts(_BY_EMAIL, clock)
        self._signups = Attempts(_SIGNUPS_BY_NETWORK, clock)

    def login(self, email: str, address: str) -> None:
        """Before a password is looked at. Raises TooManyRequests."""
        _take(self._counted(email, address), "logins")

    def logged_in(self, email: str, address: str) -> None:
        """The attempt was no guess: it does not count."""
        for attempts, name in self._counted(email, address):
            attempts.give_back(name)

    def signup(self, address: str) -> None:
        """Raises TooManyRequests."""
        _take([(self._signups, network(address))], "signups")

    def _counted(self, email: str, address: str) -> list[tuple[Attempts, Hashable]]:
        near = network(address)
        return [(self._both, (email, near)), (self._networks, near), (self._emails, email)]


def _take(counted: list[tuple[Attempts, Hashable]], what: str) -> None:
    seconds = math.ceil(max(attempts.wait(name) for attempts, name in counted))
    if seconds:
        raise TooManyRequests(f"Too many {what}: try again in {seconds} s.", retry_after=seconds)
    for attempts, name in counted:
        attempts.take(name)


def network(address: str) -> str:
    """Whom an address belongs to: who has one IPv6 address has a whole /64 of them."""
    try:
        parsed = ipaddress.ip_address(address)
    except ValueError:  # a socket's client has none
        return address
    if isinstance(parsed, ipaddress.IPv6Address):
        if parsed.ipv4_mapped:
            return str(parsed.ipv4_mapped)
        return str(ipaddress.ip_network((parsed.packed[:8] + bytes(8), 64)))
    return address
