"""API keys over HTTP and on the command line."""

import argparse
import json
import re
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import httpx
import pytest
from fastapi import FastAPI
from fastapi.responses import JSONResponse

from server import keys
from server.auth import Authentication, KeyRing
from server.errors import NotFound, SteersmanError, render
from server.limits import RateLimits
from server.routes.keys import router
from server.settings import Settings
from server.store import DEFAULT_ACCOUNT, Store
from server.usage import Usage, UsageMeter

ROOT = Path(__file__).parents[2]


SETTINGS = Settings(Path("/nowhere"), "", requests_per_minute=60)
LIMITS = ("requests_per_minute", "tokens_per_minute", "concurrent_requests")


class Models:
    """Serves `org/model`, also known as `alias`."""

    def resolve(self, name: str) -> str:
        if name not in ("org/model", "alias"):
            raise NotFound(f"There is no model {name!r}.", param="model", code="model_not_found")
        return "org/model"


@pytest.fixture
async def client(store):
    """A client with the first key, of an application with these routes alone."""
    app = FastAPI()
    app.include_router(router)
    app.add_exception_handler(SteersmanError, show)
    keyring = KeyRing(store.find_key, ttl=60)
    app.state.steersman = SimpleNamespace(
        store=store, keyring=keyring, meter=UsageMeter(), models=Models(), settings=SETTINGS
    )
    key = await store.first_key()
    transport = httpx.ASGITransport(Authentication(app, keyring, lambda method, outcome: None))
    async with httpx.AsyncClient(
        transport=transport, base_url="http://test", headers={"x-api-key": key}
    ) as client:
        client.state = app.state.steersman
        yield client


async def show(request, error):
    rendered = render(request.url.path, error)
    return JSONResponse(rendered.body, rendered.status, rendered.headers)


async def test_a_made_key_works_until_it_is_revoked(client):
    """POST returns the plain key once, it opens at once, and DELETE closes it at once despite the cache."""
    made = (await client.post("/auth/api-keys", json={"name": "laptop"})).json()
    assert set(made) == {"api_key", "id", "name", "role", *LIMITS}
    assert re.fullmatch(r"ax_[0-9a-f]{48}", made["api_key"])
    theirs = {"x-api-key": made["api_key"]}
    verified = await client.get("/auth/verify-key", headers=theirs)
    assert verified.json() == {"valid": True, "id": made["id"], "name": "laptop", "selected_model": None}
    revoked = await client.delete(f"/auth/api-keys/{made['id']}")
    assert revoked.json() == {"id": made["id"], "revoked": True}
    assert (await client.get("/auth/verify-key", headers=theirs)).status_code == 401
    assert (await client.delete(f"/auth/api-keys/{made['id']}")).status_code == 404


async def test_a_key_needs_no_name(client):
    """The body and the name are optional; a field that the server does not know is refused."""
    for body in (None, {}, {"name": None}):
        made = await client.post("/auth/api-keys", json=body)
        assert (made.status_code, made.json()["name"]) == (200, None)
    assert (await client.post("/auth/api-keys")).status_code == 200
    for body in ({"nome": "x"}, {"name": 5}, {"name": "x" * 201}, []):
        assert (await client.post("/auth/api-keys", json=body)).status_code == 422


async def test_listed_keys_are_masked(client):
    """The list has the fields of ApiKeyItem, the public prefix instead of the key, and no revoked keys."""
    made = (await client.post("/auth/api-keys", json={"name": "laptop"})).json()
    gone = (await client.post("/auth/api-keys")).json()
    await client.delete(f"/auth/api-keys/{gone['id']}")
    response = await client.get("/auth/api-keys")
    first, second = response.json()
    told = {"id", "key", "masked", "name", "selected_model", "role", "created_at", "last_used"}
    assert set(second) == {*told, *LIMITS}
    assert first["name"] == "first key"
    assert second["key"] == second["masked"] == made["api_key"][:11] + "…"
    assert second["last_used"] is None
    assert re.match(r"\d{4}-\d\d-\d\dT.*(Z|\+00:00)$", second["created_at"])
    assert made["api_key"][11:] not in response.text


async def test_limits_are_made_changed_and_listed(client):
    """What is given is kept, what is absent stays, null takes away; the key's requests know it at once."""
    made = (await client.post("/auth/api-keys", json={"requests_per_minute": 5})).json()
    assert [made[name] for name in LIMITS] == [5, None, None]
    path = f"/auth/api-keys/{made['id']}"
    changed = await client.patch(path, json={"tokens_per_minute": 100, "concurrent_requests": 0})
    assert [changed.json()[name] for name in LIMITS] == [5, 100, 0]
    await client.patch(path, json={"tokens_per_minute": None})
    [_, item] = (await client.get("/auth/api-keys")).json()
    assert [item[name] for name in LIMITS] == [5, None, 0]
    principal = await client.state.keyring.principal(made["api_key"])
    assert principal.rates == RateLimits(5, None, 0)


@pytest.mark.parametrize("value", [-1, 2**31, 1.5, "5", True])
@pytest.mark.parametrize("name", LIMITS)
async def test_a_limit_is_a_whole_number(client, name, value):
    """What is none is refused by its field, when a key is made and when it is changed."""
    key_id = (await client.get("/auth/verify-key")).json()["id"]
    for method, path in (("POST", "/auth/api-keys"), ("PATCH", f"/auth/api-keys/{key_id}")):
        refused = await client.request(method, path, json={name: value})
        assert refused.status_code == 422
        assert refused.json()["detail"][0]["loc"] == ["body", name]


async def test_a_change_of_limits_names_one(client):
    """An empty change, an unknown field and an unknown key are refused."""
    key_id = (await client.get("/auth/verify-key")).json()["id"]
    assert (await client.patch(f"/auth/api-keys/{key_id}", json={})).status_code == 422
    assert (await client.patch(f"/auth/api-keys/{key_id}", json={"burst": 1})).status_code == 422
    assert (await client.patch("/auth/api-keys/x", json={LIMITS[0]: 1})).status_code == 404


async def test_who_is_limited_lifts_no_limits(client):
    """A limited key neither makes keys nor changes any; only the operator goes beyond the server's limits."""
    made = (await client.post("/auth/api-keys", json={"requests_per_minute": 5})).json()
    theirs = {"x-api-key": made["api_key"]}
    for method, path in (("POST", "/auth/api-keys"), ("PATCH", f"/auth/api-keys/{made['id']}")):
        refused = await client.request(method, path, json={LIMITS[0]: 100}, headers=theirs)
        assert (refused.status_code, "has limits" in refused.json()["detail"]) == (403, True)
    async with client.state.store.database.writing() as connection:
        await connection.exec_driver_sql(
            "INSERT INTO accounts VALUES ('other', 'other@localhost', '2026-01-01 00:00:00+00')"
        )
    other = {"x-api-key": (await client.state.store.create_key("other", None)).key}
    for value, status in ((0, 403), (61, 403), (60, 200), (None, 200)):
        answer = await client.post("/auth/api-keys", json={LIMITS[0]: value}, headers=other)
        assert answer.status_code == status, value
        assert (await client.post("/auth/api-keys", json={LIMITS[0]: value})).status_code == 200


async def test_keys_of_other_accounts_are_out_of_reach(client):
    """A key of another account is not in the list and cannot be revoked."""
    made = (await client.post("/auth/api-keys")).json()
    async with client.state.store.database.writing() as connection:
        await connection.exec_driver_sql(
            "INSERT INTO accounts VALUES ('other', 'other@localhost', '2026-01-01 00:00:00+00')"
        )
        await connection.exec_driver_sql(
            f"UPDATE api_keys SET account_id = 'other' WHERE id = '{made['id']}'"
        )
    assert made["id"] not in [item["id"] for item in (await client.get("/auth/api-keys")).json()]
    assert (await client.delete(f"/auth/api-keys/{made['id']}")).status_code == 404
    listed = await client.get("/auth/api-keys", headers={"x-api-key": made["api_key"]})
    assert [item["id"] for item in listed.json()] == [made["id"]]


async def test_a_model_is_bound_to_the_calling_key(client):
    """`set-model` binds what the name resolves to, at once; `default` unbinds; unknown names are a 404."""
    bound = await client.post("/auth/api-keys/set-model", json={"model_name": "alias"})
    assert bound.json()["selected_model"] == "org/model"
    assert (await client.get("/auth/verify-key")).json()["selected_model"] == "org/model"
    [item] = (await client.get("/auth/api-keys")).json()
    assert item["selected_model"] == "org/model"
    unknown = await client.post("/auth/api-keys/set-model", json={"model_name": "nope"})
    assert (unknown.status_code, unknown.json()) == (404, {"detail": "There is no model 'nope'."})
    assert (await client.get("/auth/verify-key")).json()["selected_model"] == "org/model"
    await client.post("/auth/api-keys/set-model", json={"model_name": "default"})
    assert (await client.get("/auth/verify-key")).json()["selected_model"] is None
    for body in ({}, {"model_name": ""}, {"model_name": "alias", "force": True}):
        assert (await client.post("/auth/api-keys/set-model", json=body)).status_code == 422


async def test_whoami_is_the_account_of_the_key(client):
    """The answer has AuthUser's `id` and `email`, and names the key."""
    me = (await client.get("/auth/whoami")).json()
    [item] = (await client.get("/auth/api-keys")).json()
    assert me["id"] == DEFAULT_ACCOUNT
    assert "@" in me["email"]
    assert (me["api_key_id"], me["api_key_name"]) == (item["id"], "first key")


async def test_balance_is_usage_to_the_last_request(client):
    """Counts that were not flushed yet are in it, and it says that there is no billing."""
    key_id = (await client.get("/auth/verify-key")).json()["id"]
    client.state.meter.add(key_id, requests=2, prompt_tokens=30, completion_tokens=4)
    balance = (await client.get("/auth/api-keys/balance")).json()
    assert "no billing" in balance.pop("message")
    assert balance == {
        "billing": False,
        "requests": 2,
        "prompt_tokens": 30,
        "completion_tokens": 4,
        "total_tokens": 34,
    }
    [item] = (await client.get("/auth/api-keys")).json()
    assert item["last_used"] is not None


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("GET", "/auth/api-keys"),
        ("POST", "/auth/api-keys"),
        ("PATCH", "/auth/api-keys/x"),
        ("DELETE", "/auth/api-keys/x"),
        ("POST", "/auth/api-keys/set-model"),
        ("GET", "/auth/api-keys/balance"),
        ("GET", "/auth/verify-key"),
        ("GET", "/auth/whoami"),
    ],
)
async def test_every_route_needs_a_key(client, method, path):
    """None of these routes answers without a key."""
    assert (await client.request(method, path, headers={"x-api-key": ""})).status_code == 401


@pytest.fixture
def steersman(database_url, capsys):
    """Run `steersman keys …` in this process: its status, standard output and standard error."""
    parser = argparse.ArgumentParser("steersman")
    keys.add_parser(parser.add_subparsers())

    def run(*arguments: str) -> tuple[int, str, str]:
        words = ["keys", "--steersman-database-url", database_url, *arguments]
        status = keys.run(parser.parse_args(words))
        captured = capsys.readouterr()
        return status, captured.out, captured.err

    return run


def test_the_command_makes_lists_and_revokes(steersman):
    """A key made on an empty database is printed alone, listed masked, and listed as revoked afterwards."""
    assert steersman("list")[:2] == (0, "No keys yet: `steersman keys create` makes one.\n")
    status, out, err = steersman("create", "--name", "ci")
    assert (status, "cannot be shown again" in err) == (0, True)
    assert re.fullmatch(r"ax_[0-9a-f]{48}\n", out)
    key = out.strip()
    status, out, _ = steersman("list")
    header, row = out.splitlines()
    assert header.split()[:3] == ["ID", "KEY", "NAME"]
    assert (key[:11] + "…", "ci", "active") == (row.split()[1], row.split()[2], row.split()[-1])
    assert key[11:] not in out
    status, out, _ = steersman("revoke", key[:9])
    assert (status, key[:11] in out) == (0, True)
    status, out, _ = steersman("list", "--json")
    [item] = json.loads(out)
    assert item["revoked_at"] is not None
    assert (item["key"], item["requests"]) == (key[:11] + "…", 0)
    status, _, err = steersman("revoke", key[:9])
    assert (status, "No key in force" in err) == (1, True)


def test_the_command_limits(steersman):
    """Limits are given when a key is made and changed by its id; what is not given stays."""
    steersman("create", "--requests-per-minute", "60", "--concurrent-requests", "0")
    [item] = json.loads(steersman("list", "--json")[1])
    assert [item[name] for name in LIMITS] == [60, None, 0]
    status, out, _ = steersman(
        "limit", item["id"], "--tokens-per-minute", "100", "--requests-per-minute", "none"
    )
    assert (status, "100 tokens/min,any at once" in out) == (0, True)
    [item] = json.loads(steersman("list", "--json")[1])
    assert [item[name] for name in LIMITS] == [None, 100, 0]
    assert "100 tokens/min,any at once" in steersman("list")[1]
    assert steersman("limit", item["id"])[0] == 1
    for wrong in ("-1", "1.5", "many", str(2**31)):
        with pytest.raises(SystemExit):
            steersman("limit", item["id"], f"--tokens-per-minute={wrong}")


def test_a_key_is_revoked_by_its_id(steersman):
    """The id revokes its key and leaves others alone."""
    steersman("create", "--name", "one")
    steersman("create", "--name", "two")
    _, two = json.loads(steersman("list", "--json")[1])
    assert steersman("revoke", two["id"])[0] == 0
    states = {item["name"]: item["revoked_at"] for item in json.loads(steersman("list", "--json")[1])}
    assert states["one"] is None
    assert states["two"] is not None


def record(name, prefix):
    return SimpleNamespace(id=name, prefix=prefix, masked=f"ax_{prefix}…", revoked_at=None)


def test_a_prefix_has_to_mean_one_key():
    """An ambiguous, too short or unknown prefix revokes nothing, and the message lists the candidates."""
    records = [record("one", "abcd0000"), record("two", "abcd1111")]
    assert keys._choose(records, "abcd1").id == "two"
    assert keys._choose(records, "ax_abcd0000…").id == "one"
    assert keys._choose(records, "ax_abcd0000" + "0" * 40).id == "one"
    with pytest.raises(ValueError, match=r"ax_abcd0000….*ax_abcd1111…"):
        keys._choose(records, "abcd")
    with pytest.raises(ValueError, match="at least 4"):
        keys._choose(records, "ax_")
    with pytest.raises(ValueError, match="No key in force"):
        keys._choose(records, "ffff")


def test_the_command_says_why_it_cannot(capsys):
    """A database that does not answer or is unknown is one line on standard error and status 1."""
    for url, says in (("postgresql://127.0.0.1:1/x", "does not answer"), ("mysql://h/x", "Unknown database")):
        args = argparse.Namespace(keys_command="list", json=False, steersman_database_url=url)
        assert keys.run(args) == 1
        out, err = capsys.readouterr()
        assert (out, says in err) == ("", True)


def test_the_command_reads_the_environment(tmp_path):
    """In a process of its own the command uses the home folder that the environment names."""
    program = "import argparse, sys; from server import keys; p = argparse.ArgumentParser();"
    program += "keys.add_parser(p.add_subparsers()); sys.exit(keys.run(p.parse_args()))"
    home = tmp_path / "new" / "home"
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", program, "keys", "create"],
        cwd=ROOT,
        env={"STEERSMAN_HOME": str(home)},
        check=False,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert (done.returncode, len(done.stdout)) == (0, 52), done.stderr
    assert (home / "steersman.db").exists()


async def test_what_the_command_makes_the_server_accepts(steersman, database_url):
    """A key from the command line is found by a store on the same database."""
    import asyncio

    _, out, _ = await asyncio.to_thread(steersman, "create")
    store = Store(database_url)
    assert (await store.find_key(out.strip())).account_id == DEFAULT_ACCOUNT
    assert await store.usage((await store.find_key(out.strip())).key_id) == Usage()
    await store.close()
