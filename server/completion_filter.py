"""Which completions are sought: conditions, and how they are asked of the database."""

import operator
from collections.abc import Callable, Collection
from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum
from functools import singledispatch
from typing import Any, Final

from sqlalchemy import ColumnElement, and_, false, not_, or_, select, true, tuple_

from server.comparisons import ComparisonRow
from server.completion_rows import CompletionRow, Source
from server.feedback import FeedbackRow
from server.interaction_rows import InteractionLabelRow
from server.observed import storable


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
    """Has a direct score of the metric (its key) that meets every bound, for one of `reasons` if given."""

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

EVERY: Final = AllOf()

_COMPARE: dict[Against, Callable[[Any, float], Any]] = {
    each: getattr(operator, {"eq": "eq", "neq": "ne", "gt": "gt", "gte": "ge", "lt": "lt", "lte": "le"}[each])
    for each in Against
}


def clause(condition: Condition, account_id: str) -> ColumnElement[bool]:
    """`condition` on CompletionRow, of the project's completions alone.

    It is never NULL, so that its negation is true of all others.
    """
    return and_(CompletionRow.account_id == account_id, _clause(condition, account_id))


@singledispatch
def _clause(condition: Condition, _: str) -> ColumnElement[bool]:
    """By the kind of condition; the second argument is the project's id."""
    raise TypeError(condition)


@_clause.register
def _(condition: AllOf, account_id: str) -> ColumnElement[bool]:
    return and_(true(), *(_clause(each, account_id) for each in condition.conditions))


@_clause.register
def _(condition: AnyOf, account_id: str) -> ColumnElement[bool]:
    return or_(false(), *(_clause(each, account_id) for each in condition.conditions))


@_clause.register
def _(condition: Not, account_id: str) -> ColumnElement[bool]:
    return not_(_clause(condition.condition, account_id))


@_clause.register
def _(condition: Within, _: str) -> ColumnElement[bool]:
    bounds = [] if condition.since is None else [CompletionRow.created_at >= condition.since]
    bounds += [] if condition.until is None else [CompletionRow.created_at < condition.until]
    return and_(true(), *bounds)


@_clause.register
def _(condition: OfModel, _: str) -> ColumnElement[bool]:
    return _one_of(CompletionRow.model, condition.models)


@_clause.register
def _(condition: OfSession, _: str) -> ColumnElement[bool]:
    return _one_of(CompletionRow.session_id, [condition.session_id])


@_clause.register
def _(condition: OfUser, _: str) -> ColumnElement[bool]:
    return _one_of(CompletionRow.user_id, condition.users)


@_clause.register
def _(condition: Named, _: str) -> ColumnElement[bool]:
    return _one_of(CompletionRow.id, condition.ids)


@_clause.register
def _(condition: OfPrompt, _: str) -> ColumnElement[bool]:
    return _one_of(CompletionRow.prompt_hash, condition.hashes)


@_clause.register
def _(condition: FromSource, _: str) -> ColumnElement[bool]:
    return _one_of(CompletionRow.source, condition.sources)


@_clause.register
def _(condition: OfCampaign, _: str) -> ColumnElement[bool]:
    of_it = _one_of(CompletionRow.campaign_id, [condition.campaign_id])
    if condition.variant is None:
        return of_it
    return and_(of_it, _one_of(CompletionRow.variant, [condition.variant]))


@_clause.register
def _(condition: Labelled, account_id: str) -> ColumnElement[bool]:
    row = InteractionLabelRow
    has = [row.account_id == account_id, row.key == storable(condition.key)]
    if condition.values is not None:
        has.append(_one_of(row.value, condition.values))
    return CompletionRow.number.in_(select(row.number).where(*has))


@_clause.register
def _(condition: Scored, account_id: str) -> ColumnElement[bool]:
    row = FeedbackRow
    fits = [row.account_id == account_id, row.metric == storable(condition.metric)]
    fits += [_COMPARE[against](row.value, bound) for against, bound in condition.bounds]
    if condition.reasons is not None:
        fits.append(_one_of(row.reason, condition.reasons))
    return _PLACE.in_(select(row.number, row.choice).where(*fits))


@_clause.register
def _(condition: Compared, account_id: str) -> ColumnElement[bool]:
    row = ComparisonRow
    of_it = (row.account_id == account_id, row.metric == storable(condition.metric))
    preferred = select(row.preferred_number, row.preferred_choice).where(*of_it)
    other = select(row.other_number, row.other_choice).where(*of_it)
    return or_(_PLACE.in_(preferred), _PLACE.in_(other))


_PLACE = tuple_(CompletionRow.number, CompletionRow.choice)


def _one_of(column: Any, values: Collection[str]) -> ColumnElement[bool]:
    """Also where the column may be NULL: NULL is none of them."""
    found: ColumnElement[bool] = column.in_([storable(each) for each in values])
    return and_(column.is_not(None), found) if column.property.columns[0].nullable else found
