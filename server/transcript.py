"""One chat completion as it passed: noted at no cost while it runs, put together by whoever stores it."""

import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

from server.interactions import Interaction
from server.observation import Observation
from server.redaction import Redaction

# Of the request's body, what is stored elsewhere or says nothing of the answer.
_NO_PARAMETERS = frozenset({"messages", "metadata", "labels", "session_id", "store"})


@dataclass(slots=True)
class Transcript:
    """`request` is the body as it was sent, of `size` bytes; `told` is what the answer's headers say, for
    streams, which may say nothing of it themselves. `known_as` is the model's name in its project, where the
    answer has another.

    After `ends` nothing changes.
    """

    account_id: str
    request: Mapping[str, Any]
    labels: Mapping[str, str]
    session_id: str | None
    observation: Observation
    size: int
    told: dict[str, Any] = field(default_factory=dict)
    known_as: str | None = None
    campaign_id: str | None = None
    variant: str | None = None
    created_at: datetime = field(default_factory=lambda: datetime.now(UTC))
    first_token_ms: float | None = None
    latency_ms: float = 0.0
    _answer: bytes | None = None
    _events: list[str] = field(default_factory=list)
    _started: float = field(default_factory=time.perf_counter)

    def hears(self, event: str) -> None:
        """One event of a stream."""
        if event.startswith("data: {"):
            if self.first_token_ms is None:
                self.first_token_ms = self._passed()
            self._events.append(event)
            self.size += len(event)

    def ends(self, answer: bytes | None = None) -> None:
        """`answer` is the body of one that was not streamed."""
        if answer is not None:
            self._answer = answer
            self.size += len(answer)
        self.latency_ms = self._passed()

    def interaction(self, redaction: Redaction) -> Interaction:
        """What is to be stored. It takes a while: not for the event loop."""
        answer = self._whole()
        user = self.request.get("user")
        usage = answer["usage"]
        parameters = {name: value for name, value in self.request.items() if name not in _NO_PARAMETERS}
        head = ("id", "object", "created", "model", "usage", "system_fingerprint", "service_tier")
        redacted = redaction.json({name: value for name, value in answer.items() if name not in head})
        return Interaction(
            id=answer["id"],
            account_id=self.account_id,
            created_at=self.created_at,
            model=self.known_as or answer["model"],
            session_id=redaction.text(self.session_id),
            messages=redaction.json(self.request["messages"]),
            parameters=redaction.json(parameters),
            answer={**{name: answer[name] for name in head if name in answer}, **redacted},
            labels=redaction.json(self.labels),
            prompt_tokens=usage["prompt_tokens"],
            completion_tokens=usage["completion_tokens"],
            latency_ms=round(self.latency_ms, 3),
            first_token_ms=None if self.first_token_ms is None else round(self.first_token_ms, 3),
            user_id=redaction.text(user) if isinstance(user, str) else None,
            campaign_id=self.campaign_id,
            variant=self.variant,
        )

    def _whole(self) -> dict[str, Any]:
        if self._answer is not None:
            whole: dict[str, Any] = json.loads(self._answer)
            return whole
        whole = joined([json.loads(event[6:]) for event in self._events])
        prompt, completion = self.observation.prompt_tokens, self.observation.completion_tokens
        counted = {
            "prompt_tokens": prompt,
            "completion_tokens": completion,
            "total_tokens": prompt + completion,
        }
        return {**whole, "usage": whole["usage"] or counted, "steersman": {**self.told, **whole["steersman"]}}

    def _passed(self) -> float:
        return (time.perf_counter() - self._started) * 1000


def joined(chunks: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """The chunks of a stream as the object that the same answer is without one; `usage` None: not told."""
    first = chunks[0]
    choices: dict[int, dict[str, Any]] = {}
    usage, steersman = None, dict[str, Any]()
    for chunk in chunks:
        usage = chunk.get("usage") or usage
        steersman |= chunk.get("steersman") or {}
        for piece in chunk["choices"]:
            _join(choices.setdefault(piece["index"], _begun(piece["index"])), piece)
    for choice in choices.values():
        if calls := choice["message"].get("tool_calls"):
            choice["message"]["tool_calls"] = [calls[index] for index in sorted(calls)]
    told = ("id", "created", "model", "session_id", "system_fingerprint")
    head = {name: first[name] for name in told if name in first}
    return {
        **head,
        "object": "chat.completion",
        "choices": [choices[index] for index in sorted(choices)],
        "usage": usage,
        "steersman": steersman,
    }


def _begun(index: int) -> dict[str, Any]:
    message = {"role": "assistant", "content": None, "refusal": None}
    return {"index": index, "message": message, "logprobs": None, "finish_reason": None}


def _join(choice: dict[str, Any], piece: Mapping[str, Any]) -> None:
    for name, value in piece["delta"].items():
        if value is not None and name != "role":
            _join_field(choice["message"], name, value)
    if logprobs := piece.get("logprobs"):
        known = choice["logprobs"] = choice["logprobs"] or {"content": []}
        known["content"] += logprobs.get("content") or []
    for name in ("finish_reason", "stop_reason", "completion_id", "model"):
        if piece.get(name) is not None:
            choice[name] = piece[name]
    if piece.get("token_ids"):
        choice["token_ids"] = [*choice.get("token_ids", ()), *piece["token_ids"]]


def _join_field(message: dict[str, Any], name: str, value: Any) -> None:
    if name == "tool_calls":
        calls = message.setdefault("tool_calls", {})
        for call in value:
            _join_call(calls.setdefault(call["index"], {}), call)
    elif isinstance(value, str) and name != "id":  # which each piece has, whole
        message[name] = (message.get(name) or "") + value
    else:
        message[name] = value


def _join_call(call: dict[str, Any], piece: Mapping[str, Any]) -> None:
    """Names, ids and types come whole; arguments come in pieces."""
    for name in ("id", "type"):
        if piece.get(name):
            call[name] = piece[name]
    told = piece.get("function") or {}
    function = call.setdefault("function", {"name": None, "arguments": ""})
    function["name"] = told.get("name") or function["name"]
    function["arguments"] += told.get("arguments") or ""
