"""What came of a session: scores of the whole, by a metric of its project."""

from dataclasses import dataclass
from datetime import datetime

from server.database import Database


@dataclass(frozen=True, slots=True)
class Outcome:
    id: str
    account_id: str
    metric: str
    value: float
    session_id: str
    user_id: str | None
    created_at: datetime


class Outcomes:
    """Every change is one transaction. Raises Unavailable when the database does not answer."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def add(
        self, account_id: str, metric: str, value: float, session_id: str, *, user_id: str | None
    ) -> Outcome:
        """`metric` is a key that there is. Raises NotFound where nothing of that session is stored."""
        raise NotImplementedError
