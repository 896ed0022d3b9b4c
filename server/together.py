"""Several calls at once, but not all of them."""

import asyncio
from collections.abc import Awaitable, Callable, Iterable
from typing import TypeVar

R = TypeVar("R")


async def together(calls: Iterable[Callable[[], Awaitable[R]]], at_once: int = 16) -> list[R]:
    """Results in order; the first failure ends the other calls and is raised."""
    slots = asyncio.Semaphore(at_once)

    async def one(call: Callable[[], Awaitable[R]]) -> R:
        async with slots:
            return await call()

    try:
        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(one(call)) for call in calls]
    except BaseExceptionGroup as failures:
        raise failures.exceptions[0] from None
    return [task.result() for task in tasks]
