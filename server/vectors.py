"""Steering vectors in the database: those of an account, and the presets that all accounts share."""

import asyncio
import uuid
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Protocol, TypedDict, Unpack

from sqlalchemy import (
    JSON,
    ColumnElement,
    Float,
    ForeignKey,
    Index,
    LargeBinary,
    String,
    UniqueConstraint,
    delete,
    insert,
    or_,
    select,
    text,
    update,
)
from sqlalchemy.ext.asyncio import AsyncConnection
from sqlalchemy.orm import Mapped, mapped_column

from server.database import Database
from server.errors import Conflict, NotFound
from server.recent import Recent
from server.store import Moment, Table, require_account
from steering.vector import SteeringVector

_SHARED = text("account_id IS NULL")
_RECENT_SECONDS = 2.0


class VectorRow(Table):
    __tablename__ = "steering_vectors"
    __table_args__ = (
        UniqueConstraint("preset", "model_fingerprint", "account_id"),
        # Nulls differ from each other in the constraint above, and shared presets have no account.
        Index(
            "ix_steering_vectors_shared_presets",
            "preset",
            "model_fingerprint",
            unique=True,
            sqlite_where=_SHARED,
            postgresql_where=_SHARED,
        ),
    )

    id: Mapped[str] = mapped_column(String(36), primary_key=True)
    account_id: Mapped[str | None] = mapped_column(ForeignKey("accounts.id", ondelete="CASCADE"), index=True)
    preset: Mapped[str | None] = mapped_column(String(60))
    name: Mapped[str | None] = mapped_column(String(200))
    label: Mapped[str | None] = mapped_column(String(200))
    category: Mapped[str | None] = mapped_column(String(200))
    method: Mapped[str] = mapped_column(String(40))
    model_name: Mapped[str] = mapped_column(String(500))
    model_fingerprint: Mapped[str | None] = mapped_column(String(64))
    width: Mapped[int]
    layers: Mapped[list[int]] = mapped_column(JSON)
    norms: Mapped[dict[str, float]] = mapped_column(JSON)
    doses: Mapped[dict[str, float] | None] = mapped_column(JSON(none_as_null=True))
    scale: Mapped[float | None] = mapped_column(Float)
    dataset_digest: Mapped[str | None] = mapped_column(String(64))
    evidence: Mapped[dict[str, Any] | None] = mapped_column(JSON(none_as_null=True))
    digest: Mapped[str] = mapped_column(String(64))
    blob: Mapped[bytes] = mapped_column(LargeBinary)
    created_at: Mapped[datetime] = mapped_column(Moment)


@dataclass(frozen=True, slots=True)
class NewVector:
    """`account_id` None: a preset that all accounts share.

    `doses` are relative doses by layer at strength 1, `scale` the safe strength; None: not measured.
    Without a `model_fingerprint` it fits every model that has its width and layers.
    """

    account_id: str | None
    vector: SteeringVector
    method: str
    model_name: str = ""
    model_fingerprint: str | None = None
    name: str | None = None
    label: str | None = None
    category: str | None = None
    doses: Mapping[int, float] | None = None
    scale: float | None = None
    dataset_digest: str | None = None
    evidence: Mapping[str, Any] | None = None
    preset: str | None = None


@dataclass(frozen=True, slots=True)
class VectorRecord:
    """What is known of a stored vector, its numbers apart: `Vectors.blob` has those."""

    id: str
    account_id: str | None
    preset: str | None
    name: str | None
    label: str | None
    category: str | None
    method: str
    model_name: str
    model_fingerprint: str | None
    width: int
    layers: tuple[int, ...]
    norms: Mapping[int, float]
    doses: Mapping[int, float] | None
    scale: float | None
    dataset_digest: str | None
    evidence: Mapping[str, Any] | None
    digest: str
    created_at: datetime


class Labels(TypedDict, total=False):
    """What may be changed of a stored vector."""

    name: str | None
    label: str | None
    category: str | None


class SteeredModel(Protocol):
    """The model that this server serves: how it is called, which weights it has, blocks, hidden size."""

    @property
    def name(self) -> str: ...
    @property
    def fingerprint(self) -> str: ...
    @property
    def layers(self) -> int: ...
    @property
    def width(self) -> int: ...


def misfit(vector: SteeringVector | VectorRecord, model: SteeredModel) -> str | None:
    """Why a vector cannot act in this model, by its numbers alone."""
    if vector.width != model.width:
        return f"the vector is {vector.width} wide, the hidden states of {model.name} are {model.width}"
    if (last := max(vector.layers)) >= model.layers:
        return f"{model.name} has layers 0 to {model.layers - 1}, not {last}"
    return None


def require_model(record: VectorRecord, model: SteeredModel) -> None:
    """Raises Conflict for a vector that was made for another model."""
    fits = (
        misfit(record, model) is None
        if record.model_fingerprint is None
        else record.model_fingerprint == model.fingerprint
    )
    if not fits:
        made_for = repr(record.model_name) if record.model_name else "another model"
        raise Conflict(
            f"The steering vector {record.id!r} was made for {made_for} ({record.width} wide, layers up to "
            f"{max(record.layers)}); this server serves {model.name!r} ({model.width} wide, layers up to "
            f"{model.layers - 1}).",
            param="steering_vector_id",
            code="vector_of_another_model",
        )


class Vectors:
    """Every method is one transaction and raises Unavailable when the database does not answer.

    An account sees its own vectors and the shared presets, and changes its own; None stands for the operator,
    who sees and changes all. Deleting is at once: a request in flight holds its vector in memory.
    """

    def __init__(self, database: Database) -> None:
        self._database = database
        self._recent: Recent[tuple[str | None, ...], VectorRecord] = Recent(_RECENT_SECONDS)

    async def add(self, new: NewVector, vector_id: str | None = None) -> str:
        """Returns the id. Under a given one it is stored once. Raises NotFound for an unknown account."""
        values = await asyncio.to_thread(_values, new)
        values["id"] = vector_id or values["id"]
        same = select(VectorRow.id).where(VectorRow.id == values["id"])
        async with self._database.writing(alone=True) as connection:
            if vector_id is not None and (await connection.execute(same)).first():
                return vector_id
            if new.account_id is not None:
                await require_account(connection, new.account_id)
            await connection.execute(insert(VectorRow).values(values))
        return str(values["id"])

    async def get(self, account_id: str | None, vector_id: str) -> VectorRecord:
        """Raises NotFound."""
        record = await self._find(account_id, vector_id)
        if record is None:
            raise _not_found(vector_id)
        return record

    async def recent(self, account_id: str | None, vector_id: str) -> VectorRecord:
        """As `get`, but what other processes did in the last 2 s may be missing: every request asks."""
        record = await self._recent.get((account_id, vector_id), lambda: self._find(account_id, vector_id))
        if record is None:
            raise _not_found(vector_id)
        return record

    async def those(self, account_id: str, vector_ids: Collection[str]) -> Mapping[str, VectorRecord]:
        """By id, those of `vector_ids` that are there for the account."""
        query = select(*_COLUMNS).where(VectorRow.id.in_(vector_ids), *_seen_by(account_id))
        async with self._database.reading() as connection:
            return {row.id: _record(row) for row in (await connection.execute(query)).all()}

    async def blob(self, vector_id: str) -> bytes:
        """Of whatever account: ask `get` first. Raises NotFound."""
        query = select(VectorRow.blob).where(VectorRow.id == vector_id)
        async with self._database.reading() as connection:
            blob = (await connection.execute(query)).scalar()
        if blob is None:
            raise _not_found(vector_id)
        return bytes(blob)

    async def list(
        self,
        account_id: str | None,
        *,
        method: str | None = None,
        category: str | None = None,
        shared: bool = False,
        limit: int | None = None,
        offset: int = 0,
    ) -> Sequence[VectorRecord]:
        """Newest first; with `shared`, the presets of all accounts too."""
        query = select(*_COLUMNS).where(*(_seen_by(account_id) if shared else _owned_by(account_id)))
        if method is not None:
            query = query.where(VectorRow.method == method)
        if category is not None:
            query = query.where(VectorRow.category == category)
        query = query.order_by(VectorRow.created_at.desc(), VectorRow.id).limit(limit).offset(offset)
        async with self._database.reading() as connection:
            return [_record(row) for row in (await connection.execute(query)).all()]

    async def relabel(self, account_id: str | None, vector_id: str, **labels: Unpack[Labels]) -> None:
        """Raises NotFound."""
        change = update(VectorRow).where(VectorRow.id == vector_id, *_owned_by(account_id))
        # A change of nothing still has to find its vector.
        values = {**labels} or {"label": VectorRow.label}
        async with self._database.writing() as connection:
            if (await connection.execute(change.values(values))).rowcount == 0:
                raise _not_found(vector_id)
        self._recent.forget()

    async def delete(self, account_id: str | None, vector_id: str) -> None:
        """Raises NotFound."""
        if not await self.delete_many(account_id, [vector_id]):
            raise _not_found(vector_id)

    async def delete_many(self, account_id: str | None, vector_ids: Sequence[str]) -> Sequence[str]:
        """The ids that were deleted; those that the account does not have are passed over."""
        change = (
            delete(VectorRow)
            .where(VectorRow.id.in_(vector_ids), *_owned_by(account_id))
            .returning(VectorRow.id)
        )
        async with self._database.writing() as connection:
            gone = set((await connection.execute(change)).scalars())
        self._recent.forget()
        return [vector_id for vector_id in dict.fromkeys(vector_ids) if vector_id in gone]

    async def preset(
        self, preset: str, fingerprint: str, account_id: str | None = None
    ) -> VectorRecord | None:
        """The preset's vector for this model: an account's own one, or without an account the shared one.

        As with `recent`, what other processes did in the last 2 s may be missing.
        """

        async def find() -> VectorRecord | None:
            async with self._database.reading() as connection:
                return await _find_preset(connection, preset, fingerprint, account_id)

        return await self._recent.get(("preset", preset, fingerprint, account_id), find)

    async def put_preset(self, new: NewVector) -> VectorRecord:
        """Store a preset's vector unless one of the same data set is there; returns the one that is there.

        However many processes do it at once, they get the same. One of another data set is replaced.
        """
        assert new.preset is not None, "a preset has a name"
        assert new.model_fingerprint is not None, "a preset is made for one model"
        values = await asyncio.to_thread(_values, new)
        async with self._database.writing(alone=True) as connection:
            found = await _find_preset(connection, new.preset, new.model_fingerprint, new.account_id)
            if found is not None and found.dataset_digest == new.dataset_digest:
                return found
            if found is not None:
                await connection.execute(delete(VectorRow).where(VectorRow.id == found.id))
            if new.account_id is not None:
                await require_account(connection, new.account_id)
            await connection.execute(insert(VectorRow).values(values))
            stored = (await connection.execute(select(*_COLUMNS).where(VectorRow.id == values["id"]))).one()
        self._recent.forget()
        return _record(stored)

    async def _find(self, account_id: str | None, vector_id: str) -> VectorRecord | None:
        query = select(*_COLUMNS).where(VectorRow.id == vector_id, *_seen_by(account_id))
        async with self._database.reading() as connection:
            row = (await connection.execute(query)).first()
        return None if row is None else _record(row)


_COLUMNS = [VectorRow.__table__.columns[name] for name in VectorRecord.__dataclass_fields__]


def _owned_by(account_id: str | None) -> list[ColumnElement[bool]]:
    return [] if account_id is None else [VectorRow.account_id == account_id]


def _seen_by(account_id: str | None) -> list[ColumnElement[bool]]:
    if account_id is None:
        return []
    return [or_(VectorRow.account_id == account_id, VectorRow.account_id.is_(None))]


async def _find_preset(
    connection: AsyncConnection, preset: str, fingerprint: str, account_id: str | None
) -> VectorRecord | None:
    query = select(*_COLUMNS).where(
        VectorRow.preset == preset,
        VectorRow.model_fingerprint == fingerprint,
        VectorRow.account_id.is_(None) if account_id is None else VectorRow.account_id == account_id,
    )
    row = (await connection.execute(query)).first()
    return None if row is None else _record(row)


def _values(new: NewVector) -> dict[str, Any]:
    vector = new.vector
    return {
        "id": str(uuid.uuid4()),
        "account_id": new.account_id,
        "preset": new.preset,
        "name": new.name,
        "label": new.label,
        "category": new.category,
        "method": new.method,
        "model_name": new.model_name,
        "model_fingerprint": new.model_fingerprint,
        "width": vector.width,
        "layers": sorted(vector.layers),
        "norms": _by_text(vector.norms),
        "doses": None if new.doses is None else _by_text(new.doses),
        "scale": new.scale,
        "dataset_digest": new.dataset_digest,
        "evidence": None if new.evidence is None else dict(new.evidence),
        "digest": vector.digest,
        "blob": vector.blob,
        "created_at": datetime.now(UTC),
    }


def _record(row: Any) -> VectorRecord:
    fields = dict(row._mapping)  # noqa: SLF001  # SQLAlchemy's public name for it
    fields["layers"] = tuple(fields["layers"])
    fields["norms"] = _by_number(fields["norms"])
    fields["doses"] = fields["doses"] and _by_number(fields["doses"])
    return VectorRecord(**fields)


# JSON knows no other keys than texts.
def _by_text(values: Mapping[int, float]) -> dict[str, float]:
    return {str(layer): float(value) for layer, value in sorted(values.items())}


def _by_number(values: Mapping[str, float]) -> dict[int, float]:
    return {int(layer): value for layer, value in values.items()}


def _not_found(vector_id: str) -> NotFound:
    return NotFound(f"There is no steering vector {vector_id!r}.", param="steering_vector_id")
