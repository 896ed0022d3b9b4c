"""Policies in the database: those of an account with all their versions, and the presets accounts publish."""

import json
import re
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from enum import StrEnum
from typing import Any, TypeVar

from pydantic import ValidationError
from sqlalchemy import (
    JSON,
    ColumnElement,
    ForeignKey,
    ForeignKeyConstraint,
    Index,
    Select,
    String,
    Text,
    and_,
    delete,
    func,
    insert,
    or_,
    select,
    update,
)
from sqlalchemy.ext.asyncio import AsyncConnection
from sqlalchemy.orm import Mapped, mapped_column

from policies.policy import RuntimePolicy
from server.database import Database
from server.errors import Conflict, InvalidBody, InvalidRequest, NotFound
from server.store import Moment, Table, require_account

MAX_BYTES = 256 * 1024  # of a stored policy; room for any schema, while vectors are better named by id
MAX_POLICIES = 10_000  # of an account
MAX_VERSIONS = 1000  # of a policy
MAX_PRESETS = 1000  # of an account
MAX_PAGE_BYTES = 8 * 2**20  # of the policies in one answer
RESERVED_IDS = frozenset({"presets", "run", "save", "compare", "evaluate", "autotune"})  # routes

_ID = re.compile(r"[A-Za-z0-9._:-]{1,128}")
_DOTS = frozenset({".", ".."})  # clients resolve them before they send the path


class Visibility(StrEnum):
    PRIVATE = "private"
    PUBLIC = "public"


class PolicyRow(Table):
    """`version` is the newest one; it counts up under this row's lock, so that none is given twice.

    An id is unique within its account: what others call theirs neither stands in the way nor shows.
    """

    __tablename__ = "policies"
    __table_args__ = (Index(None, "account_id", "created_at"),)

    account_id: Mapped[str] = mapped_column(ForeignKey("accounts.id", ondelete="CASCADE"), primary_key=True)
    id: Mapped[str] = mapped_column(String(128), primary_key=True)
    version: Mapped[int]
    created_at: Mapped[datetime] = mapped_column(Moment)


class PolicyVersionRow(Table):
    __tablename__ = "policy_versions"
    __table_args__ = (
        ForeignKeyConstraint(
            ["account_id", "policy_id"], ["policies.account_id", "policies.id"], ondelete="CASCADE"
        ),
    )

    account_id: Mapped[str] = mapped_column(String(36), primary_key=True)
    policy_id: Mapped[str] = mapped_column(String(128), primary_key=True)
    version: Mapped[int] = mapped_column(primary_key=True)
    policy: Mapped[dict[str, Any]] = mapped_column(JSON)
    saved_at: Mapped[datetime] = mapped_column(Moment)


_HAS_VERSION = and_(
    PolicyVersionRow.account_id == PolicyRow.account_id, PolicyVersionRow.policy_id == PolicyRow.id
)


class PolicyPresetRow(Table):
    __tablename__ = "policy_presets"

    id: Mapped[str] = mapped_column(String(36), primary_key=True)
    account_id: Mapped[str] = mapped_column(ForeignKey("accounts.id", ondelete="CASCADE"), index=True)
    api_key_id: Mapped[str | None] = mapped_column(ForeignKey("api_keys.id", ondelete="SET NULL"))
    name: Mapped[str] = mapped_column(String(200))
    visibility: Mapped[str] = mapped_column(String(10))
    policy: Mapped[dict[str, Any]] = mapped_column(JSON)
    tags: Mapped[list[str]] = mapped_column(JSON)
    description: Mapped[str | None] = mapped_column(Text)
    updated_at: Mapped[datetime] = mapped_column(Moment)


@dataclass(frozen=True, slots=True)
class PolicyRecord:
    """One version of a policy; `policy.id` is the id."""

    id: str
    version: int
    policy: RuntimePolicy
    created_at: datetime
    saved_at: datetime


@dataclass(frozen=True, slots=True)
class PolicyVersion:
    version: int
    saved_at: datetime


@dataclass(frozen=True, slots=True)
class PresetRecord:
    """`policy` is the JSON as it is stored, without an id; a preset never changes.

    `api_key_id` is the key that published it, and only its own account gets to see that.
    """

    id: str
    api_key_id: str | None
    name: str
    visibility: Visibility
    policy: Mapping[str, Any]
    tags: Sequence[str]
    description: str | None
    updated_at: datetime


R = TypeVar("R")


class Page(list[R]):
    """What one answer holds; `more` where others follow it."""

    more: bool = False


class Policies:
    """Every method is one transaction and raises Unavailable when the database does not answer.

    An account sees, changes and deletes its own policies alone.

    Stored is what the client set and nothing else: it gets back what it sent; what was asked for stays apart
    from what is only a default, as precedence between request and policy wants it; and a field that a later
    version drops or adds concerns only policies that use it. What was left out follows the defaults of the
    version that reads it, as in a policy sent with the request.
    """

    def __init__(self, database: Database) -> None:
        self._database = database

    async def save(self, account_id: str, policy: RuntimePolicy) -> PolicyRecord:
        """Without an id a new policy, with one of the account's its next version; a free id is taken.

        Raises InvalidRequest for an id that cannot be a path or a policy that is too long, Conflict where
        there are too many already, and NotFound for an unknown account.
        """
        policy_id = str(uuid.uuid4()) if policy.id is None else _sound_id(policy.id)
        stored, now = _stored(policy), datetime.now(UTC)
        async with self._database.writing(alone=True) as connection:
            await require_account(connection, account_id)
            # Changing before looking: a policy that is being deleted is then either here to stay or gone.
            change = (
                update(PolicyRow)
                .where(*_owned(account_id, policy_id))
                .values(version=PolicyRow.version + 1)
                .returning(PolicyRow.version, PolicyRow.created_at)
            )
            row = (await connection.execute(change)).first()
            if row is None:
                await _require_room(connection, account_id, PolicyRow, MAX_POLICIES, "policies")
                await connection.execute(
                    insert(PolicyRow).values(id=policy_id, account_id=account_id, version=1, created_at=now)
                )
            version, created_at = (1, now) if row is None else row
            if version > MAX_VERSIONS:
                raise _full(
                    f"A policy has at most {MAX_VERSIONS} versions; delete /policies/{policy_id}, or save"
                    " it under another id."
                )
            await connection.execute(
                insert(PolicyVersionRow).values(
                    account_id=account_id, policy_id=policy_id, version=version, policy=stored, saved_at=now
                )
            )
        saved = policy.model_copy(update={"id": policy_id})
        return PolicyRecord(policy_id, version, saved, created_at, now)

    async def get(self, account_id: str, policy_id: str, version: int | None = None) -> PolicyRecord:
        """The newest version, or the one that is asked for, in one query.

        Raises NotFound, and Conflict for a policy that this version of the server does not understand.
        """
        wanted = PolicyRow.version if version is None else version
        query = (
            select(
                PolicyVersionRow.policy,
                PolicyVersionRow.version,
                PolicyRow.created_at,
                PolicyVersionRow.saved_at,
            )
            .join_from(
                PolicyRow,
                PolicyVersionRow,
                and_(_HAS_VERSION, PolicyVersionRow.version == wanted),
            )
            .where(*_owned(account_id, policy_id))
        )
        async with self._database.reading() as connection:
            row = (await connection.execute(query)).first()
        if row is None:
            raise _not_found(policy_id, version)
        policy = _understood(f"The policy {policy_id!r} (version {row.version})", row.policy)
        named = policy.model_copy(update={"id": policy_id})
        return PolicyRecord(policy_id, row.version, named, row.created_at, row.saved_at)

    async def list(
        self, account_id: str, *, limit: int | None = None, offset: int = 0
    ) -> Page[Mapping[str, Any]]:
        """The newest version of each, newest policy first: its JSON as it is stored, and the id.

        A page ends before MAX_PAGE_BYTES, but has one policy at least. Nothing is checked here, so that one
        policy of another version does not hide the others.
        """
        newest = and_(_HAS_VERSION, PolicyVersionRow.version == PolicyRow.version)
        query = (
            select(PolicyRow.id, PolicyVersionRow.policy)
            .join_from(PolicyRow, PolicyVersionRow, newest)
            .where(PolicyRow.account_id == account_id)
            .order_by(PolicyRow.created_at.desc(), PolicyRow.id)
        )
        async with self._database.reading() as connection:
            rows = await _page(connection, query, limit, offset)
        return _paged([{"id": row.id, **row.policy} for row in rows], more=rows.more)

    async def versions(
        self, account_id: str, policy_id: str, *, limit: int | None = None, offset: int = 0
    ) -> Sequence[PolicyVersion]:
        """Newest first. Raises NotFound."""
        query = (
            select(PolicyVersionRow.version, PolicyVersionRow.saved_at)
            .join_from(PolicyRow, PolicyVersionRow, _HAS_VERSION)
            .where(*_owned(account_id, policy_id))
            .order_by(PolicyVersionRow.version.desc())
            .limit(limit)
            .offset(offset)
        )
        async with self._database.reading() as connection:
            rows = (await connection.execute(query)).all()
        if not rows and not offset:  # a policy has a version
            raise _not_found(policy_id)
        return [PolicyVersion(*row) for row in rows]

    async def delete(self, account_id: str, policy_id: str) -> None:
        """With all versions; the id is free again. Raises NotFound."""
        async with self._database.writing() as connection:
            gone = await connection.execute(delete(PolicyRow).where(*_owned(account_id, policy_id)))
            if gone.rowcount == 0:
                raise _not_found(policy_id)

    async def publish(
        self,
        account_id: str,
        key_id: str | None,
        *,
        name: str,
        policy: RuntimePolicy,
        visibility: Visibility = Visibility.PRIVATE,
        tags: Sequence[str] = (),
        description: str | None = None,
    ) -> str:
        """Returns the preset's id. A copy is published, without the id of the policy it is made from.

        Raises InvalidRequest for a policy that is too long, Conflict where there are too many already, and
        NotFound for an unknown account.
        """
        preset_id, stored = str(uuid.uuid4()), _stored(policy)
        async with self._database.writing(alone=True) as connection:
            await require_account(connection, account_id)
            await _require_room(connection, account_id, PolicyPresetRow, MAX_PRESETS, "presets")
            await connection.execute(
                insert(PolicyPresetRow).values(
                    id=preset_id,
                    account_id=account_id,
                    api_key_id=key_id,
                    name=name,
                    visibility=visibility,
                    policy=stored,
                    tags=list(tags),
                    description=description,
                    updated_at=datetime.now(UTC),
                )
            )
        return preset_id

    async def presets(
        self, account_id: str, *, include_public: bool = True, limit: int | None = None, offset: int = 0
    ) -> Page[PresetRecord]:
        """The account's own, and with `include_public` after them what others have made public; newest first.

        A page ends before MAX_PAGE_BYTES, but has one preset at least.
        """
        own = PolicyPresetRow.account_id == account_id
        query = (
            select(PolicyPresetRow.__table__)
            .where(_seen_by(account_id) if include_public else own)
            .order_by(own.desc(), PolicyPresetRow.updated_at.desc(), PolicyPresetRow.id)
        )
        async with self._database.reading() as connection:
            rows = await _page(connection, query, limit, offset)
        return _paged([_preset(row, account_id) for row in rows], more=rows.more)

    async def preset(self, account_id: str, preset_id: str) -> PresetRecord:
        """One's own, or a public one. Raises NotFound."""
        query = select(PolicyPresetRow.__table__).where(PolicyPresetRow.id == preset_id, _seen_by(account_id))
        async with self._database.reading() as connection:
            row = (await connection.execute(query)).first()
        if row is None:
            raise _no_preset(preset_id)
        return _preset(row, account_id)

    async def delete_preset(self, account_id: str, preset_id: str) -> None:
        """One's own; what was cloned from it stays. Raises NotFound."""
        own = (PolicyPresetRow.id == preset_id, PolicyPresetRow.account_id == account_id)
        async with self._database.writing() as connection:
            if (await connection.execute(delete(PolicyPresetRow).where(*own))).rowcount == 0:
                raise _no_preset(preset_id)

    async def clone(self, account_id: str, preset_id: str) -> str:
        """Save a preset's policy as one of the account's own, under the new id that is returned.

        Raises NotFound, also for a private preset of another account, and Conflict for a policy that this
        version of the server does not understand.
        """
        found = await self.preset(account_id, preset_id)
        policy = _understood(f"The policy preset {preset_id!r}", found.policy)
        return (await self.save(account_id, policy)).id


def plain(policy: RuntimePolicy) -> dict[str, Any]:
    """The JSON of what was set of a policy, as a client would write it."""
    return policy.model_dump(mode="json", exclude_unset=True)


def require_size(policy: Mapping[str, Any], param: str, what: str) -> None:
    """Raises InvalidRequest for a policy that is too long to be kept, or that no JSON can hold."""
    try:
        length = len(json.dumps(policy, ensure_ascii=False, allow_nan=False).encode())
    except ValueError as error:  # 1e999 in metadata or a schema: JSON to parse, infinite once parsed
        raise InvalidRequest(f"the policy is not JSON: {error}", param=param) from error
    if length > MAX_BYTES:
        raise InvalidRequest(
            f"{what} has at most {MAX_BYTES} bytes, not {length}; long vectors are named by id", param=param
        )


def _sound_id(policy_id: str) -> str:
    if _ID.fullmatch(policy_id) is None or policy_id in _DOTS:
        raise InvalidRequest(
            "an id is 1 to 128 of the characters A-Z a-z 0-9 . _ : - and not dots alone", param="policy.id"
        )
    if policy_id in RESERVED_IDS:
        raise InvalidRequest(f"{policy_id!r} is the name of a route; choose another id", param="policy.id")
    return policy_id


def _stored(policy: RuntimePolicy) -> dict[str, Any]:
    """Without the id, which is the row's."""
    stored = plain(policy)
    stored.pop("id", None)
    require_size(stored, "policy", "a stored policy")
    return stored


def _understood(what: str, stored: Mapping[str, Any]) -> RuntimePolicy:
    try:
        return RuntimePolicy.model_validate(stored)
    except ValidationError as error:
        raise Conflict(
            f"{what} is not understood by this version of the server: "
            f"{InvalidBody.of(error.errors()).message}",
            param="policy_id",
            code="policy_of_another_version",
        ) from error


async def _page(connection: AsyncConnection, query: Select[Any], limit: int | None, offset: int) -> Page[Any]:
    """Rows with a `policy`, read one after another so that no more are held than are given."""
    query = query.limit(None if limit is None else limit + 1).offset(offset)
    page, held = Page[Any](), 0
    async with connection.stream(query.execution_options(max_row_buffer=8)) as rows:
        async for row in rows:
            held += len(json.dumps(row.policy, ensure_ascii=False).encode())
            if len(page) == limit or (page and held > MAX_PAGE_BYTES):
                page.more = True
                break
            page.append(row)
    return page


def _paged(items: Sequence[R], *, more: bool) -> Page[R]:
    page = Page(items)
    page.more = more
    return page


async def _require_room(
    connection: AsyncConnection, account_id: str, table: type[Table], most: int, what: str
) -> None:
    """Raises Conflict. In a transaction that is alone, or two could take the last place."""
    of_account = table.__table__.c.account_id == account_id
    count = await connection.execute(select(func.count()).select_from(table).where(of_account))
    if count.scalar_one() >= most:
        path = "/policies/{id}" if table is PolicyRow else "/policies/presets/{id}"
        raise _full(f"An account has at most {most} {what}; make room with DELETE {path}.")


def _full(message: str) -> Conflict:
    return Conflict(message, code="too_many")


def _owned(account_id: str, policy_id: str) -> tuple[ColumnElement[bool], ...]:
    return PolicyRow.id == policy_id, PolicyRow.account_id == account_id


def _seen_by(account_id: str) -> ColumnElement[bool]:
    return or_(PolicyPresetRow.account_id == account_id, PolicyPresetRow.visibility == Visibility.PUBLIC)


def _preset(row: Any, account_id: str) -> PresetRecord:
    return PresetRecord(
        id=row.id,
        api_key_id=row.api_key_id if row.account_id == account_id else None,
        name=row.name,
        visibility=Visibility(row.visibility),
        policy=row.policy,
        tags=tuple(row.tags),
        description=row.description,
        updated_at=row.updated_at,
    )


def _not_found(policy_id: str, version: int | None = None) -> NotFound:
    which = "" if version is None else f" with a version {version}"
    return NotFound(f"There is no policy {policy_id!r}{which}.", param="policy_id")


def _no_preset(preset_id: str) -> NotFound:
    return NotFound(f"There is no policy preset {preset_id!r}.", param="preset_id")
