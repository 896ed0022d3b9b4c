"""API keys and who holds them: `/auth/*` of the Axionic API."""

from dataclasses import replace
from datetime import datetime
from typing import Annotated, Literal, Protocol

from fastapi import APIRouter, Body, Depends, Request
from pydantic import BaseModel, ConfigDict, Field

from server.accounts import Accounts
from server.auth import OPERATOR, KeyRing, Principal, caller
from server.errors import Forbidden, InvalidRequest
from server.limits import MAX_LIMIT, RateLimits
from server.roles import Role
from server.settings import Settings
from server.store import KeyRecord, Store
from server.usage import UsageMeter


class Models(Protocol):
    def resolve(self, name: str) -> str:
        """The served model behind a name, alias or adapter. Raises NotFound."""


class KeysState(Protocol):
    """What these routes use of `app.state.steersman`."""

    @property
    def settings(self) -> Settings: ...
    @property
    def store(self) -> Store: ...
    @property
    def keyring(self) -> KeyRing: ...
    @property
    def meter(self) -> UsageMeter: ...
    @property
    def models(self) -> Models: ...
    @property
    def accounts(self) -> Accounts: ...


def _state(request: Request) -> KeysState:
    state: KeysState = request.app.state.steersman
    return state


State = Annotated[KeysState, Depends(_state)]
Caller = Annotated[Principal, Depends(caller)]


class Wire(BaseModel):
    # `model_` is pydantic's own namespace, and a field name of this API
    model_config = ConfigDict(extra="forbid", protected_namespaces=())


Limit = Annotated[int, Field(ge=0, le=MAX_LIMIT, strict=True)]


class KeyLimits(Wire):
    """null: the server's default, where it has one; 0: no limit, whatever that is."""

    requests_per_minute: Limit | None = None
    tokens_per_minute: Limit | None = None
    concurrent_requests: Limit | None = None

    @classmethod
    def fields_of(cls, rates: RateLimits) -> dict[str, int | None]:
        return dict(zip(KeyLimits.model_fields, rates.each, strict=True))

    @classmethod
    def told(cls, rates: RateLimits) -> str:
        return ", ".join(f"{name} {limit}" for name, limit in cls.fields_of(rates).items() if limit)

    def over(self, rates: RateLimits) -> RateLimits:
        """`rates`, but for what is given."""
        names = dict(zip(KeyLimits.model_fields, ("requests", "tokens", "concurrent"), strict=True))
        return replace(rates, **{names[each]: getattr(self, each) for each in self.given})

    @property
    def given(self) -> set[str]:
        return self.model_fields_set & KeyLimits.model_fields.keys()


class CreateKey(KeyLimits):
    """`role` is the most that the key may do; it is the project's that the call is within."""

    name: Annotated[str, Field(max_length=200)] | None = None
    role: Role = Role.OWNER


class CreatedKey(KeyLimits):
    api_key: str
    id: str
    name: str | None
    role: Role


class ApiKeyItem(KeyLimits):
    """`masked` names the key to people: the plain one was shown once, when it was made.

    `key` is the same, or empty to a session: after a login Axionic's command line takes the `key` that it
    finds here for a whole one, sends it from then on, and could call nothing.
    """

    id: str
    key: str
    masked: str
    name: str | None
    selected_model: str | None
    role: Role
    created_at: datetime
    last_used: datetime | None

    @classmethod
    def of(cls, record: KeyRecord, principal: Principal) -> "ApiKeyItem":
        return cls(
            id=record.id,
            key="" if principal.session_id else record.masked,
            masked=record.masked,
            name=record.name,
            selected_model=record.selected_model,
            role=record.role,
            created_at=record.created_at,
            last_used=record.last_used,
            **cls.fields_of(record.rates),
        )


class RevokedKey(Wire):
    id: str
    revoked: Literal[True] = True


class SetModel(Wire):
    model_name: Annotated[str, Field(min_length=1, max_length=500)]


class SelectedModel(Wire):
    """None stands for the server's default; `id` is the key's, or to a session its account's."""

    id: str
    selected_model: str | None


class VerifiedKey(Wire):
    """A session has no `id` and no name."""

    valid: Literal[True] = True
    id: str | None
    name: str | None
    selected_model: str | None


class Identity(Wire):
    """AuthUser, and the key that was used, None for a session."""

    id: str
    email: str
    created_at: datetime
    api_key_id: str | None
    api_key_name: str | None


class Balance(Wire):
    """The usage of the calling key since it was made; to a session, of its account and all its keys."""

    billing: Literal[False] = False
    message: str = "This server has no billing: nothing is charged, requests and tokens are only counted."
    requests: int
    prompt_tokens: int
    completion_tokens: int
    total_tokens: int


router = APIRouter(prefix="/auth", tags=["keys"])


@router.get("/verify-key")
async def verify_key(principal: Caller) -> VerifiedKey:
    return VerifiedKey(id=principal.key_id, name=principal.name, selected_model=principal.selected_model)


@router.get("/whoami")
async def whoami(principal: Caller, state: State) -> Identity:
    account = await state.store.account(principal.member_id)
    return Identity(
        id=account.id,
        email=account.email,
        created_at=account.created_at,
        api_key_id=principal.key_id,
        api_key_name=principal.name,
    )


@router.get("/api-keys/balance")
async def balance(principal: Caller, state: State) -> Balance:
    await state.meter.flush(state.store)
    if principal.key_id is None:
        used = await state.store.account_usage(principal.member_id)
    else:
        used = await state.store.usage(principal.key_id)
    return Balance(
        requests=used.requests,
        prompt_tokens=used.prompt_tokens,
        completion_tokens=used.completion_tokens,
        total_tokens=used.prompt_tokens + used.completion_tokens,
    )


@router.post("/api-keys/set-model")
async def set_model(principal: Caller, state: State, body: SetModel) -> SelectedModel:
    """Bind a model to the calling key; `default` unbinds it.

    A session binds its account: all its sessions, and those of its keys that have no model of their own.
    """
    selected = None if body.model_name == "default" else state.models.resolve(body.model_name)
    if principal.key_id is None:
        await state.store.set_account_model(principal.member_id, selected)
        state.accounts.sessions.forget()
        state.keyring.forget_account(principal.member_id)
        return SelectedModel(id=principal.member_id, selected_model=selected)
    await state.store.set_model(principal.key_id, selected)
    state.keyring.forget(principal.key_id)
    return SelectedModel(id=principal.key_id, selected_model=selected)


@router.get("/api-keys")
async def list_keys(principal: Caller, state: State) -> list[ApiKeyItem]:
    """The project's, to its owners."""
    principal.require(Role.OWNER)
    records = await state.store.list_keys(principal.account_id)
    return [ApiKeyItem.of(record, principal) for record in records if record.revoked_at is None]


@router.post("/api-keys")
async def create_key(
    principal: Caller, state: State, body: Annotated[CreateKey | None, Body()] = None
) -> CreatedKey:
    """A project's key is within that project alone; the caller's own enters whatever the caller may."""
    principal.require(Role.OWNER)
    asked = body or CreateKey()
    rates = asked.over(RateLimits())
    _require_may_limit(principal, rates, state.settings.rates)
    created = await state.store.create_key(principal.account_id, asked.name, asked.role, rates)
    return CreatedKey(
        api_key=created.key, id=created.id, name=asked.name, role=asked.role, **asked.fields_of(rates)
    )


@router.patch("/api-keys/{key_id}")
async def limit_key(principal: Caller, state: State, key_id: str, body: KeyLimits) -> ApiKeyItem:
    """Change the limits of a key; what is absent stays. Other processes know it 2 s later."""
    principal.require(Role.OWNER)
    if not body.given:
        raise InvalidRequest(f"there is nothing to change: give {' or '.join(KeyLimits.model_fields)}")
    rates = body.over((await state.store.key(principal.account_id, key_id)).rates)
    _require_may_limit(principal, rates, state.settings.rates)
    record = await state.store.limit_key(principal.account_id, key_id, rates)
    state.keyring.forget(key_id)
    return ApiKeyItem.of(record, principal)


@router.delete("/api-keys/{key_id}")
async def revoke_key(principal: Caller, state: State, key_id: str) -> RevokedKey:
    principal.require(Role.OWNER)
    await state.store.revoke_key(principal.account_id, key_id)
    state.keyring.forget(key_id)
    return RevokedKey(id=key_id)


def _require_may_limit(principal: Principal, rates: RateLimits, default: RateLimits) -> None:
    """Raises Forbidden for whoever would so get past limits: its own, or the server's for all."""
    if principal.rates:
        raise Forbidden("This key has limits: it can neither make keys nor change their limits.")
    if principal.member_id != OPERATOR and rates.exceeds(default):
        raise Forbidden(
            f"Limits here are at most the server's, {KeyLimits.told(default)}: only the operator gives more."
        )
