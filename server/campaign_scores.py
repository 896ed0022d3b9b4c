"""What was thought of the variants of an A/B test, counted where it is stored."""

from collections.abc import Sequence
from typing import Any

from sqlalchemy import BigInteger, ColumnElement, Select, and_, case, cast, func, null, select, union_all
from sqlalchemy.orm import aliased

from server.ab_report import Sample, Tally
from server.campaign import Campaign, ScoredMetric
from server.comparisons import ComparisonRow, Tie
from server.completion_rows import CompletionRow
from server.database import Database
from server.feedback import FeedbackRow
from server.observed import storable
from server.outcomes import OutcomeRow
from server.project_metrics import MetricKind, ProjectMetrics, Scoring


class CampaignScores:
    """Of a campaign that has ended, until then. Raises Unavailable when the database does not answer."""

    def __init__(self, database: Database, metrics: ProjectMetrics) -> None:
        self._database, self._metrics = database, metrics

    async def metric(self, project_id: str, id_or_key: str) -> ScoredMetric:
        """Raises NotFound."""
        found = await self._metrics.get(project_id, id_or_key)
        better = found.scoring is Scoring.HIGHER_IS_BETTER
        return ScoredMetric(
            found.id, found.key, is_bool=found.kind is MetricKind.BOOL, higher_is_better=better
        )

    async def direct(self, campaign: Campaign, metric: ScoredMetric) -> Sequence[Sample]:
        """Of the campaign's completions, and the outcomes of their sessions, by variant. The scores of a
        session are one unit; a completion without a session is one by itself."""
        scores = union_all(_scores(campaign, metric), _outcomes(campaign, metric)).subquery()
        units = (
            select(scores.c.variant, func.count().label("scores"), func.avg(scores.c.value).label("value"))
            .group_by(scores.c.variant, scores.c.session_id, scores.c.alone)
            .cte("units")
        )
        means = select(units.c.variant, func.avg(units.c.value).label("mean")).group_by(units.c.variant).cte()
        away = units.c.value - means.c.mean
        query = (
            select(
                units.c.variant,
                func.sum(units.c.scores).label("scores"),
                func.count().label("units"),
                means.c.mean,
                func.sum(away * away).label("squares"),
            )
            .join(means, means.c.variant == units.c.variant)
            .group_by(units.c.variant, means.c.mean)
        )
        async with self._database.reading() as connection:
            rows = (await connection.execute(query)).all()
        return [
            Sample(
                model=row.variant,
                scores=int(row.scores),
                units=row.units,
                mean=float(row.mean),
                variance=row.squares / (row.units - 1) if row.units > 1 else 0.0,
            )
            for row in rows
        ]

    async def comparisons(self, campaign: Campaign, metric: ScoredMetric) -> Sequence[Tally]:
        """Of completions of two variants, since the campaign began.

        Those that the campaign did not route count too, uploaded texts among them: two models that somebody
        compares side by side were asked for by name.
        """
        row, first, second = ComparisonRow, aliased(CompletionRow), aliased(CompletionRow)
        sides = (
            select(
                _variant(campaign, first).label("preferred"),
                _variant(campaign, second).label("other"),
                row.tied,
            )
            .join(first, and_(first.number == row.preferred_number, first.choice == row.preferred_choice))
            .join(second, and_(second.number == row.other_number, second.choice == row.other_choice))
            .where(row.account_id == campaign.project_id, row.metric == storable(metric.key))
            .where(row.created_at >= campaign.begin_date, *_until_its_end(campaign, row.created_at))
            .subquery()
        )
        by = (sides.c.preferred, sides.c.other, sides.c.tied)
        query = (
            select(*by, func.count().label("times")).where(sides.c.preferred != sides.c.other).group_by(*by)
        )
        async with self._database.reading() as connection:
            rows = (await connection.execute(query)).all()
        return [
            Tally(
                each.preferred,
                each.other,
                wins=each.times if each.tied is None else 0,
                ties_good=each.times if each.tied == Tie.GOOD else 0,
                ties_bad=each.times if each.tied == Tie.BAD else 0,
            )
            for each in rows
        ]


def _scores(campaign: Campaign, metric: ScoredMetric) -> Select[Any]:
    row, of = FeedbackRow, CompletionRow
    return (
        select(
            of.variant,
            of.session_id,
            case((of.session_id.is_(None), of.number)).label("alone"),
            row.value,
        )
        .join(of, and_(of.number == row.number, of.choice == row.choice))
        .where(*_of(campaign), row.metric == storable(metric.key))
        .where(*_until_its_end(campaign, row.created_at))
    )


def _outcomes(campaign: Campaign, metric: ScoredMetric) -> Select[Any]:
    """Of sessions in which one variant answered, not several."""
    row, of = OutcomeRow, CompletionRow
    variant = func.min(of.variant)
    sessions = (
        select(of.session_id, variant.label("variant"))
        .where(*_of(campaign), of.session_id.is_not(None))
        .group_by(of.session_id)
        .having(variant == func.max(of.variant))
        .subquery()
    )
    return (
        select(sessions.c.variant, row.session_id, cast(null(), BigInteger), row.value)
        .join(sessions, sessions.c.session_id == row.session_id)
        .where(row.account_id == campaign.project_id, row.metric == storable(metric.key))
        .where(*_until_its_end(campaign, row.created_at))
    )


def _of(campaign: Campaign) -> Sequence[ColumnElement[bool]]:
    of = CompletionRow
    return of.account_id == campaign.project_id, of.campaign_id == campaign.id, of.variant.is_not(None)


def _variant(campaign: Campaign, of: Any) -> ColumnElement[str | None]:
    unrouted = and_(of.campaign_id.is_(None), of.model.in_(campaign.models))
    return case((of.campaign_id == campaign.id, of.variant), (unrouted, of.model))


def _until_its_end(campaign: Campaign, made: Any) -> Sequence[ColumnElement[bool]]:
    return () if campaign.end_date is None else (made <= campaign.end_date,)
