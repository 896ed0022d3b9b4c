"""Projects: whose things are kept apart from others', who may use them, and their default models.

A project is an account that nobody logs in to, so that whatever can belong to an account can belong to it.
Every account is a project as well, its home, which needs no row until something is set for it.
"""

import re
import uuid
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import Any, Final

from sqlalchemy import ForeignKey, Select, String, Text, delete, exists, insert, or_, select, update
from sqlalchemy.ext.asyncio import AsyncConnection
from sqlalchemy.orm import Mapped, aliased, mapped_column

from server.auth import Principal
from server.database import Database
from server.errors import Conflict, Forbidden, InvalidRequest, NotFound
from server.observed import storable
from server.recent import Recent
from server.roles import Role
from server.store import AccountRow, Moment, Table, require_account

HOME: Final = "default"  # what everybody calls their own
MAX_NAME, MAX_KEY = 200, 64  # characters
_KEY = re.compile(r"[a-z0-9](?:[a-z0-9_-]{0,62}[a-z0-9])?")


class ProjectRow(Table):
    """`default_model` is a served name or an alias."""

    __tablename__ = "projects"

    id: Mapped[str] = mapped_column(ForeignKey("accounts.id", ondelete="CASCADE"), primary_key=True)
    key: Mapped[str] = mapped_column(String(MAX_KEY), unique=True)
    name: Mapped[str] = mapped_column(String(MAX_NAME))
    description: Mapped[str | None] = mapped_column(Text)
    default_model: Mapped[str | None] = mapped_column(String(500))
    created_at: Mapped[datetime] = mapped_column(Moment)


class MembershipRow(Table):
    __tablename__ = "memberships"

    project_id: Mapped[str] = mapped_column(ForeignKey("accounts.id", ondelete="CASCADE"), primary_key=True)
    account_id: Mapped[str] = mapped_column(
        ForeignKey("accounts.id", ondelete="CASCADE"), primary_key=True, index=True
    )
    role: Mapped[str] = mapped_column(String(16))


@dataclass(frozen=True, slots=True)
class Project:
    id: str
    key: str
    name: str
    description: str | None
    default_model: str | None
    created_at: datetime


@dataclass(frozen=True, slots=True)
class Membership:
    project: Project
    role: Role


@dataclass(frozen=True, slots=True)
class Member:
    account_id: str
    email: str
    role: Role


class Projects:
    """Every change is one transaction. Raises Unavailable when the database does not answer.

    What another process changes about who may enter is seen `seconds` later.
    """

    def __init__(self, database: Database, seconds: float = 2.0) -> None:
        self._database = database
        self._recent: Recent[tuple[str, str], Membership] = Recent(seconds)
        self._homes: Recent[str, Project] = Recent(seconds)

    async def of(self, account_id: str) -> Sequence[Membership]:
        """An account's home, then the projects that it is a member of, oldest first."""
        query = _memberships(account_id).order_by(ProjectRow.created_at, ProjectRow.id)
        async with self._database.reading() as connection:
            rows = (await connection.execute(query)).all()
        return [Membership(await self.home(account_id), Role.OWNER), *map(_membership, rows)]

    async def all(self) -> Sequence[Project]:
        """Those that are no account's home, oldest first."""
        query = select(ProjectRow.__table__).join(MembershipRow, MembershipRow.project_id == ProjectRow.id)
        async with self._database.reading() as connection:
            rows = (await connection.execute(query.order_by(ProjectRow.created_at, ProjectRow.id))).all()
        return [_project(row) for row in {row.id: row for row in rows}.values()]

    async def named(self, id_or_key: str) -> Project:
        """For the operator, who is asked for no membership. Raises NotFound."""
        wanted = storable(id_or_key)
        query = select(ProjectRow.__table__).where(or_(ProjectRow.key == wanted, ProjectRow.id == wanted))
        async with self._database.reading() as connection:
            row = (await connection.execute(query)).first()
        if row is None:
            raise NotFound(f"There is no project {id_or_key!r}.", param="project")
        return _project(row)

    async def home(self, account_id: str) -> Project:
        """The project that has this account's id; with a key of its own unless it is a person's."""
        project = await self._homes.get(account_id, lambda: self._home(account_id))
        assert project is not None
        return project

    async def membership(self, account_id: str, id_or_key: str) -> Membership:
        """Raises NotFound where the account is in no such project."""
        home = await self.home(account_id)
        if id_or_key in (HOME, home.id, home.key):
            return Membership(home, Role.OWNER)
        found = await self._recent.get(
            (account_id, id_or_key), lambda: self._find(account_id, storable(id_or_key))
        )
        if found is None:
            raise NotFound(f"There is no project {id_or_key!r} that you are a member of.", param="project")
        return found

    async def enter(self, principal: Principal, id_or_key: str, *, needs: Role = Role.READER) -> Principal:
        """Who calls, within that project; a credential's own limit holds there too.

        Raises NotFound where the caller is not in it, Forbidden for less than `needs`.
        """
        membership = await self.membership(principal.member_id, id_or_key)
        role = membership.role.at_most(principal.limit)
        if not role.allows(needs):
            raise _forbidden(membership.project.key, role, needs)
        project_id = membership.project.id
        if project_id == principal.account_id:
            return principal
        selected = principal.selected_model if project_id == principal.member_id else None
        return replace(principal, account_id=project_id, role=role, selected_model=selected)

    async def create(self, owner_id: str, *, key: str, name: str, description: str | None = None) -> Project:
        """Raises Conflict for a key that is taken, InvalidRequest for one that is none, and Forbidden where
        the owner would be a project, with which it would lose its only one."""
        require_key(key)
        project = Project(str(uuid.uuid4()), key, name, description, None, datetime.now(UTC))
        async with self._database.writing(alone=True) as connection:
            await require_account(connection, owner_id)
            if await _is_shared(connection, owner_id):
                raise Forbidden("A project's own key makes no projects: use a key of an account.")
            await _require_free(connection, key)
            await connection.execute(
                insert(AccountRow).values(
                    # Nobody has this address: the domain is reserved (RFC 2606).
                    id=project.id,
                    email=f"{project.id}@project.invalid",
                    created_at=project.created_at,
                )
            )
            await connection.execute(
                insert(ProjectRow).values(
                    id=project.id,
                    key=key,
                    name=storable(name),
                    description=None if description is None else storable(description),
                    created_at=project.created_at,
                )
            )
            await connection.execute(
                insert(MembershipRow).values(project_id=project.id, account_id=owner_id, role=Role.OWNER)
            )
        return project

    async def rename(self, project_id: str, *, name: str, description: str | None) -> Project:
        """Raises NotFound."""
        await self._set(project_id, name=storable(name), description=description and storable(description))
        return await self.home(project_id)

    async def set_default_model(self, project_id: str, model: str | None) -> None:
        """`model`: a served name or an alias; None: the server's default. Raises NotFound."""
        await self._set(project_id, default_model=model)

    async def promote(self, connection: AsyncConnection, project_id: str, model: str) -> None:
        """`set_default_model` within a transaction that is alone; to `forget` afterwards is the caller's.
        Raises NotFound."""
        await _set(connection, project_id, {"default_model": model})

    async def delete(self, project_id: str) -> None:
        """With all that belongs to it. Raises NotFound, and Forbidden for an account's home."""
        async with self._database.writing(alone=True) as connection:
            if not await _is_shared(connection, project_id):
                raise Forbidden("This is an account's home: it goes with the account.")
            await connection.execute(delete(AccountRow).where(AccountRow.id == project_id))
        self.forget()

    async def members(self, project_id: str) -> Sequence[Member]:
        """Owners, then the others, each by their address."""
        return (await self.members_of([project_id])).get(project_id, ())

    async def members_of(self, project_ids: Collection[str]) -> Mapping[str, Sequence[Member]]:
        """Of several projects, as `members`; one that is an account's home has none."""
        query = (
            select(AccountRow.id, AccountRow.email, MembershipRow.role, MembershipRow.project_id)
            .join(MembershipRow, MembershipRow.account_id == AccountRow.id)
            .where(MembershipRow.project_id.in_(project_ids))
            .order_by(AccountRow.email)
        )
        async with self._database.reading() as connection:
            rows = (await connection.execute(query)).all()
        found: dict[str, list[Member]] = {}
        for row in sorted(rows, key=lambda row: row.role != Role.OWNER):
            found.setdefault(row.project_id, []).append(Member(row.id, row.email, Role(row.role)))
        return found

    async def set_member(self, project_id: str, email: str, role: Role) -> Member:
        """Add somebody, or change their role. Raises NotFound, Conflict for the last owner's, Forbidden for
        an account's home."""
        query = select(AccountRow.id).where(AccountRow.email == storable(email))
        async with self._database.writing(alone=True) as connection:
            if not await _is_shared(connection, project_id):
                raise Forbidden("This is an account's home, for nobody else: make a project to share.")
            account_id = (await connection.execute(query)).scalar()
            if account_id is None or await _is_shared(connection, account_id):
                raise NotFound(f"There is no account of {email!r}.", param="email")
            where = (MembershipRow.project_id == project_id, MembershipRow.account_id == account_id)
            if role is not Role.OWNER:
                await _require_other_owner(connection, project_id, account_id)
            change = update(MembershipRow).where(*where).values(role=role)
            if (await connection.execute(change)).rowcount == 0:
                await connection.execute(
                    insert(MembershipRow).values(project_id=project_id, account_id=account_id, role=role)
                )
        self.forget()
        return Member(account_id, email, role)

    async def remove_member(self, project_id: str, account_id: str) -> None:
        """Raises NotFound, and Conflict for the last owner."""
        gone = delete(MembershipRow).where(
            MembershipRow.project_id == project_id, MembershipRow.account_id == storable(account_id)
        )
        async with self._database.writing(alone=True) as connection:
            await _require_other_owner(connection, project_id, account_id)
            if (await connection.execute(gone)).rowcount == 0:
                raise NotFound(f"There is no member {account_id!r}.", param="account_id")
        self.forget()

    def forget(self) -> None:
        """Ask the database again: after what is known of accounts has changed."""
        self._recent.forget()
        self._homes.forget()

    async def _set(self, project_id: str, **values: Any) -> None:
        async with self._database.writing(alone=True) as connection:
            await _set(connection, project_id, values)
        self.forget()

    async def _home(self, account_id: str) -> Project:
        query = select(ProjectRow.__table__).where(ProjectRow.id == account_id)
        async with self._database.reading() as connection:
            row = (await connection.execute(query)).first()
        return _implicit(account_id) if row is None else _project(row)

    async def _find(self, account_id: str, id_or_key: str) -> Membership | None:
        query = _memberships(account_id).where(or_(ProjectRow.key == id_or_key, ProjectRow.id == id_or_key))
        async with self._database.reading() as connection:
            row = (await connection.execute(query)).first()
        return None if row is None else _membership(row)


def require_key(key: str) -> None:
    """Raises InvalidRequest for what cannot be the key of a project."""
    if key == HOME or key.startswith("home-") or not _KEY.fullmatch(key):
        raise InvalidRequest(
            "a key has 1 to 64 of a-z, 0-9, - and _, begins and ends with a letter or digit, and is neither"
            f" {HOME!r} nor begins with 'home-', which stand for the caller's own project",
            param="key",
        )


def _forbidden(key: str, role: Role, needs: Role) -> Forbidden:
    return Forbidden(f"In the project {key!r} this credential is {role}: that needs the role {needs}.")


def _implicit(account_id: str) -> Project:
    """A home without a row: its creation is not known, and nothing depends on it."""
    return Project(account_id, HOME, "Default", None, None, datetime.fromtimestamp(0, UTC))


def _project(row: Any) -> Project:
    key = HOME if row.key == f"home-{row.id}" else row.key
    return Project(row.id, key, row.name, row.description, row.default_model, row.created_at)


def _membership(row: Any) -> Membership:
    return Membership(_project(row), Role(row.role))


def _memberships(account_id: str) -> Select[Any]:
    return (
        select(*ProjectRow.__table__.columns, MembershipRow.role)
        .join(MembershipRow, MembershipRow.project_id == ProjectRow.id)
        .where(MembershipRow.account_id == account_id)
    )


async def _set(connection: AsyncConnection, project_id: str, values: Mapping[str, Any]) -> None:
    change = update(ProjectRow).where(ProjectRow.id == project_id).values(**values)
    if (await connection.execute(change)).rowcount == 0:
        await require_account(connection, project_id)
        home = _implicit(project_id)
        row = {"name": home.name, "created_at": home.created_at, **values}
        await connection.execute(insert(ProjectRow).values(id=project_id, key=f"home-{project_id}", **row))


async def _require_free(connection: AsyncConnection, key: str) -> None:
    if (await connection.execute(select(ProjectRow.id).where(ProjectRow.key == key))).first() is not None:
        raise Conflict(f"There is a project {key!r} already.", param="key", code="key_taken")


async def _is_shared(connection: AsyncConnection, project_id: str) -> bool:
    """Whether it is a project that is no account's home."""
    query = select(MembershipRow.project_id).where(MembershipRow.project_id == project_id).limit(1)
    return (await connection.execute(query)).first() is not None


async def _require_other_owner(connection: AsyncConnection, project_id: str, account_id: str) -> None:
    """A project whose last owner left could be managed by nobody."""
    query = select(MembershipRow.account_id).where(
        MembershipRow.project_id == project_id, MembershipRow.role == Role.OWNER
    )
    if set((await connection.execute(query)).scalars()) == {account_id}:
        raise Conflict("This is the project's only owner: make another member one first.", param="role")


async def require_left(connection: AsyncConnection, account_id: str) -> None:
    """That no project would be left without an owner. Raises Conflict."""
    others = aliased(MembershipRow)
    other_owner = exists().where(
        others.project_id == MembershipRow.project_id,
        others.account_id != account_id,
        others.role == Role.OWNER,
    )
    query = (
        select(ProjectRow.key)
        .join(MembershipRow, MembershipRow.project_id == ProjectRow.id)
        .where(MembershipRow.account_id == account_id, MembershipRow.role == Role.OWNER, ~other_owner)
        .order_by(ProjectRow.key)
    )
    keys = (await connection.execute(query)).scalars().all()
    if keys:
        raise Conflict(
            f"This account is the only owner of {', '.join(keys)}: delete that, or make another member owner."
        )
