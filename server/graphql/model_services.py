"""Model services: the models of a project, under the names that the project gave them."""

import re
from collections.abc import Sequence

import strawberry
from strawberry.scalars import JSON

from server.aliases import MAX_KEY, Alias
from server.errors import Conflict, NotFound, NotSupported, SteersmanError
from server.graphql.context import Context, Info
from server.graphql.models import Catalog, Model, model_id
from server.graphql.refused import refuse
from server.graphql.scalars import IdOrKey, Timestamp, Uuid
from server.projects import Project
from server.roles import Role

AT_START = "what is served, and how, is chosen when the server starts (`steersman serve`)"


@strawberry.type
class ModelService:
    id: Uuid
    key: str
    name: str
    model: Model
    is_default: bool
    created_at: Timestamp
    desired_online: bool = True


@strawberry.input
class AddModelsToProjectInput:
    project: IdOrKey
    models: list[IdOrKey]


@strawberry.input
class RemoveModelFromProjectInput:
    project: IdOrKey
    model: IdOrKey


@strawberry.input
class ModelPlacementInput:
    compute_pools: list[IdOrKey]
    max_ttft_ms: int | None = None


@strawberry.input
class SpeculativeDecodingInput:
    num_draft_steps: int


@strawberry.input
class DeployModelInput:
    project: IdOrKey
    model: IdOrKey
    placement: ModelPlacementInput | None = None
    wait: bool = strawberry.field(default=False, description="Whatever is served is online already.")
    speculative_decoding: SpeculativeDecodingInput | None = None


@strawberry.input
class UpdateModelService:
    project: IdOrKey
    model_service: IdOrKey
    is_default: bool | None = None
    desired_online: bool | None = None
    name: str | None = None
    system_prompt_template: JSON | None = None
    placement: ModelPlacementInput | None = None
    tool_providers: list[IdOrKey] | None = None
    speculative_decoding: SpeculativeDecodingInput | None = None


@strawberry.type
class ModelFailure:
    model: str
    reason: str


@strawberry.type
class AddModelsResult:
    success: bool
    failures: list[ModelFailure]


@strawberry.type
class DeployModelResult:
    model_service: ModelService
    warnings: list[str]


class Services:
    """The models of one project: its aliases, and its default model where that is none of them."""

    def __init__(self, catalog: Catalog, project: Project, aliases: Sequence[Alias]) -> None:
        self._catalog = catalog
        self._project = project
        self._aliases = aliases

    @classmethod
    async def of(cls, context: Context, project_id: str) -> "Services":
        project = (await context.membership(project_id)).project
        return cls(await Catalog.of(context), project, (await context.aliases()).get(project_id, ()))

    def all(self) -> list[ModelService]:
        found = [self.service(each) for each in self._aliases]
        default = self._project.default_model
        if default is None or any(each.is_default for each in found):
            return found
        return [*found, self._served(default)]

    def find(self, reference: str) -> Alias | None:
        """By id or key, or by the served model that it attaches."""
        named = (each for each in self._aliases if reference in (each.id, each.key))
        model = self._catalog.name(reference)
        attached = (each for each in self._aliases if each.model == model and not each.defaults)
        return next(named, None) or next(attached, None)

    def named(self, name: str) -> "ModelService":
        """For a name of the project that an A/B test has kept."""
        alias = next((each for each in self._aliases if each.key == name), None)
        return self._served(name) if alias is None else self.service(alias)

    def name(self, reference: str) -> str:
        """What requests within the project call it. Raises NotFound."""
        alias = self.find(reference)
        name = self._catalog.name(reference) if alias is None else alias.key
        if name is None:
            raise _unknown(reference)
        return name

    def answers_as(self, reference: str) -> Sequence[str]:
        """The names that requests may have called it by."""
        alias = self.find(reference)
        names = {reference if alias is None else alias.key, self._catalog.name(reference) or reference}
        return sorted(names | {f"{self._project.key}/{each}" for each in names})

    def service(self, alias: Alias) -> ModelService:
        is_attached = alias.model == alias.key or not alias.defaults
        model = self._catalog.find(alias.model) if is_attached else None
        return ModelService(
            id=Uuid(alias.id),
            key=alias.key,
            name=alias.name,
            model=model or self._catalog.alias(alias),
            is_default=alias.key == self._project.default_model,
            created_at=Timestamp(alias.created_at),
        )

    def _served(self, name: str) -> ModelService:
        model = self._catalog.find(name, self._project.id) or self._catalog.gone(name, self._project.id)
        return ModelService(
            id=model_id(name, self._project.id),
            key=name,
            name=name,
            model=model,
            is_default=name == self._project.default_model,
            created_at=Timestamp(self._project.created_at),
        )


@strawberry.type
class ModelMutations:
    @strawberry.mutation
    async def add_models_to_project(self, info: Info, input: AddModelsToProjectInput) -> AddModelsResult:
        """Names served models within the project; one that it has already stays as it is."""
        project_id = await info.context.enter(input.project, Role.MEMBER)
        failures: list[ModelFailure] = []
        for model in input.models:
            try:
                await _attach(info.context, project_id, model)
            except SteersmanError as error:
                failures.append(ModelFailure(model=model, reason=error.message))
        return AddModelsResult(success=not failures, failures=failures)

    @strawberry.mutation
    async def remove_model_from_project(self, info: Info, input: RemoveModelFromProjectInput) -> bool:
        """Its name within the project and what that brings; the served model itself stays."""
        context = info.context
        project_id = await context.enter(input.project, Role.MEMBER)
        alias = (await Services.of(context, project_id)).find(input.model)
        if alias is None:
            raise _unattached(input.model)
        await context.state.directory.remove(project_id, alias.id)
        context.forget()
        return True

    @strawberry.mutation
    async def deploy_model(self, info: Info, input: DeployModelInput) -> DeployModelResult:
        """Attaches a model that is served; which ones are is chosen at the start of the server."""
        refuse({"placement": input.placement, "speculativeDecoding": input.speculative_decoding}, AT_START)
        project_id = await info.context.enter(input.project, Role.MEMBER)
        try:
            alias = await _attach(info.context, project_id, input.model)
        except NotFound as error:
            raise NotFound(f"model {input.model!r} is not served: {AT_START}", param="model") from error
        services = await Services.of(info.context, project_id)
        return DeployModelResult(model_service=services.service(alias), warnings=[])

    @strawberry.mutation
    async def update_model_service(self, info: Info, input: UpdateModelService) -> ModelService:
        """Changing the default takes an owner."""
        refuse(
            {
                "desiredOnline": False if input.desired_online is False else None,
                "placement": input.placement,
                "speculativeDecoding": input.speculative_decoding,
            },
            AT_START,
        )
        refuse({"systemPromptTemplate": input.system_prompt_template}, "requests bring their own")
        refuse({"toolProviders": input.tool_providers}, "requests bring their own tools")
        return await _updated(info.context, input)

    @strawberry.mutation
    async def terminate_model(self, info: Info, id_or_key: IdOrKey, force: bool) -> str:  # noqa: ARG002
        """Refused, whether by force or not."""
        if (await Catalog.of(info.context)).find(id_or_key) is None:
            raise _unknown(id_or_key)
        raise NotSupported(f"A model cannot be terminated: {AT_START}.")


async def _attach(context: Context, project_id: str, reference: str) -> Alias:
    """The project's name for it, made where there is none. Raises NotFound for a model that is not served,
    Conflict where that name means something else."""
    services = await Services.of(context, project_id)
    found = services.find(reference)
    if found is not None:
        return found
    name = (await Catalog.of(context)).name(reference)
    if name is None:
        raise _unknown(reference)
    key = _key(name)
    if services.find(key) is not None:
        raise Conflict(f"the project has another model called {key!r}", param="models")
    made = await context.state.directory.aliases.put(project_id, key, model=name, defaults={}, name=name)
    context.forget()
    return made


def _key(name: str) -> str:
    """Of `owner/model` the last part, since a slash sets a project apart from its models."""
    return re.sub(r"[^A-Za-z0-9._:-]+", "-", name.rpartition("/")[2])[:MAX_KEY].strip("._:-")


async def _updated(context: Context, input: UpdateModelService) -> ModelService:
    needs = Role.MEMBER if input.is_default is None else Role.OWNER
    project_id = await context.enter(input.project, needs)
    alias = (await Services.of(context, project_id)).find(input.model_service)
    if alias is None:
        raise _unattached(input.model_service)
    directory = context.state.directory
    if input.name is not None:
        alias = await directory.aliases.put(
            project_id, alias.key, model=alias.model, defaults=alias.defaults, name=input.name
        )
    default = (await context.membership(project_id)).project.default_model
    if input.is_default:
        await directory.projects.set_default_model(project_id, alias.key)
    elif input.is_default is False and default == alias.key:
        await directory.projects.set_default_model(project_id, None)
    context.forget()
    return (await Services.of(context, project_id)).service(alias)


def _unknown(reference: str) -> NotFound:
    return NotFound(f"model {reference!r} is neither served nor attached", param="model")


def _unattached(reference: str) -> NotFound:
    return NotFound(f"model {reference!r} is not attached", param="model")
