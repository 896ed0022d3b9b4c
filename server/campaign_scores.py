"""What was thought of the variants of an A/B test: direct scores and comparisons of their completions."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime

from server.comparisons import Tie
from server.database import Database


@dataclass(frozen=True, slots=True)
class VariantScore:
    variant: str
    value: float
    created_at: datetime


@dataclass(frozen=True, slots=True)
class VariantComparison:
    """Of two that tied neither is preferred."""

    preferred: str
    other: str
    tied: Tie | None
    created_at: datetime


class CampaignScores:
    """Raises Unavailable when the database does not answer."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def direct(self, account_id: str, campaign_id: str, metric: str) -> Sequence[VariantScore]:
        """Those of the campaign's completions by the metric of that key, in the order they were given."""
        raise NotImplementedError

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
        """Those between two of the campaign's completions, in the order they were given; with `variants`
        (by the names of their models) also those of uploaded texts said to be of these models."""
        raise NotImplementedError
