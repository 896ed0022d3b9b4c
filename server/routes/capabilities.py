"""GET /capabilities: what this server can do and where its bounds lie, for whoever offers it to people."""

from typing import Annotated, Literal

from fastapi import APIRouter, Depends, Request
from pydantic import BaseModel

from server.auth import Principal, caller
from server.roles import Role
from server.state import ServerState
from server.studio import Unsteerable


class SteeringBounds(BaseModel):
    """Above `safe_dose` an answer carries a warning, above `max_dose` a request is refused; see README."""

    layers: int
    width: int
    safe_dose: float
    max_dose: float


class Capabilities(BaseModel):
    """`steering` is null where the model cannot be steered, `unsteerable` then says why; so of `unwatchable`.

    `role` is the caller's own. `modalities` are what the model takes beside text.
    """

    model: str
    max_model_len: int
    modalities: list[str]
    speculative: bool
    steering: SteeringBounds | None
    unsteerable: str | None
    unwatchable: str | None
    observes: bool
    interactions: Literal["asked", "all", "none"]
    role: Role


router = APIRouter(tags=["models"])


@router.get("/capabilities")
async def capabilities(request: Request, principal: Annotated[Principal, Depends(caller)]) -> Capabilities:
    state: ServerState = request.app.state.steersman
    studio, settings, model = state.studio, state.settings, state.steered_model
    unsteerable = studio.problem if isinstance(studio, Unsteerable) else None
    return Capabilities(
        model=state.models.default,
        max_model_len=state.models.max_model_len,
        modalities=sorted(state.models.modalities),
        speculative=state.serving.facts.speculative,
        steering=model
        and SteeringBounds(
            layers=model.layers,
            width=model.width,
            safe_dose=settings.steering_safe_dose,
            max_dose=settings.steering_max_dose,
        ),
        unsteerable=unsteerable,
        unwatchable=unsteerable or state.serving.unwatchable,
        observes=settings.observe_requests > 0,
        interactions=settings.interactions,
        role=principal.role,
    )
