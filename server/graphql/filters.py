"""Which completions a client seeks: Adaptive's filter expressions → conditions that the store knows."""

from collections.abc import Callable, Collection, Iterable, Iterator
from typing import TypeVar

import strawberry

from server.completion_filter import (
    Against,
    AllOf,
    AnyOf,
    Compared,
    Condition,
    FromSource,
    Labelled,
    Named,
    Not,
    OfModel,
    OfPrompt,
    OfSession,
    OfUser,
    Scored,
    Within,
)
from server.completion_rows import Source
from server.errors import InvalidRequest, NotFound
from server.graphql.context import Context
from server.graphql.model_services import Services
from server.graphql.refused import refuse
from server.graphql.scalars import IdOrKey, Timestamp, Uuid
from server.project_metrics import Metric

MAX_DEPTH, MAX_CONDITIONS = 8, 100

strawberry.enum(Source, name="CompletionSource")


@strawberry.input
class TimeRange:
    from_: Timestamp = strawberry.field(name="from")
    to: Timestamp


@strawberry.input
class StringCondition:
    eq: str | None = None
    in_: list[str] | None = strawberry.field(default=None, name="in")
    neq: str | None = None


@strawberry.input
class IdOrKeyCondition:
    eq: IdOrKey | None = None
    in_: list[IdOrKey] | None = strawberry.field(default=None, name="in")
    neq: IdOrKey | None = None


@strawberry.input
class TextCondition:
    eq: str | None = None
    contains: str | None = None


@strawberry.input
class LabelCondition:
    """Without a value: has the label, whatever it says."""

    key: str
    value: StringCondition | None = None


@strawberry.input
class LabelFilter:
    key: str
    value: list[str] | None = None


@strawberry.input
class FloatNumericCondition:
    eq: float | None = None
    neq: float | None = None
    gt: float | None = None
    gte: float | None = None
    lt: float | None = None
    lte: float | None = None


@strawberry.input
class ScoreCondition:
    metric: IdOrKey
    value: FloatNumericCondition | None = None
    reasons: list[str] | None = None


@strawberry.input
class CompletionScoreFilterInput:
    metric: IdOrKey
    gt: float | None = None
    gte: float | None = None
    eq: float | None = None
    neq: float | None = None
    lt: float | None = None
    lte: float | None = None
    reasons: list[str] | None = None


@strawberry.input
class CompletionComparisonFilterInput:
    metric: IdOrKey


@strawberry.input
class CompletionFilterExpression:
    """What stands side by side must all hold. `user_id` is the `user` of the request."""

    and_: list["CompletionFilterExpression"] | None = strawberry.field(default=None, name="and")
    or_: list["CompletionFilterExpression"] | None = strawberry.field(default=None, name="or")
    not_: "CompletionFilterExpression | None" = strawberry.field(default=None, name="not")
    timerange: TimeRange | None = None
    model: IdOrKeyCondition | None = None
    label: LabelCondition | None = None
    scores: ScoreCondition | None = None
    source: Source | None = None
    prompt_hash: StringCondition | None = None
    session_id: str | None = None
    user_id: str | None = None
    created_by: IdOrKeyCondition | None = None
    completion_id: Uuid | None = None
    completion: TextCondition | None = None
    prompt: TextCondition | None = None


@strawberry.input
class ListCompletionsFilterInput:
    """Either `advanced_filter` or the fields before it."""

    project: IdOrKey
    models: list[IdOrKey] | None = None
    timerange: TimeRange | None = None
    session_id: str | None = None
    created_by: str | None = None
    scores: list[CompletionScoreFilterInput] | None = None
    comparisons: list[CompletionComparisonFilterInput] | None = None
    labels: list[LabelFilter] | None = None
    prompt_hash: str | None = None
    completion_id: Uuid | None = None
    source: list[Source] | None = None
    completion: str | None = None
    prompt: str | None = None
    advanced_filter: CompletionFilterExpression | None = None


_T = TypeVar("_T")
_TEXT = "stored texts cannot be searched"


class Filters:
    """Conditions of one project, whose names of models and metrics they may use."""

    def __init__(self, services: Services, metrics: Collection[Metric]) -> None:
        self._services = services
        self._metrics = metrics
        self._count = 0

    @classmethod
    async def of(cls, context: Context, project_id: str) -> "Filters":
        return cls(await Services.of(context, project_id), await context.metrics.load(project_id))

    def condition(self, sought: ListCompletionsFilterInput) -> Condition:
        """Raises InvalidRequest for what cannot be sought, NotFound for an unknown metric."""
        simple = list(self._simple(sought))
        if sought.advanced_filter is None:
            return AllOf(simple)
        if simple:
            raise InvalidRequest(
                "give either advancedFilter or the simple fields of a filter", param="filter.advancedFilter"
            )
        return self._expression(sought.advanced_filter, 1)

    def _simple(self, sought: ListCompletionsFilterInput) -> Iterator[Condition]:
        refuse({"filter.completion": sought.completion, "filter.prompt": sought.prompt}, _TEXT)
        yield from _given(sought.models, lambda models: OfModel(self._models(models)))
        yield from _given(sought.timerange, _within)
        yield from _given(sought.session_id, OfSession)
        yield from _given(sought.created_by, lambda user: OfUser([user]))
        for score in sought.scores or ():
            yield Scored(self._metric(score.metric), _bounds(score), score.reasons)
        for comparison in sought.comparisons or ():
            yield Compared(self._metric(comparison.metric))
        for label in sought.labels or ():
            yield Labelled(label.key, label.value)
        yield from _given(sought.prompt_hash, lambda prompt: OfPrompt([prompt]))
        yield from _given(sought.completion_id, lambda name: Named([name]))
        yield from _given(sought.source, FromSource)

    def _expression(self, sought: CompletionFilterExpression, depth: int) -> Condition:
        if depth > MAX_DEPTH:
            raise InvalidRequest(f"a filter nests at most {MAX_DEPTH} levels", param="filter.advancedFilter")
        conditions = [*self._connected(sought, depth), *self._plain(sought)]
        if depth > 1 and not conditions:
            raise InvalidRequest(
                "a condition of the filter says nothing (Adaptive's SDK leaves out user_id, feedbacks and"
                " comparisons: ask by createdBy and scores)",
                param="filter.advancedFilter",
            )
        self._count += len(conditions)
        if self._count > MAX_CONDITIONS:
            raise InvalidRequest(
                f"a filter has at most {MAX_CONDITIONS} conditions", param="filter.advancedFilter"
            )
        return conditions[0] if len(conditions) == 1 else AllOf(conditions)

    def _connected(self, sought: CompletionFilterExpression, depth: int) -> Iterator[Condition]:
        if sought.and_ is not None:
            yield AllOf([self._expression(each, depth + 1) for each in sought.and_])
        if sought.or_ is not None:
            yield AnyOf([self._expression(each, depth + 1) for each in sought.or_])
        if sought.not_ is not None:
            yield Not(self._expression(sought.not_, depth + 1))

    def _plain(self, sought: CompletionFilterExpression) -> Iterator[Condition]:
        refuse({"filter.completion": sought.completion, "filter.prompt": sought.prompt}, _TEXT)
        yield from _given(sought.timerange, _within)
        yield from _matching(sought.model, lambda names: OfModel(self._models(names)))
        yield from _labelled(sought.label)
        yield from _given(sought.scores, self._scored)
        yield from _given(sought.source, lambda source: FromSource([source]))
        yield from _matching(sought.prompt_hash, OfPrompt)
        yield from _given(sought.session_id, OfSession)
        yield from _given(sought.user_id, lambda user: OfUser([user]))
        yield from _matching(sought.created_by, OfUser)
        yield from _given(sought.completion_id, lambda name: Named([name]))

    def _scored(self, sought: ScoreCondition) -> Condition:
        return Scored(self._metric(sought.metric), _bounds(sought.value), sought.reasons)

    def _models(self, references: Iterable[str]) -> Collection[str]:
        """One that is served no longer is sought as it is written."""
        return [name for each in references for name in self._services.answers_as(each)]

    def _metric(self, reference: str) -> str:
        for each in self._metrics:
            if reference in (each.id, each.key):
                return each.key
        raise NotFound(f"metric {reference!r} is not known", param="metric")


def _within(range_: TimeRange) -> Within:
    return Within(since=range_.from_, until=range_.to)


def _given(value: _T | None, condition: Callable[[_T], Condition]) -> Iterator[Condition]:
    if value is not None:
        yield condition(value)


def _matching(
    sought: StringCondition | IdOrKeyCondition | None, condition: Callable[[list[str]], Condition]
) -> Iterator[Condition]:
    if sought is None:
        return
    if sought.eq is not None:
        yield condition([sought.eq])
    if sought.in_ is not None:
        yield condition(list(sought.in_))
    if sought.neq is not None:
        yield Not(condition([sought.neq]))


def _labelled(sought: LabelCondition | None) -> Iterator[Condition]:
    """One that must not have a value must still have the label."""
    if sought is not None:
        yield Labelled(sought.key)
        yield from _matching(sought.value, lambda values: Labelled(sought.key, values))


def _bounds(
    given: FloatNumericCondition | CompletionScoreFilterInput | None,
) -> list[tuple[Against, float]]:
    values: list[tuple[Against, float | None]] = [
        (each, getattr(given, each.value, None)) for each in Against
    ]
    return [(each, value) for each, value in values if value is not None]
