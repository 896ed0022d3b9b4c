"""Clients that ask without pause while something happens to what serves them."""

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import httpx
import openai

from server.embedded import NAME

TOKENS = 8


@dataclass(frozen=True)
class Asked:
    """One request: when it began and ended (monotonic seconds), and what went wrong with it, if anything."""

    began: float
    ended: float
    streamed: bool
    problem: str | None


@dataclass
class Load:
    """What came of the requests so far; `failed_first` are the answers that a client tried again after."""

    asked: list[Asked] = field(default_factory=list)
    failed_first: list[float] = field(default_factory=list)
    stopping: threading.Event = field(default_factory=threading.Event)

    def problems(self, *, streamed: bool | None = None) -> list[str]:
        return [each.problem for each in self.asked if each.problem and streamed in (None, each.streamed)]

    def since(self, moment: float) -> int:
        """Whole answers to what was asked after it."""
        return sum(each.began > moment and not each.problem for each in self.asked)


@contextmanager
def loading(url: str, key: str, *, clients: int = 8, retries: int = 0) -> Iterator[Load]:
    """OpenAI's own client in threads: half of them stream, half have a session of their own."""
    load = Load()
    threads = [
        threading.Thread(target=_ask, args=(load, url, key, number, retries), daemon=True)
        for number in range(clients)
    ]
    for thread in threads:
        thread.start()
    try:
        yield load
    finally:
        load.stopping.set()
        for thread in threads:
            thread.join(60)
        assert not any(thread.is_alive() for thread in threads), "a client waits for an answer"


def _ask(load: Load, url: str, key: str, number: int, retries: int) -> None:
    streamed, session = bool(number % 2), f"load-{number}" if number % 4 < 2 else None
    headers = {"x-session-id": session} if session else {}

    def seen(response: httpx.Response) -> None:
        if response.status_code >= 500:
            load.failed_first.append(time.monotonic())

    with httpx.Client(event_hooks={"response": [seen]}, timeout=60) as http:
        client = openai.OpenAI(base_url=f"{url}/v1", api_key=key, http_client=http, max_retries=retries)
        while not load.stopping.is_set():
            began, problem = time.monotonic(), None
            try:
                problem = _problem(client, headers, streamed=streamed)
            except (openai.OpenAIError, httpx.HTTPError) as error:
                problem = f"{type(error).__name__}: {error}"
                load.stopping.wait(0.2)
            load.asked.append(Asked(began, time.monotonic(), streamed, problem))


def _problem(client: openai.OpenAI, headers: dict[str, str], *, streamed: bool) -> str | None:
    """What is wrong with an answer; None for a whole one."""
    asked: dict[str, Any] = {
        "model": NAME,
        "messages": [{"role": "user", "content": "Name a river."}],
        "max_tokens": TOKENS,
        "temperature": 0,
        "extra_body": {"ignore_eos": True},
        "extra_headers": headers,
    }
    if not streamed:
        answer = client.chat.completions.create(**asked)
        usage = answer.usage
        return None if usage and usage.completion_tokens == TOKENS else f"not whole: {answer}"
    finish = None
    for chunk in client.chat.completions.create(**asked, stream=True):
        for choice in chunk.choices:
            finish = choice.finish_reason or finish
    return None if finish == "length" else f"a stream that broke off: {finish}"
