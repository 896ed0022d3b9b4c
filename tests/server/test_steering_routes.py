"""Making and trying vectors over HTTP, in an application with these routes alone and fakes behind them."""

import asyncio
import json
from datetime import UTC, datetime
from types import SimpleNamespace

import httpx
import numpy as np
import pytest
from fastapi import FastAPI
from fastapi.exceptions import RequestValidationError

from policies.sampling import Method
from policies.steering import OWN_EXAMPLES, PRESET_FLOORS, SteeringEntry
from server.auth import Principal
from server.errors import InvalidBody, InvalidRequest, NotFound, SteersmanError, Unavailable
from server.jobs import JobRecord, Status
from server.refusal import refusal
from server.routes import steering as module
from server.routes.native import router as native
from server.routes.steering import router
from server.steering import SteeredModel
from server.studio import Studio, Unsteerable
from server.training import TrainRequest
from server.vectors import VectorRecord
from server.vllm_serving import Decoded
from server.wire import AxionicFields

MODEL = SteeredModel("org/model", "f" * 64, 4, 3, np.ones(4, np.float32))
PAIRS = {"prompts": ["p"], "positive_answers": ["a"], "negative_answers": ["b"]}
FOUR = {name: texts * 4 for name, texts in PAIRS.items()}
JSON = {"accept": "application/json"}


def job(status: Status, **more: object) -> JobRecord:
    fields = {"progress": None, "result": None, "error": None, "finished_at": None, **more}
    return JobRecord("job-1", "me", "vector", status, created_at=datetime.now(UTC), **fields)


DONE = job(Status.COMPLETE, result={"steering_vector_id": "v-1"})
FAILED = job(
    Status.ERROR,
    error="nothing to learn",
    result={"type": "invalid_request_error", "param": "positive_answers.2"},
)


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
        sent = SimpleNamespace(
            max_tokens=max_tokens,
            fields=fields,
            steered_by=steering.steering_entries(),
            stream=more["stream"],
        )
        self.sent.append(sent)
        return sent

    async def decode(self, sent, raw, planned):
        steered = SimpleNamespace(
            headers=lambda: {"x-steersman-steering": "print"}, described=lambda: {"dose": 0.5}
        )
        plan = SimpleNamespace(method_used=Method.TOP_K, warning=None)
        if sent.stream:
            return Decoded(plan, "m", stream=_sent(self.chunks), steered=steered)
        answer = SimpleNamespace(choices=[SimpleNamespace(text="whole")])
        return Decoded(plan, "m", response=answer, steered=steered)

    @property
    def entries(self) -> list[SteeringEntry]:
        """What the one request that was sent is steered by."""
        (sent,) = self.sent
        return sent.steered_by


async def _sent(chunks: list[str]):
    for chunk in chunks:
        yield chunk


class SignedIn:
    """Every request is of account `me`."""

    def __init__(self, app) -> None:
        self.app = app

    async def __call__(self, scope, receive, send) -> None:
        scope.setdefault("state", {})["principal"] = Principal("key", "me", None, None)
        await self.app(scope, receive, send)


@pytest.fixture
async def behind(monkeypatch):
    """What stands behind the routes."""
    monkeypatch.setattr(module, "_POLL_SECONDS", 0.001)
    return Behind()


@pytest.fixture
async def client(behind):
    """A client of the routes; `client.state` may be changed."""
    app = FastAPI()
    app.include_router(router)
    app.include_router(native)

    async def show(request, error):
        known = InvalidBody.of(error.errors()) if isinstance(error, RequestValidationError) else error
        return refusal(request.scope, known)

    app.add_exception_handler(SteersmanError, show)
    app.add_exception_handler(RequestValidationError, show)
    studio = Studio(MODEL, None, None, None, behind, behind)
    app.state.steersman = SimpleNamespace(studio=studio, jobs=behind, vectors=behind, serving=behind)
    transport = httpx.ASGITransport(SignedIn(app))
    async with httpx.AsyncClient(transport=transport, base_url="http://test") as http:
        http.state = app.state.steersman
        yield http


def events(response: httpx.Response) -> list[dict]:
    """The events as Axionic's SDK reads them."""
    assert response.headers["content-type"].startswith("text/event-stream")
    mechanex = pytest.importorskip("mechanex.client", reason="pip install mechanex")
    return mechanex.Mechanex._parse_sse_events(response.content.split(b"\n"))


def detail(response: httpx.Response) -> tuple[int, list, str]:
    """Status, path and message of a refusal, as Axionic's routes write it."""
    (item, *_) = response.json()["detail"]
    return response.status_code, item["loc"], item["msg"]


async def test_axionics_client_gets_events(client, behind):
    """The SDK names no media type and sends explicit nulls: events, of which the last has the vector's id."""
    behind.records = [
        job(Status.QUEUED),
        job(Status.RUNNING),
        job(Status.RUNNING, progress={"stage": "states", "done": 3, "total": 8}),
        job(Status.RUNNING, progress={"stage": "states", "done": 3, "total": 8}),
        DONE,
    ]
    sent = {**PAIRS, "layer_idxs": None, "method": "caa", "name": None, "label": "é"}
    response = await client.post("/steering/generate", json=sent)
    assert response.status_code == 200
    assert response.headers["x-steersman-job"] == "job-1"
    first, second, last = events(response)
    assert first == {"status": "processing", "job_id": "job-1", "progress": {"stage": "queued"}}
    assert second["progress"] == {"stage": "states", "done": 3, "total": 8}
    assert last == {"status": "complete", "result": {"steering_vector_id": "v-1", "job_id": "job-1"}}
    assert behind.submitted == [(TrainRequest(**PAIRS, label="é"), "me")]


@pytest.mark.parametrize(
    ("record", "message"),
    [
        (FAILED, "nothing to learn"),
        (job(Status.CANCELLED), "the job was cancelled"),
        (Unavailable("the database does not answer"), "the database does not answer"),
        (NotFound("There is no job 'job-1'."), "There is no job 'job-1'."),
    ],
)
async def test_failure_as_an_event(client, behind, record, message):
    """Under status 200 the last event is the error, which the SDK raises."""
    behind.records = [job(Status.RUNNING), record]
    told = events(await client.post("/steering/generate", json=PAIRS))
    assert told[-1] == {"status": "error", "message": message}
    assert [each["status"] for each in told] == ["processing", "error"]


async def test_a_long_silence_is_filled(client, behind, monkeypatch):
    """While nothing is new a comment keeps the connection open, which no client takes for an event."""
    monkeypatch.setattr(module, "_KEEP_ALIVE_SECONDS", 0.004)
    behind.records = [*[job(Status.RUNNING)] * 30, DONE]
    response = await client.post("/steering/generate", json=PAIRS)
    assert ": still working\n\n" in response.text
    assert [each["status"] for each in events(response)] == ["processing", "complete"]


@pytest.mark.parametrize(("body", "headers"), [({"stream": False}, {}), ({}, JSON)])
async def test_the_vectors_id_as_json(client, behind, body, headers):
    """Who asks for JSON waits for the end and gets the id alone."""
    behind.records = [job(Status.QUEUED), job(Status.RUNNING), DONE]
    response = await client.post("/steering/generate", json={**PAIRS, **body}, headers=headers)
    assert response.json() == {"steering_vector_id": "v-1", "job_id": "job-1"}
    assert response.headers["x-steersman-job"] == "job-1"


async def test_failure_as_json(client, behind):
    """What the pairs caused is theirs to put right, and named."""
    behind.records = [FAILED]
    response = await client.post("/steering/generate", json=PAIRS, headers=JSON)
    assert detail(response) == (422, ["body", "positive_answers", 2], "nothing to learn")


@pytest.mark.parametrize(
    ("result", "status"),
    [
        ({"type": "server_error", "param": None}, 500),
        ({"type": "unavailable_error", "param": None}, 503),
        (None, 500),  # its processes stopped while they worked on it
    ],
)
async def test_faults_of_the_server_as_json(client, behind, result, status):
    """What no client can put right is not told as an invalid request, whatever its text."""
    behind.records = [job(Status.ERROR, error="given up", result=result)]
    response = await client.post("/steering/generate", json=PAIRS, headers=JSON)
    assert (response.status_code, response.json()["detail"]) == (status, "given up")


@pytest.mark.parametrize("body", [{}, {"stream": True}])
async def test_in_the_background(client, behind, body):
    """202 at once, with the job to look up; nobody waits for it."""
    response = await client.post("/steering/generate", json={**PAIRS, **body, "background": True})
    assert (response.status_code, response.json()) == (202, {"job_id": "job-1", "status": "queued"})
    assert response.headers["x-steersman-job"] == "job-1"
    assert behind.looked == 0


async def test_a_client_that_leaves_stops_no_job(behind):
    """Closing the events in the middle cancels nothing."""
    behind.records = [job(Status.RUNNING)]
    stream = module._events(SimpleNamespace(jobs=behind), "me", "job-1")
    assert "processing" in await anext(stream)
    await stream.aclose()
    looked = behind.looked
    await asyncio.sleep(0.01)
    assert behind.looked == looked


@pytest.mark.parametrize(
    ("body", "path"),
    [
        ({**PAIRS, "prompts": ["p", "q"]}, ["body"]),
        ({**PAIRS, "method": "dpo"}, ["body", "method"]),
        ({**PAIRS, "negative_answers": None}, ["body"]),
        ({**PAIRS, "colour": "red"}, ["body", "colour"]),
        ({**PAIRS, "background": "perhaps"}, ["body", "background"]),
        ({"prompts": ["p"]}, ["body", "positive_answers"]),
    ],
)
async def test_unsound_requests_queue_nothing(client, behind, body, path):
    """They are refused by field, before there is a job."""
    response = await client.post("/steering/generate", json=body)
    assert detail(response)[:2] == (422, path)
    assert behind.submitted == []


async def test_layers_are_refused_before_the_first_event(client, behind):
    """What the workshop refuses is an ordinary error, not an event."""
    behind.refuses = InvalidRequest("this model has layers 0 to 3, not 9", param="layer_idxs")
    response = await client.post("/steering/generate", json={**PAIRS, "layer_idxs": [9]})
    assert detail(response)[:2] == (422, ["body", "layer_idxs"])


@pytest.mark.parametrize(
    ("method", "path", "body"),
    [
        ("POST", "/steering/generate", PAIRS),
        ("GET", "/steering/presets", None),
        ("POST", "/steering/presets/brevity", {}),
    ],
)
async def test_a_model_that_cannot_be_steered_says_so(client, method, path, body):
    """501 with the reason found at start."""
    client.state.studio = Unsteerable("its blocks were not found")
    response = await client.request(method, path, json=body)
    assert response.status_code == 501
    assert "its blocks were not found" in response.json()["detail"]


@pytest.mark.parametrize(
    ("sent", "strengths"),
    [
        ({"steering_vector_id": "v"}, [1.0]),
        ({"steering_vector_id": "v", "multiplier": 0.5}, [0.5]),
        ({"steering_vector_id": "v", "steering_strength": 2, "multiplier": -1.5}, [-3.0]),
        ({"steering_vector_id": ["v", "w"], "steering_strength": [1, 2], "multiplier": 2}, [2.0, 4.0]),
        ({"steering_vector_id": "v", "multiplier": 0}, [0.0]),
        ({"steering_vector": {"1": [0.5]}, "steering": {"vector_id": "v", "strength": 3}}, [1.0, 3.0]),
        ({"steering_preset": "refusal_strength", "steering_strength": 0.1, "multiplier": 2}, [1.3]),
    ],
)
async def test_running_with_a_multiplier(client, behind, sent, strengths):
    """Every strength is multiplied, an absent one counts as 1, and all the rest is as on /generate."""
    body = {"prompt": "p", "max_tokens": 7, "temperature": 0.1, "stream": False, **sent}
    response = await client.post("/steering/run", json=body)
    assert response.json() == {
        "output": "whole",
        "text": "whole",
        "method_used": "top-k",
        "steering": {"dose": 0.5},
    }
    assert response.headers["x-steersman-steering"] == "print"
    assert [entry.effective_strength for entry in behind.entries] == pytest.approx(strengths)
    assert (behind.sent[0].max_tokens, behind.sent[0].fields.temperature) == (7, 0.1)


async def test_running_keeps_what_an_entry_says(client, behind):
    """Operation, layers, tokens and gate of an entry stay as they are."""
    entry = {
        "vector_id": "v",
        "strength": 2,
        "operation": "clamp",
        "low": -1,
        "layers": [1, 2],
        "tokens": "generated",
        "gate": {"threshold": 0.25},
    }
    sent = {"prompt": "p", "steering": entry, "multiplier": 0.5, "stream": False}
    await client.post("/steering/run", json=sent)
    assert behind.entries == [SteeringEntry.model_validate({**entry, "strength": 1})]


def chunk(text: str, finish: str | None = None) -> str:
    choice = {"index": 0, "delta": {"content": text}, "finish_reason": finish}
    return f"data: {json.dumps({'choices': [choice]})}\n\n"


async def test_running_as_events(client, behind):
    """As on /generate: tokens, then the whole text with what was applied."""
    behind.chunks = [chunk("so"), ": keep-alive\n\n", chunk("ft", "stop"), "data: [DONE]\n\n"]
    response = await client.post("/steering/run", json={"prompt": "p", "steering_vector_id": "v"})
    *tokens, last = events(response)
    assert [each["token"] for each in tokens] == ["so", "ft"]
    assert last["status"] == "complete"
    assert (last["result"]["output"], last["result"]["steering"]) == ("soft", {"dose": 0.5})


async def test_a_text_that_was_not_steered_ends_in_an_error_event(client, behind):
    """The error that follows the last chunk reaches Axionic's client as one."""
    failure = {"error": {"message": "the request ran unsteered", "type": "unavailable_error", "code": 503}}
    behind.chunks = [chunk("soft", "stop"), f"data: {json.dumps(failure)}\n\n", "data: [DONE]\n\n"]
    response = await client.post("/steering/run", json={"prompt": "p", "steering_vector_id": "v"})
    assert events(response)[-1] == {"status": "error", "message": "the request ran unsteered"}


@pytest.mark.parametrize(
    ("sent", "path", "message"),
    [
        ({}, ["body", "steering_vector_id"], "name a vector"),
        ({"steering_strength": 0}, ["body", "steering_vector_id"], "name a vector"),
        ({"multiplier": "much", "steering_vector_id": "v"}, ["body", "multiplier"], "valid number"),
        ({"multiplier": 1e6, "steering_vector_id": "v"}, ["body", "multiplier"], "1000"),
        ({"steering_preset": "irony"}, ["body", "steering_preset"], "unknown preset"),
        ({"steering_vector_id": "v", "factor": 2}, ["body", "factor"], "unknown field"),
        (
            {"steering_vector_id": ["v"] * 10, "steering_preset": ["brevity"] * 10},
            ["body", "steering_vector_id"],
            "at most 16 vectors",
        ),
    ],
)
async def test_what_cannot_be_run(client, behind, sent, path, message):
    """Nothing to steer by, too much of it, or a field that is none: refused by name."""
    response = await client.post("/steering/run", json={"prompt": "p", **sent})
    status, where, why = detail(response)
    assert (status, where) == (422, path)
    assert message in why
    assert behind.sent == []


async def test_plain_generation_takes_steering_too(client, behind):
    """/generate passes on what it was given, lists included, and adds nothing."""
    body = {"prompt": "p", "stream": False, "steering_vector_id": ["v", "w"], "steering_strength": 0.5}
    await client.post("/generate", json=body)
    assert [(entry.vector_id, entry.strength) for entry in behind.entries] == [("v", 0.5), ("w", 0.5)]


async def test_presets_are_listed(client, behind):
    """Each with its least strength, and its vector where there is one: one's own for one's own examples."""
    behind.known = {
        ("brevity", None): vector("brevity", None),
        (OWN_EXAMPLES, "me"): vector(OWN_EXAMPLES, "me"),
        (OWN_EXAMPLES, None): vector("shared", None),
    }
    listed = {each["name"]: each for each in (await client.get("/steering/presets")).json()}
    assert {name: each["minimum_strength"] for name, each in listed.items()} == PRESET_FLOORS
    made = {name: each["vector_id"] for name, each in listed.items() if each["vector_id"]}
    assert made == {"brevity": "v-brevity", OWN_EXAMPLES: f"v-{OWN_EXAMPLES}"}


async def test_a_preset_is_built_ahead(client, behind):
    """By its name in any case, without a body."""
    response = await client.post("/steering/presets/Brevity")
    assert (response.status_code, response.json()["preset"]) == (200, "brevity")


async def test_a_preset_is_made_from_ones_own_examples(client, behind):
    """The pairs go to the account's own preset."""
    response = await client.post(f"/steering/presets/{OWN_EXAMPLES}", json=FOUR)
    assert (response.status_code, response.json()["id"]) == (200, f"v-{OWN_EXAMPLES}")
    ((name, pairs, account),) = behind.built
    assert (name, len(pairs), account) == (OWN_EXAMPLES, 4, "me")


@pytest.mark.parametrize(
    ("preset", "body", "message"),
    [
        ("brevity", FOUR, "only domain_specific takes examples"),
        ("json_compliance", None, "has no vector"),
        (OWN_EXAMPLES, None, "send at least 4 prompts"),
        (OWN_EXAMPLES, PAIRS, "send at least 4 prompts"),
        (OWN_EXAMPLES, {**FOUR, "negative_answers": None, "method": "few-shot"}, "method has no effect"),
        (OWN_EXAMPLES, {**FOUR, "layer_idxs": [1]}, "layer_idxs has no effect here"),
        (OWN_EXAMPLES, {**FOUR, "name": "n"}, "name has no effect here"),
    ],
)
async def test_presets_that_cannot_be_built(client, behind, preset, body, message):
    """Examples belong to one preset alone, which takes nothing but pairs of both kinds, at least four."""
    response = await client.post(f"/steering/presets/{preset}", json=body)
    assert response.status_code == 422
    assert message in response.text
    assert behind.built == []


async def test_an_unknown_preset_is_not_found(client):
    """404, with the names that there are."""
    response = await client.post("/steering/presets/irony")
    assert response.status_code == 404
    assert "known: brevity" in response.json()["detail"]
