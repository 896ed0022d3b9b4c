"""Policies that the server keeps: save, look up, delete; publish, list and clone presets."""

from datetime import datetime
from typing import Annotated, Any, Literal, Protocol

from fastapi import APIRouter, Depends, Query, Request, Response
from fastapi.responses import JSONResponse
from pydantic import Field

from policies.policy import RuntimePolicy
from policies.presets import PRESETS, Preset
from server.auth import Principal, caller
from server.policies import Policies, PresetRecord, Visibility, plain
from server.routes.body import JsonRoute
from server.wire import INT32_MAX, Strict

VERSION_HEADER = "x-steersman-policy-version"
NEXT_HEADER = "x-steersman-next-offset"  # of a page that others follow

_NO_NUL = r"^[^\x00]*$"  # PostgreSQL holds any other character
Name = Annotated[str, Field(min_length=1, max_length=200, pattern=_NO_NUL)]
Tag = Annotated[str, Field(min_length=1, max_length=64, pattern=_NO_NUL)]
Description = Annotated[str, Field(max_length=4000, pattern=_NO_NUL)]


class PolicyCheck(Protocol):
    async def check(self, policy: RuntimePolicy) -> None:
        """Raises InvalidRequest for what could not be run."""


class PoliciesState(Protocol):
    """What these routes use of `app.state.steersman`."""

    @property
    def policies(self) -> Policies: ...
    @property
    def policy_runs(self) -> PolicyCheck: ...


def _policies(request: Request) -> Policies:
    state: PoliciesState = request.app.state.steersman
    return state.policies


def _check(request: Request) -> PolicyCheck:
    state: PoliciesState = request.app.state.steersman
    return state.policy_runs


Stored = Annotated[Policies, Depends(_policies)]
Check = Annotated[PolicyCheck, Depends(_check)]
Caller = Annotated[Principal, Depends(caller)]
# Axionic's client does not page policies and presets: it gets all that one answer may hold.
Limit = Annotated[int, Query(ge=1, le=1000)]
Offset = Annotated[int, Query(ge=0, le=INT32_MAX)]


class SavePolicy(Strict):
    policy: RuntimePolicy


class SavedPolicy(Strict):
    policy_id: str
    version: int


class PolicyVersionItem(Strict):
    version: int
    saved_at: datetime


class DeletedPolicy(Strict):
    id: str
    deleted: Literal[True] = True


class PublishPreset(Strict):
    """What is published is a copy: later versions of the policy do not change it, and it has no policy id."""

    name: Name
    policy: RuntimePolicy
    visibility: Visibility = Visibility.PRIVATE
    tags: Annotated[tuple[Tag, ...], Field(max_length=32)] = ()
    description: Description | None = None


class PublishedPreset(Strict):
    preset_id: str


class PresetItem(Strict):
    """`policy` holds what its publisher set; `owner_api_key_id` is shown to the account that owns the key.

    `updated_at` is null for those that come with the server.
    """

    id: str
    name: str
    policy: dict[str, Any]
    owner_api_key_id: str | None
    visibility: Visibility
    tags: list[str]
    description: str | None
    updated_at: datetime | None

    @classmethod
    def shipped(cls, preset_id: str, preset: Preset) -> "PresetItem":
        return cls(
            id=preset_id,
            name=preset.name,
            policy=dict(preset.policy),
            owner_api_key_id=None,
            visibility=Visibility.PUBLIC,
            tags=list(preset.tags),
            description=preset.description,
            updated_at=None,
        )

    @classmethod
    def of(cls, record: PresetRecord) -> "PresetItem":
        return cls(
            id=record.id,
            name=record.name,
            policy=dict(record.policy),
            owner_api_key_id=record.api_key_id,
            visibility=record.visibility,
            tags=list(record.tags),
            description=record.description,
            updated_at=record.updated_at,
        )


class ClonePreset(Strict):
    """`{}`, as Axionic's client sends it."""


class ClonedPreset(Strict):
    policy_id: str


router = APIRouter(route_class=JsonRoute, tags=["Axionic"])


@router.post("/policies/save")
async def save_policy(principal: Caller, stored: Stored, check: Check, body: SavePolicy) -> SavedPolicy:
    """Without an id a new policy, with one of the account's its next version."""
    await check.check(body.policy)
    saved = await stored.save(principal.account_id, body.policy)
    return SavedPolicy(policy_id=saved.id, version=saved.version)


@router.get("/policies", response_model=list[RuntimePolicy])
async def list_policies(
    principal: Caller, stored: Stored, limit: Limit = 1000, offset: Offset = 0
) -> JSONResponse:
    """Newest first: of each policy its newest version, with what was set of it. A page ends before 8 MiB; a
    header says where the next one begins."""
    page = await stored.list(principal.account_id, limit=limit, offset=offset)
    # A response of its own, because FastAPI would refuse a policy that this version does not understand.
    return JSONResponse(list(page), headers=_next(offset + len(page)) if page.more else None)


# Before `/policies/{policy_id}`, which would take `presets` for an id.
@router.get("/policies/presets")
async def list_presets(
    principal: Caller,
    stored: Stored,
    response: Response,
    *,
    include_public: bool = True,
    limit: Limit = 1000,
    offset: Offset = 0,
) -> list[PresetItem]:
    """One's own, newest first; unless `include_public` is false what comes with the server before them, and
    after them what others have made public. Pages are as those of policies."""
    shipped = [PresetItem.shipped(*item) for item in PRESETS.items()] if include_public else []
    first = shipped[offset : offset + limit]
    records = await stored.presets(
        principal.account_id,
        include_public=include_public,
        limit=limit - len(first),
        offset=max(0, offset - len(shipped)),
    )
    items = first + [PresetItem.of(record) for record in records]
    if records.more or offset + len(first) < len(shipped):
        response.headers.update(_next(offset + len(items)))
    return items


def _next(offset: int) -> dict[str, str]:
    return {NEXT_HEADER: str(offset)}


@router.post("/policies/presets/publish")
async def publish_preset(
    principal: Caller, stored: Stored, check: Check, body: PublishPreset
) -> PublishedPreset:
    await check.check(body.policy)
    preset_id = await stored.publish(
        principal.account_id,
        principal.key_id,
        name=body.name,
        policy=body.policy,
        visibility=body.visibility,
        tags=body.tags,
        description=body.description,
    )
    return PublishedPreset(preset_id=preset_id)


@router.post("/policies/presets/{preset_id}/clone")
async def clone_preset(
    principal: Caller, stored: Stored, preset_id: str, _: ClonePreset | None = None
) -> ClonedPreset:
    """Save the preset's policy as one's own, under a new id."""
    if preset_id in PRESETS:
        policy = RuntimePolicy.model_validate(PRESETS[preset_id].policy)
        return ClonedPreset(policy_id=(await stored.save(principal.account_id, policy)).id)
    return ClonedPreset(policy_id=await stored.clone(principal.account_id, preset_id))


@router.delete("/policies/presets/{preset_id}")
async def delete_preset(principal: Caller, stored: Stored, preset_id: str) -> DeletedPolicy:
    """What others have cloned from it stays theirs."""
    await stored.delete_preset(principal.account_id, preset_id)
    return DeletedPolicy(id=preset_id)


@router.get("/policies/{policy_id}", response_model=RuntimePolicy)
async def get_policy(
    principal: Caller,
    stored: Stored,
    policy_id: str,
    version: Annotated[int | None, Query(ge=1, le=INT32_MAX)] = None,
) -> JSONResponse:
    """What was set of the policy, which can be saved again as it is; a header says which version it is."""
    record = await stored.get(principal.account_id, policy_id, version)
    return JSONResponse(plain(record.policy), headers={VERSION_HEADER: str(record.version)})


@router.get("/policies/{policy_id}/versions")
async def list_versions(
    principal: Caller, stored: Stored, policy_id: str, limit: Limit = 100, offset: Offset = 0
) -> list[PolicyVersionItem]:
    """Newest first; `GET /policies/{policy_id}?version=` has each."""
    versions = await stored.versions(principal.account_id, policy_id, limit=limit, offset=offset)
    return [PolicyVersionItem(version=each.version, saved_at=each.saved_at) for each in versions]


@router.delete("/policies/{policy_id}")
async def delete_policy(principal: Caller, stored: Stored, policy_id: str) -> DeletedPolicy:
    """With all its versions; requests in flight finish with the policy that they began with."""
    await stored.delete(principal.account_id, policy_id)
    return DeletedPolicy(id=policy_id)
