"""/projects: whose things are kept apart, who may use them, and the models that go by names of theirs."""

from datetime import datetime
from typing import Annotated, Any, Self

from fastapi import APIRouter, Depends, Request
from pydantic import BaseModel, ConfigDict, Field, JsonValue, ValidationError

from server.addressing import BINDABLE, Directory, require_known
from server.aliases import Alias
from server.auth import Principal, caller
from server.errors import InvalidBody, InvalidRequest
from server.projects import MAX_KEY, MAX_NAME, Member, Project, Projects
from server.roles import Role
from server.routes.body import JsonRoute
from server.state import ServerState
from server.vllm_wire import ChatRequest
from server.wire import Strict

_ONE = "/projects/{project}"
Name = Annotated[str, Field(min_length=1, max_length=MAX_NAME)]
Description = Annotated[str, Field(max_length=10_000)]
ModelName = Annotated[str, Field(min_length=1, max_length=500)]

router = APIRouter(route_class=JsonRoute, tags=["projects"])


class NewProject(Strict):
    """`key` names the project in `model: "project/model"` and in the header `OpenAI-Project`."""

    key: Annotated[str, Field(min_length=1, max_length=MAX_KEY)]
    name: Name | None = None
    description: Description | None = None


class ProjectChange(Strict):
    """What is absent stays; `default_model` null: the server's default."""

    name: Name | None = None
    description: Description | None = None
    default_model: ModelName | None = None


class ProjectItem(BaseModel):
    """`role` is the caller's."""

    id: str
    key: str
    name: str
    description: str | None
    default_model: str | None
    created_at: datetime
    role: Role

    @classmethod
    def of(cls, project: Project, role: Role) -> Self:
        fields = {name: getattr(project, name) for name in Project.__dataclass_fields__}
        return cls(**fields, role=role)


class NewMember(Strict):
    email: Annotated[str, Field(max_length=320)]
    role: Role


class MemberItem(BaseModel):
    account_id: str
    email: str
    role: Role

    @classmethod
    def of(cls, member: Member) -> Self:
        return cls(account_id=member.account_id, email=member.email, role=member.role)


class NewAlias(Strict):
    """`defaults` are fields of a chat request that apply where the request says nothing of them itself."""

    model: ModelName
    name: Name | None = None
    defaults: dict[str, JsonValue] = Field(default_factory=dict)


class AliasItem(BaseModel):
    model_config = ConfigDict(protected_namespaces=())

    id: str
    key: str
    name: str
    model: str
    defaults: dict[str, Any]
    created_at: datetime

    @classmethod
    def of(cls, alias: Alias) -> Self:
        return cls(
            id=alias.id,
            key=alias.key,
            name=alias.name,
            model=alias.model,
            defaults=dict(alias.defaults),
            created_at=alias.created_at,
        )


class Deleted(BaseModel):
    id: str
    deleted: bool = True


def _directory(request: Request) -> Directory:
    directory: Directory = request.app.state.steersman.directory
    return directory


def _projects(directory: Annotated[Directory, Depends(_directory)]) -> Projects:
    return directory.projects


Caller = Annotated[Principal, Depends(caller)]
Models = Annotated[Directory, Depends(_directory)]
AllProjects = Annotated[Projects, Depends(_projects)]


async def _reading(project: str, principal: Caller, projects: AllProjects) -> Principal:
    return await projects.enter(principal, project)


async def _making(project: str, principal: Caller, projects: AllProjects) -> Principal:
    return await projects.enter(principal, project, needs=Role.MEMBER)


async def _owning(project: str, principal: Caller, projects: AllProjects) -> Principal:
    return await projects.enter(principal, project, needs=Role.OWNER)


Reader = Annotated[Principal, Depends(_reading)]
Maker = Annotated[Principal, Depends(_making)]
Owner = Annotated[Principal, Depends(_owning)]


@router.get("/projects")
async def list_projects(principal: Caller, projects: AllProjects) -> list[ProjectItem]:
    """The caller's own, `default`, then those that the caller is a member of."""
    return [
        ProjectItem.of(each.project, each.role.at_most(principal.limit))
        for each in await projects.of(principal.member_id)
    ]


@router.post("/projects", status_code=201)
async def create_project(principal: Caller, projects: AllProjects, body: NewProject) -> ProjectItem:
    """The caller is its owner."""
    project = await projects.create(
        principal.member_id, key=body.key, name=body.name or body.key, description=body.description
    )
    return ProjectItem.of(project, Role.OWNER.at_most(principal.limit))


@router.get(_ONE)
async def get_project(principal: Reader, projects: AllProjects) -> ProjectItem:
    return ProjectItem.of(await projects.home(principal.account_id), principal.role)


@router.patch(_ONE)
async def change_project(principal: Owner, directory: Models, body: ProjectChange) -> ProjectItem:
    projects = directory.projects
    project = await projects.home(principal.account_id)
    if "default_model" in body.model_fields_set:
        if body.default_model is not None:
            await require_known(directory, project, body.default_model)
        await projects.set_default_model(project.id, body.default_model)
    if body.model_fields_set & {"name", "description"}:
        given = "description" in body.model_fields_set
        project = await projects.rename(
            project.id,
            name=body.name or project.name,
            description=body.description if given else project.description,
        )
    return ProjectItem.of(await projects.home(project.id), principal.role)


@router.delete(_ONE)
async def delete_project(principal: Owner, request: Request) -> Deleted:
    """With its keys, vectors, behaviours, policies and interactions, for good."""
    state: ServerState = request.app.state.steersman
    await state.projects.delete(principal.account_id)
    state.keyring.forget_account(principal.account_id)
    return Deleted(id=principal.account_id)


@router.get(f"{_ONE}/members")
async def list_members(principal: Reader, projects: AllProjects) -> list[MemberItem]:
    return [MemberItem.of(member) for member in await projects.members(principal.account_id)]


@router.put(f"{_ONE}/members")
async def set_member(principal: Owner, projects: AllProjects, body: NewMember) -> MemberItem:
    """Adds an account, or changes its role."""
    return MemberItem.of(await projects.set_member(principal.account_id, body.email, body.role))


@router.delete(f"{_ONE}/members/{{account_id}}")
async def remove_member(principal: Owner, projects: AllProjects, account_id: str) -> Deleted:
    await projects.remove_member(principal.account_id, account_id)
    return Deleted(id=account_id)


@router.get(f"{_ONE}/models")
async def list_aliases(principal: Reader, directory: Models) -> list[AliasItem]:
    """The project's aliases; what is served to all is listed by GET /v1/models."""
    return [AliasItem.of(alias) for alias in await directory.aliases.list(principal.account_id)]


@router.put(f"{_ONE}/models/{{key}}")
async def put_alias(
    key: str, entered: Maker, directory: Models, request: Request, body: NewAlias
) -> AliasItem:
    """A model under a name of the project's own, with a policy, steering or sampling bound to it."""
    if key in directory.models.names:
        raise InvalidRequest(f"{key!r} is a model that is served to all: take another name", param="key")
    directory.models.resolve(body.model)
    await _require_bindable(body.defaults, entered, request.app.state.steersman)
    alias = await directory.aliases.put(
        entered.account_id, key, model=body.model, defaults=body.defaults, name=body.name
    )
    return AliasItem.of(alias)


@router.delete(f"{_ONE}/models/{{key}}")
async def delete_alias(key: str, entered: Maker, directory: Models) -> Deleted:
    await directory.remove(entered.account_id, key)
    return Deleted(id=key)


async def _require_bindable(defaults: dict[str, Any], principal: Principal, state: ServerState) -> None:
    """Raises InvalidRequest for what requests would be refused for, NotFound for what the project has not."""
    for name in defaults:
        if name not in BINDABLE:
            raise InvalidRequest(
                f"a model can bring {', '.join(sorted(BINDABLE))}, not {name!r}", param=f"defaults.{name}"
            )
    if defaults.get("policy") is not None and defaults.get("policy_id") is not None:
        raise InvalidRequest("give one of policy and policy_id", param="defaults.policy_id")
    try:
        request = ChatRequest.model_validate({**ChatRequest.least, **defaults})
    except ValidationError as error:
        found = [{**each, "loc": ("body", "defaults", *each["loc"])} for each in error.errors()]
        raise InvalidBody.of(found) from error
    state.serving.plan(request.asked())
    if request.policy_id is not None:
        await state.policies.get(principal.account_id, request.policy_id)
    entries = request.steering_entries()
    if entries and state.serving.steering is not None:
        (await state.serving.steering.apply(entries, principal.account_id)).release()
