"""Behaviours in the database: of an account and a model, with the pairs that they were made from."""

import asyncio
import uuid
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import partial
from typing import Any

from sqlalchemy import (
    JSON,
    ColumnElement,
    Float,
    ForeignKey,
    LargeBinary,
    String,
    Text,
    UniqueConstraint,
    delete,
    func,
    insert,
    or_,
    select,
    update,
)
from sqlalchemy.ext.asyncio import AsyncConnection
from sqlalchemy.orm import Mapped, mapped_column

from server.database import Database
from server.errors import Conflict, NotFound, Unavailable
from server.recent import Recent
from server.store import Moment, Table, require_account
from steering.sae.baseline import Baseline, BaselineError
from steering.train.pairs import Pair
from steering.vector import SteeringVector

MAX_BEHAVIORS = 1000  # of an account
MAX_NAMES = 20  # that a refusal lists
_RECENT_SECONDS = 2.0
_DETECTORS = 256  # held in memory; each has some latents' encoder rows


class BehaviorRow(Table):
    """No foreign key to its vector: a behaviour outlives that, and says which one it misses."""

    __tablename__ = "behaviors"
    __table_args__ = (UniqueConstraint("account_id", "model_fingerprint", "name"),)

    id: Mapped[str] = mapped_column(String(36), primary_key=True)
    account_id: Mapped[str] = mapped_column(ForeignKey("accounts.id", ondelete="CASCADE"))
    name: Mapped[str] = mapped_column(String(200))
    description: Mapped[str] = mapped_column(Text)
    model_name: Mapped[str] = mapped_column(String(500))
    model_fingerprint: Mapped[str] = mapped_column(String(64))
    sae: Mapped[str] = mapped_column(String(64))
    sae_source: Mapped[str] = mapped_column(Text)
    sae_digest: Mapped[str] = mapped_column(String(64))
    layer: Mapped[int]
    hook: Mapped[str] = mapped_column(Text)
    baseline: Mapped[dict[str, Any]] = mapped_column(JSON)
    detector_digest: Mapped[str] = mapped_column(String(64))
    detector: Mapped[bytes] = mapped_column(LargeBinary)
    steering_vector_id: Mapped[str] = mapped_column(String(36))
    strength: Mapped[float | None] = mapped_column(Float)
    pairs: Mapped[list[list[str]]] = mapped_column(JSON)
    evidence: Mapped[dict[str, Any]] = mapped_column(JSON)
    created_at: Mapped[datetime] = mapped_column(Moment)
    updated_at: Mapped[datetime] = mapped_column(Moment)


@dataclass(frozen=True, slots=True)
class Calibrated:
    """What a behaviour is on one model.

    `detector` scores states that leave block `layer`, and above `baseline.threshold` their drift shows the
    behaviour; `sae`, `sae_source` and `sae_digest` name the autoencoder that it was cut out of. `strength` is
    that of the vector which steers against the behaviour, below 0 since the vector points towards it; None
    where neutral text bears none.
    """

    model_name: str
    model_fingerprint: str
    sae: str
    sae_source: str
    sae_digest: str
    layer: int
    hook: str
    baseline: Baseline
    detector: SteeringVector
    steering_vector_id: str
    strength: float | None
    evidence: Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class NewBehavior:
    account_id: str
    name: str
    description: str
    pairs: Sequence[Pair]
    calibrated: Calibrated


@dataclass(frozen=True, slots=True)
class BehaviorRecord:
    """See `Calibrated`. `baseline` is None where another version of the server wrote it.

    The pairs and the detector's numbers stay in the database: `Behaviors.pairs` and `detector` have those.
    """

    id: str
    account_id: str
    name: str
    description: str
    model_name: str
    model_fingerprint: str
    sae: str
    sae_source: str
    sae_digest: str
    layer: int
    hook: str
    baseline: Baseline | None
    detector_digest: str
    steering_vector_id: str
    strength: float | None
    evidence: Mapping[str, Any]
    created_at: datetime
    updated_at: datetime


class Behaviors:
    """Every method is one transaction and raises Unavailable when the database does not answer.

    An account sees and changes its own behaviours alone. A name is unique among those of one model.
    """

    def __init__(self, database: Database) -> None:
        self._database = database
        self._recent: Recent[tuple[str, str, str], BehaviorRecord] = Recent(_RECENT_SECONDS)
        self._detectors: OrderedDict[str, SteeringVector] = OrderedDict()

    async def add(self, new: NewBehavior) -> BehaviorRecord:
        """Raises Conflict for a name that is taken or a full account, NotFound for an unknown one."""
        now = datetime.now(UTC)
        values = await asyncio.to_thread(_values, new.calibrated)
        values |= {
            "id": str(uuid.uuid4()),
            "account_id": new.account_id,
            "name": new.name,
            "description": new.description,
            "pairs": [[pair.prompt, pair.positive, pair.negative] for pair in new.pairs],
            "created_at": now,
            "updated_at": now,
        }
        async with self._database.writing(alone=True) as connection:
            await require_account(connection, new.account_id)
            await _require_room(connection, new.account_id)
            await _require_free(connection, new.account_id, new.calibrated.model_fingerprint, new.name)
            await connection.execute(insert(BehaviorRow).values(values))
            row = (await connection.execute(select(*_COLUMNS).where(BehaviorRow.id == values["id"]))).one()
        return _record(row)

    async def require_free(self, account_id: str, fingerprint: str, name: str) -> None:
        """Raises Conflict as `add` would, before the work that comes before it."""
        async with self._database.reading() as connection:
            await _require_room(connection, account_id)
        async with self._database.reading() as connection:
            await _require_free(connection, account_id, fingerprint, name)

    async def get(self, account_id: str, behavior_id: str) -> BehaviorRecord:
        """Of whatever model. Raises NotFound."""
        query = select(*_COLUMNS).where(*_owned(account_id, behavior_id))
        async with self._database.reading() as connection:
            row = (await connection.execute(query)).first()
        if row is None:
            raise _not_found(behavior_id)
        return _record(row)

    async def recent(
        self, account_id: str, fingerprint: str, names: Sequence[str], field: str = "behavior_names"
    ) -> Sequence[BehaviorRecord]:
        """Those that a request to the model names, by name or id, each once and in this order.

        What other processes did in the last 2 s may be missing: every request asks. Raises NotFound naming
        `field` and listing what there is, Conflict for a behaviour of another model alone.
        """
        found = {}
        for index, name in enumerate(names):
            record = await self._recent.get(
                (account_id, fingerprint, name), partial(self._find, account_id, fingerprint, name)
            )
            if record is None:
                raise await self._missing(account_id, fingerprint, name, f"{field}.{index}")
            found[record.id] = record
        return list(found.values())

    async def everywhere(self, fingerprint: str, ids: Sequence[str]) -> Sequence[BehaviorRecord]:
        """Those that the server watches all requests for, whoever owns them, as `recent` finds them.

        Raises Unavailable for one that is not there: what was to be watched must not run unwatched.
        """
        found = []
        for behavior_id in ids:
            record = await self._recent.get(
                ("", fingerprint, behavior_id), partial(self._find, None, fingerprint, behavior_id)
            )
            if record is None:
                raise Unavailable(
                    f"this server watches all requests for the behaviour {behavior_id!r} (--behaviors), and"
                    " its model has none of that id"
                )
            found.append(record)
        return found

    async def list(
        self, account_id: str, *, limit: int | None = None, offset: int = 0
    ) -> Sequence[BehaviorRecord]:
        """Of all models, newest first."""
        query = (
            select(*_COLUMNS)
            .where(BehaviorRow.account_id == account_id)
            .order_by(BehaviorRow.created_at.desc(), BehaviorRow.id)
            .limit(limit)
            .offset(offset)
        )
        async with self._database.reading() as connection:
            return [_record(row) for row in (await connection.execute(query)).all()]

    async def pairs(self, account_id: str, behavior_id: str) -> tuple[Pair, ...]:
        """What it was made from. Raises NotFound."""
        query = select(BehaviorRow.pairs).where(*_owned(account_id, behavior_id))
        async with self._database.reading() as connection:
            pairs = (await connection.execute(query)).scalar()
        if pairs is None:
            raise _not_found(behavior_id)
        return tuple(Pair(*pair) for pair in pairs)

    async def detector(self, record: BehaviorRecord) -> SteeringVector:
        """The vector that scores states for it. Raises NotFound where it was deleted meanwhile."""
        known = self._detectors.get(record.detector_digest)
        if known is None:
            query = select(BehaviorRow.detector).where(
                BehaviorRow.id == record.id, BehaviorRow.detector_digest == record.detector_digest
            )
            async with self._database.reading() as connection:
                blob = (await connection.execute(query)).scalar()
            if blob is None:
                raise _not_found(record.id)
            known = self._detectors[record.detector_digest] = SteeringVector.from_blob(bytes(blob))
        self._detectors.move_to_end(record.detector_digest)
        if len(self._detectors) > _DETECTORS:
            self._detectors.popitem(last=False)
        return known

    async def rename(self, account_id: str, behavior_id: str, name: str) -> BehaviorRecord:
        """Raises NotFound, and Conflict for a name that another behaviour of its model has."""
        return await self._changed(account_id, behavior_id, {"name": name})

    async def recalibrate(self, account_id: str, behavior_id: str, calibrated: Calibrated) -> BehaviorRecord:
        """Raises NotFound where it was deleted meanwhile, Conflict where its name is taken on that model."""
        return await self._changed(account_id, behavior_id, await asyncio.to_thread(_values, calibrated))

    async def delete(self, account_id: str, behavior_id: str) -> None:
        """Its vector stays: other requests may name it. Raises NotFound."""
        async with self._database.writing() as connection:
            gone = await connection.execute(delete(BehaviorRow).where(*_owned(account_id, behavior_id)))
            if gone.rowcount == 0:
                raise _not_found(behavior_id)
        self._recent.forget()

    async def _changed(self, account_id: str, behavior_id: str, values: Mapping[str, Any]) -> BehaviorRecord:
        own = select(*_COLUMNS).where(*_owned(account_id, behavior_id))
        async with self._database.writing(alone=True) as connection:
            now = (await connection.execute(own)).first()
            if now is None:
                raise _not_found(behavior_id)
            fingerprint = values.get("model_fingerprint", now.model_fingerprint)
            name = values.get("name", now.name)
            await _require_free(connection, account_id, fingerprint, name, but=behavior_id)
            change = update(BehaviorRow).where(BehaviorRow.id == behavior_id)
            await connection.execute(change.values(**values, updated_at=datetime.now(UTC)))
            row = (await connection.execute(own)).one()
        self._recent.forget()
        return _record(row)

    async def _find(self, account_id: str | None, fingerprint: str, name: str) -> BehaviorRecord | None:
        """An id wins over a name; without an account it is the id."""
        if account_id is None:
            own = [BehaviorRow.id == name]
        else:
            own = [
                BehaviorRow.account_id == account_id,
                or_(BehaviorRow.id == name, BehaviorRow.name == name),
            ]
        query = (
            select(*_COLUMNS)
            .where(BehaviorRow.model_fingerprint == fingerprint, *own)
            .order_by((BehaviorRow.id == name).desc())
        )
        async with self._database.reading() as connection:
            row = (await connection.execute(query)).first()
        return None if row is None else _record(row)

    async def _missing(self, account_id: str, fingerprint: str, name: str, field: str) -> NotFound | Conflict:
        query = (
            select(BehaviorRow.id, BehaviorRow.name, BehaviorRow.model_name, BehaviorRow.model_fingerprint)
            .where(BehaviorRow.account_id == account_id)
            .order_by(BehaviorRow.name)
        )
        async with self._database.reading() as connection:
            rows = (await connection.execute(query)).all()
        elsewhere = next((row.model_name for row in rows if name in (row.id, row.name)), None)
        if elsewhere is not None:
            return Conflict(
                f"The behaviour {name!r} was made for {elsewhere!r}, which is not served here; POST"
                " /behaviors/recompute-baselines makes it anew for the served model.",
                param=field,
                code="behavior_of_another_model",
            )
        known = [repr(row.name) for row in rows if row.model_fingerprint == fingerprint]
        listed = ", ".join(known[:MAX_NAMES]) + (", …" if len(known) > MAX_NAMES else "")
        there = f"there are {listed}" if known else "there is none; POST /behaviors/create makes one"
        return NotFound(f"There is no behaviour {name!r}: {there}.", param=field)


_COLUMNS = [BehaviorRow.__table__.columns[name] for name in BehaviorRecord.__dataclass_fields__]


async def _require_room(connection: AsyncConnection, account_id: str) -> None:
    counted = select(func.count()).select_from(BehaviorRow).where(BehaviorRow.account_id == account_id)
    if (await connection.execute(counted)).scalar_one() >= MAX_BEHAVIORS:
        raise Conflict(
            f"An account has at most {MAX_BEHAVIORS} behaviours; make room with DELETE /behaviors/{{id}}.",
            code="too_many",
        )


async def _require_free(
    connection: AsyncConnection, account_id: str, fingerprint: str, name: str, *, but: str = ""
) -> None:
    taken = select(BehaviorRow.id).where(
        BehaviorRow.account_id == account_id,
        BehaviorRow.model_fingerprint == fingerprint,
        BehaviorRow.name == name,
        BehaviorRow.id != but,
    )
    found = (await connection.execute(taken)).scalar()
    if found is not None:
        raise Conflict(
            f"There is a behaviour {name!r} already ({found}): choose another name, rename or delete it.",
            param="behavior_name",
            code="behavior_exists",
        )


def _owned(account_id: str, behavior_id: str) -> tuple[ColumnElement[bool], ...]:
    return BehaviorRow.id == behavior_id, BehaviorRow.account_id == account_id


def _values(calibrated: Calibrated) -> dict[str, Any]:
    values = {name: getattr(calibrated, name) for name in Calibrated.__dataclass_fields__}
    detector = calibrated.detector
    return values | {
        "baseline": calibrated.baseline.encode(),
        "detector": detector.blob,
        "detector_digest": detector.digest,
        "evidence": dict(calibrated.evidence),
    }


def _record(row: Any) -> BehaviorRecord:
    fields = dict(row._mapping)  # noqa: SLF001  # SQLAlchemy's public name for it
    try:
        fields["baseline"] = Baseline.decode(fields["baseline"])
    except BaselineError:
        fields["baseline"] = None
    return BehaviorRecord(**fields)


def _not_found(behavior_id: str) -> NotFound:
    return NotFound(f"There is no behaviour {behavior_id!r}.", param="behavior_id")
