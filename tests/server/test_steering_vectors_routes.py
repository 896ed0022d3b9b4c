"""Steering vectors and their jobs over HTTP, in an application with these routes alone."""

import json
from types import SimpleNamespace

import httpx
import numpy as np
import pytest
from fastapi import FastAPI
from sqlalchemy import text

from policies.steering import SteeringEntry
from server.auth import Authentication, KeyRing
from server.errors import NotFound
from server.jobs import Jobs
from server.residency import Residency
from server.routes import steering_vectors
from server.routes.steering_vectors import router
from server.steering import SteeredModel, Steering
from server.store import DEFAULT_ACCOUNT, Store
from server.vectors import NewVector, Vectors
from steering import files
from steering.files import Format, read_vector, write_vector
from steering.vector import Layer, Probe, SteeringVector
from tests.server.apps import routes_alone
from tests.server.steering_world import Engine

MODEL = SteeredModel("org/model", "f" * 64, layers=24, width=3, norms=np.arange(1, 25, dtype=np.float32))
FLAT = {"11": [0.5, -1, 2], "12": [1, 0, 0]}
VECTOR = SteeringVector.of({int(layer): np.array(row, np.float32) for layer, row in FLAT.items()})


@pytest.fixture
async def client(store):
    """A client with the first key; `client.other` are the headers of another account's key."""
    app = routes_alone(router)
    keyring = KeyRing(store.find_key, ttl=60)
    database = store.database
    app.state.steersman = SimpleNamespace(
        vectors=Vectors(database),
        jobs=Jobs(database),
        steered_model=MODEL,
        models=SimpleNamespace(bases=["org/model", "alias"]),
    )
    key = await store.first_key()
    async with database.writing() as connection:
        await connection.execute(
            text("INSERT INTO accounts VALUES ('other', 'other@localhost', '2026-01-01 00:00:00+00')")
        )
    transport = httpx.ASGITransport(Authentication(app, keyring, lambda method, outcome: None))
    async with httpx.AsyncClient(
        transport=transport, base_url="http://test", headers={"x-api-key": key}
    ) as client:
        client.state = app.state.steersman
        client.other = {"x-api-key": (await store.create_key("other", None)).key}
        yield client


async def upload(client, **body):
    response = await client.post("/steering/vectors", json={"vector": FLAT} | body)
    assert response.status_code == 200, response.text
    return response.json()


async def send(client, data, media_type="application/octet-stream", **query):
    return await client.post(
        "/steering/vectors", content=data, headers={"content-type": media_type}, params=query
    )


async def test_an_uploaded_vector_can_be_looked_up(client):
    """The upload answers with the vector as it is stored, made for the served model, and so does GET."""
    made = await upload(client, name="n", label="l", category="c")
    assert (made["name"], made["label"], made["category"], made["method"]) == ("n", "l", "c", "upload")
    assert (made["model_name"], made["model_fingerprint"]) == ("org/model", MODEL.fingerprint)
    assert (made["width"], made["layers"], made["digest"]) == (3, [11, 12], VECTOR.digest)
    assert made["norms"] == pytest.approx({"11": 5.25**0.5, "12": 1})
    assert made["doses"] == pytest.approx({"11": 5.25**0.5 / 12, "12": 1 / 13})
    assert (made["scale"], made["preset"], made["evidence"]) == (None, None, None)
    assert (await client.get(f"/steering/vectors/{made['id']}")).json() == made
    [item] = (await client.get("/steering/vectors")).json()
    assert item == {name: value for name, value in made.items() if name != "evidence"}


async def test_the_sdk_downloads_what_it_uploads(client):
    """The download is flat JSON of layer numbers, as `save_vectors` reads it."""
    made = await upload(client)
    response = await client.get(f"/steering/vectors/{made['id']}/download")
    assert response.headers["content-type"] == "application/json"
    assert response.json() == FLAT
    for media_type in ("application/octet-stream", "application/json"):
        again = (await send(client, response.content, media_type, label="again")).json()
        assert (again["digest"], again["label"]) == (made["digest"], "again")


@pytest.mark.parametrize("format", Format)
async def test_every_format_makes_the_round_trip(client, format):
    """A file downloaded in any format can be uploaded again, with what it says of its vector."""
    made = await upload(client, name="n", category="c")
    file = await client.get(f"/steering/vectors/{made['id']}/download", params={"format": format})
    assert made["id"] in file.headers["content-disposition"]
    assert "x-steersman-omits" not in file.headers
    assert read_vector(file.content).format is format
    for media_type in ("application/octet-stream", steering_vectors.MEDIA_TYPES[format]):
        again = (await send(client, file.content, media_type, label="again")).json()
        assert (again["digest"], again["label"]) == (made["digest"], "again")
        assert again["name"] == (None if format is Format.JSON else "n")


async def test_the_query_wins_over_the_file(client):
    """A name in the query replaces the one in the file."""
    said = {"name": "old", "method": "caa", "model_name": "org/old"}
    made = (
        await send(client, write_vector(VECTOR, Format.GGUF, said), name="new", model_name="alias")
    ).json()
    assert (made["name"], made["method"], made["model_name"]) == ("new", "caa", "org/model")


@pytest.mark.parametrize("format", [Format.SAFETENSORS, Format.GGUF])
async def test_doses_are_measured_and_not_believed(client, format):
    """Whatever a file says, doses are the vector's lengths against those of the served model's states."""
    data = write_vector(VECTOR, format, {"doses": {"11": 0.0, "3": 5.0}})
    made = (await send(client, data)).json()
    assert made["doses"] == pytest.approx({"11": 5.25**0.5 / 12, "12": 1 / 13})


@pytest.mark.parametrize("field", ["name", "label", "category", "model_name", "source"])
async def test_a_json_body_stands_alone(client, field):
    """What the query says beside a JSON body would have no effect, and is refused by name."""
    value = "resid_pre" if field == "source" else "x"
    response = await send(client, json.dumps({"vector": FLAT}).encode(), "application/json", **{field: value})
    assert (response.status_code, response.json()["detail"][0]["loc"]) == (422, ["body", field])
    assert (await client.get("/steering/vectors")).json() == []


async def test_an_unknown_query_field_is_refused(client):
    """A misspelt label is not silently lost."""
    response = await send(client, json.dumps(FLAT).encode(), nome="x")
    assert (response.status_code, "nome" in response.text) == (422, True)


async def test_a_download_says_what_it_omits(client):
    """A gated vector's JSON holds its directions, and a header names the parts that are missing."""
    row = np.ones(3, np.float32)
    gated = SteeringVector({5: Layer(row, Probe(row, 0.0, 1.0))})
    vector_id = await client.state.vectors.add(NewVector(DEFAULT_ACCOUNT, gated, "steering-perceptrons"))
    flat = await client.get(f"/steering/vectors/{vector_id}/download")
    assert flat.headers["x-steersman-omits"] == "probe"
    whole = await client.get(f"/steering/vectors/{vector_id}/download?format=safetensors")
    assert read_vector(whole.content).vector.digest == gated.digest
    assert (await send(client, whole.content)).json()["digest"] == gated.digest


async def test_the_source_says_what_a_layer_means(client):
    """`source` resid_pre stores a vector at the output of the block below, in the body and in the query."""
    made = await upload(client, source="resid_pre")
    assert made["layers"] == [10, 11]
    for media_type in ("application/octet-stream", "application/json"):
        sent = await send(client, json.dumps(FLAT).encode(), media_type, source="resid_pre")
        assert sent.json()["layers"] == [10, 11]
    hooked = await upload(client, vector={"blocks.11.hook_resid_pre": [1, 2, 3]})
    assert hooked["layers"] == [10]


@pytest.mark.parametrize(
    ("body", "field", "says"),
    [
        ({}, "vector", "Field required"),
        ({"vector": FLAT, "nome": "x"}, "nome", "unknown field"),
        ({"vector": FLAT, "name": "x" * 201}, "name", "at most 200"),
        ({"vector": FLAT, "source": "middle"}, "source", "resid_post"),
        ({"vector": [1, 2, 3]}, "vector", "dictionary"),
        ({"vector": {}}, "vector", "at least one layer"),
        ({"vector": {"11": [1, 2]}}, "vector", "2 wide, the hidden states of org/model are 3"),
        ({"11": [1, 2]}, "vector", "2 wide, the hidden states of org/model are 3"),
        ({"layers.11": [1, 2, 3], "11": [1, 2, 3]}, "vector", "both mean"),
        ({"vector": {"24": [1, 2, 3]}}, "vector", "layers 0 to 23, not 24"),
        ({"vector": {"11": [0, 0, 0]}}, "vector", "layer 11: the direction is zero"),
        ({"vector": {"11": [1, 2, True]}}, "vector", "'11' holds something other than a number"),
        ({"vector": {"11": [1, 2, 1e39]}}, "vector", "layer 11: direction holds"),
        ({"vector": {"11": [1, 2, 3], "layers.11": [1, 2, 3]}}, "vector", "both mean"),
        ({"vector": {"blocks.0.hook_resid_pre": [1, 2, 3]}}, "vector", "before the first block"),
        ({"vector": {"lm_head": [1, 2, 3]}}, "vector", "'lm_head' names no layer"),
    ],
)
async def test_a_faulty_upload_names_the_field(client, body, field, says):
    """What is wrong with a body is a 422 that names the field, and nothing is stored."""
    response = await client.post("/steering/vectors", json=body)
    assert response.status_code == 422
    [item] = response.json()["detail"]
    assert item["loc"] == ["body", field]
    assert says in item["msg"]
    assert (await client.get("/steering/vectors")).json() == []


@pytest.mark.parametrize(
    ("data", "media_type", "says"),
    [
        (b"", "application/octet-stream", "empty"),
        (b"GGUF" + bytes(99), "application/gguf", "version 0"),
        (b"nonsense", "application/x-safetensors", "neither"),
        (b'{"vector": {"11": [NaN]}}', "application/json", "NaN"),
        (b'{"vector"', "application/json", "not valid JSON"),
        (b'{"11": [1, 2, 3], "11": [4, 5, 6]}', "application/json", "occurs twice"),
        (b"", "application/json", "not valid JSON"),
        (b"x", "text/plain", "application/octet-stream"),
    ],
)
async def test_faulty_bytes_are_refused(client, data, media_type, says):
    """Bytes that are no vector, not JSON where JSON is said, or of an unknown type are a 422."""
    response = await send(client, data, media_type)
    assert (response.status_code, says in response.text) == (422, True), response.text


async def test_a_file_with_odd_metadata_is_refused(client):
    """Metadata of ours that does not fit its fields is named."""
    data = write_vector(VECTOR, Format.SAFETENSORS, {"doses": {"eleven": 1}})
    response = await send(client, data)
    assert response.status_code == 422
    assert "doses.eleven" in response.json()["detail"][0]["msg"]


async def test_a_file_may_be_too_large(client, monkeypatch):
    """A body over the limit of vector files is a 413."""
    monkeypatch.setattr(files, "MAX_BYTES", 10)
    assert (await send(client, write_vector(VECTOR, Format.GGUF))).status_code == 413
    assert (await client.post("/steering/vectors", json={"vector": FLAT})).status_code == 413


async def test_a_vector_of_another_model_is_a_conflict(client):
    """A model name or a fingerprint that is not the served model's is a 409 which names both models."""
    response = await client.post("/steering/vectors", json={"vector": FLAT, "model_name": "org/old"})
    assert response.status_code == 409
    assert response.json() == {"detail": "The vector was made for 'org/old'; this server serves 'org/model'."}
    theirs = {"model_name": "org/old", "model_fingerprint": "e" * 64}
    assert (await send(client, write_vector(VECTOR, Format.SAFETENSORS, theirs))).status_code == 409
    for name in ("org/model", "alias", "default", "", None):
        await upload(client, model_name=name)
    file = write_vector(VECTOR, Format.JSON)
    assert (await send(client, file, model_name="org/old")).status_code == 409
    assert (await send(client, file, model_name="alias")).status_code == 200
    renamed = {"model_name": "org/old", "model_fingerprint": MODEL.fingerprint}  # the same weights
    assert (await send(client, write_vector(VECTOR, Format.GGUF, renamed))).status_code == 200


async def test_a_model_that_cannot_be_steered_takes_no_vectors(client):
    """Without a steered model an upload is a 501; what is stored can still be read and deleted."""
    made = await upload(client)
    client.state.steered_model = None
    response = await client.post("/steering/vectors", json={"vector": FLAT})
    assert (response.status_code, "cannot be steered" in response.text) == (501, True)
    assert (await client.get(f"/steering/vectors/{made['id']}/download")).json() == FLAT
    assert (await client.delete(f"/steering/vectors/{made['id']}")).status_code == 200


async def test_labels_can_be_changed(client):
    """PATCH changes what is given, clears what is null, and refuses other fields."""
    made = await upload(client, name="n", label="l", category="c")
    path = f"/steering/vectors/{made['id']}"
    changed = (await client.patch(path, json={"label": "new", "category": None})).json()
    assert (changed["name"], changed["label"], changed["category"]) == ("n", "new", None)
    assert (await client.get(path)).json() == changed
    assert (await client.patch(path, json={})).json() == changed
    for body in ({"method": "caa"}, {"label": 5}, {"label": "x" * 201}, []):
        assert (await client.patch(path, json=body)).status_code == 422


async def test_a_deleted_vector_is_gone(client):
    """DELETE answers with the id, and the vector is then a 404 everywhere."""
    path = f"/steering/vectors/{(await upload(client))['id']}"
    assert (await client.delete(path)).json() == {"id": path.rsplit("/", 1)[1], "deleted": True}
    for request in (
        client.get(path),
        client.get(f"{path}/download"),
        client.delete(path),
        client.patch(path, json={}),
    ):
        assert (await request).status_code == 404


async def test_the_vectors_of_others_are_out_of_reach(client):
    """Another account's vector or job is a 404 on every route, and in no list."""
    vector_id = (await upload(client))["id"]
    job_id = await client.state.jobs.submit(DEFAULT_ACCOUNT, "caa", {})
    client.headers.update(client.other)
    for method, path, body in [
        ("GET", f"/steering/vectors/{vector_id}", None),
        ("GET", f"/steering/vectors/{vector_id}/download", None),
        ("PATCH", f"/steering/vectors/{vector_id}", {"label": "x"}),
        ("DELETE", f"/steering/vectors/{vector_id}", None),
        ("PATCH", f"/auth/steering-vectors/{vector_id}", {"label": "x"}),
        ("DELETE", f"/auth/steering-vectors/{vector_id}", None),
        ("GET", f"/steering/jobs/{job_id}", None),
        ("DELETE", f"/steering/jobs/{job_id}", None),
    ]:
        response = await client.request(method, path, json=body)
        assert (response.status_code, "There is no" in response.json()["detail"]) == (404, True), path
    for path in ("/steering/vectors", "/auth/steering-vectors", "/steering/jobs"):
        assert (await client.get(path)).json() == []
    gone = await client.post("/auth/steering-vectors/bulk-delete", json={"vector_ids": [vector_id]})
    assert gone.json() == {"vector_ids": [], "deleted": 0}


async def test_shared_presets_are_listed_on_request(client):
    """`shared=true` adds the presets of all accounts, which anybody may download and nobody delete."""
    preset = NewVector(None, VECTOR, "caa", preset="brevity", model_fingerprint=MODEL.fingerprint)
    vector_id = (await client.state.vectors.put_preset(preset)).id
    assert (await client.get("/steering/vectors")).json() == []
    [item] = (await client.get("/steering/vectors", params={"shared": "true"})).json()
    assert (item["id"], item["preset"]) == (vector_id, "brevity")
    assert (await client.get(f"/steering/vectors/{vector_id}/download")).json() == FLAT
    assert (await client.delete(f"/steering/vectors/{vector_id}")).status_code == 404


async def test_lists_can_be_narrowed(client):
    """By category and method, a page at a time; a page size that makes no sense is refused."""
    ids = [(await upload(client, category=category))["id"] for category in ("a", "b", "a")]

    async def found(**query):
        return [item["id"] for item in (await client.get("/steering/vectors", params=query)).json()]

    assert await found(category="a") == [ids[2], ids[0]]
    assert await found(method="caa") == []
    assert await found(limit=1, offset=1) == [ids[1]]
    for query in ({"limit": 0}, {"limit": 1001}, {"offset": -1}):
        assert (await client.get("/steering/vectors", params=query)).status_code == 422


async def test_the_vendors_routes(client):
    """Axionic's paths list vectors in its own shape, set labels that are given, and delete one or several."""
    one, two, three = [(await upload(client, name="n"))["id"] for _ in range(3)]
    items = (await client.get("/auth/steering-vectors")).json()
    assert [item["id"] for item in items] == [three, two, one]
    assert set(items[0]) == {
        "id",
        "name",
        "label",
        "category",
        "method",
        "model_name",
        "nodes",
        "storage_path",
        "public_url",
        "api_key_id",
        "created_at",
    }
    assert items[0]["nodes"] == ["layers.11", "layers.12"]
    assert (await client.get(items[0]["storage_path"])).json() == FLAT
    labelled = await client.patch(f"/auth/steering-vectors/{one}", json={"label": "l"})
    assert (labelled.json()["id"], labelled.json()["label"]) == (one, "l")
    unchanged = await client.patch(f"/auth/steering-vectors/{one}", json={})
    assert unchanged.json() == labelled.json()
    cleared = await client.patch(f"/auth/steering-vectors/{one}", json={"label": None})
    assert cleared.json()["label"] is None
    assert (await client.delete(f"/auth/steering-vectors/{one}")).json() == {"id": one, "deleted": True}
    gone = await client.post("/auth/steering-vectors/bulk-delete", json={"vector_ids": [one, two, three]})
    assert gone.json() == {"vector_ids": [two, three], "deleted": 2}
    assert (await client.get("/auth/steering-vectors")).json() == []
    assert (await client.post("/auth/steering-vectors/bulk-delete", json={})).status_code == 422


async def test_jobs_can_be_followed_and_cancelled(client):
    """A job shows its progress without its request; DELETE cancels it, and a second time too."""
    jobs = client.state.jobs
    job_id = await jobs.submit(DEFAULT_ACCOUNT, "caa", {"prompts": ["secret"]})
    await jobs.claim("me")
    await jobs.heartbeat(job_id, "me", {"done": 1})
    item = (await client.get(f"/steering/jobs/{job_id}")).json()
    assert set(item) == {
        "id",
        "kind",
        "status",
        "progress",
        "result",
        "error",
        "created_at",
        "finished_at",
    }
    assert (item["status"], item["progress"]) == ("running", {"done": 1})
    assert (await client.get("/steering/jobs", params={"status": "running"})).json() == [item]
    assert (await client.get("/steering/jobs", params={"status": "queued"})).json() == []
    assert (await client.get("/steering/jobs", params={"status": "lost"})).status_code == 422
    for _ in range(2):
        assert (await client.delete(f"/steering/jobs/{job_id}")).json()["status"] == "cancelled"
    assert not await jobs.heartbeat(job_id, "me")


async def test_a_job_that_has_ended_is_a_conflict(client):
    """Cancelling a complete job is a 409 and leaves its result."""
    jobs = client.state.jobs
    job_id = await jobs.submit(DEFAULT_ACCOUNT, "caa", {})
    await jobs.claim("me")
    await jobs.finish(job_id, "me", result={"steering_vector_id": "v"})
    assert (await client.delete(f"/steering/jobs/{job_id}")).status_code == 409
    job = (await client.get(f"/steering/jobs/{job_id}")).json()
    assert (job["status"], job["result"]) == ("complete", {"steering_vector_id": "v"})


@pytest.mark.parametrize("route", router.routes, ids=lambda route: f"{route.methods} {route.path}")
async def test_every_route_needs_a_key(client, route):
    """None of these routes answers without a key."""
    for method in route.methods:
        response = await client.request(method, route.path, headers={"x-api-key": ""})
        assert response.status_code == 401


async def test_the_upload_is_documented(client):
    """The OpenAPI description has the JSON body and the media types of files."""
    app = FastAPI()
    app.include_router(router)
    content = app.openapi()["paths"]["/steering/vectors"]["post"]["requestBody"]["content"]
    assert "vector" in content["application/json"]["schema"]["properties"]
    assert {"application/octet-stream", "application/gguf", "application/x-safetensors"} < set(content)


async def test_a_vector_of_one_replica_is_usable_on_another(client, store, database_url):
    """At once when it is new, though it was asked for in vain before; within 2 s when it is gone."""
    second, now = Store(database_url), [100.0]
    stored, engine = Vectors(second.database), Engine()
    stored._recent._clock = lambda: now[0]
    steering = Steering(engine, stored, None, Residency(engine, 64, 0.0), MODEL, safe_dose=9, max_dose=9)
    other = routes_alone(router)
    other.state.steersman = SimpleNamespace(vectors=stored, steered_model=MODEL, models=None)
    ring = KeyRing(second.find_key, ttl=60)
    transport = httpx.ASGITransport(Authentication(other, ring, lambda *_: None))

    async def applied(vector_id):
        entries = {"steering": SteeringEntry(vector_id=vector_id)}
        (await steering.apply(entries, DEFAULT_ACCOUNT)).release()

    async with httpx.AsyncClient(
        transport=transport, base_url="http://test", headers=dict(client.headers)
    ) as replica:
        with pytest.raises(NotFound):
            await applied("made-here")
        vector_id = (await upload(client))["id"]
        assert (await replica.get(f"/steering/vectors/{vector_id}")).json()["id"] == vector_id
        await applied(vector_id)
        assert engine.resident
        await client.delete(f"/steering/vectors/{vector_id}")
        assert (await replica.get(f"/steering/vectors/{vector_id}")).status_code == 404
        now[0] += 2
        with pytest.raises(NotFound):
            await applied(vector_id)
    await second.close()
