"""POST /constraints/check: whether a form can be held to, said before anything is generated."""

from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Annotated, Any, Literal, Protocol, Self

from fastapi import APIRouter, Depends, Request
from pydantic import JsonValue, model_validator

from policies.constraint import Constraint, ConstraintError, from_grammar, from_json_schema, from_regex
from server.errors import InvalidRequest
from server.routes.body import JsonRoute
from server.wire import Strict


class Checker(Protocol):
    async def check(self, constraint: Constraint, param: str) -> None:
        """Raises InvalidRequest with the compiler's reason, and Unavailable."""


def _checker(request: Request) -> Checker:
    checker: Checker = request.app.state.steersman.checker
    return checker


_BUILDERS: Mapping[str, Callable[[Any], Constraint]] = MappingProxyType(
    {"json_schema": from_json_schema, "regex_pattern": from_regex, "grammar": from_grammar}
)


class CheckedConstraint(Strict):
    """Exactly one of the three, as /v1/chat/completions takes them."""

    json_schema: dict[str, JsonValue] | None = None
    regex_pattern: str | None = None
    grammar: str | None = None

    @model_validator(mode="after")
    def _one(self) -> Self:
        if len(self.given) != 1:
            raise ValueError(f"give exactly one of {', '.join(_BUILDERS)}")
        return self

    @property
    def given(self) -> list[str]:
        return [name for name in _BUILDERS if getattr(self, name) is not None]


class Sound(Strict):
    valid: Literal[True] = True


router = APIRouter(route_class=JsonRoute, tags=["Axionic"])


@router.post("/constraints/check")
async def check_constraint(body: CheckedConstraint, checker: Annotated[Checker, Depends(_checker)]) -> Sound:
    """A constraint that is refused in a request is refused here, with the same reason."""
    [field] = body.given
    try:
        constraint = _BUILDERS[field](getattr(body, field))
    except ConstraintError as error:
        raise InvalidRequest(error.reason, param=field, code="invalid_constraint") from error
    await checker.check(constraint, field)
    return Sound()
