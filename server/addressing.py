"""What the `model` of a request means: a served name, a project's alias, `project/model`, or a project."""

import uuid
from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Any, Protocol, TypeVar

from fastapi import Request

from server.aliases import Alias, Aliases
from server.assignment import Assignment
from server.auth import Principal, current_principal
from server.errors import Conflict, InvalidRequest, NotFound
from server.observation import observed
from server.projects import Project, Projects
from server.roles import Role
from server.served_models import ServedModels

DEFAULT = "default"
SESSION_HEADER = "x-session-id"  # vLLM's name for it
STEERING = frozenset(
    {"steering", "steering_vector_id", "steering_vector", "steering_preset", "steering_strength"}
)
# Of each of these a request names either all itself or none: a half of each would mean something else.
_TOGETHER: tuple[frozenset[str], ...] = (
    frozenset({"policy", "policy_id"}),
    STEERING,
    frozenset({"behavior_names", "force_steering", "behavior_mode"}),
    frozenset({"response_format", "structured_outputs", "json_schema", "regex_pattern", "grammar"}),
    frozenset({"max_tokens", "max_completion_tokens"}),
)
_SAMPLING = frozenset(
    {"sampling_method", "temperature", "top_p", "top_k", "min_p", "typical_p", "ads_subset_size", "ads_beta"}
    | {"beam_width", "best_of", "presence_penalty", "frequency_penalty", "repetition_penalty", "stop"}
)
BINDABLE = _SAMPLING.union(*_TOGETHER)


class Campaigns(Protocol):
    async def route(self, project_id: str, session_id: str, campaign: str | None = None) -> Assignment | None:
        """None where no test runs, or the session is not in it. Raises NotFound for an unknown `campaign`."""

    async def uses(self, project_id: str, model: str) -> str | None:
        """The key of the project's running A/B test that has this model."""


_Request = TypeVar("_Request", bound=Any)  # of `vllm_wire`, or of a dialect upon it


@dataclass(frozen=True, slots=True)
class Address:
    """`principal` is within the project that was named; `model` is a base model's or an adapter's name."""

    principal: Principal
    model: str
    alias: Alias | None = None
    assignment: Assignment | None = None


@dataclass(frozen=True, slots=True)
class Directory:
    """Names of models, each in the project that the caller is within or names."""

    models: ServedModels
    projects: Projects
    aliases: Aliases
    campaigns: Campaigns | None = None

    async def find(
        self,
        name: str | None,
        principal: Principal,
        *,
        session_id: str | None = None,
        campaign: str | None = None,
    ) -> Address:
        """In the order served name, alias, `project/model`, project; absent and "default" are the key's bound
        model, then what the project has. `campaign` asks for an A/B test whatever its share of the traffic.

        Raises NotFound where nothing is called so, Forbidden for a reader of the project, InvalidRequest for
        an A/B test beside a model.
        """
        if name in (None, DEFAULT):
            bound = principal.selected_model
            if campaign is None and bound is not None and bound in self.models.names:
                return await self._named(bound, principal)
            return await self._default(principal, session_id, campaign)
        assert name is not None
        found = await self._known(name, principal)
        if found is not None:
            return _alone(found, campaign)
        key, slash, rest = name.partition("/")
        try:
            entered = await self.projects.enter(principal, key, needs=Role.MEMBER)
        except NotFound as error:
            raise self._unknown(name) from error
        if not slash:
            return await self._default(entered, session_id, campaign)
        if rest in ("", DEFAULT):
            raise self._unknown(name)
        return _alone(await self._named(rest, entered, asked=name), campaign)

    async def served(self, name: str, project_id: str) -> bool:
        """Whether the project has a model of this name: a served one or an alias."""
        return name in self.models.names or await self.aliases.get(project_id, name) is not None

    async def remove(self, project_id: str, id_or_key: str) -> None:
        """Delete an alias. Raises NotFound, and Conflict where requests that name none would still get it."""
        alias = await self.aliases.get(project_id, id_or_key)
        if alias is not None:
            if (await self.projects.home(project_id)).default_model == alias.key:
                raise Conflict(
                    f"{alias.key!r} is the project's default model: make another one that first.",
                    param="model",
                )
            campaign = None if self.campaigns is None else await self.campaigns.uses(project_id, alias.key)
            if campaign is not None:
                raise Conflict(
                    f"{alias.key!r} is in the A/B test {campaign!r}, which runs: cancel that first.",
                    param="model",
                )
        await self.aliases.delete(project_id, id_or_key)

    async def _default(self, principal: Principal, session_id: str | None, campaign: str | None) -> Address:
        if self.campaigns is not None:
            session_id = session_id or str(uuid.uuid4())  # what belongs to none is one of its own
            assignment = await self.campaigns.route(principal.account_id, session_id, campaign)
            if assignment is not None:
                found = await self._named(assignment.model, principal)
                return replace(found, assignment=assignment)
        project = await self.projects.home(principal.account_id)
        return await self._named(project.default_model or self.models.default, principal)

    async def _named(self, name: str, principal: Principal, asked: str | None = None) -> Address:
        found = await self._known(name, principal)
        if found is None:
            raise self._unknown(asked or name)
        return found

    async def _known(self, name: str, principal: Principal) -> Address | None:
        if name in self.models.names:
            return Address(principal, name)
        alias = await self.aliases.get(principal.account_id, name)
        if alias is None:
            return None
        return Address(principal, self.models.resolve(alias.model), alias)

    def _unknown(self, name: str) -> NotFound:
        try:
            self.models.resolve(name)
        except NotFound as error:
            return error
        return NotFound(f"model '{name}' is not served here", param="model", code="model_not_found")


def _alone(found: Address, campaign: str | None) -> Address:
    """Raises InvalidRequest for a `campaign`, which would choose another model."""
    if campaign is not None:
        raise InvalidRequest(
            "an A/B test chooses the model: name the project alone, or leave `ab_campaign` out",
            param="ab_campaign",
        )
    return found


def within(principal: Principal, raw: Request) -> None:
    """Answer `raw` within the principal's project from here on."""
    raw.scope["state"]["principal"] = principal
    current_principal.set(principal)
    observed().account_id = principal.account_id


async def addressed(request: _Request, raw: Request, *, binds: Iterable[str] = BINDABLE) -> _Request:
    """The request with a served model, and what its alias binds where the request says nothing of it itself;
    the call is within the project named from here on.

    `binds` are the fields that the route can take from an alias. Raises NotFound, Forbidden, InvalidRequest.
    """
    directory: Directory = raw.app.state.steersman.directory
    if session := raw.headers.get(SESSION_HEADER):
        request.joins(session)
    found = await directory.find(
        request.model,
        raw.state.principal,
        session_id=getattr(request, "session_id", None),
        campaign=getattr(request, "ab_campaign", None),
    )
    within(found.principal, raw)
    if request.model:
        request.answer_as(request.model)
    request.know_as(found.alias.key if found.alias else found.model)
    request.model = found.model
    if found.alias is not None:
        _bind(request, found.alias, frozenset(binds))
    if found.assignment is not None:
        request.assign(found.assignment)
    return request


def _bind(request: Any, alias: Alias, binds: frozenset[str]) -> None:
    beyond = alias.defaults.keys() - binds
    if beyond:
        raise InvalidRequest(
            f"the model {alias.key!r} brings {', '.join(sorted(beyond))}, which this route does not take"
            " from a model: ask POST /v1/chat/completions",
            param="model",
        )
    given = {name for name in request.model_fields_set if getattr(request, name, None) is not None}
    said = given.union(*(group for group in _TOGETHER if group & given))
    for name, value in request.bound(alias.defaults).items():
        if name not in said:
            setattr(request, name, value)


async def require_known(directory: Directory, project: Project, name: str) -> None:
    """Raises NotFound for a model that the project does not have."""
    if not await directory.served(name, project.id):
        directory.models.resolve(name)
