"""Models: what is served, and the aliases of the caller's projects."""

import uuid
from collections.abc import Collection, Iterator, Mapping, Sequence
from datetime import UTC, datetime
from enum import Enum
from typing import TYPE_CHECKING, Annotated

import strawberry

from server.aliases import Alias
from server.graphql.context import Context, Info
from server.graphql.refused import refuse
from server.graphql.scalars import IdOrKey, Long, Timestamp, Uuid
from server.served_models import ServedModels

if TYPE_CHECKING:
    from server.graphql.projects import Project

_NAMESPACE = uuid.UUID("5a0f0f0e-53a4-5c0f-9a43-5d1f6f3e4b02")


@strawberry.enum
class ModelOnline(Enum):
    ONLINE = "ONLINE"
    DEGRADED = "DEGRADED"
    PENDING = "PENDING"
    SCALING = "SCALING"
    OFFLINE = "OFFLINE"
    ERROR = "ERROR"


@strawberry.enum
class ProviderName(Enum):
    OPEN_AI = "OPEN_AI"
    LEGACY_OPEN_AI = "LEGACY_OPEN_AI"
    HARMONY = "HARMONY"
    GOOGLE = "GOOGLE"
    ANTHROPIC = "ANTHROPIC"


@strawberry.enum
class ModelCapabilityFilter(Enum):
    EMBEDDING = strawberry.enum_value("Embedding", name="Embedding")
    TEXT_GENERATION = strawberry.enum_value("TextGeneration", name="TextGeneration")
    IMAGE_UNDERSTANDING = strawberry.enum_value("ImageUnderstanding", name="ImageUnderstanding")
    REASONING = strawberry.enum_value("Reasoning", name="Reasoning")
    REGRESSION = strawberry.enum_value("Regression", name="Regression")


def model_id(name: str, project_id: str | None = None) -> Uuid:
    """The same in every process and after every start; that of an alias is its own."""
    return Uuid(str(uuid.uuid5(_NAMESPACE, name if project_id is None else f"{project_id}/{name}")))


@strawberry.type
class ModelComputeConfig:
    tp: int
    kv_cache_len: int
    max_seq_len: int


@strawberry.type
class Model:
    """`backbone` is what an adapter or an alias runs on."""

    project_ids: strawberry.Private[Sequence[str]]
    id: Uuid
    key: str
    name: str
    created_at: Timestamp
    online: ModelOnline = ModelOnline.ONLINE
    is_adapter: bool = False
    backbone: "Model | None" = None
    error: str | None = None
    is_external: bool = False
    provider_name: ProviderName = ProviderName.HARMONY
    is_training: bool = False
    size: Long | None = None
    compute_config: ModelComputeConfig | None = None

    @strawberry.field
    async def projects(
        self, info: Info
    ) -> list[Annotated["Project", strawberry.lazy("server.graphql.projects")]]:
        """Those of the caller's that it is attached to."""
        from server.graphql.projects import Project  # noqa: PLC0415 - they name each other

        return [Project.of(await info.context.membership(each)) for each in self.project_ids]


class Catalog:
    """Every model that the caller sees: the names are one namespace for those served, and one per project."""

    def __init__(self, served: ServedModels, aliases: Mapping[str, Sequence[Alias]]) -> None:
        self._served = served
        self._aliases = aliases

    @classmethod
    async def of(cls, context: Context) -> "Catalog":
        return cls(context.state.directory.models, await context.aliases())

    def all(self) -> Iterator[Model]:
        """An alias that only attaches a served model under its name is no model of its own."""
        yield from (self.served(name) for name in self._served.names)
        for aliases in self._aliases.values():
            yield from (self.alias(each) for each in aliases if each.key != each.model)

    def find(self, reference: str, project_id: str | None = None) -> Model | None:
        """By id, by served name, or as an alias: of this project, else the only one of its key."""
        name = self.name(reference)
        if name is not None:
            return self.served(name)
        projects: Collection[str] = self._aliases if project_id is None else (project_id,)
        found = [
            alias
            for each in projects
            for alias in self._aliases.get(each, ())
            if reference in (alias.id, alias.key)
        ]
        named = [each for each in found if each.id == reference] or found
        return self.alias(named[0]) if len(named) == 1 else None

    def name(self, reference: str) -> str | None:
        """The served name that `reference` is, or is the id of."""
        return next((each for each in self._served.names if reference in (each, model_id(each))), None)

    def answered(self, names: Sequence[str], project_id: str) -> Model | None:
        """The first of what a stored request called its model that is known; else the last, which was."""
        for name in names:
            known = self.find(name, project_id) or self.find(name.partition("/")[2], project_id)
            if known is not None:
                return known
        return self.gone(names[-1], project_id) if names else None

    def gone(self, name: str, project_id: str) -> Model:
        """One that is served no longer."""
        return Model(
            project_ids=(project_id,),
            id=model_id(name, project_id),
            key=name,
            name=name,
            online=ModelOnline.OFFLINE,
            created_at=Timestamp(_UNKNOWN),
        )

    def served(self, name: str) -> Model:
        base = self._served.default
        is_adapter = name in self._served.adapters
        attached = [
            project_id
            for project_id, aliases in self._aliases.items()
            if any(each.model == name for each in aliases)
        ]
        return Model(
            project_ids=attached,
            id=model_id(name),
            key=name,
            name=name,
            is_adapter=is_adapter,
            backbone=self.served(base) if is_adapter else None,
            created_at=Timestamp(datetime.fromtimestamp(self._served.created, UTC)),
        )

    def alias(self, alias: Alias) -> Model:
        """One whose model is served no longer is offline."""
        is_served = alias.model in self._served.names
        return Model(
            project_ids=(alias.project_id,),
            id=Uuid(alias.id),
            key=alias.key,
            name=alias.name,
            online=ModelOnline.ONLINE if is_served else ModelOnline.OFFLINE,
            error=None if is_served else f"{alias.model!r} is not served",
            is_adapter=alias.model in self._served.adapters,
            backbone=self.served(alias.model) if is_served else None,
            created_at=Timestamp(alias.created_at),
        )

    def capabilities(self) -> set[ModelCapabilityFilter]:
        """Of every model: adapters and aliases have those of what they run on."""
        found = {ModelCapabilityFilter.TEXT_GENERATION}
        if "image" in self._served.modalities:
            found.add(ModelCapabilityFilter.IMAGE_UNDERSTANDING)
        return found


_UNKNOWN = datetime(1970, 1, 1, tzinfo=UTC)


@strawberry.input
class CapabilityFilter:
    any: list[ModelCapabilityFilter] | None = None
    all: list[ModelCapabilityFilter] | None = None

    def admits(self, capabilities: set[ModelCapabilityFilter]) -> bool:
        some = self.any is None or not capabilities.isdisjoint(self.any)
        return some and capabilities.issuperset(self.all or ())


@strawberry.input
class IntegerNumericCondition:
    eq: int | None = None
    neq: int | None = None
    gt: int | None = None
    gte: int | None = None
    lt: int | None = None
    lte: int | None = None


@strawberry.input
class ModelFilter:
    """Whatever is listed is stored and available, and cannot be trained here; `view_all` changes nothing,
    since nobody sees more than what is served and their own projects' aliases."""

    in_storage: bool | None = None
    available: bool | None = None
    trainable: bool | None = None
    capabilities: CapabilityFilter | None = None
    view_all: bool | None = None
    online: list[ModelOnline] | None = None
    published: bool | None = None
    size: IntegerNumericCondition | None = None

    def admits(self, model: Model, capabilities: set[ModelCapabilityFilter]) -> bool:
        is_online = model.online is ModelOnline.ONLINE
        return (
            self.in_storage is not False
            and self.available in (None, is_online)
            and self.trainable is not True
            and self.published is not False
            and (self.online is None or model.online in self.online)
            and (self.capabilities is None or self.capabilities.admits(capabilities))
        )


@strawberry.type
class ModelQueries:
    @strawberry.field
    async def models(self, info: Info, filter: ModelFilter) -> list[Model]:
        refuse({"filter.size": filter.size}, "the sizes of models are not known")
        catalog = await Catalog.of(info.context)
        capabilities = catalog.capabilities()
        return [each for each in catalog.all() if filter.admits(each, capabilities)]

    @strawberry.field
    async def model(self, info: Info, id_or_key: IdOrKey) -> Model | None:
        return (await Catalog.of(info.context)).find(id_or_key, None)
