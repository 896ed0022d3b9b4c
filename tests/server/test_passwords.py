"""Hashes of passwords."""

import asyncio
import statistics
import threading
import time

import argon2
import pytest

from server import passwords
from server.errors import Unavailable
from server.passwords import Passwords


async def test_a_password_matches_its_own_hash_alone():
    """Every character counts, in any script; no two hashes of one password are equal."""
    subject = Passwords()
    for password in ("correct horse", "пароль, длинный", "x" * passwords.MAX_LENGTH, " spaces \0 "):
        first, second = await subject.hashed(password), await subject.hashed(password)
        assert first != second
        assert await subject.matches(password, first)
        assert await subject.matches(password, second)
        assert not await subject.matches(password + "x", first)
        assert not await subject.matches(password.swapcase() + "?", first)


async def test_the_hash_is_argon2id_as_owasp_recommends():
    """At least 19 MiB and two passes, in the standard's own form, which fits its column."""
    hashed = await Passwords().hashed("correct horse")
    parameters = argon2.extract_parameters(hashed)
    assert parameters.type is argon2.Type.ID
    assert parameters.memory_cost >= 19 * 1024
    assert parameters.time_cost >= 2
    assert len(hashed) <= 200
    assert "correct" not in hashed


async def test_no_account_takes_as_long_as_a_wrong_password():
    """The time of a refusal does not tell whether there is such an account."""
    subject = Passwords()
    hashed = await subject.hashed("correct horse")

    async def seconds(password_hash):
        began = time.perf_counter()
        assert not await subject.matches("wrong", password_hash)
        return time.perf_counter() - began

    times = [(await seconds(None), await seconds(hashed)) for _ in range(9)]
    nobody, somebody = (statistics.median(column) for column in zip(*times, strict=True))
    assert nobody > somebody / 2


async def test_hashing_leaves_the_event_loop_free(monkeypatch):
    """It runs in other threads, two at a time, and who comes when 64 wait is told to come again."""
    threads, running, most = set(), 0, 0
    release, lock = threading.Event(), threading.Lock()

    class Slow:
        def hash(self, password):
            nonlocal running, most
            with lock:
                threads.add(threading.current_thread())
                running += 1
                most = max(most, running)
            assert release.wait(30)
            with lock:
                running -= 1
            return password

    monkeypatch.setattr(passwords, "_HASHER", Slow())
    subject = Passwords()
    waiting = [asyncio.create_task(subject.hashed(str(number))) for number in range(64)]
    await asyncio.sleep(0.05)
    with pytest.raises(Unavailable) as caught:
        await subject.hashed("one more")
    assert caught.value.retry_after == 1
    release.set()
    assert await asyncio.gather(*waiting) == [str(number) for number in range(64)]
    assert most == 2
    assert threading.main_thread() not in threads
    assert await subject.hashed("later") == "later"
