"""A/B tests: campaigns that split a project's traffic among models, and what became of them."""

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum
from typing import Protocol

from server.ab_report import Report, Sample, Tally


class ScoreType(StrEnum):
    DIRECT = "DIRECT"
    COMPARISON = "COMPARISON"


class Status(StrEnum):
    """In WARMUP some variant has fewer scores than the least number that a test ends with."""

    WARMUP = "WARMUP"
    IN_PROGRESS = "IN_PROGRESS"
    DONE = "DONE"
    CANCELLED = "CANCELLED"


ACTIVE = (Status.WARMUP, Status.IN_PROGRESS)


@dataclass(frozen=True, slots=True)
class Campaign:
    """`metric` is the key of a metric, `winner` one of `models`."""

    id: str
    project_id: str
    key: str
    name: str
    metric: str
    score_type: ScoreType
    status: Status
    traffic_split: float
    auto_deploy: bool
    models: tuple[str, ...]
    alpha: float
    min_scores: int
    begin_date: datetime
    end_date: datetime | None
    winner: str | None


@dataclass(frozen=True, slots=True)
class NewCampaign:
    """What is asked for; `name` None: the key."""

    key: str
    metric: str  # id or key
    models: Sequence[str]
    name: str | None = None
    score_type: ScoreType = ScoreType.DIRECT
    traffic_split: float = 1.0
    auto_deploy: bool = False


@dataclass(frozen=True, slots=True)
class ScoredMetric:
    """What a campaign has to know of a metric."""

    key: str
    is_bool: bool
    higher_is_better: bool


class Evidence(Protocol):
    """Metrics and scores. Raises NotFound for an unknown metric."""

    async def metric(self, project_id: str, id_or_key: str) -> ScoredMetric: ...
    async def direct(self, campaign: Campaign) -> Sequence[Sample]: ...
    async def comparisons(self, campaign: Campaign) -> Sequence[Tally]: ...


class Campaigns:
    """Every change is one transaction. Raises Unavailable when the database does not answer."""

    async def create(self, project_id: str, new: NewCampaign) -> Campaign:
        """Raises InvalidRequest, NotFound for an unknown metric, Conflict for a key that is taken and where
        another campaign of the project is active."""
        raise NotImplementedError

    async def cancel(self, project_ids: Collection[str], id_or_key: str) -> Campaign:
        """Raises NotFound, Conflict for one that has ended."""
        raise NotImplementedError

    async def get(self, project_ids: Collection[str], id_or_key: str) -> Campaign:
        """Of any of these projects. Raises NotFound, Conflict for a key that several of them have."""
        raise NotImplementedError

    async def list(
        self, project_ids: Collection[str], *, active: bool | None = None, status: Status | None = None
    ) -> Sequence[Campaign]:
        """Newest first."""
        raise NotImplementedError

    async def report(self, campaign: Campaign) -> Report:
        """From its scores until now, or until its end."""
        raise NotImplementedError


@dataclass(frozen=True, slots=True)
class Assignment:
    """The model that a request of a campaign goes to."""

    campaign_id: str
    campaign_key: str
    model: str
