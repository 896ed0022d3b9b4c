"""Which of two completions somebody preferred, by a metric of their project."""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum

from server.database import Database


class Tie(StrEnum):
    GOOD = "good"
    BAD = "bad"


@dataclass(frozen=True, slots=True)
class Comparison:
    """`preferred` and `other` are completions' ids; of two that tied neither is."""

    id: str
    account_id: str
    metric: str
    preferred: str
    other: str
    tied: Tie | None
    user_id: str | None
    created_at: datetime


class Comparisons:
    """Every change is one transaction. Raises Unavailable when the database does not answer."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def add(
        self, account_id: str, metric: str, preferred: str, other: str, *, tied: Tie | None, user_id: str | None
    ) -> Comparison:
        """`metric` is a key that there is; `preferred` and `other` are completions' ids. Raises NotFound for
        one that the project has not stored, InvalidRequest for one beside itself."""
        raise NotImplementedError
