"""What is known of one request that generates: noted while it runs, by whoever comes to know it.

Notes cost next to nothing, since they stand in the way of an answer: texts are cut, and what takes work, such
as telling how a request was steered, waits for whoever stores the observation.
"""

import time
from collections.abc import Callable, Mapping
from contextvars import ContextVar
from dataclasses import dataclass, field
from datetime import UTC, datetime
from itertools import islice
from typing import Any

SNIPPET = 200  # characters that are kept of a text
NOTED = 4 * SNIPPET  # what is noted, so that what is to be redacted is not cut in two and missed
CLIENT_LEFT = 499  # nginx's status for a client that left before the end of its answer
_RUNS = 8  # of policies that are kept of a call
_LOOKED_AT = 64  # messages, or parts of one


# What an answer says under `steersman`: `steering` and `behaviors`, where there are such.
Told = Callable[[], Mapping[str, Any]]


@dataclass(slots=True)
class Observation:
    """`status` is None until an answer begins; `left`: its client did not wait for the end.

    Tokens are those of all engine requests behind the call, as its key's usage counts them.
    """

    id: str = ""
    account_id: str = ""
    created_at: datetime = field(default_factory=lambda: datetime.now(UTC))
    route: str = ""
    status: int | None = None
    model: str | None = None
    prompt: str | None = None
    output: str | None = None
    prompt_tokens: int = 0
    completion_tokens: int = 0
    stream: bool = False
    left: bool = False
    told: Told | None = None
    policies: list[Mapping[str, Any]] = field(default_factory=list)
    error: str | None = None
    latency_ms: float = 0.0
    _resolved: bool = False
    _chosen: bool = False
    _started: float = field(default_factory=time.perf_counter)

    def asks(self, body: Any) -> None:
        """`body` is what the client sent, parsed and not validated."""
        if not isinstance(body, Mapping):
            return
        asked = (body.get(name) for name in ("messages", "input", "prompt", "prompts"))
        self.prompt = next((said[:NOTED] for value in asked if (said := _said(value))), None)
        if isinstance(model := body.get("model"), str):
            self.model = model

    def resolves(self, model: str) -> None:
        """The name answered to. The first one stays, since a call may ask other models for candidates."""
        if not self._resolved:
            self.model, self._resolved = model, True

    def counts(self, prompt_tokens: int, completion_tokens: int, text: str) -> None:
        """One engine request has ended; the last one's text stands for the answer until one is chosen."""
        self.prompt_tokens += prompt_tokens
        self.completion_tokens += completion_tokens
        if not self._chosen:
            self.output = text[:NOTED]

    def chooses(self, text: str) -> None:
        """Of several candidates, this one is the answer. One that only calls tools leaves what it wrote."""
        if text:
            self.output, self._chosen = text[:NOTED], True

    def tells(self, told: Told) -> None:
        """Called after the end. The last one counts: of an answer generated again, its last attempt."""
        self.told = told

    def judges(self, run: Mapping[str, Any]) -> None:
        """A policy's run has ended; an evaluation or a search has many, of which the first ones are kept."""
        if len(self.policies) < _RUNS:
            self.policies.append(run)

    def fails(self, message: str) -> None:
        self.error = message

    def ends(self, route: str) -> None:
        self.route = route
        self.latency_ms = (time.perf_counter() - self._started) * 1000


current_observation: ContextVar[Observation | None] = ContextVar("current_observation", default=None)


def observed() -> Observation:
    """That of the current request; one that nobody reads where none is kept."""
    return current_observation.get() or Observation()


def _said(value: Any) -> str | None:
    """The text of a prompt: of several messages the user's last, of several prompts or parts the first."""
    if isinstance(value, str):
        return value
    if isinstance(value, Mapping):
        return _said(value.get("content") or value.get("text"))
    if not isinstance(value, list):
        return None
    for item in islice(reversed(value), _LOOKED_AT):
        if isinstance(item, Mapping) and item.get("role") == "user":
            return _said(item)
    return next((said for item in value[:_LOOKED_AT] if (said := _said(item))), None)
