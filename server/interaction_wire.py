"""Adaptive's bodies of interactions that happened, and of what was thought of them."""

from datetime import UTC, datetime
from typing import Annotated, Literal
from uuid import UUID

from pydantic import AfterValidator, BaseModel, Field, JsonValue

from server.comparisons import Tie
from server.completion_rows import MAX_MODEL, MAX_USER
from server.project_metrics import MAX_METRIC
from server.wire import Labels, Strict

MAX_FEEDBACKS = 100
MAX_REASON, MAX_DETAILS = 10_000, 100_000  # characters


def _zoned(moment: datetime) -> datetime:
    try:
        return (moment if moment.tzinfo else moment.replace(tzinfo=UTC)).astimezone(UTC)
    except OverflowError as error:
        raise ValueError("a time of the years 1 to 9999") from error


Moment = Annotated[datetime, Field(strict=False), AfterValidator(_zoned)]
IdOrKey = Annotated[str, Field(min_length=1, max_length=MAX_METRIC)]
ModelName = Annotated[str, Field(min_length=1, max_length=MAX_MODEL)]
User = Annotated[str, Field(min_length=1, max_length=MAX_USER)]
Reason = Annotated[str, Field(max_length=MAX_REASON)]
Details = Annotated[str, Field(max_length=MAX_DETAILS)]


class TextPart(Strict):
    type: Literal["text"]
    text: str


class ImagePart(Strict):
    type: Literal["image_url"]
    image_url: str


class UploadedMessage(Strict):
    role: Annotated[str, Field(min_length=1, max_length=64)]
    content: str | list[TextPart | ImagePart]
    name: str | None = None
    completion_id: UUID | None = None
    metadata: JsonValue = None

    def plain(self) -> dict[str, JsonValue]:
        return self.model_dump(mode="json", exclude_none=True)


Messages = Annotated[list[UploadedMessage], Field(min_length=1)]


class UploadedFeedback(Strict):
    """`value` is what its metric takes."""

    metric: IdOrKey
    value: JsonValue
    reason: Reason | None = None
    details: Details | None = None
    created_at: Moment | None = None


class InteractionUpload(Strict):
    """`user` is any text; without `created_at` it is of now."""

    project: IdOrKey
    messages: Messages
    completion: str
    model_service: ModelName | None = None
    feedbacks: Annotated[list[UploadedFeedback], Field(max_length=MAX_FEEDBACKS)] | None = None
    user: User | None = None
    session_id: UUID | None = None
    created_at: Moment | None = None
    ab_campaign: IdOrKey | None = None
    labels: Labels | None = None


class InteractionUploaded(BaseModel):
    completion_id: UUID
    session_id: UUID
    feedback_ids: list[UUID]


class RawCompletion(Strict):
    """A text of a model, to be stored with its comparison."""

    text: str
    model: ModelName


class ComparisonUpload(Strict):
    """`messages` are what texts that are not stored yet answered."""

    project: IdOrKey
    metric: IdOrKey
    preferred_completion: UUID | RawCompletion
    other_completion: UUID | RawCompletion
    messages: Messages | None = None
    tied: Tie | None = None
    user_id: User | None = None


class ComparisonAdded(BaseModel):
    comparison_id: UUID


class OutcomeUpload(Strict):
    project_id: IdOrKey
    metric: IdOrKey
    value: JsonValue
    session_id: UUID
    user_id: User | None = None


class OutcomeAdded(BaseModel):
    outcome_id: UUID


class FeedbackUpload(Strict):
    """Without `project` it is the one of the caller's that stored the completion."""

    completion_id: UUID
    metric: IdOrKey
    value: JsonValue
    reason: Reason | None = None
    details: Details | None = None
    user_id: User | None = None
    project: IdOrKey | None = None


class FeedbackAdded(BaseModel):
    feedback_id: UUID
