"""What was thought of the variants of an A/B test: direct scores and comparisons of their completions."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from sqlalchemy import ColumnElement, and_, select
from sqlalchemy.orm import aliased

from server.comparisons import ComparisonRow, Tie
from server.completion_rows import CompletionRow, Source
from server.database import Database
from server.feedback import FeedbackRow
from server.observed import storable


@dataclass(frozen=True, slots=True)
class VariantScore:
    variant: str
    value: float
    session_id: str | None
    created_at: datetime


@dataclass(frozen=True, slots=True)
class VariantComparison:
    """Of two that tied neither is preferred. The sessions are those of the two completions."""

    preferred: str
    other: str
    tied: Tie | None
    preferred_session: str | None
    other_session: str | None
    created_at: datetime


class CampaignScores:
    """Raises Unavailable when the database does not answer."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def direct(
        self,
        account_id: str,
        campaign_id: str,
        metric: str,
        *,
        since: datetime | None = None,
        until: datetime | None = None,
    ) -> Sequence[VariantScore]:
        """Those of the campaign's completions by the metric of that key, in the order they were given."""
        row, of = FeedbackRow, CompletionRow
        query = (
            select(of.variant, row.value, of.session_id, row.created_at)
            .join(of, and_(of.number == row.number, of.choice == row.choice))
            .where(of.account_id == account_id, of.campaign_id == campaign_id, of.variant.is_not(None))
            .where(row.metric == storable(metric), *_between(row.created_at, since, until))
            .order_by(row.created_at, row.id)
        )
        async with self._database.reading() as connection:
            rows = (await connection.execute(query)).all()
        return [VariantScore(each[0] or "", *each[1:]) for each in rows]

    async def comparisons(
        self,
        account_id: str,
        campaign_id: str,
        metric: str,
        *,
        variants: Mapping[str, str] | None = None,
        since: datetime | None = None,
        until: datetime | None = None,
    ) -> Sequence[VariantComparison]:
        """Those between two variants' completions by the metric of that key, in the order they were given.

        With `variants`, by the names of their models, a text that was uploaded for its comparison counts as
        one of the variant of the model that it is said to be of.
        """
        row = ComparisonRow
        first, second = aliased(CompletionRow), aliased(CompletionRow)
        query = (
            select(
                *(column for of in (first, second) for column in _told(of)),
                row.tied,
                row.created_at,
            )
            .join(first, and_(first.number == row.preferred_number, first.choice == row.preferred_choice))
            .join(second, and_(second.number == row.other_number, second.choice == row.other_choice))
            .where(row.account_id == account_id, row.metric == storable(metric))
            .where(*_between(row.created_at, since, until))
            .order_by(row.created_at, row.id)
        )
        found = []
        async with self._database.reading() as connection:
            rows = (await connection.execute(query)).all()
        for each in rows:
            preferred = _variant(campaign_id, variants or {}, each[:4])
            other = _variant(campaign_id, variants or {}, each[5:9])
            if preferred is None or other is None or preferred == other:
                continue
            tied = None if each.tied is None else Tie(each.tied)
            found.append(VariantComparison(preferred, other, tied, each[4], each[9], each.created_at))
        return found


def _told(of: Any) -> Sequence[Any]:
    return of.campaign_id, of.variant, of.model, of.source, of.session_id


def _variant(campaign_id: str, variants: Mapping[str, str], told: Sequence[Any]) -> str | None:
    campaign, variant, model, source = told
    if campaign == campaign_id:
        return None if variant is None else str(variant)
    return variants.get(model) if campaign is None and source == Source.OFFLINE else None


def _between(column: Any, since: datetime | None, until: datetime | None) -> Sequence[ColumnElement[bool]]:
    bounds = [] if since is None else [column >= since]
    return bounds if until is None else [*bounds, column < until]
