"""Adaptive's GraphQL on a database, with the clients of two accounts."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from types import SimpleNamespace
from typing import Any

import httpx
import pytest
from sqlalchemy import event

from server.addressing import Directory
from server.aliases import Aliases
from server.auth import Authentication, KeyRing
from server.campaign import ScoredMetric
from server.campaigns import Campaigns
from server.comparisons import Comparisons
from server.completion_ids import completion_id
from server.completions import Completions
from server.feedback import FeedbackStore
from server.interaction_log import InteractionLog, Keep
from server.interactions import Interaction, Interactions
from server.logins import Logins
from server.project_metrics import MetricKind, ProjectMetrics, Scoring
from server.projects import Projects
from server.redaction import Redaction
from server.roles import Role
from server.routes import graphql
from server.served_models import ServedModels
from server.store import DEFAULT_ACCOUNT
from tests.server.apps import routes_alone
from tests.server.test_interactions import ONE

BASE, SLASHED, ADAPTER = "base", "acme/tiny", "poet"
EMAIL = "other@example.org"


@dataclass
class Evidence:
    """What an A/B test has to know of metrics; nobody has scored yet."""

    metrics: ProjectMetrics

    async def metric(self, project_id: str, id_or_key: str) -> ScoredMetric:
        found = await self.metrics.get(project_id, id_or_key)
        is_bool, higher = found.kind is MetricKind.BOOL, found.scoring is Scoring.HIGHER_IS_BETTER
        return ScoredMetric(found.id, found.key, is_bool, higher)

    async def direct(self, campaign, metric):
        return []

    async def comparisons(self, campaign, metric):
        return []


def served(*names: str, adapters: tuple[str, ...] = (ADAPTER,), **more: Any) -> ServedModels:
    paths = [SimpleNamespace(name=name, model_path="/models/base") for name in names or (BASE, SLASHED)]
    serving = SimpleNamespace(base_model_paths=paths, lora_requests=dict.fromkeys(adapters))
    return ServedModels(serving, 1_772_000_000, **more)


class World:
    """`state` is what the routes share; `key` is the default account's, `other_key` that of `EMAIL`."""

    def __init__(self, store, key: str, other_key: str, other: str) -> None:
        database = store.database
        self.store, self.key, self.other_key, self.other = store, key, other_key, other
        self.directory = Directory(served(), Projects(database, 0), Aliases(database, 0))
        self.interactions = Interactions(database)
        self.comparisons = Comparisons(database)
        self.metrics = ProjectMetrics(database)
        log = InteractionLog(
            self.interactions, which=Keep.ASKED, most=1000, days=99999, redaction=Redaction(["0x"])
        )
        self.state = SimpleNamespace(
            store=store,
            directory=self.directory,
            metrics=self.metrics,
            completions=Completions(database),
            feedback=FeedbackStore(database),
            interaction_log=log,
            campaigns=Campaigns(
                database, Evidence(self.metrics), self.directory.projects, self.directory.served
            ),
        )
        app = routes_alone(graphql.router)
        app.state.steersman = self.state
        self.app = Authentication(
            app,
            KeyRing(store.find_key, ttl=0),
            lambda method, outcome: None,
            enter=self.directory.projects.enter,
        )

    def http(self, key: str | None = None, **headers: str) -> httpx.AsyncClient:
        return httpx.AsyncClient(
            transport=httpx.ASGITransport(self.app),
            base_url="http://test",
            headers={"authorization": f"Bearer {key or self.key}", **headers},
        )

    async def ask(self, query: str, key: str | None = None, /, **variables: Any) -> dict[str, Any]:
        """The answer's body, whatever it says."""
        async with self.http(key) as http:
            response = await http.post("/api/graphql", json={"query": query, "variables": variables})
        assert response.status_code == 200, response.text
        return response.json()

    @asynccontextmanager
    async def sdk(self, key: str | None = None) -> AsyncIterator[Any]:
        """Adaptive's own client, which talks to the application in this process."""
        adaptive = pytest.importorskip("adaptive_sdk", reason="pip install adaptive-sdk")
        made = adaptive.AsyncAdaptive("http://test", api_key=key or self.key)
        await made._gql_client.http_client.aclose()
        async with self.http(key) as http:
            made._gql_client.http_client = http
            made.set_default_project("default")
            yield made
            await made._rest_client.aclose()

    async def keep(self, *names: str, account: str = DEFAULT_ACCOUNT, **changes: Any) -> list[str]:
        """Stored interactions; returns the ids of their completions."""
        kept = [interaction(name, account_id=account, **changes) for name in names]
        await self.interactions.keep(kept)
        return [completion_id(account, name, 0) for name in names]

    @asynccontextmanager
    async def counted(self) -> AsyncIterator[list[str]]:
        """The statements that the database gets meanwhile."""
        seen: list[str] = []

        def note(connection, cursor, statement, *rest) -> None:
            seen.append(statement)

        engine = self.store.database._engine.sync_engine
        event.listen(engine, "before_cursor_execute", note)
        try:
            yield seen
        finally:
            event.remove(engine, "before_cursor_execute", note)


def interaction(name: str, **changes: Any) -> Interaction:
    return replace(ONE, **{"id": name, "answer": {**ONE.answer, "id": name}, **changes})


@pytest.fixture
async def world(store) -> World:
    key = await store.first_key()
    account = await Logins(store.database).add(EMAIL, "hash")
    other_key = (await store.create_key(account.id, None)).key
    return World(store, key, other_key, account.id)


@pytest.fixture
async def sdk(world):
    async with world.sdk() as made:
        yield made


@pytest.fixture
async def reader(world) -> str:
    """A key of the default account that may only read."""
    return (await world.store.create_key(DEFAULT_ACCOUNT, None, Role.READER)).key
