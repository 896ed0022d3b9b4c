"""Metrics: what the completions of a project are scored by."""

from typing import TYPE_CHECKING, Annotated, TypeVar

import strawberry

from server import project_metrics as stored
from server.graphql.context import Info
from server.graphql.scalars import IdOrKey, Timestamp, Uuid
from server.project_metrics import MetricKind, Scoring
from server.roles import Role

if TYPE_CHECKING:
    from server.graphql.projects import Project

strawberry.enum(MetricKind)
strawberry.enum(Scoring, name="MetricScoringType")


@strawberry.type
class MetricWithContext:
    """A metric as its project lists it."""

    source: strawberry.Private[stored.Metric]
    id: Uuid
    key: str | None
    name: str
    kind: MetricKind
    description: str
    scoring_type: Scoring
    unit: str | None
    created_at: Timestamp


@strawberry.type
class Metric(MetricWithContext):
    @strawberry.field
    async def has_direct_scores(self, info: Info) -> bool:
        return (await info.context.uses.load(self.source)).direct

    @strawberry.field
    async def has_comparison_scores(self, info: Info) -> bool:
        return (await info.context.uses.load(self.source)).compared

    @strawberry.field
    async def projects(
        self, info: Info
    ) -> list[Annotated["Project", strawberry.lazy("server.graphql.projects")]]:
        """The one that it belongs to."""
        from server.graphql.projects import Project  # noqa: PLC0415 - they name each other

        return [Project.of(await info.context.membership(self.source.account_id))]


def metric(source: stored.Metric) -> Metric:
    return _shown(Metric, source)


def listed(source: stored.Metric) -> MetricWithContext:
    return _shown(MetricWithContext, source)


_M = TypeVar("_M", bound=MetricWithContext)


def _shown(kind: type[_M], source: stored.Metric) -> _M:
    return kind(
        source=source,
        id=Uuid(source.id),
        key=source.key,
        name=source.name,
        kind=source.kind,
        description=source.description,
        scoring_type=source.scoring,
        unit=source.unit,
        created_at=Timestamp(source.created_at),
    )


@strawberry.input
class MetricCreate:
    name: str
    kind: MetricKind
    key: str | None = None
    scoring_type: Scoring = Scoring.HIGHER_IS_BETTER
    description: str | None = None
    unit: str | None = None


@strawberry.type
class MetricQueries:
    @strawberry.field
    async def metrics(self, info: Info) -> list[Metric]:
        """Of all the caller's projects."""
        projects = await info.context.memberships()
        return [metric(each) for each in await info.context.state.metrics.list(list(projects))]

    @strawberry.field
    async def metric(
        self, info: Info, metric_id_or_key: IdOrKey, project_id_or_key: IdOrKey
    ) -> Metric | None:
        project = await info.context.enter(project_id_or_key)
        found = await info.context.state.metrics.find(project, metric_id_or_key)
        return None if found is None else metric(found)


@strawberry.type
class MetricMutations:
    @strawberry.mutation
    async def create_metric(self, info: Info, project: IdOrKey, input: MetricCreate) -> Metric:
        made = await info.context.state.metrics.create(
            await info.context.enter(project, Role.MEMBER),
            key=input.key,
            name=input.name,
            kind=input.kind,
            scoring=input.scoring_type,
            description=input.description or "",
            unit=input.unit,
        )
        return metric(made)
