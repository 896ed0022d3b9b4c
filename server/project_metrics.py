"""What a project scores its completions by: metrics of one kind each, known by a key."""

import math
import uuid
from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from enum import StrEnum
from typing import Any

from sqlalchemy import ColumnElement, ForeignKey, Index, String, Text, column, exists, or_, select
from sqlalchemy import table as sql_table
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.ext.asyncio import AsyncConnection
from sqlalchemy.orm import Mapped, mapped_column

from server.database import Database
from server.errors import Conflict, InvalidRequest, NotFound
from server.observed import storable
from server.store import Moment, Table, require_account

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
        raise InvalidRequest(f"metric {self.key!r} is a scalar: its values are finite numbers", param=param)


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
        """Without a key the name is the key. Raises Conflict where the project has a metric of that key,
        InvalidRequest for a text of another length than its column's."""
        metric = Metric(
            id=str(uuid.uuid4()),
            account_id=account_id,
            key=_fitting(name if key is None else key, "key"),
            name=_fitting(name, "name"),
            kind=kind,
            scoring=scoring,
            description=storable(description),
            unit=None if unit is None else _fitting(unit, "unit"),
            created_at=datetime.now(UTC),
        )
        async with self._database.writing() as connection:
            await require_account(connection, account_id)
            if not await _add(connection, metric):
                raise Conflict(f"metric {metric.key!r} exists already: choose another key", param="key")
        return metric

    async def find(self, account_id: str, id_or_key: str) -> Metric | None:
        async with self._database.reading() as connection:
            return await find_metric(connection, account_id, id_or_key)

    async def get(self, account_id: str, id_or_key: str, param: str = "metric") -> Metric:
        """Raises NotFound, as Adaptive's clients know it."""
        found = await self.find(account_id, id_or_key)
        if found is None:
            raise NotFound(
                f"metric {id_or_key!r} is not known here: create it before you score by it", param=param
            )
        return found

    async def list(self, account_ids: Collection[str]) -> Sequence[Metric]:
        """Those of these projects, oldest first."""
        query = (
            select(MetricRow.__table__)
            .where(MetricRow.account_id.in_(account_ids))
            .order_by(MetricRow.created_at, MetricRow.key)
        )
        async with self._database.reading() as connection:
            return [metric_of(row) for row in (await connection.execute(query)).all()]

    async def lower(self, key: str) -> Collection[str]:
        """The projects in which the lowest score by the metric of that key is the best."""
        query = select(MetricRow.account_id).where(
            MetricRow.key == storable(key), MetricRow.scoring == Scoring.LOWER_IS_BETTER
        )
        async with self._database.reading() as connection:
            return set((await connection.execute(query)).scalars())

    async def uses(self, metrics: Collection[Metric]) -> Mapping[str, MetricUse]:
        """By the metrics' ids."""

        def there(table: str) -> ColumnElement[bool]:
            rows = sql_table(table, column("account_id"), column("metric"))
            same = (rows.c.account_id == MetricRow.account_id, rows.c.metric == MetricRow.key)
            return exists().where(*same)

        query = select(MetricRow.id, there("feedback"), there("comparisons"))
        query = query.where(MetricRow.id.in_([each.id for each in metrics]))
        async with self._database.reading() as connection:
            rows = (await connection.execute(query)).all()
        return {row[0]: MetricUse(bool(row[1]), bool(row[2])) for row in rows}


async def find_metric(connection: AsyncConnection, account_id: str, id_or_key: str) -> Metric | None:
    """One of that id, or else of that key."""
    wanted = storable(id_or_key)
    query = (
        select(MetricRow.__table__)
        .where(MetricRow.account_id == account_id, or_(MetricRow.id == wanted, MetricRow.key == wanted))
        .order_by((MetricRow.id == wanted).desc())
        .limit(1)
    )
    row = (await connection.execute(query)).first()
    return None if row is None else metric_of(row)


async def ensure_metric(connection: AsyncConnection, account_id: str, key: str) -> None:
    """A scalar of that key, unless there is a metric of it."""
    key = storable(key)
    now = datetime.now(UTC)
    scalar, better = MetricKind.SCALAR, Scoring.HIGHER_IS_BETTER
    await _add(connection, Metric(str(uuid.uuid4()), account_id, key, key, scalar, better, "", None, now))


async def _add(connection: AsyncConnection, metric: Metric) -> bool:
    """Whether there was none of its key."""
    made = postgresql.insert if connection.dialect.name == "postgresql" else sqlite.insert
    query = made(MetricRow).on_conflict_do_nothing(index_elements=["account_id", "key"])
    return (await connection.execute(query.values(**asdict(metric)))).rowcount > 0


def _fitting(text: str, param: str) -> str:
    if not 0 < len(text) <= MAX_METRIC:
        raise InvalidRequest(f"a metric's {param} has 1 to {MAX_METRIC} characters", param=param)
    return storable(text)


def metric_of(row: Any) -> Metric:
    values = {name: getattr(row, name) for name in Metric.__dataclass_fields__}
    return Metric(**values | {"kind": MetricKind(row.kind), "scoring": Scoring(row.scoring)})
