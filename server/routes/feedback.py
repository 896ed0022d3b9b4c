"""/v1/chat/completions/{id}/feedback: scores of a stored chat completion."""

from datetime import datetime
from typing import Annotated, Literal, Protocol, Self

from fastapi import APIRouter, Depends, Request
from pydantic import BaseModel, Field, JsonValue

from server.auth import Principal, caller
from server.feedback import Feedback, FeedbackStore
from server.interaction_log import InteractionLog
from server.project_metrics import MAX_METRIC
from server.routes.body import JsonRoute
from server.wire import Strict

MAX_REASON = 10_000
_FEEDBACK = "/v1/chat/completions/{completion_id:path}/feedback"

router = APIRouter(route_class=JsonRoute, tags=["OpenAI"])


class FeedbackRequest(Strict):
    """`value` is any number; true and false are 1 and 0."""

    metric: Annotated[str, Field(min_length=1, max_length=MAX_METRIC)]
    value: Annotated[float, Field(allow_inf_nan=False)]
    reason: Annotated[str, Field(max_length=MAX_REASON)] | None = None
    details: JsonValue = None


class FeedbackItem(BaseModel):
    """What is given here is of the first choice; Adaptive's clients score the others too."""

    id: str
    completion_id: str
    choice: int
    metric: str
    value: float
    reason: str | None
    details: JsonValue
    created_at: datetime

    @classmethod
    def of(cls, completion_id: str, given: Feedback) -> Self:
        return cls(
            id=given.id,
            completion_id=completion_id,
            choice=given.choice,
            metric=given.metric,
            value=given.value,
            reason=given.reason,
            details=given.details,
            created_at=given.created_at,
        )


class FeedbackList(BaseModel):
    object: Literal["list"] = "list"
    data: list[FeedbackItem]


class DeletedFeedback(BaseModel):
    id: str
    deleted: bool = True


class FeedbackState(Protocol):
    """What these routes use of `app.state.steersman`."""

    @property
    def feedback(self) -> FeedbackStore: ...
    @property
    def interaction_log(self) -> InteractionLog: ...


async def _state(request: Request) -> FeedbackState:
    """With what this process has answered until now."""
    state: FeedbackState = request.app.state.steersman
    await state.interaction_log.flush()
    return state


State = Annotated[FeedbackState, Depends(_state)]
Caller = Annotated[Principal, Depends(caller)]


@router.post(_FEEDBACK, status_code=201)
async def give_feedback(
    given: FeedbackRequest, principal: Caller, state: State, completion_id: str
) -> FeedbackItem:
    redaction = state.interaction_log.redaction
    made = await state.feedback.add(
        principal.account_id,
        completion_id,
        given.metric,
        given.value,
        reason=redaction.text(given.reason),
        details=redaction.json(given.details),
    )
    return FeedbackItem.of(completion_id, made)


@router.get(_FEEDBACK)
async def list_feedback(principal: Caller, state: State, completion_id: str) -> FeedbackList:
    """Oldest first."""
    found = await state.feedback.list(principal.account_id, completion_id)
    return FeedbackList(data=[FeedbackItem.of(completion_id, each) for each in found])


@router.delete(f"{_FEEDBACK}/{{feedback_id}}")
async def delete_feedback(
    principal: Caller, state: State, completion_id: str, feedback_id: str
) -> DeletedFeedback:
    await state.feedback.delete(principal.account_id, completion_id, feedback_id)
    return DeletedFeedback(id=feedback_id)
