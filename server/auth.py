"""API key or session → Principal: the form of a key, the cache of known keys, the ASGI middleware that asks.

A key is `ax_` and 48 lowercase hexadecimal digits. Its first eight digits are public: they find the record
and name the key to people. Only the SHA-256 of the whole is kept; 192 random bits need no slower hash.
"""

import asyncio
import hashlib
import hmac
import re
import secrets
import time
from collections.abc import Awaitable, Callable
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Literal, NamedTuple

from starlette.requests import HTTPConnection
from starlette.types import ASGIApp, Receive, Scope, Send

from server.errors import Forbidden, SteersmanError, Unauthenticated, Unavailable
from server.limits import NO_LIMITS, RateLimits
from server.operator_routes import is_operators
from server.recent import OUTAGE_SECONDS, PATIENCE_SECONDS
from server.refusal import refuse, route_path
from server.roles import Role

Method = Literal["x-api-key", "bearer", "session", "none"]
Outcome = Literal["ok", "missing", "invalid"]

OPERATOR = "00000000-0000-4000-8000-000000000000"  # the account of the keys made on the command line

_KEY = re.compile(r"ax_[0-9a-f]{48}")
_PREFIX = slice(len("ax_"), len("ax_") + 8)


def new_key() -> str:
    return f"ax_{secrets.token_hex(24)}"


def is_key(text: str) -> bool:
    return _KEY.fullmatch(text) is not None


def key_prefix(key: str) -> str:
    return key[_PREFIX]


def key_digest(key: str) -> str:
    return hashlib.sha256(key.encode()).hexdigest()


@dataclass(frozen=True, slots=True)
class Principal:
    """Who calls, by a key or by a session of its account.

    `account_id` is the project that the call is within, whose things it sees and makes; `member_id` is the
    account that calls, for keys of a project the project itself. `role` is what it may do there, `limit` what
    its credential may do anywhere. `selected_model` is the model bound to the key, else to the account; None
    for the project's default. `rates` are the key's own limits.
    """

    key_id: str | None
    account_id: str
    name: str | None
    selected_model: str | None
    session_id: str | None = None
    limit: Role = Role.OWNER
    role: Role = Role.OWNER
    member_id: str = ""
    rates: RateLimits = NO_LIMITS

    def __post_init__(self) -> None:
        if not self.member_id:  # at home
            object.__setattr__(self, "member_id", self.account_id)

    def require(self, needed: Role) -> None:
        """Raises Forbidden for less."""
        if not self.role.allows(needed):
            raise Forbidden(f"This needs the role {needed} in the project; this credential is {self.role}.")

    @property
    def usage_id(self) -> str:
        """Whose counters its requests add to: the key's, or with a session the account's."""
        return self.key_id or self.member_id


current_principal: ContextVar[Principal] = ContextVar("current_principal")


def caller(connection: HTTPConnection) -> Principal:
    """FastAPI dependency: the principal that `Authentication` found for this request."""
    principal: Principal = connection.scope["state"]["principal"]
    return principal


@dataclass(frozen=True, slots=True)
class _Known:
    digest: str
    principal: Principal
    expires: float


class KeyRing:
    """Keys seen in the last `ttl` seconds; a key revoked by another process lives that much longer here.

    Only hits are kept, so that a key works as soon as it exists and guesses cannot fill the memory. While the
    database does not answer, those in use go on for OUTAGE_SECONDS, unless this process revoked them.
    """

    def __init__(
        self,
        find: Callable[[str], Awaitable[Principal | None]],
        ttl: float,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._find = find
        self._ttl = ttl
        self._clock = clock
        self._known: dict[str, _Known] = {}
        self._loading: dict[str, asyncio.Task[Principal | None]] = {}

    async def principal(self, key: str) -> Principal | None:
        """None for a key that is malformed, unknown or revoked. Raises Unavailable from the store."""
        digest, now = key_digest(key), self._clock()
        known = self._known.get(key_prefix(key))
        if known is not None and not hmac.compare_digest(known.digest, digest):
            known = None
        if known is not None and now < known.expires:
            return known.principal
        if not is_key(key):
            return None
        if known is None or now >= known.expires + OUTAGE_SECONDS:
            return await self._load(key, digest)
        try:
            async with asyncio.timeout(PATIENCE_SECONDS):
                return await self._load(key, digest)
        except (Unavailable, TimeoutError) as error:
            if self._known.get(key_prefix(key)) is known:
                return known.principal
            raise Unavailable("The database does not answer.", retry_after=1) from error

    def forget(self, key_id: str) -> None:
        """Ask the store again at the next use: call it after the key's record has changed."""
        self._drop(lambda principal: principal.key_id == key_id)

    def forget_account(self, account_id: str) -> None:
        """As `forget`, for every key of an account."""
        self._drop(lambda principal: account_id in (principal.account_id, principal.member_id))

    def _drop(self, changed: Callable[[Principal], bool]) -> None:
        self._known = {prefix: known for prefix, known in self._known.items() if not changed(known.principal)}
        # A load that began before the change may return the old record: nobody may join or keep it.
        self._loading.clear()

    async def _load(self, key: str, digest: str) -> Principal | None:
        """One query however many requests wait for it; it outlives the request that began it."""
        task = self._loading.get(digest)
        if task is None:
            task = self._loading[digest] = asyncio.create_task(self._find_and_keep(key, digest))
            task.add_done_callback(_heard)
        return await asyncio.shield(task)

    async def _find_and_keep(self, key: str, digest: str) -> Principal | None:
        expires = self._clock() + self._ttl
        try:
            principal = await self._find(key)
            if principal is None:
                self._lose(key_prefix(key), digest)
            elif self._loading.get(digest) is asyncio.current_task():
                self._known[key_prefix(key)] = _Known(digest, principal, expires)
            return principal
        finally:
            if self._loading.get(digest) is asyncio.current_task():
                del self._loading[digest]

    def _lose(self, prefix: str, digest: str) -> None:
        known = self._known.get(prefix)
        if known is not None and hmac.compare_digest(known.digest, digest):
            del self._known[prefix]


def _heard(task: asyncio.Task[Principal | None]) -> None:
    """Its failure is nobody's where all who waited have left; asyncio would complain of it."""
    if not task.cancelled():
        task.exception()


_OPEN_PATHS = frozenset(
    {
        "/health",
        "/readyz",
        "/metrics",
        "/metrics/",
        "/docs",
        "/docs/oauth2-redirect",
        "/openapi.json",
        "/version",
        # how one gets a credential; without --accounts they answer 404
        "/auth/signup",
        "/auth/login",
        "/auth/refresh",
    }
)

# The console's page and files, none of which is anyone's; no segment that begins with a dot.
_CONSOLE = re.compile(r"/console(?:/(?:[\w-][\w.-]*/)*(?:[\w-][\w.-]*)?)?", re.ASCII)


# What a read-only member may send beside GET: they change nothing and generate nothing. Mutations over
# GraphQL ask for a role of their own.
_READING = frozenset({"/tokenize", "/detokenize", "/api/graphql"})
_SAFE_METHODS = frozenset({"GET", "HEAD", "OPTIONS"})
_PROJECT = b"openai-project"


class _Credential(NamedTuple):
    method: Method
    key: str


class Authentication:
    """Pure ASGI middleware: every HTTP route and WebSocket needs a key, but for `_OPEN_PATHS`, the console's
    files and preflights.

    Sets `scope["state"]["principal"]` and `current_principal`. `count(method, outcome)` is called once for
    each attempt that the store could decide. `session`, where there are accounts, finds who an access token
    stands for, or raises Unauthenticated; such a token comes as Bearer only. `enter` finds who calls within
    the project that the header `OpenAI-Project` names. A read-only caller is refused all but reading, and
    what acts on the whole server is the operator's.
    """

    def __init__(
        self,
        app: ASGIApp,
        keyring: KeyRing,
        count: Callable[[Method, Outcome], None],
        session: Callable[[str], Awaitable[Principal]] | None = None,
        enter: Callable[[Principal, str], Awaitable[Principal]] | None = None,
    ) -> None:
        self.app = app
        self._keyring = keyring
        self._count = count
        self._session = session
        self._enter = enter

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] not in ("http", "websocket") or _is_open(scope):
            await self.app(scope, receive, send)
            return
        try:
            principal = await self._authenticate(scope)
            project = dict(scope["headers"]).get(_PROJECT, b"").decode("latin-1").strip()
            if project and self._enter is not None:
                principal = await self._enter(principal, project)
            _require_allowed(scope, principal)
        except SteersmanError as error:
            await refuse(scope, receive, send, error)
            return
        scope.setdefault("state", {})["principal"] = principal
        token = current_principal.set(principal)
        try:
            await self.app(scope, receive, send)
        finally:
            current_principal.reset(token)

    async def _authenticate(self, scope: Scope) -> Principal:
        method, key = self._credential(scope)
        if self._session is not None and method == "bearer" and _is_token(key):
            return await self._in_session(self._session, key)
        principal = await self._keyring.principal(key)
        if principal is not None:
            self._count(method, "ok")
            return principal
        self._count(method, "invalid")
        if is_key(key):
            raise Unauthenticated("This API key is unknown or was revoked.")
        raise Unauthenticated(
            "This is not an API key of this server: a key is `ax_` followed by 48 hexadecimal digits."
        )

    async def _in_session(self, session: Callable[[str], Awaitable[Principal]], token: str) -> Principal:
        try:
            principal = await session(token)
        except Unauthenticated:
            self._count("session", "invalid")
            raise
        self._count("session", "ok")
        return principal

    def _credential(self, scope: Scope) -> _Credential:
        headers: dict[bytes, bytes] = dict(scope["headers"])
        if key := headers.get(b"x-api-key"):
            return _Credential("x-api-key", key.decode("latin-1").strip())
        scheme, _, token = headers.get(b"authorization", b"").decode("latin-1").strip().partition(" ")
        if scheme and scheme.lower() != "bearer":
            self._count("none", "invalid")
            # The header is not quoted back: what stands in the scheme's place is often the key itself.
            raise Unauthenticated("Write the Authorization header as `Bearer KEY`, or send `x-api-key: KEY`.")
        if not token:
            self._count("bearer" if scheme else "none", "missing")
            raise Unauthenticated(
                "No API key was sent: add the header `Authorization: Bearer KEY` or `x-api-key: KEY`."
            )
        return _Credential("bearer", token.strip())


def _require_allowed(scope: Scope, principal: Principal) -> None:
    """Raises Forbidden for a reader who does not read, and for what is the operator's alone."""
    if not _reads(scope):
        principal.require(Role.MEMBER)
    if is_operators(route_path(scope)) and (
        principal.member_id != OPERATOR or not principal.limit.allows(Role.OWNER)
    ):
        raise Forbidden("This acts on the whole server: it is for keys of the operator, who owns them.")


def _reads(scope: Scope) -> bool:
    return scope.get("method") in _SAFE_METHODS or route_path(scope) in _READING


def _is_token(text: str) -> bool:
    """Whether it has the three parts of a JWT; a key has no dots."""
    return text.count(".") == 2


def _is_open(scope: Scope) -> bool:
    path = route_path(scope)
    if path in _OPEN_PATHS or (scope["type"] == "http" and _CONSOLE.fullmatch(path)):
        return True
    if scope["type"] != "http" or scope["method"] != "OPTIONS":
        return False
    # https://fetch.spec.whatwg.org/#cors-preflight-request: browsers send it without credentials
    names = {name for name, _ in scope["headers"]}
    return {b"origin", b"access-control-request-method"} <= names
