"""Projects: whose things are kept apart, and who may use them."""

import re

import strawberry
from strawberry.scalars import JSON

from server.errors import InvalidRequest
from server.graphql import metrics, users
from server.graphql.context import Info
from server.graphql.metrics import MetricWithContext
from server.graphql.model_services import ModelService, Services
from server.graphql.refused import refuse
from server.graphql.scalars import IdOrKey, Timestamp, Uuid
from server.graphql.users import Team
from server.projects import MAX_KEY, Membership
from server.roles import Role


@strawberry.type
class ProjectShare:
    team: Team
    role: users.Role
    is_owner: bool

    @classmethod
    def of(cls, account_id: str, email: str, role: Role) -> "ProjectShare":
        is_owner = role is Role.OWNER
        return cls(team=Team.of(account_id, email), role=users.Role.of(role), is_owner=is_owner)


@strawberry.type
class Project:
    membership: strawberry.Private[Membership]
    id: Uuid
    key: str
    name: str
    description: str
    created_at: Timestamp

    @classmethod
    def of(cls, membership: Membership) -> "Project":
        project = membership.project
        return cls(
            membership=membership,
            id=Uuid(project.id),
            key=project.key,
            name=project.name,
            description=project.description or "",
            created_at=Timestamp(project.created_at),
        )

    @strawberry.field
    async def metrics(self, info: Info) -> list[MetricWithContext]:
        return [metrics.listed(each) for each in await info.context.metrics.load(self.id)]

    @strawberry.field
    async def model_services(self, info: Info) -> list[ModelService]:
        return (await Services.of(info.context, self.id)).all()

    @strawberry.field
    def permissions(self, info: Info) -> list[str]:
        """The caller's."""
        return users.permissions(self.membership.role.at_most(info.context.principal.limit))

    @strawberry.field
    async def shares(self, info: Info) -> list[ProjectShare]:
        """Nobody but the account itself is in its home."""
        context = info.context
        members = await context.members.load(self.id)
        if not members and self.id == context.principal.member_id:
            account = await context.account()
            return [ProjectShare.of(account.id, account.email, Role.OWNER)]
        return [ProjectShare.of(each.account_id, each.email, each.role) for each in members]


@strawberry.input
class ProjectSettingsInput:
    default_metric: IdOrKey | None = None


@strawberry.input
class ProjectCreate:
    name: str
    team: IdOrKey | None = None
    key: str | None = None
    description: str | None = None
    gradient_color: str | None = None
    metadata: JSON | None = None
    settings: ProjectSettingsInput | None = None
    widgets: list[JSON] | None = None


@strawberry.type
class ProjectQueries:
    @strawberry.field
    async def projects(self, info: Info) -> list[Project]:
        """The caller's own, then those that the caller is a member of."""
        return [Project.of(each) for each in (await info.context.memberships()).values()]

    @strawberry.field
    async def project(self, info: Info, id_or_key: IdOrKey) -> Project | None:
        project_id = await info.context.find_project(id_or_key)
        return None if project_id is None else Project.of(await info.context.membership(project_id))


@strawberry.type
class ProjectMutations:
    @strawberry.mutation
    async def create_project(self, info: Info, input: ProjectCreate) -> Project:
        """The caller is its owner; members are added over /projects/{project}/members."""
        context = info.context
        refuse(
            {"gradientColor": input.gradient_color, "metadata": input.metadata, "widgets": input.widgets},
            "they are for a user interface that this server does not have",
        )
        settings = input.settings or ProjectSettingsInput()
        refuse(
            {"settings.defaultMetric": settings.default_metric},
            "a metric is made within its project, which is not there yet",
        )
        account = await context.account()
        if input.team not in (None, account.id, account.email):
            raise InvalidRequest(
                f"team is the caller's own, {account.email!r}: others are added as members", param="team"
            )
        context.principal.require(Role.MEMBER)
        made = await context.state.directory.projects.create(
            context.principal.member_id,
            key=input.key or _key(input.name),
            name=input.name,
            description=input.description,
        )
        context.forget()
        return Project.of(Membership(made, Role.OWNER))


def _key(name: str) -> str:
    return re.sub(r"[^a-z0-9]+", "-", name.lower())[:MAX_KEY].strip("-")
