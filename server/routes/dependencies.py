"""What the handlers of steering routes are given: the server's state, its studio, and who calls."""

from typing import Annotated

from fastapi import Depends, Request

from server.auth import Principal, caller
from server.errors import NotSupported
from server.state import ServerState
from server.studio import Studio


def _state(request: Request) -> ServerState:
    state: ServerState = request.app.state.steersman
    return state


State = Annotated[ServerState, Depends(_state)]
Caller = Annotated[Principal, Depends(caller)]


def _opened(state: State) -> Studio:
    """Raises NotSupported where this server cannot steer."""
    if isinstance(state.studio, Studio):
        return state.studio
    raise NotSupported(f"steering is not available here: {state.studio.problem}")


Open = Annotated[Studio, Depends(_opened)]
