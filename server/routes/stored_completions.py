"""OpenAI's stored chat completions: list, look up, label, delete, and what was asked."""

from typing import Annotated, Literal, Protocol

from fastapi import APIRouter, Depends, Query, Request

from server.auth import Principal, caller
from server.errors import NotFound
from server.interaction_log import InteractionLog
from server.interactions import Interactions, Sought
from server.routes.body import JsonRoute
from server.stored_wire import (
    DeletedCompletion,
    MetadataUpdate,
    Page,
    StoredCompletion,
    StoredMessage,
    labels_asked,
)

MAX_LIMIT = 100
_ONE = "/v1/chat/completions/{completion_id:path}"  # an id holds what a client sent as x-request-id
_PARAMETERS = ("model", "after", "limit", "order")

router = APIRouter(route_class=JsonRoute, tags=["OpenAI"])


class StoredState(Protocol):
    """What these routes use of `app.state.steersman`."""

    @property
    def interactions(self) -> Interactions: ...
    @property
    def interaction_log(self) -> InteractionLog: ...


async def _stored(request: Request) -> Interactions:
    """With what this process has answered until now."""
    state: StoredState = request.app.state.steersman
    await state.interaction_log.flush()
    return state.interactions


Stored = Annotated[Interactions, Depends(_stored)]
Caller = Annotated[Principal, Depends(caller)]
Limit = Annotated[int, Query(ge=1, le=MAX_LIMIT)]
After = Annotated[str | None, Query(description="the id of the last one of the page before")]
Order = Literal["asc", "desc"]


@router.get("/v1/chat/completions")
async def list_completions(
    request: Request,
    principal: Caller,
    stored: Stored,
    *,
    model: str | None = None,
    after: After = None,
    limit: Limit = 20,
    order: Order = "asc",
) -> Page[StoredCompletion]:
    """The account's stored chat completions, oldest first; `metadata[key]=value`: those of that label."""
    labels = labels_asked(request.query_params.multi_items(), _PARAMETERS)
    sought = Sought(principal.account_id, model=model, labels=labels)
    page = await stored.list(sought, limit=limit, after=after, newest_first=order == "desc")
    return Page[StoredCompletion].of(
        [StoredCompletion.of(each) for each in page.interactions], more=page.more
    )


@router.get(f"{_ONE}/messages")
async def list_messages(
    principal: Caller,
    stored: Stored,
    completion_id: str,
    *,
    after: After = None,
    limit: Limit = 20,
    order: Order = "asc",
) -> Page[StoredMessage]:
    """The messages of its request."""
    messages = StoredMessage.of(await stored.get(principal.account_id, completion_id))
    if order == "desc":
        messages.reverse()
    if after is not None:
        ids = [each.id for each in messages]
        if after not in ids:
            raise NotFound(f"{completion_id!r} has no message {after!r}", param="after")
        messages = messages[ids.index(after) + 1 :]
    return Page[StoredMessage].of(messages[:limit], more=len(messages) > limit)


@router.get(_ONE)
async def retrieve_completion(principal: Caller, stored: Stored, completion_id: str) -> StoredCompletion:
    return StoredCompletion.of(await stored.get(principal.account_id, completion_id))


@router.post(_ONE)
async def update_completion(
    request: Request, update: MetadataUpdate, principal: Caller, stored: Stored, completion_id: str
) -> StoredCompletion:
    log: InteractionLog = request.app.state.steersman.interaction_log
    labels = log.redaction.json(update.metadata or {})
    return StoredCompletion.of(await stored.label(principal.account_id, completion_id, labels))


@router.delete(_ONE)
async def delete_completion(principal: Caller, stored: Stored, completion_id: str) -> DeletedCompletion:
    await stored.delete(principal.account_id, completion_id)
    return DeletedCompletion(id=completion_id)
