"""Behaviours: made from examples, listed, renamed, deleted, calibrated anew; and whether they are ready."""

from collections.abc import Sequence
from typing import Annotated, Literal, Protocol

from fastapi import APIRouter, Depends, Query, Request

from server.auth import Principal, caller
from server.behavior_maker import BehaviorMaker
from server.behavior_wire import (
    BehaviorReadiness,
    BehaviorRequest,
    BehaviorResponse,
    DeletedBehavior,
    ExampleItem,
    ObservedBehaviors,
    ReadinessItem,
    RecomputeBaselinesRequest,
    RecomputeBaselinesResponse,
    RenameBehaviorRequest,
)
from server.behaviors import BehaviorRecord, Behaviors
from server.errors import NotFound
from server.readiness import readiness
from server.routes.body import JsonRoute
from server.vectors import SteeredModel, Vectors


class Models(Protocol):
    @property
    def bases(self) -> Sequence[str]: ...


class BehaviorsState(Protocol):
    """What these routes use of `app.state.steersman`."""

    @property
    def behaviors(self) -> Behaviors: ...
    @property
    def vectors(self) -> Vectors: ...
    @property
    def models(self) -> Models: ...
    @property
    def steered_model(self) -> SteeredModel | None: ...
    @property
    def behavior_maker(self) -> BehaviorMaker:
        """Raises NotSupported where this server cannot steer."""


def _state(request: Request) -> BehaviorsState:
    state: BehaviorsState = request.app.state.steersman
    return state


Shared = Annotated[BehaviorsState, Depends(_state)]
Caller = Annotated[Principal, Depends(caller)]

router = APIRouter(route_class=JsonRoute, tags=["behaviors"])


async def _described(
    principal: Principal, state: BehaviorsState, records: Sequence[BehaviorRecord]
) -> list[BehaviorResponse]:
    found = await readiness(principal.account_id, records, state.vectors, state.steered_model)
    return [BehaviorResponse.of(*each) for each in zip(records, found, strict=True)]


# Not cut off when its client leaves, which may wait for a minute only: what it makes is found by its name.
@router.post("/behaviors/create")
async def create_behavior(principal: Caller, state: Shared, body: BehaviorRequest) -> BehaviorResponse:
    """Calibrate a behaviour on examples, which takes seconds to a minute; asking again joins in."""
    examples = body.examples()
    record = await state.behavior_maker.create(
        principal.account_id, body.behavior_name, body.description or "", examples
    )
    [described] = await _described(principal, state, [record])
    return described


@router.get("/behaviors")
async def list_behaviors(principal: Caller, state: Shared) -> list[BehaviorResponse]:
    """All of the account's, also those of other models; newest first."""
    return await _described(principal, state, await state.behaviors.list(principal.account_id))


@router.get("/observability/behaviors")
async def observe_behaviors(
    principal: Caller,
    state: Shared,
    of_state: Annotated[Literal["ready", "partial", "all"], Query(alias="state")] = "all",
) -> ObservedBehaviors:
    """As the list; `ready` are those that can be monitored and corrected, `partial` the others."""
    items = await _described(principal, state, await state.behaviors.list(principal.account_id))
    ready = sum(item.readiness.ready for item in items)
    return ObservedBehaviors(
        behaviors=[item for item in items if of_state in ("all", item.readiness.state)],
        total=len(items),
        ready=ready,
        partial=len(items) - ready,
    )


@router.post("/behaviors/recompute-baselines")
async def recompute_baselines(
    principal: Caller, state: Shared, body: RecomputeBaselinesRequest
) -> RecomputeBaselinesResponse:
    """Move behaviours to the served model, or calibrate them anew on it, from their own pairs."""
    maker, names = state.behavior_maker, ["default", *state.models.bases]
    if body.model_id not in names:
        raise NotFound(
            f"This server serves {names[1]!r} and no model {body.model_id!r}, and baselines are its own.",
            param="model_id",
        )
    results = await maker.recompute(principal.account_id, body.behavior_ids)
    return RecomputeBaselinesResponse.of(body.model_id, results)


@router.get("/behaviors/{behavior_id}")
async def get_behavior(principal: Caller, state: Shared, behavior_id: str) -> BehaviorResponse:
    record = await state.behaviors.get(principal.account_id, behavior_id)
    [described] = await _described(principal, state, [record])
    return described


@router.get("/behaviors/{behavior_id}/readiness")
async def get_readiness(principal: Caller, state: Shared, behavior_id: str) -> BehaviorReadiness:
    record = await state.behaviors.get(principal.account_id, behavior_id)
    [found] = await readiness(principal.account_id, [record], state.vectors, state.steered_model)
    return BehaviorReadiness(id=record.id, behavior_name=record.name, **dict(ReadinessItem.of(found)))


@router.get("/behaviors/{behavior_id}/examples")
async def get_examples(principal: Caller, state: Shared, behavior_id: str) -> list[ExampleItem]:
    """The pairs that it was made from, as lines of a data set."""
    return [ExampleItem.of(pair) for pair in await state.behaviors.pairs(principal.account_id, behavior_id)]


@router.patch("/behaviors/{behavior_id}/rename")
async def rename_behavior(
    principal: Caller, state: Shared, behavior_id: str, body: RenameBehaviorRequest
) -> BehaviorResponse:
    record = await state.behaviors.rename(principal.account_id, behavior_id, body.behavior_name)
    [described] = await _described(principal, state, [record])
    return described


@router.delete("/behaviors/{behavior_id}")
async def delete_behavior(principal: Caller, state: Shared, behavior_id: str) -> DeletedBehavior:
    """Its steering vector stays, since other requests may name it."""
    await state.behaviors.delete(principal.account_id, behavior_id)
    return DeletedBehavior(id=behavior_id)
