"""Passwords as argon2id hashes, made and compared in threads: they take time on purpose."""

import asyncio
from collections.abc import Callable
from typing import Final, TypeVar

from argon2 import PasswordHasher
from argon2.exceptions import VerifyMismatchError

from server.errors import Unavailable

MIN_LENGTH, MAX_LENGTH = 8, 1024  # characters
_AT_ONCE = 2
_WAITING = 64
# What OWASP recommends at the least: 19 MiB, some 30 ms of one core, on which models compute too.
_HASHER: Final = PasswordHasher(time_cost=2, memory_cost=19 * 1024, parallelism=1)

Answer = TypeVar("Answer")


class Passwords:
    """Two at a time. Raises Unavailable where 64 wait already."""

    def __init__(self) -> None:
        self._turns = asyncio.Semaphore(_AT_ONCE)
        self._waiting = 0

    async def hashed(self, password: str) -> str:
        return await self._apart(lambda: _HASHER.hash(password))

    async def matches(self, password: str, password_hash: str | None) -> bool:
        """Without a hash it is False after as long: time tells nobody which accounts there are."""
        return await self._apart(lambda: _matches(password, password_hash))

    async def _apart(self, work: Callable[[], Answer]) -> Answer:
        if self._waiting >= _WAITING:
            raise Unavailable("Too many log in at this moment.", retry_after=1)
        self._waiting += 1
        try:
            async with self._turns:
                return await asyncio.to_thread(work)
        finally:
            self._waiting -= 1


def _matches(password: str, password_hash: str | None) -> bool:
    if password_hash is None:
        _HASHER.hash(password)
        return False
    try:
        return _HASHER.verify(password_hash, password)
    except VerifyMismatchError:
        return False
