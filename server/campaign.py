"""One A/B test: what it is asked to be, what it is, and what it has to know of its scores."""

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum
from typing import Protocol

from server.ab_report import Sample, Tally
from server.errors import InvalidRequest

MAX_KEY, MAX_NAME, MAX_METRIC, MAX_MODEL = 200, 200, 200, 500  # characters
MAX_MODELS = 16
ALPHA, MIN_SCORES = 0.05, 30
_FEWEST_SCORES = 10  # a test that ends sooner is wrong more often than alpha
_KEY = re.compile(r"[A-Za-z0-9][A-Za-z0-9._:-]*")


class ScoreType(StrEnum):
    DIRECT = "DIRECT"
    COMPARISON = "COMPARISON"


class Status(StrEnum):
    """In WARMUP some variant has fewer scores than a test needs to end."""

    WARMUP = "WARMUP"
    IN_PROGRESS = "IN_PROGRESS"
    DONE = "DONE"
    CANCELLED = "CANCELLED"


ACTIVE = (Status.WARMUP, Status.IN_PROGRESS)


@dataclass(frozen=True, slots=True)
class Campaign:
    """`metric` is the id of a metric, `winner` one of `models`."""

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

    @property
    def active(self) -> bool:
        return self.status in ACTIVE


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
    alpha: float = ALPHA
    min_scores: int = MIN_SCORES

    def require_sound(self) -> None:
        """Raises InvalidRequest."""
        if len(self.key) > MAX_KEY or _KEY.fullmatch(self.key) is None:
            raise InvalidRequest(
                f"a key is 1 to {MAX_KEY} of A-Z a-z 0-9 . _ : - and begins with a letter or a digit",
                param="key",
            )
        if self.name is not None and len(self.name) > MAX_NAME:
            raise InvalidRequest(f"a name has at most {MAX_NAME} characters", param="name")
        if not 1 <= len(self.models) <= MAX_MODELS:
            raise InvalidRequest(f"an A/B test has 1 to {MAX_MODELS} models", param="models")
        twice = next((model for model in self.models if self.models.count(model) > 1), None)
        if twice is not None:
            raise InvalidRequest(f"{twice!r} is there twice; each model is one variant", param="models")
        if self.auto_deploy and len(self.models) == 1:
            raise InvalidRequest("one model alone never wins: name two or more", param="auto_deploy")
        if not (math.isfinite(self.traffic_split) and 0 < self.traffic_split <= 1):
            raise InvalidRequest("a traffic split is above 0 and at most 1", param="traffic_split")
        if not 0 < self.alpha < 1:
            raise InvalidRequest("alpha is between 0 and 1", param="alpha")
        if self.min_scores < _FEWEST_SCORES:
            raise InvalidRequest(f"a test ends with {_FEWEST_SCORES} scores or more", param="min_scores")


@dataclass(frozen=True, slots=True)
class ScoredMetric:
    """What a campaign has to know of a metric; scores name it by its key."""

    id: str
    key: str
    is_bool: bool
    higher_is_better: bool


class Evidence(Protocol):
    """Metrics and scores; of a campaign that has ended, those until then."""

    async def metric(self, project_id: str, id_or_key: str) -> ScoredMetric:
        """Raises NotFound."""

    async def direct(self, campaign: Campaign, metric: ScoredMetric) -> Sequence[Sample]:
        """Of the variants that have some."""

    async def comparisons(self, campaign: Campaign, metric: ScoredMetric) -> Sequence[Tally]:
        """Of the pairs of variants that have some; a pair may come in both orders."""
