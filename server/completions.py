"""Stored completions, each choice by itself, with their scores: looked up, listed and grouped."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum
from typing import Any

from server.comparisons import Tie
from server.completion_filter import AllOf, Condition
from server.completion_rows import Source
from server.database import Database
from server.interactions import Interaction
from server.project_metrics import Metric

MAX_PAGE = 500


@dataclass(frozen=True, slots=True)
class DirectScore:
    id: str
    metric: Metric
    value: float
    reason: str | None
    details: Any
    created_at: datetime

    @property
    def details_text(self) -> str | None:
        """As text, which is what Adaptive's clients know; on /v1 they are any JSON."""
        raise NotImplementedError


@dataclass(frozen=True, slots=True)
class Side:
    """One of the two completions of a comparison."""

    id: str
    text: str | None
    source: Source
    model: str


@dataclass(frozen=True, slots=True)
class ComparisonScore:
    id: str
    metric: Metric
    preferred: Side
    other: Side
    tied: Tie | None
    created_at: datetime


@dataclass(frozen=True, slots=True)
class Completion:
    """Choice `choice` of `interaction`. Its model is "" where an upload named none."""

    id: str
    choice: int
    interaction: Interaction
    direct: Sequence[DirectScore]
    comparisons: Sequence[ComparisonScore]

    @property
    def text(self) -> str | None:
        raise NotImplementedError


@dataclass(frozen=True, slots=True)
class Paging:
    """As Adaptive's CursorPage: `first` after `after`, or `last` before `before`; `offset` passes over so
    many of those. Neither `first` nor `last`: `first` 20 (DEFAULT_PAGE)."""

    first: int | None = None
    after: str | None = None
    last: int | None = None
    before: str | None = None
    offset: int | None = None


@dataclass(frozen=True, slots=True)
class CompletionPage:
    """`cursors` are those of `completions`, one for each."""

    total: int
    completions: Sequence[Completion]
    cursors: Sequence[str]
    has_next: bool
    has_previous: bool


class GroupBy(StrEnum):
    MODEL = "MODEL"
    PROMPT = "PROMPT"


@dataclass(frozen=True, slots=True)
class ScoreStatistics:
    """Of the direct scores of one metric; `stddev` is that of a sample, None of a single score."""

    metric: Metric
    count: int
    average: float
    least: float
    most: float
    stddev: float | None
    sum: float


@dataclass(frozen=True, slots=True)
class CompletionGroup:
    """`key` is a model, "" for none, or a prompt's hash; `completions` are its latest (oldest, where the
    order asked for is that)."""

    key: str
    count: int
    statistics: Sequence[ScoreStatistics]
    completions: Sequence[Completion]


@dataclass(frozen=True, slots=True)
class GroupPage:
    """`total` counts groups; the largest come first."""

    total: int
    groups: Sequence[CompletionGroup]
    cursors: Sequence[str]
    has_next: bool
    has_previous: bool


class Completions:
    """Of one project at a time, that of `account_id`. Raises Unavailable when the database does not answer."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def get(self, account_id: str, completion_id: str) -> Completion | None:
        raise NotImplementedError

    async def list(
        self,
        account_id: str,
        condition: Condition = AllOf(),
        *,
        paging: Paging = Paging(),
        newest_first: bool = True,
    ) -> CompletionPage:
        """By the time of their making. Raises InvalidRequest for a cursor that is none, and for a page of
        more than MAX_PAGE."""
        raise NotImplementedError

    async def groups(
        self,
        account_id: str,
        by: GroupBy,
        condition: Condition = AllOf(),
        *,
        paging: Paging = Paging(),
        newest_first: bool = True,
        shown: int = 10,
    ) -> GroupPage:
        """With `shown` completions of each group at most. Raises as `list` does."""
        raise NotImplementedError
