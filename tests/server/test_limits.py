"""What a key may ask for, and how its clients are told."""

import pytest

from server.limits import NO_LIMITS, Limited, RateLimits, Standing, duration


def test_a_key_s_own_limits_go_before_the_server_s():
    """None takes the server's, 0 takes none, and a server's 0 is none."""
    default = RateLimits(60, 0, 8)
    assert NO_LIMITS.over(default) == RateLimits(60, None, 8)
    assert RateLimits(5, 100, 0).over(default) == RateLimits(5, 100, None)
    assert not RateLimits(0, 0, 0).over(default)
    assert not NO_LIMITS.over(RateLimits(0, 0, 0))


@pytest.mark.parametrize(
    ("rates", "beyond"),
    [((60, None, None), False), ((61, None, None), True), ((0, None, None), True), ((None, 0, 9), False)],
)
def test_what_goes_beyond_a_ceiling(rates, beyond):
    """More than it, or none at all; where the ceiling has no limit nothing goes beyond it."""
    assert RateLimits(*rates).exceeds(RateLimits(60, 0, None)) == beyond


def test_headers_are_of_the_limits_that_there_are():
    """As OpenAI's: what there is, what is left, and how long until all of it is left again."""
    standing = Standing(True, 40.9, -5.0)
    assert standing.headers(RateLimits(60, None, 3)) == {
        "x-ratelimit-limit-requests": "60",
        "x-ratelimit-remaining-requests": "40",
        "x-ratelimit-reset-requests": "19.1s",
    }
    assert standing.headers(RateLimits(None, 10)) == {
        "x-ratelimit-limit-tokens": "10",
        "x-ratelimit-remaining-tokens": "0",
        "x-ratelimit-reset-tokens": "1m30s",
    }


@pytest.mark.parametrize(
    ("standing", "limited", "seconds"),
    [
        (Standing(False, 0.5, 9), Limited.REQUESTS, 3),
        (Standing(False, 5, -9), Limited.TOKENS, 60),
        (Standing(False, 5, 9), Limited.CONCURRENCY, 1),
    ],
)
def test_a_refusal_says_what_for_and_until_when(standing, limited, seconds):
    """`retry_after` is when the bucket holds one again."""
    found, error = standing.refusal(RateLimits(10, 10, 2))
    assert (found, error.retry_after, error.reason) == (limited, seconds, "rate_limit_exceeded")


@pytest.mark.parametrize(
    ("seconds", "told"),
    [(0, "0ms"), (0.02, "20ms"), (1, "1s"), (1.5, "1.5s"), (60, "1m0s"), (372.25, "6m12.25s")],
)
def test_durations_are_written_as_openai_does(seconds, told):
    assert duration(seconds) == told
