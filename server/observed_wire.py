"""Recent calls as /observability/requests writes them."""

from collections.abc import Sequence
from dataclasses import asdict
from datetime import date, datetime
from typing import Any, Self

from pydantic import BaseModel

from server.observed import Day, ObservedPage, ObservedRequest


class ObservedItem(BaseModel):
    """Snippets are the first 200 characters; `steering` and `behaviors` are what the answer said of them.

    Each of `policies` is a run of one: its outcome, and the candidates with the verifiers that failed them.
    """

    id: str
    created_at: datetime
    route: str
    status: int
    model: str | None
    prompt_snippet: str | None
    output_snippet: str | None
    stream: bool
    latency_ms: float
    prompt_tokens: int
    completion_tokens: int
    steering: dict[str, Any] | None
    behaviors: list[dict[str, Any]] | None
    policies: list[dict[str, Any]] | None
    error: str | None

    @classmethod
    def of(cls, request: ObservedRequest) -> Self:
        return cls(
            id=request.id,
            created_at=request.created_at,
            route=request.route,
            status=request.status,
            model=request.model,
            prompt_snippet=request.prompt,
            output_snippet=request.output,
            stream=request.stream,
            latency_ms=request.latency_ms,
            prompt_tokens=request.prompt_tokens,
            completion_tokens=request.completion_tokens,
            steering=None if request.steering is None else dict(request.steering),
            behaviors=None if request.behaviors is None else [dict(each) for each in request.behaviors],
            policies=None if request.policies is None else [dict(each) for each in request.policies],
            error=request.error,
        )


class ObservedItems(BaseModel):
    """`total` counts the calls beyond this page too."""

    requests: list[ObservedItem]
    total: int
    limit: int
    offset: int

    @classmethod
    def of(cls, page: ObservedPage, limit: int, offset: int) -> Self:
        items = [ObservedItem.of(each) for each in page.requests]
        return cls(requests=items, total=page.total, limit=limit, offset=offset)


class UsageDay(BaseModel):
    """`failed` are the calls of status 400 and above; days are UTC's."""

    day: date
    requests: int
    failed: int
    prompt_tokens: int
    completion_tokens: int


class UsageDays(BaseModel):
    days: list[UsageDay]

    @classmethod
    def of(cls, days: Sequence[Day]) -> Self:
        return cls(days=[UsageDay(**asdict(each)) for each in days])
