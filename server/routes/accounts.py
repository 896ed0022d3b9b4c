"""Accounts that log in: the rest of `/auth/*` of the Axionic API, where the operator wants them."""

from typing import Annotated, Literal, Protocol

from fastapi import APIRouter, Depends, Request
from pydantic import AfterValidator, Field

from server.accounts import Accounts, SignedIn
from server.auth import KeyRing, Principal, caller
from server.errors import Forbidden, NotFound
from server.logins import email_address
from server.passwords import MAX_LENGTH, MIN_LENGTH
from server.routes.keys import Wire
from server.settings import Settings
from server.store import Account


class AccountsState(Protocol):
    """What these routes use of `app.state.steersman`."""

    @property
    def settings(self) -> Settings: ...
    @property
    def keyring(self) -> KeyRing: ...
    @property
    def accounts(self) -> Accounts: ...


def _state(request: Request) -> AccountsState:
    """Raises NotFound where there are no accounts."""
    state: AccountsState = request.app.state.steersman
    if not state.settings.has_accounts:
        raise NotFound(
            "this server has no accounts (its operator starts it with --accounts to have them):"
            " it knows people by their API keys"
        )
    return state


def _in_session(principal: Annotated[Principal, Depends(caller)]) -> Principal:
    """Raises Forbidden for whoever has a key alone, which may have been lent."""
    if principal.session_id is None:
        raise Forbidden(
            "This takes the access token of a session, not an API key: POST /auth/login gives one."
        )
    return principal


def _address(request: Request) -> str:
    return request.client.host if request.client else ""


State = Annotated[AccountsState, Depends(_state)]
InSession = Annotated[Principal, Depends(_in_session)]
Address = Annotated[str, Depends(_address)]
Email = Annotated[str, Field(max_length=320), AfterValidator(email_address)]
NewPassword = Annotated[str, Field(min_length=MIN_LENGTH, max_length=MAX_LENGTH)]


class SignUp(Wire):
    email: Email
    password: NewPassword


class LogIn(Wire):
    email: Email
    password: Annotated[str, Field(max_length=MAX_LENGTH)]


class RefreshToken(Wire):
    refresh_token: Annotated[str, Field(max_length=4096)]


class ChangePassword(Wire):
    """Without a new one Axionic would mail a link; this server sends no mail."""

    new_password: NewPassword


class ChangeEmail(Wire):
    new_email: Email


class AuthUser(Wire):
    id: str
    email: str

    @classmethod
    def of(cls, account: Account) -> "AuthUser":
        return cls(id=account.id, email=account.email)


class AuthSession(Wire):
    """`expires_in` are the seconds of the access token; the refresh token gives new ones, once."""

    access_token: str
    refresh_token: str
    expires_in: int


class AuthAnswer(Wire):
    user: AuthUser
    session: AuthSession

    @classmethod
    def of(cls, signed_in: SignedIn) -> "AuthAnswer":
        session = signed_in.session
        return cls(
            user=AuthUser.of(signed_in.account),
            session=AuthSession(
                access_token=session.access_token,
                refresh_token=session.refresh_token,
                expires_in=session.expires_in,
            ),
        )


class ChangedPassword(Wire):
    """API keys stay as they are."""

    changed: Literal[True] = True
    other_sessions_ended: int


class DeletedAccount(Wire):
    id: str
    deleted: Literal[True] = True


router = APIRouter(prefix="/auth", tags=["accounts"])


@router.post("/signup")
async def sign_up(state: State, address: Address, body: SignUp) -> AuthAnswer:
    """A new account, logged in. No mail is sent: nobody checks that the address is its owner's."""
    if state.settings.accounts == "closed":
        raise Forbidden("Signup is closed here: the operator adds accounts (`steersman accounts add EMAIL`).")
    return AuthAnswer.of(await state.accounts.sign_up(body.email, body.password, address))


@router.post("/login")
async def log_in(state: State, address: Address, body: LogIn) -> AuthAnswer:
    return AuthAnswer.of(await state.accounts.log_in(body.email, body.password, address))


@router.post("/refresh")
async def refresh(state: State, body: RefreshToken) -> AuthAnswer:
    """New tokens for a refresh token, which is used up: used again later, it ends the session."""
    return AuthAnswer.of(await state.accounts.refresh(body.refresh_token))


@router.post("/change-password")
async def change_password(state: State, principal: InSession, body: ChangePassword) -> ChangedPassword:
    ended = await state.accounts.change_password(principal, body.new_password)
    return ChangedPassword(other_sessions_ended=ended)


@router.post("/change-email")
async def change_email(state: State, principal: InSession, body: ChangeEmail) -> AuthUser:
    """At once: no mail is sent that would have to be answered."""
    return AuthUser.of(await state.accounts.change_email(principal, body.new_email))


@router.delete("/delete-account")
async def delete_account(state: State, principal: InSession) -> DeletedAccount:
    """With its keys, vectors, behaviours, policies and recent calls, for good."""
    await state.accounts.delete(principal)
    state.keyring.forget_account(principal.member_id)
    return DeletedAccount(id=principal.member_id)
