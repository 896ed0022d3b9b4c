"""Interactions: stored completions with their scores, listed, looked up, and scored."""

import json
from collections.abc import Mapping, Sequence
from typing import Any

import strawberry
from strawberry.scalars import JSON

from server import completions as stored
from server.completion_rows import Source, choices
from server.errors import InvalidRequest, NotFound
from server.graphql import metrics
from server.graphql.context import Info
from server.graphql.filters import Filters, ListCompletionsFilterInput
from server.graphql.metrics import Metric
from server.graphql.models import Catalog, Model
from server.graphql.paging import CursorPageInput, OrderPair, PageInfo, SortDirection
from server.graphql.projects import Project
from server.graphql.scalars import IdOrKey, Timestamp, Uuid
from server.interactions import Interaction
from server.roles import Role


@strawberry.type
class ChatMessage:
    role: str
    content: str

    @classmethod
    def of(cls, message: Mapping[str, Any]) -> "ChatMessage":
        return cls(role=str(message.get("role")), content=_text(message))


@strawberry.type
class CompletionLabel:
    key: str
    value: str


@strawberry.type
class CompletionUsage:
    completion_tokens: int
    prompt_tokens: int
    total_tokens: int


@strawberry.type
class CompletionMetadata:
    """`usage` is that of the whole answer, all its choices; `system` is what was told beside it."""

    parameters: JSON | None
    timings: JSON | None
    usage: CompletionUsage | None
    system: JSON | None

    @classmethod
    def of(cls, interaction: Interaction) -> "CompletionMetadata":
        if interaction.source is not Source.LIVE:
            return cls(parameters=_json(interaction.parameters), timings=None, usage=None, system=None)
        prompt, completion = interaction.prompt_tokens, interaction.completion_tokens
        return cls(
            parameters=_json(interaction.parameters),
            timings=JSON(
                {"latency_ms": interaction.latency_ms, "first_token_ms": interaction.first_token_ms}
            ),
            usage=CompletionUsage(
                completion_tokens=completion, prompt_tokens=prompt, total_tokens=prompt + completion
            ),
            system=_json(interaction.answer.get("steersman")),
        )


@strawberry.type
class DirectScore:
    id: Uuid
    value: float
    metric: Metric | None
    reason: str | None
    details: str | None
    created_at: Timestamp

    @classmethod
    def of(cls, score: stored.DirectScore) -> "DirectScore":
        return cls(
            id=Uuid(score.id),
            value=score.value,
            metric=metrics.metric(score.metric),
            reason=score.reason,
            details=score.details_text,
            created_at=Timestamp(score.created_at),
        )


@strawberry.type
class ComparisonScore:
    """Of two that tied neither was preferred."""

    project_id: strawberry.Private[str]
    id: Uuid
    created_at: Timestamp
    tied: str | None
    metric: Metric | None
    preferred_completion: "Completion | None" = strawberry.field(name="preferedCompletion")  # so spelt there
    other_completion: "Completion | None"

    @classmethod
    def of(cls, score: stored.ComparisonScore, project_id: str) -> "ComparisonScore":
        return cls(
            project_id=project_id,
            id=Uuid(score.id),
            created_at=Timestamp(score.created_at),
            tied=None if score.tied is None else score.tied.value,
            metric=metrics.metric(score.metric),
            preferred_completion=Completion.of_side(score.preferred, project_id),
            other_completion=Completion.of_side(score.other, project_id),
        )

    @strawberry.field
    async def project(self, info: Info) -> Project | None:
        return Project.of(await info.context.membership(self.project_id))


@strawberry.type
class Completion:
    """One choice of a stored chat completion. One side of a comparison is looked up whole when more is asked
    of it than what stands with the comparison."""

    project_id: strawberry.Private[str]
    model_names: strawberry.Private[Sequence[str]]
    known: strawberry.Private[stored.Completion | None]
    id: Uuid
    completion: str | None
    source: Source

    @classmethod
    def of(cls, completion: stored.Completion) -> "Completion":
        return cls(
            project_id=completion.interaction.account_id,
            model_names=_models(completion),
            known=completion,
            id=Uuid(completion.id),
            completion=completion.text,
            source=completion.interaction.source,
        )

    @classmethod
    def of_side(cls, side: stored.Side, project_id: str) -> "Completion":
        return cls(
            project_id=project_id,
            model_names=[side.model] if side.model else [],
            known=None,
            id=Uuid(side.id),
            completion=side.text,
            source=side.source,
        )

    async def whole(self, info: Info) -> stored.Completion:
        """Raises NotFound for one that went meanwhile."""
        found = self.known or await info.context.completions.load((self.project_id, self.id))
        if found is None:
            raise NotFound(f"completion {self.id} is no longer stored", param="completion")
        return found

    @strawberry.field
    async def model(self, info: Info) -> Model | None:
        return (await Catalog.of(info.context)).answered(self.model_names, self.project_id)

    @strawberry.field
    async def chat_messages(self, info: Info) -> list[ChatMessage]:
        return [ChatMessage.of(each) for each in (await self.whole(info)).interaction.messages]

    @strawberry.field
    async def direct_scores(self, info: Info) -> list[DirectScore]:
        return [DirectScore.of(each) for each in (await self.whole(info)).direct]

    @strawberry.field
    async def comparison_scores(self, info: Info) -> list[ComparisonScore]:
        """Not of a side of a comparison, whose comparisons lead back to this one."""
        if self.known is None:
            raise InvalidRequest(
                "comparisonScores of one side are asked for by its id", param="comparisonScores"
            )
        found = (await self.whole(info)).comparisons
        return [ComparisonScore.of(each, self.project_id) for each in found]

    @strawberry.field
    async def labels(self, info: Info) -> list[CompletionLabel]:
        labels = (await self.whole(info)).interaction.labels
        return [CompletionLabel(key=key, value=value) for key, value in labels.items()]

    @strawberry.field
    async def metadata(self, info: Info) -> CompletionMetadata:
        return CompletionMetadata.of((await self.whole(info)).interaction)

    @strawberry.field
    async def created_at(self, info: Info) -> Timestamp:
        return Timestamp((await self.whole(info)).interaction.created_at)

    @strawberry.field
    async def session_id(self, info: Info) -> str | None:
        return (await self.whole(info)).interaction.session_id

    @strawberry.field
    async def prompt_hash(self, info: Info) -> str:
        return (await self.whole(info)).interaction.prompt_hash


@strawberry.type
class CompletionConnection:
    total_count: int
    page_info: PageInfo
    nodes: list[Completion]

    @classmethod
    def of(cls, page: stored.CompletionPage) -> "CompletionConnection":
        return cls(
            total_count=page.total,
            page_info=PageInfo.of(page.cursors, has_next=page.has_next, has_previous=page.has_previous),
            nodes=[Completion.of(each) for each in page.completions],
        )


@strawberry.input
class ScoreAddInput:
    value: JSON
    details: str | None = None
    reason: str | None = None


@strawberry.type
class InteractionQueries:
    @strawberry.field
    async def completions(
        self,
        info: Info,
        filter: ListCompletionsFilterInput,
        page: CursorPageInput,
        order: list[OrderPair] | None = None,
    ) -> CompletionConnection:
        """By the time of their making, newest first unless `order` says otherwise."""
        context = info.context
        newest_first = by_time(order)
        project_id = await context.enter(filter.project)
        condition = (await Filters.of(context, project_id)).condition(filter)
        found = await context.state.completions.list(
            project_id, condition, paging=page.paging(), newest_first=newest_first
        )
        return CompletionConnection.of(found)

    @strawberry.field
    async def completion(self, info: Info, project: IdOrKey, id: Uuid) -> Completion | None:
        project_id = await info.context.enter(project)
        found = await info.context.state.completions.get(project_id, id)
        return None if found is None else Completion.of(found)


@strawberry.type
class InteractionMutations:
    @strawberry.mutation
    async def add_direct_score(
        self, info: Info, completion_id: Uuid, metric_id: IdOrKey, input: ScoreAddInput
    ) -> DirectScore:
        """Of a stored completion of any of the caller's projects, by a metric of that project."""
        context = info.context
        state = context.state
        project_id = await state.completions.owner(list(await context.memberships()), completion_id)
        if project_id is None:
            raise NotFound(
                f"completion {completion_id} is not stored: only what is logged can be scored",
                param="completion",
            )
        await context.enter(project_id, Role.MEMBER)
        by = await state.metrics.get(project_id, metric_id)
        redaction = state.interaction_log.redaction
        given = await state.feedback.score(
            project_id,
            completion_id,
            by,
            input.value,
            reason=redaction.text(input.reason),
            details=redaction.text(input.details),
        )
        return DirectScore(
            id=Uuid(given.id),
            value=given.value,
            metric=metrics.metric(by),
            reason=given.reason,
            details=given.details,
            created_at=Timestamp(given.created_at),
        )


def _models(completion: stored.Completion) -> Sequence[str]:
    """What an A/B test chose, what the request asked for, which may be a project alone, and what answered."""
    interaction = completion.interaction
    choice = choices(interaction.answer).get(completion.choice, {})
    return [each for each in (interaction.variant, interaction.model, choice.get("model")) if each]


def by_time(order: Sequence[OrderPair] | None) -> bool:
    """Whether newest first. Raises InvalidRequest for another order."""
    if not order:
        return True
    if len(order) > 1 or order[0].field not in ("created_at", "createdAt"):
        raise InvalidRequest("completions are ordered by created_at alone", param="order")
    return order[0].order is SortDirection.DESC


def _json(value: object) -> JSON | None:
    return None if value is None else JSON(value)


def _text(message: Mapping[str, Any]) -> str:
    """All of it in one string, which is what a message has there: parts line by line, what is no text by its
    type, calls as they are."""
    content = message.get("content")
    parts = content if isinstance(content, list) else [content]
    texts = [_part(each) for each in parts if each is not None]
    if calls := message.get("tool_calls"):
        texts.append(json.dumps(calls, ensure_ascii=False))
    return "\n".join(texts)


def _part(part: object) -> str:
    if isinstance(part, str):
        return part
    if isinstance(part, Mapping):
        text = part.get("text")
        return text if isinstance(text, str) else f"[{part.get('type')}]"
    return str(part)
