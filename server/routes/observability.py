"""GET /observability/requests: the caller's recent calls, and one of them."""

from typing import Annotated, Protocol

from fastapi import APIRouter, Depends, Query, Request

from server.auth import Principal, caller
from server.errors import NotSupported
from server.observed import ObservedRequests, Wanted
from server.observed_wire import ObservedItem, ObservedItems, UsageDays
from server.settings import Settings
from server.wire import INT32_MAX

MAX_LIMIT = 200


class ObservabilityState(Protocol):
    """What these routes use of `app.state.steersman`."""

    @property
    def settings(self) -> Settings: ...
    @property
    def observed(self) -> ObservedRequests: ...


def _kept(request: Request) -> ObservedRequests:
    """Raises NotSupported where nothing is kept."""
    state: ObservabilityState = request.app.state.steersman
    if state.settings.observe_requests == 0:
        raise NotSupported(
            "this server keeps no requests: it was started with --observe-requests 0"
            " (STEERSMAN_OBSERVE_REQUESTS), which is how many it keeps"
        )
    return state.observed


Kept = Annotated[ObservedRequests, Depends(_kept)]
Caller = Annotated[Principal, Depends(caller)]

router = APIRouter(tags=["observability"])


@router.get("/observability/requests")
async def list_requests(
    principal: Caller,
    kept: Kept,
    *,
    search: Annotated[str, Query(max_length=500)] = "",
    sae_only: bool = False,
    status: Annotated[int | None, Query(ge=100, le=599)] = None,
    route: Annotated[str | None, Query(max_length=200)] = None,
    limit: Annotated[int, Query(ge=1, le=MAX_LIMIT)] = 50,
    offset: Annotated[int, Query(ge=0, le=INT32_MAX)] = 0,
) -> ObservedItems:
    """The account's recent generating calls, newest first; they appear a second after their end.

    `search` looks in prompts, routes and models, whatever its case; `sae_only` are those that were watched
    for behaviours.
    """
    wanted = Wanted(search=search, watched=sae_only, status=status, route=route)
    page = await kept.list(principal.account_id, wanted, limit=limit, offset=offset)
    return ObservedItems.of(page, limit, offset)


@router.get("/observability/usage")
async def list_usage(principal: Caller, kept: Kept) -> UsageDays:
    """What the account's kept calls came to, day by day."""
    return UsageDays.of(await kept.days(principal.account_id))


# An id is what a client sent as x-request-id, slashes included.
@router.get("/observability/requests/{request_id:path}")
async def get_request(principal: Caller, kept: Kept, request_id: str) -> ObservedItem:
    return ObservedItem.of(await kept.get(principal.account_id, request_id))
