"""A/B tests, which Adaptive calls campaigns."""

import strawberry

from server.ab_report import Interval, Report, Tally, VariantReport
from server.campaign import Campaign, NewCampaign, ScoreType, Status
from server.errors import NotFound
from server.graphql import metrics
from server.graphql.context import Context, Info
from server.graphql.metrics import Metric
from server.graphql.model_services import ModelService, Services
from server.graphql.projects import Project
from server.graphql.scalars import IdOrKey, Timestamp, Uuid
from server.roles import Role

strawberry.enum(ScoreType)
strawberry.enum(Status, name="AbcampaignStatus")


@strawberry.type
class AbInterval:
    start: float
    middle: float
    end: float

    @classmethod
    def of(cls, interval: Interval) -> "AbInterval":
        return cls(start=interval.start, middle=interval.middle, end=interval.end)


@strawberry.type
class AbComparisons:
    """As its variant sees them."""

    scores: int
    wins: int
    losses: int
    ties_good: int
    ties_bad: int
    variant: ModelService


@strawberry.type
class AbVariantReport:
    variant: ModelService
    interval: AbInterval | None
    scores: int
    comparisons: list[AbComparisons] | None


@strawberry.type
class AbReport:
    p_value: float | None
    variants: list[AbVariantReport]

    @classmethod
    def of(cls, report: Report, services: Services) -> "AbReport":
        return cls(p_value=report.p_value, variants=[_variant(each, services) for each in report.variants])


def _variant(report: VariantReport, services: Services) -> AbVariantReport:
    compared = report.comparisons
    return AbVariantReport(
        variant=services.named(report.model),
        interval=None if report.interval is None else AbInterval.of(report.interval),
        scores=report.scores,
        comparisons=None if compared is None else [_comparisons(each, services) for each in compared],
    )


def _comparisons(tally: Tally, services: Services) -> AbComparisons:
    return AbComparisons(
        scores=tally.scores,
        wins=tally.wins,
        losses=tally.losses,
        ties_good=tally.ties_good,
        ties_bad=tally.ties_bad,
        variant=services.named(tally.second),
    )


@strawberry.type
class Abcampaign:
    source: strawberry.Private[Campaign]
    id: Uuid
    key: str
    name: str
    status: Status
    begin_date: Timestamp
    end_date: Timestamp | None
    score_type: ScoreType
    traffic_split: float
    auto_deploy: bool

    @classmethod
    def of(cls, campaign: Campaign) -> "Abcampaign":
        return cls(
            source=campaign,
            id=Uuid(campaign.id),
            key=campaign.key,
            name=campaign.name,
            status=campaign.status,
            begin_date=Timestamp(campaign.begin_date),
            end_date=None if campaign.end_date is None else Timestamp(campaign.end_date),
            score_type=campaign.score_type,
            traffic_split=campaign.traffic_split,
            auto_deploy=campaign.auto_deploy,
        )

    @strawberry.field
    async def metric(self, info: Info) -> Metric | None:
        known = await info.context.metrics.load(self.source.project_id)
        found = next((each for each in known if self.source.metric in (each.id, each.key)), None)
        return None if found is None else metrics.metric(found)

    @strawberry.field
    async def project(self, info: Info) -> Project | None:
        return Project.of(await info.context.membership(self.source.project_id))

    @strawberry.field
    async def models(self, info: Info) -> list[ModelService]:
        services = await Services.of(info.context, self.source.project_id)
        return [services.named(each) for each in self.source.models]

    @strawberry.field
    async def winner(self, info: Info) -> ModelService | None:
        if self.source.winner is None:
            return None
        return (await Services.of(info.context, self.source.project_id)).named(self.source.winner)

    @strawberry.field
    async def scores(self, info: Info) -> int:
        return (await info.context.reports.load(self.source)).scores

    @strawberry.field
    async def has_enough_scores(self, info: Info) -> bool:
        return (await info.context.reports.load(self.source)).has_enough_scores

    @strawberry.field
    async def report(self, info: Info) -> AbReport:
        services = await Services.of(info.context, self.source.project_id)
        return AbReport.of(await info.context.reports.load(self.source), services)


@strawberry.input
class AbcampaignCreate:
    key: str
    metric: IdOrKey
    project: IdOrKey
    model_services: list[IdOrKey]
    auto_deploy: bool
    traffic_split: float
    score_type: ScoreType = ScoreType.DIRECT
    name: str | None = None


@strawberry.input
class AbCampaignFilter:
    active: bool | None = None
    status: Status | None = None
    project: IdOrKey | None = None


@strawberry.type
class CampaignQueries:
    @strawberry.field
    async def ab_campaigns(self, info: Info, filter: AbCampaignFilter) -> list[Abcampaign]:
        """Newest first; without a project, those of all the caller's."""
        context = info.context
        projects = await context.memberships()
        sought = list(projects) if filter.project is None else [await context.enter(filter.project)]
        found = await context.state.campaigns.list(sought, active=filter.active, status=filter.status)
        return [Abcampaign.of(each) for each in found]

    @strawberry.field
    async def ab_campaign(self, info: Info, id_or_key: IdOrKey) -> Abcampaign | None:
        try:
            return Abcampaign.of(await _find(info.context, id_or_key))
        except NotFound:
            return None


@strawberry.type
class CampaignMutations:
    @strawberry.mutation
    async def create_ab_campaign(self, info: Info, input: AbcampaignCreate) -> Abcampaign:
        """One that deploys its winner takes an owner, as changing the default model does."""
        context = info.context
        project_id = await context.enter(input.project, Role.OWNER if input.auto_deploy else Role.MEMBER)
        services = await Services.of(context, project_id)
        made = await context.state.campaigns.create(
            project_id,
            NewCampaign(
                key=input.key,
                metric=input.metric,
                models=[services.name(each) for each in input.model_services],
                name=input.name,
                score_type=input.score_type,
                traffic_split=input.traffic_split,
                auto_deploy=input.auto_deploy,
            ),
        )
        return Abcampaign.of(made)

    @strawberry.mutation
    async def cancel_ab_campaign(self, info: Info, input: IdOrKey) -> str:
        """Returns its key."""
        context = info.context
        found = await _find(context, input)
        await context.enter(found.project_id, Role.MEMBER)
        return (await context.state.campaigns.cancel([found.project_id], found.id)).key


async def _find(context: Context, id_or_key: str) -> Campaign:
    """Of the project that the call is within, else of any of the caller's. Raises NotFound, Conflict."""
    campaigns = context.state.campaigns
    try:
        return await campaigns.get([context.principal.account_id], id_or_key)
    except NotFound:
        return await campaigns.get(list(await context.memberships()), id_or_key)
