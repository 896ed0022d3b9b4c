"""Interactions that happened elsewhere, with what was thought of them."""

import asyncio
import uuid
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from server.completion_ids import completion_id
from server.completion_rows import Source
from server.database import Database
from server.feedback import Feedback, add_feedback
from server.interaction_rows import Interaction, Place, add_rows, stored_rows
from server.store import require_account


@dataclass(frozen=True, slots=True)
class Uploaded:
    completion_id: str
    session_id: str
    feedback_ids: Sequence[str]


class Uploads:
    """Every upload is one transaction. Raises Unavailable when the database does not answer.

    `scored` hears of scores that come.
    """

    def __init__(self, database: Database, scored: Callable[[], None] = lambda: None) -> None:
        self._database, self._scored = database, scored

    async def add(self, upload: Interaction, scores: Sequence[Feedback] = ()) -> Uploaded:
        """`scores` are of its one choice."""
        rows = await asyncio.to_thread(lambda: stored_rows(upload))
        async with self._database.writing() as connection:
            await require_account(connection, upload.account_id)
            (number,) = await add_rows(connection, [rows])
            await add_feedback(connection, upload.account_id, Place(number, 0), scores)
        self._scored()
        return Uploaded(
            completion_id=completion_id(upload.account_id, upload.id, 0),
            session_id=upload.session_id or "",
            feedback_ids=[each.id for each in scores],
        )


def uploaded(
    account_id: str,
    *,
    messages: Sequence[Mapping[str, Any]],
    text: str,
    model: str = "",
    session_id: str | None = None,
    user_id: str | None = None,
    labels: Mapping[str, str] | None = None,
    created_at: datetime | None = None,
    campaign_id: str | None = None,
) -> Interaction:
    """As an answer of one choice, whose tokens nobody counted; `model` "" where it is not known.

    With a campaign the model is one of its variants.
    """
    now = datetime.now(UTC)
    made = created_at or now
    name = f"chatcmpl-{uuid.uuid4().hex}"
    message = {"role": "assistant", "content": text}
    return Interaction(
        id=name,
        account_id=account_id,
        created_at=made,
        model=model,
        session_id=session_id or str(uuid.uuid4()),
        messages=messages,
        parameters={},
        answer={
            "id": name,
            "object": "chat.completion",
            "created": int(made.timestamp()),
            "model": model,
            "choices": [{"index": 0, "message": message, "finish_reason": "stop"}],
            "usage": {"prompt_tokens": 0, "completion_tokens": 0, "total_tokens": 0},
        },
        labels=labels or {},
        prompt_tokens=0,
        completion_tokens=0,
        latency_ms=0.0,
        first_token_ms=None,
        source=Source.OFFLINE,
        user_id=user_id,
        campaign_id=campaign_id,
        variant=model if campaign_id else None,
        stored_at=now,
    )
