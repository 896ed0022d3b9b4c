"""The routes of accounts and keys behind the authentication, as `steersman serve --accounts` puts them."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from types import SimpleNamespace

import httpx

from server.accounts import Accounts
from server.auth import Authentication, KeyRing
from server.errors import NotFound
from server.routes import accounts, keys
from server.sessions import Lives, Sessions
from server.settings import Settings
from server.store import Store
from server.throttle import Throttle
from server.usage import UsageMeter
from tests.server.apps import routes_alone

EMAIL, PASSWORD = "ada@example.com", "correct horse battery"


class Models:
    """Serves `org/model`, also known as `alias`."""

    def resolve(self, name: str) -> str:
        if name not in ("org/model", "alias"):
            raise NotFound(f"There is no model {name!r}.", param="model", code="model_not_found")
        return "org/model"


class World:
    """One API server's worth of it: `app` to call, `state` to look into, `counts` of authentications."""

    def __init__(
        self, store: Store, who: str = "open", lives: Lives | None = None, seconds: float = 60
    ) -> None:
        self.now = 1000.0
        self.counts: list[tuple[str, str]] = []
        sessions = Sessions(store.database, seconds, lives)
        self.state = SimpleNamespace(
            settings=Settings(Path("/nowhere"), "", accounts=who),
            store=store,
            keyring=KeyRing(store.find_key, ttl=seconds),
            meter=UsageMeter(),
            models=Models(),
            accounts=Accounts(store, sessions, throttle=Throttle(clock=lambda: self.now)),
        )
        app = routes_alone(keys.router, accounts.router)
        app.state.steersman = self.state
        session = sessions.principal if self.state.settings.has_accounts else None
        self.app = Authentication(app, self.state.keyring, self._count, session)

    def _count(self, method: str, outcome: str) -> None:
        self.counts.append((method, outcome))

    @asynccontextmanager
    async def client(
        self, token: str | None = None, address: str = "192.0.2.1"
    ) -> AsyncIterator[httpx.AsyncClient]:
        transport = httpx.ASGITransport(self.app, client=(address, 1))
        headers = {"authorization": f"Bearer {token}"} if token else {}
        async with httpx.AsyncClient(transport=transport, base_url="http://test", headers=headers) as client:
            yield client

    async def signed_up(self, email: str = EMAIL) -> dict:
        """What POST /auth/signup answers."""
        async with self.client() as client:
            answer = await client.post("/auth/signup", json={"email": email, "password": PASSWORD})
        assert answer.status_code == 200, answer.text
        return answer.json()

    async def logged_in(self, email: str = EMAIL, password: str = PASSWORD) -> httpx.Response:
        async with self.client() as client:
            return await client.post("/auth/login", json={"email": email, "password": password})

    async def get(self, path: str, token: str) -> httpx.Response:
        async with self.client(token) as client:
            return await client.get(path)
