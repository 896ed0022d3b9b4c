"""Served aliases of a project: a model under a name of its own, with what is bound to it."""

import json
import re
import uuid
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from sqlalchemy import ForeignKey, String, Text, UniqueConstraint, delete, insert, or_, select, update
from sqlalchemy.orm import Mapped, mapped_column

from server.database import Database
from server.errors import InvalidRequest, NotFound
from server.observed import storable
from server.recent import Recent
from server.store import Moment, Table, require_account

MAX_KEY, MAX_NAME = 200, 200  # characters
_KEY = re.compile(r"[A-Za-z0-9](?:[A-Za-z0-9._:-]*[A-Za-z0-9])?")


class AliasRow(Table):
    """`defaults` is JSON."""

    __tablename__ = "aliases"
    __table_args__ = (UniqueConstraint("project_id", "key"),)

    id: Mapped[str] = mapped_column(String(36), primary_key=True)
    project_id: Mapped[str] = mapped_column(ForeignKey("accounts.id", ondelete="CASCADE"))
    key: Mapped[str] = mapped_column(String(MAX_KEY))
    name: Mapped[str] = mapped_column(String(MAX_NAME))
    model: Mapped[str] = mapped_column(String(500))
    defaults: Mapped[str] = mapped_column(Text)
    created_at: Mapped[datetime] = mapped_column(Moment)


@dataclass(frozen=True, slots=True)
class Alias:
    """`model` is a base model's or LoRA adapter's served name, `defaults` are fields of a chat request."""

    id: str
    project_id: str
    key: str
    name: str
    model: str
    defaults: Mapping[str, Any]
    created_at: datetime


class Aliases:
    """Every method is one transaction and raises Unavailable when the database does not answer.

    What another process changes is seen `seconds` later.
    """

    def __init__(self, database: Database, seconds: float = 2.0) -> None:
        self._database = database
        self._recent: Recent[str, Mapping[str, Alias]] = Recent(seconds)

    async def list(self, project_id: str) -> Sequence[Alias]:
        """By their keys."""
        query = select(AliasRow.__table__).where(AliasRow.project_id == project_id).order_by(AliasRow.key)
        async with self._database.reading() as connection:
            rows = (await connection.execute(query)).all()
        return [_alias(row) for row in rows]

    async def of(self, project_ids: Collection[str]) -> Mapping[str, Sequence[Alias]]:
        """Those of several projects, each project's by their keys; one without any is left out."""
        query = select(AliasRow.__table__).where(AliasRow.project_id.in_(project_ids)).order_by(AliasRow.key)
        found: dict[str, list[Alias]] = {}
        async with self._database.reading() as connection:
            for row in (await connection.execute(query)).all():
                found.setdefault(row.project_id, []).append(_alias(row))
        return found

    async def get(self, project_id: str, id_or_key: str) -> Alias | None:
        """From memory where it can be: every request that names a model asks."""
        known = await self._recent.get(project_id, lambda: self._known(project_id))
        return None if known is None else known.get(id_or_key)

    async def put(
        self, project_id: str, key: str, *, model: str, defaults: Mapping[str, Any], name: str | None = None
    ) -> Alias:
        """Made, or changed where the project has one of this key. Raises InvalidRequest for a bad key."""
        if len(key) > MAX_KEY or not _KEY.fullmatch(key):
            raise InvalidRequest(
                f"a key has 1 to {MAX_KEY} of A-Z, a-z, 0-9, - _ . : and a letter or digit at both ends",
                param="key",
            )
        values = {
            "name": storable(name or key),
            "model": model,
            "defaults": storable(json.dumps(defaults, ensure_ascii=False)),
        }
        this = (AliasRow.project_id == project_id, AliasRow.key == key)
        async with self._database.writing(alone=True) as connection:
            await require_account(connection, project_id)
            if (await connection.execute(update(AliasRow).where(*this).values(**values))).rowcount == 0:
                await connection.execute(
                    insert(AliasRow).values(
                        id=str(uuid.uuid4()),
                        project_id=project_id,
                        key=key,
                        created_at=datetime.now(UTC),
                        **values,
                    )
                )
            row = (await connection.execute(select(AliasRow.__table__).where(*this))).one()
        self._recent.forget()
        return _alias(row)

    async def delete(self, project_id: str, id_or_key: str) -> None:
        """Raises NotFound."""
        which = or_(AliasRow.key == storable(id_or_key), AliasRow.id == storable(id_or_key))
        gone = delete(AliasRow).where(AliasRow.project_id == project_id, which)
        async with self._database.writing() as connection:
            count = (await connection.execute(gone)).rowcount
        self._recent.forget()
        if count == 0:
            raise NotFound(f"The project has no model {id_or_key!r} of its own.", param="model")

    async def _known(self, project_id: str) -> Mapping[str, Alias]:
        found = await self.list(project_id)
        return {alias.id: alias for alias in found} | {alias.key: alias for alias in found}


def _alias(row: Any) -> Alias:
    return Alias(
        row.id, row.project_id, row.key, row.name, row.model, json.loads(row.defaults), row.created_at
    )
