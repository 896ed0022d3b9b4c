"""Interactions that happened elsewhere, with what was thought of them."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from server.database import Database
from server.project_metrics import Metric


@dataclass(frozen=True, slots=True)
class GivenScore:
    metric: Metric
    value: float
    reason: str | None = None
    details: Any = None
    created_at: datetime | None = None


@dataclass(frozen=True, slots=True)
class Upload:
    """`model` "" where it is not known."""

    account_id: str
    messages: Sequence[Mapping[str, Any]]
    text: str
    model: str
    session_id: str
    user_id: str | None
    labels: Mapping[str, str]
    created_at: datetime
    campaign_id: str | None = None
    variant: str | None = None
    scores: Sequence[GivenScore] = ()


@dataclass(frozen=True, slots=True)
class Uploaded:
    completion_id: str
    session_id: str
    feedback_ids: Sequence[str]


class Uploads:
    """Every upload is one transaction. Raises Unavailable when the database does not answer."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def add(self, upload: Upload) -> Uploaded:
        raise NotImplementedError
