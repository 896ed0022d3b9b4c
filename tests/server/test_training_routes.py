"""POST /steering/generate: events, JSON or a job to look up, and what is refused before there is one."""

import asyncio
from types import SimpleNamespace

import pytest

from server.errors import InvalidRequest, NotFound, Unavailable
from server.jobs import Status
from server.routes import steering as module
from server.studio import Unsteerable
from server.training import TrainRequest
from tests.server.steering_app import DONE, PAIRS, Behind, detail, events, job, opened

JSON = {"accept": "application/json"}
FAILED = job(
    Status.ERROR,
    error="nothing to learn",
    result={"type": "invalid_request_error", "param": "positive_answers.2"},
)


@pytest.fixture
async def behind(monkeypatch):
    """What stands behind the routes."""
    monkeypatch.setattr(module, "_POLL_SECONDS", 0.001)
    return Behind()


@pytest.fixture
async def client(behind):
    """A client of the routes; `client.state` may be changed."""
    async with opened(behind) as http:
        yield http


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
