"""What a project scores its completions by: metrics of one kind each, known by a key."""

import math
import uuid
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from enum import StrEnum
from typing import Any

from sqlalchemy import ForeignKey, Index, Insert, String, Text, insert, or_, select
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.exc import IntegrityError
from sqlalchemy.ext.asyncio import AsyncConnection
from sqlalchemy.orm import Mapped, mapped_column

from server.database import Database
from server.errors import Conflict, InvalidRequest, NotFound
from server.observed import storable
from server.store import Moment, Table

MAX_METRIC = 200  # characters


class MetricKind(StrEnum):
    """A scalar's scores are finite numbers, those of a bool 0 or 1."""

    SCALAR = "SCALAR"
    BOOL = "BOOL"


class Scoring(StrEnum):
    HIGHER_IS_BETTER = "HIGHER_IS_BETTER"
    LOWER_IS_BETTER = "LOWER_IS_BETTER"


class MetricRow(Table):
    __tablename__ = "metrics"
    __table_args__ = (Index(None, "account_id", "key", unique=True),)

    id: Mapped[str] = mapped_column(String(36), primary_key=True)
    account_id: Mapped[str] = mapped_column(ForeignKey("accounts.id", ondelete="CASCADE"))
    key: Mapped[str] = mapped_column(String(MAX_METRIC))
    name: Mapped[str] = mapped_column(String(MAX_METRIC))
    kind: Mapped[str] = mapped_column(String(10))
    scoring: Mapped[str] = mapped_column(String(20))
    description: Mapped[str] = mapped_column(Text)
    unit: Mapped[str | None] = mapped_column(String(MAX_METRIC))
    created_at: Mapped[datetime] = mapped_column(Moment)


@dataclass(frozen=True, slots=True)
class Metric:
    """`account_id` is its project's; scores refer to it by its key, which stays."""

    id: str
    account_id: str
    key: str
    name: str
    kind: MetricKind
    scoring: Scoring
    description: str
    unit: str | None
    created_at: datetime

    def value(self, given: object, param: str = "value") -> float:
        """`given` as a score. Raises InvalidRequest where it is none of this metric."""
        if self.kind is MetricKind.BOOL:
            if isinstance(given, bool | int | float) and given in (0, 1):
                return float(given)
            raise InvalidRequest(
                f"metric {self.key!r} is a bool: its values are 0, 1, true and false", param=param
            )
        if isinstance(given, int | float) and not isinstance(given, bool):
            try:
                value = float(given)
            except OverflowError:
                value = math.inf
            if math.isfinite(value):
                return value
        raise InvalidRequest(
            f"metric {self.key!r} is a scalar: its values are finite numbers", param=param
        )


@dataclass(frozen=True, slots=True)
class MetricUse:
    """Whether there are direct scores of a metric, and comparisons by it."""

    direct: bool
    compared: bool


class ProjectMetrics:
    """Every change is one transaction. Raises Unavailable when the database does not answer."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def create(
        self,
        account_id: str,
        *,
        key: str | None,
        name: str,
        kind: MetricKind,
        scoring: Scoring = Scoring.HIGHER_IS_BETTER,
        description: str = "",
        unit: str | None = None,
    ) -> Metric:
        """Without a key the name is the key. Raises Conflict where the project has a metric of that key."""
        raise NotImplementedError

    async def find(self, account_id: str, id_or_key: str) -> Metric | None:
        raise NotImplementedError

    async def get(self, account_id: str, id_or_key: str, param: str = "metric") -> Metric:
        """Raises NotFound, as Adaptive's clients know it."""
        raise NotImplementedError

    async def list(self, account_ids: Collection[str]) -> Sequence[Metric]:
        """Those of these projects, oldest first."""
        raise NotImplementedError

    async def uses(self, metrics: Collection[Metric]) -> Mapping[str, MetricUse]:
        """By the metrics' ids."""
        raise NotImplementedError
