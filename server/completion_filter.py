"""Which completions are sought: conditions, and how they are asked of the database."""

from collections.abc import Collection
from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum

from server.completion_rows import Source


@dataclass(frozen=True, slots=True)
class OfModel:
    models: Collection[str]


@dataclass(frozen=True, slots=True)
class Within:
    """`since` is within, `until` is not."""

    since: datetime | None = None
    until: datetime | None = None


@dataclass(frozen=True, slots=True)
class OfSession:
    session_id: str


@dataclass(frozen=True, slots=True)
class OfUser:
    users: Collection[str]


@dataclass(frozen=True, slots=True)
class Named:
    """By completions' ids."""

    ids: Collection[str]


@dataclass(frozen=True, slots=True)
class Labelled:
    """`values` None: whatever its value."""

    key: str
    values: Collection[str] | None = None


@dataclass(frozen=True, slots=True)
class OfPrompt:
    hashes: Collection[str]


@dataclass(frozen=True, slots=True)
class FromSource:
    sources: Collection[Source]


@dataclass(frozen=True, slots=True)
class OfCampaign:
    campaign_id: str
    variant: str | None = None


class Against(StrEnum):
    EQUAL = "eq"
    UNEQUAL = "neq"
    ABOVE = "gt"
    AT_LEAST = "gte"
    BELOW = "lt"
    AT_MOST = "lte"


@dataclass(frozen=True, slots=True)
class Scored:
    """Has a direct score of the metric (its key) that meets every bound, and has one of `reasons` if given."""

    metric: str
    bounds: Collection[tuple[Against, float]] = ()
    reasons: Collection[str] | None = None


@dataclass(frozen=True, slots=True)
class Compared:
    """Stands in a comparison by the metric (its key)."""

    metric: str


@dataclass(frozen=True, slots=True)
class AllOf:
    """Without conditions: every completion."""

    conditions: Collection["Condition"] = ()


@dataclass(frozen=True, slots=True)
class AnyOf:
    """Without conditions: none."""

    conditions: Collection["Condition"]


@dataclass(frozen=True, slots=True)
class Not:
    condition: "Condition"


Condition = (
    OfModel
    | Within
    | OfSession
    | OfUser
    | Named
    | Labelled
    | OfPrompt
    | FromSource
    | OfCampaign
    | Scored
    | Compared
    | AllOf
    | AnyOf
    | Not
)
