"""What was thought of completions: direct scores and comparisons of many at once, and their statistics."""

import json
import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from sqlalchemy import ColumnElement, and_, func, or_, select
from sqlalchemy.ext.asyncio import AsyncConnection

from server.comparisons import ComparisonRow, Tie
from server.completion_rows import CompletionRow, Source, text_of
from server.feedback import FeedbackRow
from server.interaction_rows import InteractionRow, Place
from server.project_metrics import Metric, MetricRow, metric_of


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
        if self.details is None or isinstance(self.details, str):
            return self.details
        return json.dumps(self.details, ensure_ascii=False)


@dataclass(frozen=True, slots=True)
class Side:
    """One of the two completions of a comparison."""

    id: str
    text: str | None
    source: Source
    model: str


@dataclass(frozen=True, slots=True)
class ComparisonScore:
    """Of two that tied neither is preferred."""

    id: str
    metric: Metric
    preferred: Side
    other: Side
    tied: Tie | None
    created_at: datetime


@dataclass(frozen=True, slots=True)
class ScoreStatistics:
    """Of the direct scores by one metric; `stddev` is that of a sample, None of a single score."""

    metric: Metric
    count: int
    average: float
    least: float
    most: float
    stddev: float | None
    sum: float


async def metrics_of(connection: AsyncConnection, account_id: str) -> Mapping[str, Metric]:
    """A project's, by their keys."""
    query = select(MetricRow.__table__).where(MetricRow.account_id == account_id)
    return {row.key: metric_of(row) for row in (await connection.execute(query)).all()}


async def direct_scores(
    connection: AsyncConnection, numbers: Collection[int], metrics: Mapping[str, Metric]
) -> Mapping[Place, Sequence[DirectScore]]:
    """Oldest first."""
    query = (
        select(FeedbackRow.__table__)
        .where(FeedbackRow.number.in_(numbers))
        .order_by(FeedbackRow.created_at, FeedbackRow.id)
    )
    found: dict[Place, list[DirectScore]] = {}
    for row in (await connection.execute(query)).all():
        if row.metric in metrics:
            details = None if row.details is None else json.loads(row.details)
            score = DirectScore(row.id, metrics[row.metric], row.value, row.reason, details, row.created_at)
            found.setdefault(Place(row.number, row.choice), []).append(score)
    return found


async def comparison_scores(
    connection: AsyncConnection, numbers: Collection[int], metrics: Mapping[str, Metric]
) -> Mapping[Place, Sequence[ComparisonScore]]:
    """By both of their sides, oldest first."""
    row = ComparisonRow
    of_them = or_(row.preferred_number.in_(numbers), row.other_number.in_(numbers))
    query = select(row.__table__).where(of_them).order_by(row.created_at, row.id)
    rows = [each for each in (await connection.execute(query)).all() if each.metric in metrics]
    pairs = [
        (Place(each.preferred_number, each.preferred_choice), Place(each.other_number, each.other_choice))
        for each in rows
    ]
    sides = await _sides(connection, {place.number for pair in pairs for place in pair})
    found: dict[Place, list[ComparisonScore]] = {}
    for each, (preferred, other) in zip(rows, pairs, strict=True):
        if preferred not in sides or other not in sides:  # it went between the two statements
            continue
        score = ComparisonScore(
            id=each.id,
            metric=metrics[each.metric],
            preferred=sides[preferred],
            other=sides[other],
            tied=None if each.tied is None else Tie(each.tied),
            created_at=each.created_at,
        )
        for place in (preferred, other):
            found.setdefault(place, []).append(score)
    return found


async def _sides(connection: AsyncConnection, numbers: Collection[int]) -> Mapping[Place, Side]:
    if not numbers:
        return {}
    row = CompletionRow
    query = (
        select(row.number, row.choice, row.id, row.source, row.model, InteractionRow.answer)
        .join(InteractionRow, InteractionRow.number == row.number)
        .where(row.number.in_(numbers))
    )
    return {
        Place(each.number, each.choice): Side(
            each.id, text_of(json.loads(each.answer), each.choice), Source(each.source), each.model
        )
        for each in (await connection.execute(query)).all()
    }


async def statistics(
    connection: AsyncConnection,
    column: Any,
    within: ColumnElement[bool],
    keys: Collection[str],
    metrics: Mapping[str, Metric],
) -> Mapping[str, Sequence[ScoreStatistics]]:
    """Of the scores of the completions `within`, by those `keys` of a column of CompletionRow."""
    if not keys:
        return {}
    same = and_(FeedbackRow.number == CompletionRow.number, FeedbackRow.choice == CompletionRow.choice)
    scored = (
        select(column.label("key"), FeedbackRow.metric, FeedbackRow.value)
        .join(CompletionRow, same)
        .where(within, column.in_(keys))
        .cte("scored")
    )
    group = (scored.c.key, scored.c.metric)
    value = scored.c.value
    means = select(*group, func.avg(value).label("mean")).group_by(*group).cte("means")
    # From the mean, known before: a sum of squares less the square of the sum loses what it is asked for.
    apart = value - means.c.mean
    query = (
        select(
            *group,
            func.count().label("scores"),
            means.c.mean,
            func.min(value).label("least"),
            func.max(value).label("most"),
            func.sum(value).label("sum"),
            func.sum(apart * apart).label("squares"),
        )
        .join(means, and_(means.c.key == scored.c.key, means.c.metric == scored.c.metric))
        .group_by(*group, means.c.mean)
        .order_by(scored.c.metric)
    )
    found: dict[str, list[ScoreStatistics]] = {}
    for row in (await connection.execute(query)).all():
        if row.metric not in metrics:
            continue
        stddev = math.sqrt(row.squares / (row.scores - 1)) if row.scores > 1 else None
        found.setdefault(row.key, []).append(
            ScoreStatistics(metrics[row.metric], row.scores, row.mean, row.least, row.most, stddev, row.sum)
        )
    return found
