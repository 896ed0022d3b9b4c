"""/projects, and the header that chooses one, behind the real authentication."""

from pathlib import Path
from types import SimpleNamespace

import httpx
import pytest

from policies.sampling import Method, Plan
from server.addressing import Directory
from server.aliases import Aliases
from server.auth import Authentication, KeyRing
from server.logins import Logins
from server.policies import Policies
from server.projects import Projects
from server.routes import keys, projects
from server.served_models import ServedModels
from server.settings import Settings
from tests.server.apps import routes_alone


@pytest.fixture
def database_url(tmp_path):
    """One kind is enough: what is stored has tests of its own."""
    return f"sqlite:///{tmp_path / 'steersman.db'}"


@pytest.fixture
async def world(store):
    """Clients of Ada, who owns the project `lab`, and of Bob, who is nobody there yet."""
    served = SimpleNamespace(
        base_model_paths=[SimpleNamespace(name="base", model_path="x")], lora_requests={"tuned": None}
    )
    models = ServedModels(served, 1)
    keyring = KeyRing(store.find_key, ttl=60)
    directory = Directory(models, Projects(store.database), Aliases(store.database))
    app = routes_alone(projects.router, keys.router)
    app.state.steersman = SimpleNamespace(
        settings=Settings(Path("/nowhere"), ""),
        directory=directory,
        projects=directory.projects,
        keyring=keyring,
        store=store,
        policies=Policies(store.database),
        serving=SimpleNamespace(steering=None, plan=lambda asked: Plan(method_used=Method.TOP_K)),
    )
    guarded = Authentication(app, keyring, lambda *_: None, enter=directory.projects.enter)
    logins = Logins(store.database)

    def client(key):
        transport = httpx.ASGITransport(guarded)
        return httpx.AsyncClient(transport=transport, base_url="http://test", headers={"x-api-key": key})

    clients = SimpleNamespace(client=client)
    for name in ("ada", "bob"):
        account = await logins.add(f"{name}@example.org", "hash")
        setattr(clients, name, client((await store.create_key(account.id, None)).key))
        setattr(clients, f"{name}_id", account.id)
    assert (await clients.ada.post("/projects", json={"key": "lab"})).status_code == 201
    return clients


async def share(world, role):
    body = {"email": "bob@example.org", "role": role}
    assert (await world.ada.put("/projects/lab/members", json=body)).status_code == 200


async def test_a_project_is_made_changed_shared_and_deleted(world):
    """By its owner, over HTTP alone; afterwards nobody finds it."""
    body = {"name": "The lab", "description": "of vectors", "default_model": "tuned"}
    changed = (await world.ada.patch("/projects/lab", json=body)).json()
    assert {name: changed[name] for name in body} == body
    await share(world, "member")
    seen = [(each["key"], each["role"]) for each in (await world.bob.get("/projects")).json()]
    assert seen == [("default", "owner"), ("lab", "member")]
    members = (await world.bob.get("/projects/lab/members")).json()
    assert [(each["email"], each["role"]) for each in members] == [
        ("ada@example.org", "owner"),
        ("bob@example.org", "member"),
    ]
    assert (await world.ada.delete(f"/projects/lab/members/{world.bob_id}")).status_code == 200
    assert (await world.bob.get("/projects/lab")).status_code == 404
    assert (await world.ada.delete("/projects/lab")).status_code == 200
    assert (await world.ada.get("/projects/lab")).status_code == 404


@pytest.mark.parametrize(
    ("method", "path", "body"),
    [
        ("GET", "/projects/lab", None),
        ("PATCH", "/projects/lab", {"name": "mine now"}),
        ("DELETE", "/projects/lab", None),
        ("GET", "/projects/lab/members", None),
        ("PUT", "/projects/lab/members", {"email": "bob@example.org", "role": "owner"}),
        ("DELETE", "/projects/lab/members/x", None),
        ("GET", "/projects/lab/models", None),
        ("PUT", "/projects/lab/models/x", {"model": "base"}),
        ("DELETE", "/projects/lab/models/x", None),
    ],
)
async def test_a_stranger_finds_no_project(world, method, path, body):
    """The same answer as for one that is not there."""
    mine = await world.bob.request(method, path, json=body)
    none = await world.bob.request(method, path.replace("lab", "bal"), json=body)
    assert (mine.status_code, mine.text.replace("lab", "bal")) == (404, none.text)


@pytest.mark.parametrize(("role", "status"), [("member", 403), ("read-only", 403), ("owner", 200)])
@pytest.mark.parametrize(
    "request_sent",
    [
        ("PATCH", "/projects/lab", {"name": "new"}),
        ("PUT", "/projects/lab/members", {"email": "bob@example.org", "role": "owner"}),
        ("DELETE", "/projects/lab", None),
    ],
)
async def test_what_an_owner_decides_nobody_else_does(world, role, status, request_sent):
    await share(world, role)
    method, path, body = request_sent
    assert (await world.bob.request(method, path, json=body)).status_code == status


async def test_members_make_aliases_and_readers_see_them(world):
    """With what is bound; not under a served name, nor for a model that is not there."""
    await share(world, "member")
    bound = {"model": "tuned", "defaults": {"temperature": 0.1, "steering_preset": "brevity"}}
    made = await world.bob.put("/projects/lab/models/calm", json=bound)
    assert (made.status_code, made.json()["defaults"]) == (200, bound["defaults"])
    await share(world, "read-only")
    [seen] = (await world.bob.get("/projects/lab/models")).json()
    assert seen == made.json()
    assert (await world.bob.put("/projects/lab/models/calm", json=bound)).status_code == 403
    assert (await world.ada.get("/projects/default/models")).json() == []
    assert (await world.ada.delete("/projects/lab/models/calm")).status_code == 200


@pytest.mark.parametrize(
    ("key", "body", "status", "field"),
    [
        ("base", {"model": "tuned"}, 422, "key"),
        ("a b", {"model": "tuned"}, 422, "key"),
        ("x", {"model": "none"}, 404, None),
        ("x", {"model": "tuned", "defaults": {"messages": []}}, 422, "messages"),
        ("x", {"model": "tuned", "defaults": {"temperature": 3}}, 422, "temperature"),
        ("x", {"model": "tuned", "defaults": {"steering_strength": 1}}, 422, "steering_strength"),
        ("x", {"model": "tuned", "defaults": {"policy_id": "none"}}, 404, None),
        ("x", {"model": "tuned", "defaults": {"policy": {}, "policy_id": "x"}}, 422, "policy_id"),
        ("x", {"model": "tuned", "more": 1}, 422, "more"),
    ],
)
async def test_what_an_alias_cannot_bring_is_refused(world, key, body, status, field):
    """When it is made, not when it is first used."""
    response = await world.ada.put(f"/projects/lab/models/{key}", json=body)
    assert response.status_code == status, response.text
    if field:
        assert field in [part for issue in response.json()["detail"] for part in issue["loc"]]
    assert (await world.ada.get("/projects/lab/models")).json() == []


async def test_the_header_chooses_the_project_of_any_route(world):
    """Keys made there are in it alone; a role that is too little, or none, is refused at the door."""
    inside = {"OpenAI-Project": "lab"}
    made = await world.ada.post("/auth/api-keys", json={"role": "member"}, headers=inside)
    key = world.client(made.json()["api_key"])
    assert [each["key"] for each in (await key.get("/projects")).json()] == ["lab"]
    assert (await key.get("/auth/api-keys")).status_code == 403
    assert len((await world.ada.get("/auth/api-keys")).json()) == 1
    assert (await world.bob.get("/auth/whoami", headers=inside)).status_code == 404
    await share(world, "read-only")
    who = (await world.bob.get("/auth/whoami", headers=inside)).json()
    assert who["email"] == "bob@example.org"
    refused = await world.bob.post("/auth/api-keys", headers=inside)
    assert (refused.status_code, "read-only" in refused.text) == (403, True)


async def test_a_read_only_key_reads(world):
    """Everywhere, whatever its account may."""
    made = await world.ada.post("/auth/api-keys", json={"role": "read-only"})
    key = world.client(made.json()["api_key"])
    assert (await key.get("/projects/lab")).json()["role"] == "read-only"
    for method, path in [("POST", "/projects"), ("POST", "/auth/api-keys"), ("DELETE", "/projects/lab")]:
        assert (await key.request(method, path, json={"key": "x"})).status_code == 403
    assert (await world.ada.get("/projects/lab")).status_code == 200
