"""What the resolvers of one GraphQL request share: who calls, the stores, and what was loaded already."""

import asyncio
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Generic, Protocol, TypeVar

import strawberry
from strawberry.dataloader import DataLoader

from server.ab_report import Report
from server.addressing import Directory
from server.aliases import Alias
from server.auth import Principal
from server.campaign import Campaign
from server.campaigns import Campaigns
from server.completion_filter import Named
from server.completions import Completion, Completions, Paging
from server.errors import InvalidRequest, NotFound
from server.feedback import FeedbackStore
from server.interaction_log import InteractionLog
from server.project_metrics import Metric, MetricUse, ProjectMetrics
from server.projects import Member, Membership
from server.roles import Role
from server.store import Account, Store

MAX_PROJECTS = 20_000  # in one answer, each as often as it is shown
_BATCH = 200  # completions looked up at once
_T = TypeVar("_T")


class GraphqlState(Protocol):
    """What the schema uses of `app.state.steersman`."""

    @property
    def store(self) -> Store: ...
    @property
    def directory(self) -> Directory: ...
    @property
    def metrics(self) -> ProjectMetrics: ...
    @property
    def completions(self) -> Completions: ...
    @property
    def feedback(self) -> FeedbackStore: ...
    @property
    def interaction_log(self) -> InteractionLog: ...
    @property
    def campaigns(self) -> Campaigns: ...


class _Once(Generic[_T]):
    """Made when first asked for, however many ask at once."""

    def __init__(self, make: Callable[[], Awaitable[_T]]) -> None:
        self._make = make
        self._made: asyncio.Future[_T] | None = None

    async def get(self) -> _T:
        if self._made is None:
            self._made = asyncio.ensure_future(self._make())
        return await self._made


class Context:
    """Of one request. What it loads is what there was at first; a mutation calls `forget`."""

    def __init__(self, state: GraphqlState, principal: Principal) -> None:
        self.state = state
        self.principal = principal
        self._shown = 0
        self.forget()

    def forget(self) -> None:
        self._account = _Once(lambda: self.state.store.account(self.principal.member_id))
        self._memberships = _Once(self._load_memberships)
        self._aliases = _Once(self._load_aliases)
        self.members: DataLoader[str, Sequence[Member]] = DataLoader(self._load_members)
        self.metrics: DataLoader[str, Sequence[Metric]] = DataLoader(self._load_metrics)
        self.uses: DataLoader[Metric, MetricUse] = DataLoader(self._load_uses)
        self.completions: DataLoader[tuple[str, str], Completion | None] = DataLoader(
            self._load_completions, max_batch_size=_BATCH
        )
        self.reports: DataLoader[Campaign, Report] = DataLoader(self._load_reports)

    async def memberships(self) -> Mapping[str, Membership]:
        """The caller's projects by their ids; the one that the call is within comes first."""
        return await self._memberships.get()

    async def aliases(self) -> Mapping[str, Sequence[Alias]]:
        """Of all the caller's projects, by the projects' ids."""
        return await self._aliases.get()

    async def membership(self, project_id: str) -> Membership:
        """Raises NotFound, and InvalidRequest where the answer grows too large: whatever leads back to
        itself, as projects have models and models projects, comes by here."""
        self._shown += 1
        if self._shown > MAX_PROJECTS:
            raise InvalidRequest(
                f"The answer would show more than {MAX_PROJECTS} projects: ask for less at once."
            )
        found = (await self.memberships()).get(project_id)
        if found is None:
            raise NotFound("There is no such project that you are a member of.", param="project")
        return found

    async def account(self) -> Account:
        """Who calls."""
        return await self._account.get()

    async def find_project(self, id_or_key: str) -> str | None:
        """The id of the caller's project of that id or key."""
        try:
            return await self.enter(id_or_key)
        except NotFound:
            return None

    async def enter(self, project: str, needs: Role = Role.READER) -> str:
        """The id of the project of that id or key. Raises NotFound and Forbidden."""
        entered = await self.state.directory.projects.enter(self.principal, project, needs=needs)
        return entered.account_id

    async def _load_memberships(self) -> Mapping[str, Membership]:
        found = {
            each.project.id: each for each in await self.state.directory.projects.of(self.principal.member_id)
        }
        within = self.principal.account_id
        return {each: found[each] for each in sorted(found, key=lambda each: each != within)}

    async def _load_aliases(self) -> Mapping[str, Sequence[Alias]]:
        return await self.state.directory.aliases.of(list(await self.memberships()))

    async def _load_members(self, project_ids: list[str]) -> list[Sequence[Member]]:
        found = await self.state.directory.projects.members_of(project_ids)
        return [found.get(each, ()) for each in project_ids]

    async def _load_metrics(self, project_ids: list[str]) -> list[Sequence[Metric]]:
        found: dict[str, list[Metric]] = {each: [] for each in project_ids}
        for metric in await self.state.metrics.list(project_ids):
            found[metric.account_id].append(metric)
        return [found[each] for each in project_ids]

    async def _load_uses(self, metrics: list[Metric]) -> list[MetricUse]:
        found = await self.state.metrics.uses(metrics)
        return [found[each.id] for each in metrics]

    async def _load_completions(self, wanted: list[tuple[str, str]]) -> list[Completion | None]:
        found: dict[tuple[str, str], Completion] = {}
        for project_id in {project_id for project_id, _ in wanted}:
            ids = [each for owner, each in wanted if owner == project_id]
            page = await self.state.completions.list(project_id, Named(ids), paging=Paging(first=len(ids)))
            found |= {(project_id, each.id): each for each in page.completions}
        return [found.get(each) for each in wanted]

    async def _load_reports(self, campaigns: list[Campaign]) -> list[Report]:
        return [await self.state.campaigns.report(each) for each in campaigns]


Info = strawberry.Info[Context, None]
