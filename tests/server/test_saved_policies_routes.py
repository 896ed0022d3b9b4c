"""Stored policies and presets over HTTP, in an application with these routes alone."""

import json
from types import SimpleNamespace

import httpx
import pytest
from sqlalchemy import text

from policies.presets import PRESETS
from server.auth import Authentication, KeyRing
from server.errors import InvalidRequest
from server.policies import MAX_BYTES, RESERVED_IDS, Policies
from server.routes.saved_policies import NEXT_HEADER, VERSION_HEADER, router
from tests.server.apps import routes_alone

SENT = {
    "name": "strict",
    "metadata": {"owner": "search"},
    "sampling": {"method": "guided-generation", "temperature": 0.2},
    "constraints": {"json_mode": True, "json_schema": {"type": "object", "required": ["a"]}},
    "verifiers": {"enabled": ["syntax", "json_schema"]},
}


class Compiler:
    """Refuses the pattern `(`, as a compiler would."""

    async def check(self, policy):
        if policy.constraints.regex_pattern == "(":
            raise InvalidRequest("missing )", param="policy.constraints.regex_pattern")


@pytest.fixture
async def client(store):
    """A client with the first key; `client.other` are the headers of another account's key."""
    app = routes_alone(router)
    keyring = KeyRing(store.find_key, ttl=60)
    app.state.steersman = SimpleNamespace(policies=Policies(store.database), policy_runs=Compiler())
    key = await store.first_key()
    async with store.database.writing() as connection:
        await connection.execute(
            text("INSERT INTO accounts VALUES ('other', 'other@localhost', '2026-01-01 00:00:00+00')")
        )
    transport = httpx.ASGITransport(Authentication(app, keyring, lambda method, outcome: None))
    async with httpx.AsyncClient(
        transport=transport, base_url="http://test", headers={"x-api-key": key}
    ) as client:
        client.app = app
        client.other = {"x-api-key": (await store.create_key("other", None)).key}
        yield client


async def save(client, **policy):
    response = await client.post("/policies/save", json={"policy": policy})
    assert response.status_code == 200, response.text
    return response.json()


async def publish(client, **body):
    response = await client.post("/policies/presets/publish", json={"name": "n", "policy": SENT} | body)
    assert response.status_code == 200, response.text
    return response.json()["preset_id"]


async def presets(client, query=""):
    """The listed ones that accounts have published."""
    items = (await client.get(f"/policies/presets{query}")).json()
    return [item for item in items if item["id"] not in PRESETS]


async def test_a_saved_policy_can_be_looked_up(client):
    """It is what was sent and its id, in the list too, and saving it as it is makes the next version."""
    made = await save(client, **SENT)
    assert made["version"] == 1
    path = f"/policies/{made['policy_id']}"
    found = await client.get(path)
    assert found.json() == {"id": made["policy_id"], **SENT}
    assert found.headers[VERSION_HEADER] == "1"
    assert (await client.get("/policies")).json() == [found.json()]
    again = (await client.post("/policies/save", json={"policy": found.json()})).json()
    assert again == {"policy_id": made["policy_id"], "version": 2}
    assert (await client.get("/policies")).json() == [found.json()]


@pytest.mark.parametrize(("path", "body"), [("save", {}), ("presets/publish", {"name": "n"})])
async def test_what_cannot_be_run_is_not_stored(client, path, body):
    """A constraint that does not compile is refused when it is saved or published, and nothing is kept."""
    sent = {**body, "policy": {"constraints": {"regex_pattern": "("}}}
    refused = await client.post(f"/policies/{path}", json=sent)
    assert refused.status_code == 422
    assert refused.json()["detail"][0]["loc"] == ["body", "policy", "constraints", "regex_pattern"]
    assert (await client.get("/policies")).json() == await presets(client) == []


async def test_old_versions_stay_readable(client):
    """`version` picks one, without it the newest answers; the list of versions has each with its time."""
    for temperature in (0.1, 0.2):
        await save(client, id="bot", sampling={"temperature": temperature})
    for query, version, temperature in (("", "2", 0.2), ("?version=1", "1", 0.1), ("?version=2", "2", 0.2)):
        found = await client.get(f"/policies/bot{query}")
        assert found.headers[VERSION_HEADER] == version
        assert found.json() == {"id": "bot", "sampling": {"temperature": temperature}}
    versions = (await client.get("/policies/bot/versions")).json()
    assert [each["version"] for each in versions] == [2, 1]
    assert set(versions[0]) == {"version", "saved_at"}
    assert (await client.get("/policies/bot/versions?limit=1&offset=1")).json() == versions[1:]
    missing = await client.get("/policies/bot?version=3")
    assert (missing.status_code, missing.json()) == (
        404,
        {"detail": "There is no policy 'bot' with a version 3."},
    )


async def test_the_list_can_be_paged(client):
    """Newest first, by limit and offset."""
    for name in ("a", "b", "c"):
        await save(client, id=name)
    assert [each["id"] for each in (await client.get("/policies")).json()] == ["c", "b", "a"]
    page = await client.get("/policies?limit=1&offset=1")
    assert (page.json(), page.headers[NEXT_HEADER]) == ([{"id": "b"}], "2")
    assert NEXT_HEADER not in (await client.get("/policies?limit=1&offset=2")).headers


async def test_the_list_of_presets_says_where_it_goes_on(client):
    """What comes with the server, one's own and the others' are one list in pages."""
    for _ in range(2):
        await publish(client)
    whole = (await client.get("/policies/presets")).json()
    assert len(whole) == len(PRESETS) + 2
    seen, offset = [], 0
    while offset is not None:
        page = await client.get(f"/policies/presets?limit=3&offset={offset}")
        seen += page.json()
        offset = page.headers.get(NEXT_HEADER)
    assert seen == whole


@pytest.mark.parametrize(
    ("body", "field", "says"),
    [
        ({}, ["policy"], "Field required"),
        ({"policy": None}, ["policy"], "object"),
        ({"policy": {}, "name": "x"}, ["name"], "unknown field"),
        ({"policy": {"sampling": {"swing": 1}}}, ["policy", "sampling", "swing"], "unknown field"),
        ({"policy": {"sampling": {"temperature": 9}}}, ["policy", "sampling", "temperature"], "less than"),
        ({"policy": {"id": "a b"}}, ["policy", "id"], "1 to 128"),
        ({"policy": {"id": ""}}, ["policy", "id"], "1 to 128"),
        ({"policy": {"id": 5}}, ["policy", "id"], "string"),
        ({"policy": {"metadata": {"x": "x" * MAX_BYTES}}}, ["policy"], f"at most {MAX_BYTES} bytes"),
        *[({"policy": {"id": name}}, ["policy", "id"], "route") for name in sorted(RESERVED_IDS)],
    ],
)
async def test_a_faulty_policy_names_the_field(client, body, field, says):
    """What is wrong with a policy is a 422 that names the field, and nothing is stored."""
    response = await client.post("/policies/save", json=body)
    assert response.status_code == 422
    [item] = response.json()["detail"]
    assert item["loc"] == ["body", *field]
    assert says in item["msg"]
    assert (await client.get("/policies")).json() == []


@pytest.mark.parametrize(
    "body",
    ['{"policy": {"metadata": {"x": NaN}}}', '{"policy": {"metadata": {"x": 1e999}}}', '{"policy"', "[]", ""],
)
async def test_what_is_not_json_is_refused(client, body):
    """A body that is not JSON, or has a number that no JSON can hold, is a 422."""
    headers = {"content-type": "application/json"}
    response = await client.post("/policies/save", content=body, headers=headers)
    assert response.status_code == 422, response.text
    assert (await client.get("/policies")).json() == []


@pytest.mark.parametrize(
    "path",
    [
        "/policies?limit=0",
        "/policies?limit=1001",
        "/policies?offset=-1",
        "/policies?offset=2147483648",
        "/policies/x?version=0",
        "/policies/x?version=2147483648",
        "/policies/x?version=newest",
        "/policies/x/versions?limit=0",
        "/policies/presets?include_public=maybe",
        "/policies/presets?limit=0",
    ],
)
async def test_a_query_out_of_range_is_refused(client, path):
    """422, not an error of the database."""
    response = await client.get(path)
    assert response.status_code == 422, response.text


async def test_a_deleted_policy_is_gone(client):
    """DELETE answers with the id, and the policy is then a 404 everywhere."""
    await save(client, id="bot")
    assert (await client.delete("/policies/bot")).json() == {"id": "bot", "deleted": True}
    for request in (
        client.get("/policies/bot"),
        client.get("/policies/bot?version=1"),
        client.get("/policies/bot/versions"),
        client.delete("/policies/bot"),
    ):
        response = await request
        assert (response.status_code, "no policy 'bot'" in response.json()["detail"]) == (404, True)


async def test_a_published_preset_is_listed(client, store):
    """With all that is known of it; private, without tags and description unless they are given."""
    [key] = [key for key in await store.list_keys(None) if key.account_id != "other"]
    plain = await publish(client, policy={"id": "bot", **SENT})
    full = await publish(client, name="ä", visibility="public", tags=["json", "fast"], description="d")
    newest, oldest = await presets(client)
    assert {name: newest[name] for name in newest if name != "updated_at"} == {
        "id": full,
        "name": "ä",
        "policy": SENT,
        "owner_api_key_id": key.id,
        "visibility": "public",
        "tags": ["json", "fast"],
        "description": "d",
    }
    assert (oldest["id"], oldest["policy"]) == (plain, SENT)
    assert (oldest["visibility"], oldest["tags"], oldest["description"]) == ("private", [], None)
    assert await presets(client, f"?limit=1&offset={len(PRESETS) + 1}") == [oldest]
    assert (await client.get("/policies")).json() == []


@pytest.mark.parametrize(
    ("body", "field", "says"),
    [
        ({"name": None}, ["name"], "string"),
        ({"name": ""}, ["name"], "at least 1"),
        ({"name": "x" * 201}, ["name"], "at most 200"),
        ({"name": "nul\0"}, ["name"], "pattern"),
        ({"policy": {"sampling": {"swing": 1}}}, ["policy", "sampling", "swing"], "unknown field"),
        ({"policy": {"metadata": {"x": "x" * MAX_BYTES}}}, ["policy"], f"at most {MAX_BYTES} bytes"),
        ({"visibility": "all"}, ["visibility"], "'private' or 'public'"),
        ({"tags": "json"}, ["tags"], "tuple"),
        ({"tags": ["x"] * 33}, ["tags"], "at most 32"),
        ({"tags": ["x", "x" * 65]}, ["tags", 1], "at most 64"),
        ({"tags": [""]}, ["tags", 0], "at least 1"),
        ({"description": "x" * 4001}, ["description"], "at most 4000"),
        ({"description": "nul\0"}, ["description"], "pattern"),
        ({"price": 1}, ["price"], "unknown field"),
    ],
)
async def test_a_faulty_preset_names_the_field(client, body, field, says):
    """What is wrong with a preset is a 422 that names the field, and nothing is published."""
    sent = {"name": "n", "policy": SENT} | body
    response = await client.post("/policies/presets/publish", json=sent)
    assert response.status_code == 422
    [item] = response.json()["detail"]
    assert item["loc"] == ["body", *field]
    assert says in item["msg"]
    assert await presets(client) == []


async def test_a_clone_is_a_policy_of_one_s_own(client):
    """Cloning answers with the id of a new policy, with the body that Axionic's client sends or without."""
    preset_id = await publish(client, visibility="public")
    for request in (
        client.post(f"/policies/presets/{preset_id}/clone", json={}, headers=client.other),
        client.post(f"/policies/presets/{preset_id}/clone", headers=client.other),
    ):
        policy_id = (await request).json()["policy_id"]
        found = await client.get(f"/policies/{policy_id}", headers=client.other)
        assert found.json() == {"id": policy_id, **SENT}
    assert (await client.get("/policies")).json() == []
    refused = await client.post(f"/policies/presets/{preset_id}/clone", json={"name": "x"})
    assert refused.status_code == 422


async def test_presets_come_with_the_server(client):
    """They stand before what accounts publish, page by page, unless one's own are asked for; a clone is one's
    own policy, and none can be deleted."""
    mine = await publish(client)
    listed = (await client.get("/policies/presets")).json()
    assert [item["id"] for item in listed] == [*PRESETS, mine]
    paged = [
        (await client.get(f"/policies/presets?limit=2&offset={offset}")).json()
        for offset in range(0, len(listed), 2)
    ]
    assert [item for page in paged for item in page] == listed
    assert [item["id"] for item in (await client.get("/policies/presets?include_public=false")).json()] == [
        mine
    ]
    for preset_id, preset in PRESETS.items():
        cloned = (await client.post(f"/policies/presets/{preset_id}/clone", json={})).json()["policy_id"]
        assert (await client.get(f"/policies/{cloned}")).json() == {"id": cloned, **preset.policy}
    assert (await client.delete(f"/policies/presets/{preset_id}")).status_code == 404


async def test_others_see_what_is_public(client):
    """A public preset is listed for all who do not ask for their own alone, without its owner's key."""
    await publish(client, name="hidden")
    shown = await publish(client, name="shown", visibility="public")
    client.headers.update(client.other)
    [item] = await presets(client)
    assert (item["id"], item["owner_api_key_id"]) == (shown, None)
    assert await presets(client, "?include_public=true") == [item]
    assert (await client.get("/policies/presets?include_public=false")).json() == []


async def test_the_policies_of_others_are_out_of_reach(client):
    """Another account's policy or private preset is a 404 on every route and in no list; its id is free."""
    await save(client, id="bot")
    hidden = await publish(client)
    shown = await publish(client, visibility="public")
    client.headers.update(client.other)
    for method, path in [
        ("GET", "/policies/bot"),
        ("GET", "/policies/bot?version=1"),
        ("GET", "/policies/bot/versions"),
        ("DELETE", "/policies/bot"),
        ("POST", f"/policies/presets/{hidden}/clone"),
        ("DELETE", f"/policies/presets/{hidden}"),
        ("DELETE", f"/policies/presets/{shown}"),
        ("POST", "/policies/presets/nothing/clone"),
        ("DELETE", "/policies/presets/nothing"),
    ]:
        response = await client.request(method, path)
        assert response.status_code == 404, path
        assert set(response.json()) == {"detail"}
    assert (await client.get("/policies")).json() == []
    assert await save(client, id="bot") == {"policy_id": "bot", "version": 1}


async def test_a_deleted_preset_is_gone(client):
    """DELETE answers with the id; what was cloned before stays."""
    preset_id = await publish(client)
    cloned = (await client.post(f"/policies/presets/{preset_id}/clone", json={})).json()["policy_id"]
    deleted = await client.delete(f"/policies/presets/{preset_id}")
    assert deleted.json() == {"id": preset_id, "deleted": True}
    assert await presets(client) == []
    assert (await client.post(f"/policies/presets/{preset_id}/clone", json={})).status_code == 404
    assert (await client.get(f"/policies/{cloned}")).status_code == 200


async def test_a_policy_of_another_version_is_a_conflict(client, store):
    """What this version does not understand is a 409 that names the field; the lists show what is stored."""
    await save(client, id="bot")
    preset_id = await publish(client)
    old = '{"sampling": {"swing": 1}}'
    async with store.database.writing() as connection:
        for table in ("policy_versions", "policy_presets"):
            await connection.exec_driver_sql(f"UPDATE {table} SET policy = '{old}'")
    for request in (
        client.get("/policies/bot"),
        client.post(f"/policies/presets/{preset_id}/clone", json={}),
    ):
        response = await request
        assert (response.status_code, "sampling.swing" in response.json()["detail"]) == (409, True)
    assert (await client.get("/policies")).json() == [{"id": "bot", **json.loads(old)}]
    [item] = await presets(client)
    assert item["policy"] == json.loads(old)


async def test_the_routes_describe_themselves(client):
    """OpenAPI has every route, and says that reading a policy gives a RuntimePolicy."""
    described = client.app.openapi()
    assert {path for path in described["paths"] if path.startswith("/policies")} == {
        "/policies",
        "/policies/save",
        "/policies/presets",
        "/policies/presets/publish",
        "/policies/presets/{preset_id}",
        "/policies/presets/{preset_id}/clone",
        "/policies/{policy_id}",
        "/policies/{policy_id}/versions",
    }
    answer = described["paths"]["/policies/{policy_id}"]["get"]["responses"]["200"]
    assert "RuntimePolicy" in answer["content"]["application/json"]["schema"]["$ref"]
