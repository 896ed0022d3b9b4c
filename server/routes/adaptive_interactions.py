"""Adaptive's interactions, direct scores, comparisons and outcomes under /api/v1.

A score finds what this process has answered until now. What another process has answered is written within
`backlog.SECONDS`: a client that scores it sooner gets 404 and may try again.
"""

import uuid
from collections.abc import Collection, Sequence
from typing import Annotated, Protocol

from fastapi import APIRouter, Depends, Request

from server.auth import Principal, caller
from server.comparisons import Comparisons
from server.completions import Completions
from server.errors import InvalidRequest
from server.feedback import Feedback, FeedbackStore, new_feedback
from server.interaction_log import InteractionLog
from server.interaction_rows import Interaction, not_stored
from server.interaction_wire import (
    ComparisonAdded,
    ComparisonUpload,
    FeedbackAdded,
    FeedbackUpload,
    InteractionUpload,
    InteractionUploaded,
    OutcomeAdded,
    OutcomeUpload,
    RawCompletion,
    UploadedFeedback,
    UploadedMessage,
)
from server.outcomes import Outcomes
from server.project_metrics import ProjectMetrics
from server.projects import Projects
from server.roles import Role
from server.routes.body import JsonRoute
from server.uploads import Uploads, uploaded

router = APIRouter(prefix="/api/v1", route_class=JsonRoute, tags=["Adaptive"])


class Campaign(Protocol):
    @property
    def id(self) -> str: ...
    @property
    def models(self) -> Sequence[str]: ...


class Campaigns(Protocol):
    async def get(self, project_ids: Collection[str], id_or_key: str) -> Campaign:
        """Raises NotFound."""


class ScoringState(Protocol):
    """What these routes use of `app.state.steersman`."""

    @property
    def projects(self) -> Projects: ...
    @property
    def interaction_log(self) -> InteractionLog: ...
    @property
    def metrics(self) -> ProjectMetrics: ...
    @property
    def completions(self) -> Completions: ...
    @property
    def feedback(self) -> FeedbackStore: ...
    @property
    def comparisons(self) -> Comparisons: ...
    @property
    def outcomes(self) -> Outcomes: ...
    @property
    def uploads(self) -> Uploads: ...
    @property
    def campaigns(self) -> Campaigns: ...


async def _state(request: Request) -> ScoringState:
    """With what this process has answered until now."""
    state: ScoringState = request.app.state.steersman
    await state.interaction_log.flush()
    return state


State = Annotated[ScoringState, Depends(_state)]
Caller = Annotated[Principal, Depends(caller)]


@router.post("/interactions", status_code=201)
async def add_interaction(given: InteractionUpload, principal: Caller, state: State) -> InteractionUploaded:
    """Keep an interaction that happened elsewhere."""
    state.interaction_log.require_storing()
    project_id = await _entered(state, principal, given.project)
    redaction = state.interaction_log.redaction
    campaign_id = await _campaign(state, project_id, given)
    scores = [
        await _score(state, project_id, each, f"feedbacks.{index}")
        for index, each in enumerate(given.feedbacks or ())
    ]
    upload = uploaded(
        project_id,
        messages=redaction.json([each.plain() for each in given.messages]),
        text=redaction.text(given.completion) or "",
        model=given.model_service or "",
        session_id=None if given.session_id is None else str(given.session_id),
        user_id=redaction.text(given.user),
        labels=redaction.json(given.labels or {}),
        created_at=given.created_at,
        campaign_id=campaign_id,
    )
    made = await state.uploads.add(upload, scores)
    return InteractionUploaded(
        completion_id=uuid.UUID(made.completion_id),
        session_id=uuid.UUID(made.session_id),
        feedback_ids=[uuid.UUID(each) for each in made.feedback_ids],
    )


@router.post("/comparison", status_code=201)
async def add_comparison(given: ComparisonUpload, principal: Caller, state: State) -> ComparisonAdded:
    """Say which of two completions is preferred; texts that are not stored yet are stored with it."""
    project_id = await _entered(state, principal, given.project)
    metric = await state.metrics.get(project_id, given.metric)
    session_id = str(uuid.uuid4())
    preferred, other = (
        _side(state, project_id, side, given.messages, session_id)
        for side in (given.preferred_completion, given.other_completion)
    )
    user = state.interaction_log.redaction.text(given.user_id)
    made = await state.comparisons.add(
        project_id, metric.key, preferred, other, tied=given.tied, user_id=user
    )
    return ComparisonAdded(comparison_id=uuid.UUID(made.id))


@router.post("/outcome", status_code=201)
async def add_outcome(given: OutcomeUpload, principal: Caller, state: State) -> OutcomeAdded:
    """Score a session as a whole."""
    project_id = await _entered(state, principal, given.project_id)
    metric = await state.metrics.get(project_id, given.metric)
    user = state.interaction_log.redaction.text(given.user_id)
    made = await state.outcomes.add(project_id, metric, given.value, str(given.session_id), user_id=user)
    return OutcomeAdded(outcome_id=uuid.UUID(made.id))


@router.post("/feedback", status_code=201)
async def add_feedback(given: FeedbackUpload, principal: Caller, state: State) -> FeedbackAdded:
    """Score a completion."""
    completion_id = str(given.completion_id)
    project_id = await _owner(state, principal, given.project, completion_id)
    redaction = state.interaction_log.redaction
    made = await state.feedback.score(
        project_id,
        completion_id,
        await state.metrics.get(project_id, given.metric),
        given.value,
        reason=redaction.text(given.reason),
        details=redaction.text(given.details),
        user_id=redaction.text(given.user_id),
    )
    return FeedbackAdded(feedback_id=uuid.UUID(made.id))


async def _entered(state: ScoringState, principal: Principal, project: str) -> str:
    return (await state.projects.enter(principal, project, needs=Role.MEMBER)).account_id


async def _owner(state: ScoringState, principal: Principal, project: str | None, completion_id: str) -> str:
    """The project named, or else the one of the caller's that has the completion."""
    if project is not None:
        return await _entered(state, principal, project)
    mine = [each.project.id for each in await state.projects.of(principal.member_id)]
    found = await state.completions.owner([principal.account_id, *mine], completion_id)
    if found is None:
        raise not_stored(completion_id, "completion_id")
    return await _entered(state, principal, found)


async def _campaign(state: ScoringState, project_id: str, given: InteractionUpload) -> str | None:
    """The id of the A/B test that the interaction is of. Raises NotFound, InvalidRequest."""
    if given.ab_campaign is None:
        return None
    campaign = await state.campaigns.get([project_id], given.ab_campaign)
    if given.model_service not in campaign.models:
        raise InvalidRequest(
            f"an interaction of this A/B test is of one of its models: {', '.join(campaign.models)}",
            param="model_service",
        )
    return campaign.id


async def _score(state: ScoringState, project_id: str, given: UploadedFeedback, path: str) -> Feedback:
    metric = await state.metrics.get(project_id, given.metric)
    redaction = state.interaction_log.redaction
    return new_feedback(
        metric,
        given.value,
        param=f"{path}.value",
        reason=redaction.text(given.reason),
        details=redaction.text(given.details),
        created_at=given.created_at,
    )


def _side(
    state: ScoringState,
    project_id: str,
    side: uuid.UUID | RawCompletion,
    messages: Sequence[UploadedMessage] | None,
    session_id: str,
) -> str | Interaction:
    if isinstance(side, uuid.UUID):
        return str(side)
    state.interaction_log.require_storing()
    if messages is None:
        raise InvalidRequest("say what the texts answered", param="messages")
    redaction = state.interaction_log.redaction
    return uploaded(
        project_id,
        messages=redaction.json([each.plain() for each in messages]),
        text=redaction.text(side.text) or "",
        model=side.model,
        session_id=session_id,
    )
