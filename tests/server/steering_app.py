"""The routes that make and try vectors, in an application with these alone, and fakes behind them."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from types import SimpleNamespace

import httpx
import numpy as np
import pytest

from policies.sampling import Method
from policies.steering import PRESET_FLOORS, SteeringEntry
from server.auth import Principal
from server.errors import InvalidRequest
from server.jobs import JobRecord, Status
from server.routes.native import router as native
from server.routes.steering import router
from server.steering import SteeredModel
from server.studio import Studio
from server.training import TrainRequest
from server.vectors import VectorRecord
from server.vllm_serving import Decoded
from server.wire import AxionicFields
from tests.server.apps import routes_alone
from tests.server.directories import AnyModel, Plain, Unaddressed

MODEL = SteeredModel("org/model", "f" * 64, 4, 3, np.ones(4, np.float32))
PAIRS = {"prompts": ["p"], "positive_answers": ["a"], "negative_answers": ["b"]}


def job(status: Status, **more: object) -> JobRecord:
    fields = {"progress": None, "result": None, "error": None, "finished_at": None, **more}
    return JobRecord("job-1", "me", "vector", status, created_at=datetime.now(UTC), **fields)


DONE = job(Status.COMPLETE, result={"steering_vector_id": "v-1"})


def vector(preset: str, account: str | None) -> VectorRecord:
    return VectorRecord(
        id=f"v-{preset}",
        account_id=account,
        preset=preset,
        name=preset,
        label=None,
        category="preset",
        method="caa",
        model_name="org/model",
        model_fingerprint=MODEL.fingerprint,
        width=3,
        layers=(1,),
        norms={1: 1.0},
        doses={1: 0.2},
        scale=1.0,
        dataset_digest=None,
        evidence=None,
        digest="d" * 64,
        created_at=datetime.now(UTC),
    )


class Sent(Unaddressed, SimpleNamespace):
    """What `Behind` was asked to decode."""


class Behind:
    """Workshop, jobs, presets, vectors and serving in one; keeps what it is asked."""

    def __init__(self) -> None:
        self.submitted: list[tuple[TrainRequest, str]] = []
        self.records: list[JobRecord | Exception] = [DONE]
        self.looked = 0
        self.known: dict[tuple[str, str | None], VectorRecord] = {}
        self.built: list[tuple[str, tuple, str]] = []
        self.sent: list[SimpleNamespace] = []
        self.chunks: list[str] = []
        self.refuses: Exception | None = None

    async def submit(self, request: TrainRequest, account_id: str) -> str:
        if self.refuses:
            raise self.refuses
        assert type(request) is TrainRequest
        self.submitted.append((request, account_id))
        return "job-1"

    async def get(self, account_id: str, job_id: str) -> JobRecord:
        assert (account_id, job_id) == ("me", "job-1")
        record = self.records[min(self.looked, len(self.records) - 1)]
        self.looked += 1
        if isinstance(record, Exception):
            raise record
        return record

    async def preset(self, name: str, fingerprint: str, owner: str | None) -> VectorRecord | None:
        assert fingerprint == MODEL.fingerprint
        return self.known.get((name, owner))

    async def vector(self, name: str, account_id: str) -> VectorRecord:
        if PRESET_FLOORS[name] is None:
            raise InvalidRequest(f"{name} has no vector", param="steering_preset")
        return vector(name, None)

    async def build(self, name: str, pairs, account_id: str) -> VectorRecord:
        self.built.append((name, tuple(pairs), account_id))
        return vector(name, account_id)

    def plan(self, asked, names=None):
        return None

    def prompted(self, prompt, model, max_tokens, fields, **more):
        steering = AxionicFields(**{name: more[name] for name in more if name.startswith("steering")})
        sent = Sent(
            model=model,
            max_tokens=max_tokens,
            fields=fields,
            steered_by=steering.steering_entries(),
            stream=more["stream"],
        )
        self.sent.append(sent)
        return sent

    async def decode(self, sent, raw, planned, *, steering=None):
        if steering is not None:
            sent.steered_by = steering
        steered = SimpleNamespace(
            headers=lambda: {"x-steersman-steering": "print"}, told=lambda: {"steering": {"dose": 0.5}}
        )
        plan = SimpleNamespace(method_used=Method.TOP_K, warning=None)
        if sent.stream:
            return Decoded(plan, "m", stream=_sent(self.chunks), steered=steered)
        answer = SimpleNamespace(choices=[SimpleNamespace(text="whole")])
        return Decoded(plan, "m", response=answer, steered=steered)

    @property
    def entries(self) -> dict[str, SteeringEntry]:
        """What the one request that was sent is steered by, as its client's paths name it."""
        (sent,) = self.sent
        return sent.steered_by


async def _sent(chunks: list[str]):
    for chunk in chunks:
        yield chunk


@asynccontextmanager
async def opened(behind: Behind) -> AsyncIterator[httpx.AsyncClient]:
    """A client of the routes; its `state` may be changed."""
    app = routes_alone(router, native)
    studio = Studio(MODEL, None, None, None, behind, behind, None, None, None)
    app.state.steersman = SimpleNamespace(
        studio=studio, jobs=behind, vectors=behind, serving=behind, directory=Plain(AnyModel())
    )
    transport = httpx.ASGITransport(SignedIn(app))
    async with httpx.AsyncClient(transport=transport, base_url="http://test") as http:
        http.state = app.state.steersman
        yield http


class SignedIn:
    """Every request is of account `me`."""

    def __init__(self, app) -> None:
        self.app = app

    async def __call__(self, scope, receive, send) -> None:
        scope.setdefault("state", {})["principal"] = Principal("key", "me", None, None)
        await self.app(scope, receive, send)


def events(response: httpx.Response) -> list[dict]:
    """The events as Axionic's SDK reads them."""
    assert response.headers["content-type"].startswith("text/event-stream")
    mechanex = pytest.importorskip("mechanex.client", reason="pip install mechanex")
    return mechanex.Mechanex._parse_sse_events(response.content.split(b"\n"))


def detail(response: httpx.Response) -> tuple[int, list, str]:
    """Status, path and message of a refusal, as Axionic's routes write it."""
    (item, *_) = response.json()["detail"]
    return response.status_code, item["loc"], item["msg"]
