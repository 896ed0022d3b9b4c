"""A/B tests: campaigns that split a project's traffic among models, and what became of them."""

import asyncio
import uuid
from collections.abc import Awaitable, Callable, Collection, Sequence
from datetime import UTC, datetime
from typing import Any

from sqlalchemy import (
    JSON,
    Boolean,
    ColumnElement,
    Float,
    ForeignKey,
    Index,
    Integer,
    String,
    insert,
    or_,
    select,
    update,
)
from sqlalchemy.ext.asyncio import AsyncConnection
from sqlalchemy.orm import Mapped, mapped_column

from server.ab_report import Report, Sample, Tally
from server.assignment import Assignment, drawn
from server.campaign import (
    ACTIVE,
    MAX_KEY,
    MAX_METRIC,
    MAX_MODEL,
    MAX_NAME,
    Campaign,
    Evidence,
    NewCampaign,
    ScoredMetric,
    ScoreType,
    Status,
)
from server.database import Database
from server.errors import Conflict, NotFound
from server.observed import storable
from server.projects import Projects
from server.recent import Recent
from server.store import Moment, Table, require_account

_SECONDS = 2.0  # until other processes route by a change


class CampaignRow(Table):
    __tablename__ = "campaigns"
    __table_args__ = (Index(None, "account_id", "key", unique=True), Index(None, "status"))

    id: Mapped[str] = mapped_column(String(36), primary_key=True)
    account_id: Mapped[str] = mapped_column(ForeignKey("accounts.id", ondelete="CASCADE"))
    key: Mapped[str] = mapped_column(String(MAX_KEY))
    name: Mapped[str] = mapped_column(String(MAX_NAME))
    metric: Mapped[str] = mapped_column(String(MAX_METRIC))
    score_type: Mapped[str] = mapped_column(String(10))
    status: Mapped[str] = mapped_column(String(11))
    traffic_split: Mapped[float] = mapped_column(Float)
    auto_deploy: Mapped[bool] = mapped_column(Boolean)
    models: Mapped[list[str]] = mapped_column(JSON)
    alpha: Mapped[float] = mapped_column(Float)
    min_scores: Mapped[int] = mapped_column(Integer)
    begin_date: Mapped[datetime] = mapped_column(Moment)
    end_date: Mapped[datetime | None] = mapped_column(Moment)
    winner: Mapped[str | None] = mapped_column(String(MAX_MODEL))


Attached = Callable[[str, str], Awaitable[bool]]  # whether there is a model of this name in this project


class Campaigns:
    """A project has one active campaign at most, so that it is clear whose a request is.

    Every change is one transaction. Raises Unavailable when the database does not answer.
    """

    def __init__(
        self, database: Database, evidence: Evidence, projects: Projects, attached: Attached
    ) -> None:
        self._database, self._evidence = database, evidence
        self._projects, self._attached = projects, attached
        self._active = Recent[str, Sequence[Campaign]](_SECONDS)
        self._named = Recent[tuple[str, str], Campaign](_SECONDS)

    async def create(self, project_id: str, new: NewCampaign) -> Campaign:
        """Raises InvalidRequest, NotFound for an unknown metric or model, and Conflict for a taken key or
        beside another active campaign."""
        new.require_sound()
        metric = await self._evidence.metric(project_id, new.metric)
        for model in new.models:
            if not await self._attached(model, project_id):
                raise NotFound(f"No model {model!r} is served here by that name.", param="models")
        campaign = Campaign(
            id=str(uuid.uuid4()),
            project_id=project_id,
            key=new.key,
            name=storable(new.name or new.key),
            metric=metric.id,
            score_type=new.score_type,
            status=Status.WARMUP,
            traffic_split=new.traffic_split,
            auto_deploy=new.auto_deploy,
            models=tuple(new.models),
            alpha=new.alpha,
            min_scores=new.min_scores,
            begin_date=datetime.now(UTC),
            end_date=None,
            winner=None,
        )
        async with self._database.writing(alone=True) as connection:
            await require_account(connection, project_id)
            await _require_free(connection, campaign)
            await connection.execute(insert(CampaignRow).values(_row(campaign)))
        self._forget()
        return campaign

    async def cancel(self, project_ids: Collection[str], id_or_key: str) -> Campaign:
        """Raises NotFound, Conflict for one that has ended."""
        campaign = await self.get(project_ids, id_or_key)
        async with self._database.writing() as connection:
            cancelled = await _end(connection, campaign.id, Status.CANCELLED)
        self._forget()
        if not cancelled:
            raise Conflict(f"The A/B test {campaign.key!r} has ended already.")
        return await self.get(project_ids, campaign.id)

    async def get(self, project_ids: Collection[str], id_or_key: str) -> Campaign:
        """Of any of these projects. Raises NotFound, Conflict for a key that several of them have."""
        name = storable(id_or_key)
        named = or_(CampaignRow.id == name, CampaignRow.key == name)
        found = await self._select(CampaignRow.account_id.in_(project_ids), named)
        found = [each for each in found if each.id == id_or_key] or found
        if not found:
            raise NotFound(f"There is no A/B test {id_or_key!r}.", param="ab_campaign")
        if len(found) > 1:
            raise Conflict(f"Several projects have an A/B test {id_or_key!r}: name it by its id.")
        return found[0]

    async def list(
        self, project_ids: Collection[str], *, active: bool | None = None, status: Status | None = None
    ) -> Sequence[Campaign]:
        """Newest first."""
        wanted: list[ColumnElement[bool]] = [CampaignRow.account_id.in_(project_ids)]
        if active is not None:
            wanted.append(CampaignRow.status.in_(ACTIVE) if active else CampaignRow.status.not_in(ACTIVE))
        if status is not None:
            wanted.append(CampaignRow.status == status)
        return await self._select(*wanted)

    async def report(self, campaign: Campaign) -> Report:
        """From its scores until now, or until its end."""
        metric = await self._evidence.metric(campaign.project_id, campaign.metric)
        if campaign.score_type is ScoreType.COMPARISON:
            tallies = await self._evidence.comparisons(campaign, metric)
            return await asyncio.to_thread(_of_comparisons, campaign, tallies)
        samples = await self._evidence.direct(campaign, metric)
        return await asyncio.to_thread(_of_direct_scores, campaign, metric, samples)

    async def route(self, project_id: str, session_id: str, campaign: str | None = None) -> Assignment | None:
        """The model of a request that names none; None: the project's default.

        `campaign`, an id or key, makes the request that campaign's; of one that is done it gets the winner.
        Raises NotFound for an unknown one, Conflict for one that was cancelled.
        """
        if campaign is not None:
            return _forced(await self._known(project_id, campaign), session_id)
        for each in await self._active.get(project_id, lambda: self.list([project_id], active=True)) or ():
            model = drawn(each.id, session_id, each.models, traffic_split=each.traffic_split)
            if model is not None:
                return Assignment(each.id, each.key, model)
        return None

    async def uses(self, project_id: str, model: str) -> str | None:
        """The key of the project's active campaign that has this model."""
        active = await self.list([project_id], active=True)
        return next((each.key for each in active if model in each.models), None)

    async def unsettled(self) -> Sequence[Campaign]:
        """The active ones of all projects."""
        return await self._select(CampaignRow.status.in_(ACTIVE))

    async def settle(self, campaign: Campaign) -> None:
        """Begin it, once it has enough scores, and end it where it has a winner.

        Any process may, at any time and any number of times: one of them ends it, and deploys the winner in
        the same transaction.
        """
        report = await self.report(campaign)
        if report.winner is not None:
            await self._finish(campaign, report.winner)
        elif report.has_enough_scores and campaign.status is Status.WARMUP:
            await self._start(campaign)

    async def _finish(self, campaign: Campaign, winner: str) -> None:
        async with self._database.writing(alone=True) as connection:
            ended = await _end(connection, campaign.id, Status.DONE, winner)
            if ended and campaign.auto_deploy:
                await self._projects.promote(connection, campaign.project_id, winner)
        self._forget()
        self._projects.forget()

    async def _start(self, campaign: Campaign) -> None:
        this = (CampaignRow.id == campaign.id, CampaignRow.status == Status.WARMUP)
        async with self._database.writing() as connection:
            await connection.execute(update(CampaignRow).where(*this).values(status=Status.IN_PROGRESS))

    async def _known(self, project_id: str, id_or_key: str) -> Campaign:
        found = await self._named.get((project_id, id_or_key), lambda: self.get([project_id], id_or_key))
        assert found is not None, "`get` raises where there is none"
        return found

    async def _select(self, *where: ColumnElement[bool]) -> Sequence[Campaign]:
        query = select(CampaignRow.__table__).where(*where)
        query = query.order_by(CampaignRow.begin_date.desc(), CampaignRow.id)
        async with self._database.reading() as connection:
            return [_campaign(row) for row in (await connection.execute(query)).all()]

    def _forget(self) -> None:
        self._active.forget()
        self._named.forget()


def _of_direct_scores(campaign: Campaign, metric: ScoredMetric, samples: Sequence[Sample]) -> Report:
    from server import ab_statistics  # noqa: PLC0415  # scipy takes a second to import

    known = {sample.model: sample for sample in samples}
    return ab_statistics.of_direct_scores(
        [known.get(model, Sample(model, 0, 0, 0.0, 0.0)) for model in campaign.models],
        binary=metric.is_bool,
        higher_is_better=metric.higher_is_better,
        alpha=campaign.alpha,
        min_scores=campaign.min_scores,
    )


def _of_comparisons(campaign: Campaign, tallies: Sequence[Tally]) -> Report:
    from server import ab_statistics  # noqa: PLC0415  # as above

    return ab_statistics.of_comparisons(
        campaign.models, tallies, alpha=campaign.alpha, min_scores=campaign.min_scores
    )


def _forced(campaign: Campaign, session_id: str) -> Assignment:
    if campaign.status is Status.CANCELLED:
        raise Conflict(
            f"The A/B test {campaign.key!r} was cancelled; leave `ab_campaign` out.", param="ab_campaign"
        )
    model = campaign.winner or drawn(campaign.id, session_id, campaign.models)
    assert model is not None, "all of the traffic is split"
    return Assignment(campaign.id, campaign.key, model)


async def _require_free(connection: AsyncConnection, campaign: Campaign) -> None:
    """Raises Conflict. In a transaction that is alone, or two could begin at once."""
    of_project = CampaignRow.account_id == campaign.project_id
    taken = select(CampaignRow.id).where(of_project, CampaignRow.key == campaign.key)
    if (await connection.execute(taken)).first() is not None:
        raise Conflict(f"The project has an A/B test {campaign.key!r} already.", param="key")
    active = select(CampaignRow.key).where(of_project, CampaignRow.status.in_(ACTIVE))
    other = (await connection.execute(active)).scalar()
    if other is not None:
        raise Conflict(
            f"The A/B test {other!r} of this project is active: a project has one at a time."
            " Cancel it, or wait for its end."
        )


async def _end(
    connection: AsyncConnection, campaign_id: str, status: Status, winner: str | None = None
) -> bool:
    """Whether it was active until now."""
    change = (
        update(CampaignRow)
        .where(CampaignRow.id == campaign_id, CampaignRow.status.in_(ACTIVE))
        .values(status=status, winner=winner, end_date=datetime.now(UTC))
    )
    return (await connection.execute(change)).rowcount == 1


def _row(campaign: Campaign) -> dict[str, Any]:
    values = {name: getattr(campaign, name) for name in Campaign.__dataclass_fields__}
    return values | {"account_id": values.pop("project_id"), "models": list(campaign.models)}


def _campaign(row: Any) -> Campaign:
    values = dict(row._mapping)  # noqa: SLF001  # SQLAlchemy's public name for it
    return Campaign(
        **values
        | {
            "project_id": values.pop("account_id"),
            "models": tuple(row.models),
            "score_type": ScoreType(row.score_type),
            "status": Status(row.status),
        }
    )
