"""Users, and the teams through which Adaptive shares projects: here each account is a team of its own."""

import uuid
from datetime import UTC, datetime

import strawberry

from server.graphql.context import Info
from server.graphql.scalars import Timestamp, Uuid
from server.roles import Role as StoredRole
from server.store import Account

_NAMESPACE = uuid.UUID("0d4d9a3c-6f25-5b0e-8c7a-1f3b5c9d7e03")
_ALWAYS = Timestamp(datetime(1970, 1, 1, tzinfo=UTC))

_READS = ("project:read", "model:read", "metric:read", "interaction:read", "ab_test:read")
_MAKES = ("model:attach", "metric:create", "interaction:create", "feedback:create", "ab_test:create")
_OWNS = ("project:update", "project:share", "project:delete")


def permissions(role: StoredRole) -> list[str]:
    makes = _MAKES if role.allows(StoredRole.MEMBER) else ()
    owns = _OWNS if role.allows(StoredRole.OWNER) else ()
    return [*_READS, *makes, *owns]


@strawberry.type
class Team:
    id: Uuid
    key: str
    name: str
    created_at: Timestamp

    @classmethod
    def of(cls, account_id: str, email: str) -> "Team":
        return cls(id=Uuid(account_id), key=email, name=email, created_at=_ALWAYS)


@strawberry.type
class Role:
    id: Uuid
    key: str
    name: str
    created_at: Timestamp
    permissions: list[str]

    @classmethod
    def of(cls, role: StoredRole) -> "Role":
        return cls(
            id=Uuid(str(uuid.uuid5(_NAMESPACE, role.value))),
            key=role.value,
            name=role.value,
            created_at=_ALWAYS,
            permissions=permissions(role),
        )


@strawberry.type
class TeamMember:
    team: Team
    role: Role


@strawberry.type
class User:
    id: Uuid
    email: str
    name: str
    created_at: Timestamp
    teams: list[TeamMember]

    @classmethod
    def of(cls, account: Account, limit: StoredRole) -> "User":
        return cls(
            id=Uuid(account.id),
            email=account.email,
            name=account.email.partition("@")[0],
            created_at=Timestamp(account.created_at),
            teams=[TeamMember(team=Team.of(account.id, account.email), role=Role.of(limit))],
        )


@strawberry.type
class UserQueries:
    @strawberry.field
    async def me(self, info: Info) -> User | None:
        """The account whose key this is; of a key of a project, the project."""
        return User.of(await info.context.account(), info.context.principal.limit)
