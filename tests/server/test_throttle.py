"""How often somebody may try, by a clock of the test's own."""

import pytest

from server import throttle
from server.errors import TooManyRequests
from server.throttle import Attempts, Limit, Throttle, network


class Clock:
    now = 5000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock():
    return Clock()


def taken(attempts, name, limit=1000):
    """How many attempts there are at this moment."""
    count = 0
    while attempts.wait(name) == 0 and count < limit:
        attempts.take(name)
        count += 1
    return count


def test_a_burst_and_then_one_at_a_time(clock):
    """As many as the burst at once, then one for each interval, never more than the burst again."""
    attempts = Attempts(Limit(3, 10), clock)
    assert taken(attempts, "a") == 3
    assert attempts.wait("a") == pytest.approx(10)
    clock.now += 9.5
    assert taken(attempts, "a") == 0
    clock.now += 0.6
    assert taken(attempts, "a") == 1
    clock.now += 20
    assert taken(attempts, "a") == 2
    clock.now += 10_000
    assert taken(attempts, "a") == 3


def test_names_have_attempts_of_their_own(clock):
    """What one uses up, others keep."""
    attempts = Attempts(Limit(2, 10), clock)
    assert taken(attempts, "a") == 2
    assert taken(attempts, "b") == 2


def test_what_is_given_back_can_be_taken_again(clock):
    """An attempt that did not count leaves as many as before it."""
    attempts = Attempts(Limit(2, 10), clock)
    for _ in range(50):
        attempts.take("a")
        attempts.give_back("a")
    assert taken(attempts, "a") == 2
    attempts.give_back("unknown")
    assert taken(attempts, "unknown") == 2


def test_the_memory_is_bounded(clock, monkeypatch):
    """Of too many names the one untouched for longest is forgotten."""
    monkeypatch.setattr(throttle, "_MOST", 3)
    attempts = Attempts(Limit(1, 10), clock)
    for name in "abcd":
        attempts.take(name)
    assert len(attempts._whole) == 3
    assert attempts.wait("a") == 0
    assert attempts.wait("b") > 0


def guesses(subject, email, address, limit=1000):
    for count in range(limit):
        try:
            subject.login(email, address)
        except TooManyRequests as error:
            return count, error.retry_after
    return limit, 0


def test_one_guesser_of_one_password_is_stopped(clock):
    """After ten guesses one each half minute; the wait is told, and its owner logs in from elsewhere."""
    subject = Throttle(clock)
    assert guesses(subject, "a@x.org", "192.0.2.1") == (10, 30)
    clock.now += 30
    assert guesses(subject, "a@x.org", "192.0.2.1")[0] == 1
    subject.login("a@x.org", "198.51.100.7")


def test_one_guesser_of_many_passwords_is_stopped(clock):
    """An address has 50 guesses at whatever emails; others are not held up."""
    subject = Throttle(clock)
    made = 0
    for number in range(200):
        try:
            subject.login(f"{number}@x.org", "192.0.2.1")
            made += 1
        except TooManyRequests:
            break
    assert made == 50
    subject.login("0@x.org", "192.0.2.2")


def test_many_guessers_of_one_password_are_stopped(clock):
    """From however many addresses, an email's password is guessed 100 times at once."""
    subject = Throttle(clock)
    made = 0
    for number in range(200):
        try:
            subject.login("a@x.org", f"10.0.{number}.1")
            made += 1
        except TooManyRequests:
            break
    assert made == 100


def test_a_refused_attempt_costs_nothing(clock):
    """Who is refused for one limit has as much left of the others."""
    subject = Throttle(clock)
    guesses(subject, "a@x.org", "192.0.2.1")
    for _ in range(500):
        with pytest.raises(TooManyRequests):
            subject.login("a@x.org", "192.0.2.1")
    assert guesses(subject, "b@x.org", "192.0.2.1")[0] == 10


def test_logging_in_is_no_guess(clock):
    """However often somebody logs in with the right password, nothing is used up."""
    subject = Throttle(clock)
    for _ in range(300):
        subject.login("a@x.org", "192.0.2.1")
        subject.logged_in("a@x.org", "192.0.2.1")
    assert guesses(subject, "a@x.org", "192.0.2.1")[0] == 10


def test_signups_of_one_network_are_limited(clock):
    """Twenty at once, then one a minute."""
    subject = Throttle(clock)
    for _ in range(20):
        subject.signup("192.0.2.1")
    with pytest.raises(TooManyRequests) as caught:
        subject.signup("192.0.2.1")
    assert caught.value.retry_after == 60
    subject.signup("192.0.2.2")


@pytest.mark.parametrize(
    ("address", "same", "other"),
    [
        ("192.0.2.1", "192.0.2.1", "192.0.2.2"),
        ("2001:db8:0:1::1", "2001:db8:0:1:ffff::2", "2001:db8:0:2::1"),
        ("::ffff:192.0.2.1", "192.0.2.1", "192.0.2.2"),
        ("", "", "192.0.2.1"),
        ("nonsense", "nonsense", ""),
    ],
)
def test_a_network_is_what_one_client_has(address, same, other):
    """One IPv4 address, however it is written, or the 2⁶⁴ addresses of an IPv6 network."""
    assert network(address) == network(same) != network(other)
