"""Interactions in groups: of one model, or of one prompt."""

from collections.abc import Sequence

import strawberry

from server import completions as stored
from server.completions import GroupBy, GroupOrder
from server.errors import InvalidRequest
from server.graphql import metrics
from server.graphql.context import Info
from server.graphql.filters import Filters, ListCompletionsFilterInput
from server.graphql.interactions import Completion, by_time
from server.graphql.metrics import Metric
from server.graphql.paging import CursorPageInput, OrderPair, PageInfo, SortDirection

MAX_GROUPS = 50  # each shows as many completions

strawberry.enum(GroupBy, name="CompletionGroupBy")


@strawberry.type
class DirectScoresStats:
    metric: Metric
    scores: int
    average: float | None
    max: float | None
    min: float | None
    stddev: float | None
    sum: float | None

    @classmethod
    def of(cls, statistics: stored.ScoreStatistics) -> "DirectScoresStats":
        return cls(
            metric=metrics.metric(statistics.metric),
            scores=statistics.count,
            average=statistics.average,
            max=statistics.most,
            min=statistics.least,
            stddev=statistics.stddev,
            sum=statistics.sum,
        )


@strawberry.type
class CompletionGroup:
    """`key` is a model's name, or the hash of a prompt."""

    source: strawberry.Private[stored.CompletionGroup]
    page: strawberry.Private[CursorPageInput]
    key: str | None
    count: int
    direct_scores_stats: list[DirectScoresStats]

    @classmethod
    def of(cls, group: stored.CompletionGroup, page: CursorPageInput) -> "CompletionGroup":
        return cls(
            source=group,
            page=page,
            key=group.key or None,
            count=group.count,
            direct_scores_stats=[DirectScoresStats.of(each) for each in group.statistics],
        )

    @strawberry.field
    def completions(self, page: CursorPageInput, order: list[OrderPair] | None = None) -> "GroupCompletions":
        """Its latest, at most as many as the page has groups; a page after that is asked of `completions`."""
        if not by_time(order):
            raise InvalidRequest("a group shows its latest completions", param="order")
        if page != self.page:  # which clients send for both, cursors and all
            _require_first(page, self.page.size)
        shown = self.source.completions[: page.size]
        return GroupCompletions(nodes=[Completion.of(each) for each in shown])


@strawberry.type
class GroupCompletions:
    nodes: list[Completion]


@strawberry.type
class CompletionGroupConnection:
    total_count: int
    group_by: GroupBy
    page_info: PageInfo
    nodes: list[CompletionGroup]


@strawberry.type
class GroupQueries:
    @strawberry.field
    async def completions_grouped(
        self,
        info: Info,
        group_by: GroupBy,
        filter: ListCompletionsFilterInput,
        page: CursorPageInput,
        order: list[OrderPair] | None = None,
    ) -> CompletionGroupConnection:
        """By `group`, which is their key, or by `count`; by group ascending unless `order` says otherwise."""
        context = info.context
        by, descending = _order(order)
        project_id = await context.enter(filter.project)
        condition = (await Filters.of(context, project_id)).condition(filter)
        found = await context.state.completions.groups(
            project_id,
            group_by,
            condition,
            paging=page.paging(MAX_GROUPS),
            order=by,
            descending=descending,
            shown=page.size,
        )
        return CompletionGroupConnection(
            total_count=found.total,
            group_by=group_by,
            page_info=PageInfo.of(found.cursors, has_next=found.has_next, has_previous=found.has_previous),
            nodes=[CompletionGroup.of(each, page) for each in found.groups],
        )


def _order(order: Sequence[OrderPair] | None) -> tuple[GroupOrder, bool]:
    if not order:
        return GroupOrder.KEY, False
    field = _FIELDS.get(order[0].field)
    if field is None or len(order) > 1:
        raise InvalidRequest("groups are ordered by group or by count", param="order")
    return field, order[0].order is SortDirection.DESC


_FIELDS = {"group": GroupOrder.KEY, "key": GroupOrder.KEY, "count": GroupOrder.COUNT}


def _require_first(page: CursorPageInput, most: int) -> None:
    if (page.after, page.before, page.last, page.offset) != (None,) * 4 or page.size > most:
        raise InvalidRequest(
            f"a group shows its first {most} completions; the others are listed by completions(filter)",
            param="page",
        )
