"""What people do with their accounts: sign up, log in, stay logged in, change and delete."""

from dataclasses import dataclass
from typing import Final

from server.auth import Principal
from server.errors import TooManyRequests, Unauthenticated
from server.logins import Logins
from server.metrics import AUTH_ATTEMPTS
from server.passwords import Passwords
from server.sessions import Session, Sessions
from server.store import Account, Store
from server.throttle import Throttle

_COUNTED: Final = "password"  # as a method of `AUTH_ATTEMPTS`


@dataclass(frozen=True, slots=True)
class SignedIn:
    account: Account
    session: Session


class Accounts:
    """Every method raises Unavailable when the database does not answer.

    `address` is where a request came from; each process counts by itself what comes from there.
    """

    def __init__(
        self,
        store: Store,
        sessions: Sessions,
        passwords: Passwords | None = None,
        throttle: Throttle | None = None,
    ) -> None:
        self._store, self.sessions = store, sessions
        self._logins = Logins(store.database)
        self._passwords, self._throttle = passwords or Passwords(), throttle or Throttle()

    async def sign_up(self, email: str, password: str, address: str) -> SignedIn:
        """Raises Conflict for an address that has an account, TooManyRequests."""
        self._throttle.signup(address)
        account = await self._logins.add(email, await self._passwords.hashed(password))
        return SignedIn(account, await self.sessions.open(account.id))

    async def log_in(self, email: str, password: str, address: str) -> SignedIn:
        """Raises Unauthenticated, the same whether address or password is wrong, and TooManyRequests."""
        try:
            self._throttle.login(email, address)
        except TooManyRequests:
            AUTH_ATTEMPTS.labels(_COUNTED, "limited").inc()
            raise
        login = await self._logins.find(email)
        password_hash = login.password_hash if login else None
        if not await self._passwords.matches(password, password_hash) or login is None:
            AUTH_ATTEMPTS.labels(_COUNTED, "invalid").inc()
            raise Unauthenticated("The email or the password is wrong.", code="invalid_credentials")
        self._throttle.logged_in(email, address)
        AUTH_ATTEMPTS.labels(_COUNTED, "ok").inc()
        return SignedIn(login.account, await self.sessions.open(login.account.id))

    async def refresh(self, refresh_token: str) -> SignedIn:
        """Raises Unauthenticated."""
        session = await self.sessions.refresh(refresh_token)
        return SignedIn(await self._store.account(session.account_id), session)

    async def change_password(self, principal: Principal, password: str) -> int:
        """Returns how many other sessions ended with it; keys stay."""
        await self._logins.set_password(principal.member_id, await self._passwords.hashed(password))
        return await self.sessions.end(principal.member_id, but=principal.session_id)

    async def change_email(self, principal: Principal, email: str) -> Account:
        """Raises Conflict for an address that has an account."""
        await self._logins.set_email(principal.member_id, email)
        return await self._store.account(principal.member_id)

    async def delete(self, principal: Principal) -> None:
        """With everything that it owns. Raises Forbidden for the operator's own."""
        await self._logins.delete(principal.member_id)
        self.sessions.forget()
