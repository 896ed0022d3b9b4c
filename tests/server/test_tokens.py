"""Tokens: JWTs, as RFC 7519 has them."""

import base64
import hashlib
import hmac
import json
import time
from datetime import timedelta

import jwt
import pytest

from server.errors import Unauthenticated
from server.tokens import Refresh, Tokens

SECRET, HOUR = b"s" * 32, timedelta(hours=1)
TOKENS = Tokens(SECRET)


def part(text):
    return json.loads(base64.urlsafe_b64decode(text + "=" * (-len(text) % 4)))


def test_a_token_is_signed_with_hmac_sha256():
    """The signature is HMAC-SHA256 over the first two parts, and the claims are the standard's."""
    token = TOKENS.access("s1", "a1", HOUR)
    head, body, signature = token.split(".")
    expected = hmac.new(SECRET, f"{head}.{body}".encode(), hashlib.sha256).digest()
    assert base64.urlsafe_b64encode(expected).rstrip(b"=").decode() == signature
    assert part(head)["alg"] == "HS256"
    claims = part(body)
    assert (claims["sub"], claims["sid"]) == ("a1", "s1")
    assert claims["exp"] - claims["iat"] == 3600


def test_tokens_say_what_they_were_made_for():
    """Both kinds come back as they were, and no two are equal."""
    assert TOKENS.read_access(TOKENS.access("s1", "a1", HOUR)) == "s1"
    assert TOKENS.read_refresh(TOKENS.refresh(Refresh("s1", 7), "a1", HOUR)) == Refresh("s1", 7)
    assert TOKENS.access("s1", "a1", HOUR) != TOKENS.access("s1", "a1", HOUR)


def forged(secret=SECRET, algorithm="HS256", **changes):
    good = part(TOKENS.access("s1", "a1", HOUR).split(".")[1])
    claims = {name: value for name, value in (good | changes).items() if value is not None}
    return jwt.encode(claims, secret, algorithm)


@pytest.mark.parametrize(
    ("token", "says"),
    [
        ("", "not an access token"),
        ("a.b.c", "not an access token"),
        (forged(b"t" * 32), "not an access token"),
        (forged(None, "none"), "not an access token"),
        (forged(b"s" * 64, "HS512"), "not an access token"),
        (forged(iss="somebody"), "not an access token"),
        (forged(sid=None), "not an access token"),
        (forged(exp=None), "not an access token"),
        (forged(exp=1), "has expired"),
        (TOKENS.access("s1", "a1", -HOUR), "has expired"),
        (TOKENS.refresh(Refresh("s1", 0), "a1", HOUR), "send its access token"),
    ],
)
def test_another_token_is_refused(token, says):
    """Wrong secret, algorithm, issuer, kind, missing claims, past expiry: each is refused by name."""
    with pytest.raises(Unauthenticated, match=says):
        TOKENS.read_access(token)


def test_clocks_may_differ_a_little():
    """A token that another host's clock has signed in our future is good."""
    soon = int(time.time()) + 20
    assert TOKENS.read_access(forged(iat=soon, exp=soon + 60)) == "s1"


def test_an_access_token_refreshes_nothing():
    """Nor does an expired refresh token."""
    with pytest.raises(Unauthenticated, match="send its refresh token"):
        TOKENS.read_refresh(TOKENS.access("s1", "a1", HOUR))
    with pytest.raises(Unauthenticated, match="log in again"):
        TOKENS.read_refresh(TOKENS.refresh(Refresh("s1", 0), "a1", -HOUR))


def test_every_bit_of_a_token_counts():
    """A token with any one character changed is refused."""
    token = TOKENS.access("s1", "a1", HOUR)
    for index in range(0, len(token) - 1, 3):  # of the last character, base64 drops bits
        other = "A" if token[index] != "A" else "B"
        with pytest.raises(Unauthenticated):
            TOKENS.read_access(token[:index] + other + token[index + 1 :])
