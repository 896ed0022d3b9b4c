"""Stored completions, each choice by itself, with their scores: looked up, listed and grouped."""

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

from sqlalchemy import ColumnElement, func, literal, select, tuple_, union_all

from server.completion_filter import EVERY, Condition, Named, clause
from server.completion_pages import FIRST_PAGE, Paging, Spot, bounds, place_cursor
from server.completion_rows import CompletionRow, text_of
from server.completion_scores import (
    ComparisonScore,
    DirectScore,
    ScoreStatistics,
    Side,
    comparison_scores,
    direct_scores,
    metrics_of,
    statistics,
)
from server.database import Database
from server.interaction_rows import Interaction, InteractionRow, Place, interaction_of
from server.observed import storable

__all__ = [
    "ComparisonScore",
    "Completion",
    "CompletionGroup",
    "CompletionPage",
    "Completions",
    "DirectScore",
    "GroupBy",
    "GroupOrder",
    "GroupPage",
    "Paging",
    "ScoreStatistics",
    "Side",
]

MAX_GROUPS = 100  # on a page: the completions of each are a part of one statement
_MANY = 2**62  # groups: more than there are
_SPOT = (CompletionRow.created_at, CompletionRow.number, CompletionRow.choice)


@dataclass(frozen=True, slots=True)
class Completion:
    """Choice `choice` of `interaction`. Its model is "" where an upload named none."""

    id: str
    choice: int
    interaction: Interaction
    direct: Sequence[DirectScore]
    comparisons: Sequence[ComparisonScore]

    @property
    def text(self) -> str | None:
        return text_of(self.interaction.answer, self.choice)


@dataclass(frozen=True, slots=True)
class CompletionPage:
    """`cursors` are those of `completions`, one for each."""

    total: int
    completions: Sequence[Completion]
    cursors: Sequence[str]
    has_next: bool
    has_previous: bool


class GroupBy(StrEnum):
    MODEL = "MODEL"
    PROMPT = "PROMPT"


class GroupOrder(StrEnum):
    KEY = "key"
    COUNT = "count"


_GROUPED: dict[GroupBy, Any] = {
    GroupBy.MODEL: CompletionRow.model,
    GroupBy.PROMPT: CompletionRow.prompt_hash,
}


@dataclass(frozen=True, slots=True)
class CompletionGroup:
    """`key` is a model, "" for none, or a prompt's hash; `completions` are its latest."""

    key: str
    count: int
    statistics: Sequence[ScoreStatistics]
    completions: Sequence[Completion]


@dataclass(frozen=True, slots=True)
class GroupPage:
    """`total` counts groups."""

    total: int
    groups: Sequence[CompletionGroup]
    cursors: Sequence[str]
    has_next: bool
    has_previous: bool


class Completions:
    """Of one project at a time, whose id is `account_id`.

    Raises Unavailable when the database does not answer.
    """

    def __init__(self, database: Database) -> None:
        self._database = database

    async def owner(self, account_ids: Collection[str], completion_id: str) -> str | None:
        """Which of these projects has stored that completion."""
        query = select(CompletionRow.account_id).where(
            CompletionRow.account_id.in_(account_ids), CompletionRow.id == storable(completion_id)
        )
        async with self._database.reading() as connection:
            return (await connection.execute(query.limit(1))).scalar()

    async def get(self, account_id: str, completion_id: str) -> Completion | None:
        query = _ordered(clause(Named([completion_id]), account_id), newest_first=True).limit(1)
        found = await self._whole(account_id, await self._spots(query))
        return found[0] if found else None

    async def count(self, account_id: str, condition: Condition = EVERY) -> int:
        return await self._number(_counted(clause(condition, account_id)))

    async def list(
        self,
        account_id: str,
        condition: Condition = EVERY,
        *,
        paging: Paging = FIRST_PAGE,
        newest_first: bool = True,
    ) -> CompletionPage:
        """By the time of their making. Raises InvalidRequest for a cursor that is none, and for a page of
        more than MAX_PAGE."""
        paging.check()
        within = clause(condition, account_id)
        descending = newest_first != paging.backwards
        query = _ordered(within, newest_first=descending)
        if paging.cursor is not None:
            query = query.where(_beyond(Spot.of(*paging.cursor), newest_first=descending))
        spots = await self._spots(query.offset(paging.offset).limit(paging.size + 1))
        more, shown = len(spots) > paging.size, spots[: paging.size]
        around = bool(paging.cursor or paging.offset)
        if paging.backwards:
            shown = shown[::-1]
        return CompletionPage(
            total=await self._number(_counted(within)),
            completions=await self._whole(account_id, shown),
            cursors=[each.cursor for each in shown],
            has_next=around if paging.backwards else more,
            has_previous=more if paging.backwards else around,
        )

    async def groups(
        self,
        account_id: str,
        by: GroupBy,
        condition: Condition = EVERY,
        *,
        paging: Paging = FIRST_PAGE,
        order: GroupOrder = GroupOrder.COUNT,
        descending: bool = True,
        shown: int = 10,
    ) -> GroupPage:
        """With the latest `shown` completions of each group at most. Raises as `list` does, for a page of
        more than MAX_GROUPS."""
        paging.check(MAX_GROUPS)
        column, within = _GROUPED[by], clause(condition, account_id)
        # Rows are counted by group once where the page does not depend on how many groups there are.
        total = await self._groups(column, within) if paging.backwards else _MANY
        first, end = bounds(paging, total)
        key: Any = column if order is GroupOrder.KEY else func.count()
        counted = select(column, func.count(), func.count().over()).where(within).group_by(column)
        counted = counted.order_by(key.desc() if descending else key, column).offset(first).limit(end - first)
        async with self._database.reading() as connection:
            rows = (await connection.execute(counted)).all()
        if not paging.backwards:
            total = rows[0][2] if rows else await self._groups(column, within)
            first, end = min(first, total), min(end, total)
        counts = [(row[0], row[1]) for row in rows]
        async with self._database.reading() as connection:
            metrics = await metrics_of(connection, account_id)
            keys = [each for each, _ in counts]
            scores = await statistics(connection, column, within, keys, metrics)
        latest: dict[str, list[Completion]] = {}
        for one in await self._whole(account_id, await self._latest(column, within, keys, shown)):
            interaction = one.interaction
            owner = interaction.model if by is GroupBy.MODEL else interaction.prompt_hash
            latest.setdefault(owner, []).append(one)
        return GroupPage(
            total=total,
            groups=[
                CompletionGroup(name, count, scores.get(name, ()), latest.get(name, ()))
                for name, count in counts
            ],
            cursors=[place_cursor(place) for place in range(first, first + len(counts))],
            has_next=end < total,
            has_previous=first > 0,
        )

    async def _groups(self, column: Any, within: ColumnElement[bool]) -> int:
        # Not count(distinct): the groups stand in order in their index, which spares a sort.
        each = select(literal(1)).select_from(CompletionRow).where(within).group_by(column).subquery()
        return await self._number(select(func.count()).select_from(each))

    async def _latest(
        self, column: Any, within: ColumnElement[bool], keys: Sequence[str], shown: int
    ) -> Sequence[Spot]:
        """Of each group for itself, because its own index has them in their order."""
        each = [_ordered(within & (column == key), newest_first=True).limit(shown) for key in keys]
        parts = [select(query.subquery()) for query in each]
        return await self._spots(union_all(*parts)) if parts and shown else []

    async def _spots(self, query: Any) -> Sequence[Spot]:
        async with self._database.reading() as connection:
            return [Spot(*row) for row in (await connection.execute(query)).all()]

    async def _number(self, query: Any) -> int:
        async with self._database.reading() as connection:
            number: int = (await connection.execute(query)).scalar_one()
        return number

    async def _whole(self, account_id: str, spots: Sequence[Spot]) -> Sequence[Completion]:
        """What is there of these, in their order; each kind of row is asked for once."""
        numbers = {each.number for each in spots}
        if not numbers:
            return []
        query = select(InteractionRow.__table__).where(InteractionRow.number.in_(numbers))
        named = select(CompletionRow.number, CompletionRow.choice, CompletionRow.id)
        async with self._database.reading() as connection:
            rows = (await connection.execute(query)).all()
            ids = (await connection.execute(named.where(CompletionRow.number.in_(numbers)))).all()
            metrics = await metrics_of(connection, account_id)
            direct = await direct_scores(connection, numbers, metrics)
            comparisons = await comparison_scores(connection, numbers, metrics)
        interactions = {row.number: interaction_of(row) for row in rows}
        names = {Place(row.number, row.choice): row.id for row in ids}
        places = [Place(each.number, each.choice) for each in spots]
        return [
            Completion(
                names[place],
                place.choice,
                interactions[place.number],
                direct.get(place, ()),
                comparisons.get(place, ()),
            )
            for place in places
            if place in names and place.number in interactions
        ]


def _counted(within: ColumnElement[bool]) -> Any:
    return select(func.count()).select_from(CompletionRow).where(within)


def _ordered(within: ColumnElement[bool], *, newest_first: bool) -> Any:
    order = [each.desc() if newest_first else each.asc() for each in _SPOT]
    return select(*_SPOT).where(within).order_by(*order)


def _beyond(spot: Spot, *, newest_first: bool) -> ColumnElement[bool]:
    columns = tuple_(*_SPOT)
    there = tuple_(*(literal(value, column.type) for value, column in zip(spot, _SPOT, strict=True)))
    return columns < there if newest_first else columns > there
