"""Accounts over HTTP, on SQLite and on a real PostgreSQL server."""

import asyncio
import json
import re
from datetime import timedelta

import pytest
from prometheus_client import REGISTRY

from server.sessions import Lives
from server.store import DEFAULT_ACCOUNT
from tests.server.accounts_world import EMAIL, PASSWORD, World


@pytest.fixture
async def world(store):
    await store.first_key()
    return World(store)


async def test_who_signs_up_is_logged_in(world):
    """The answer is AuthResponse: the user, and a session whose token opens as Bearer and says who it is."""
    answer = await world.signed_up()
    assert set(answer) == {"user", "session"}
    assert set(answer["user"]) == {"id", "email"}
    assert set(answer["session"]) == {"access_token", "refresh_token", "expires_in"}
    me = (await world.get("/auth/whoami", answer["session"]["access_token"])).json()
    assert (me["id"], me["email"]) == (answer["user"]["id"], EMAIL)
    assert (me["api_key_id"], me["api_key_name"]) == (None, None)
    assert world.counts == [("session", "ok")]


async def test_who_signed_up_can_log_in(world):
    """With the address in any case, and the password as it is; both kinds of wrong are told alike."""
    signed_up = await world.signed_up()
    answer = await world.logged_in(EMAIL.upper())
    assert answer.json()["user"] == signed_up["user"]
    assert answer.json()["session"] != signed_up["session"]
    refused = [await world.logged_in(password=PASSWORD.upper()), await world.logged_in("bob@example.com")]
    assert [each.status_code for each in refused] == [401, 401]
    assert refused[0].json() == refused[1].json() == {"detail": "The email or the password is wrong."}


async def test_an_address_signs_up_once(world):
    """A second time is a conflict, whatever the case, and changes nothing."""
    await world.signed_up()
    async with world.client() as client:
        body = {"email": EMAIL.upper(), "password": "another password"}
        again = await client.post("/auth/signup", json=body)
    assert (again.status_code, EMAIL in again.json()["detail"]) == (409, True)
    assert (await world.logged_in()).status_code == 200


@pytest.mark.parametrize(
    ("path", "body", "field"),
    [
        ("signup", {"password": PASSWORD}, "email"),
        ("signup", {"email": EMAIL}, "password"),
        ("signup", {"email": "ada", "password": PASSWORD}, "email"),
        ("signup", {"email": EMAIL, "password": "seven77"}, "password"),
        ("signup", {"email": EMAIL, "password": "x" * 1025}, "password"),
        ("signup", {"email": EMAIL, "password": "\ud800" * 9}, "password"),
        ("signup", {"email": EMAIL, "password": 12345678}, "password"),
        ("signup", {"email": EMAIL, "password": PASSWORD, "role": "owner"}, "role"),
        ("signup", {"email": "x" * 400 + "@example.com", "password": PASSWORD}, "email"),
        ("login", {"email": EMAIL}, "password"),
        ("login", {"email": EMAIL, "password": "x" * 1025}, "password"),
        ("refresh", {}, "refresh_token"),
        ("refresh", {"refresh_token": None}, "refresh_token"),
    ],
)
async def test_a_wrong_field_is_named(world, path, body, field):
    """422 with the field in its place, and no password in the answer."""
    async with world.client() as client:
        answer = await client.post(
            f"/auth/{path}", content=json.dumps(body), headers={"content-type": "application/json"}
        )
    assert answer.status_code == 422, answer.text
    assert [item["loc"] for item in answer.json()["detail"]] == [["body", field]]
    assert PASSWORD not in answer.text


async def test_a_session_does_what_a_key_does(world):
    """It makes, lists and revokes its account's keys, and nobody else's; a key of it sees the same."""
    token = (await world.signed_up())["session"]["access_token"]
    other = (await world.signed_up("bob@example.com"))["session"]["access_token"]
    async with world.client(token) as client, world.client(other) as theirs:
        made = (await client.post("/auth/api-keys", json={"name": "laptop"})).json()
        [listed] = (await client.get("/auth/api-keys")).json()
        assert (listed["id"], listed["name"]) == (made["id"], "laptop")
        [seen] = (await world.get("/auth/api-keys", made["api_key"])).json()
        assert seen["id"] == made["id"]
        assert (await theirs.get("/auth/api-keys")).json() == []
        assert (await theirs.delete(f"/auth/api-keys/{made['id']}")).status_code == 404
        assert (await client.delete(f"/auth/api-keys/{made['id']}")).status_code == 200
    assert (await world.get("/auth/whoami", made["api_key"])).status_code == 401


async def test_a_session_is_shown_no_key_that_looks_whole(world):
    """`key`, which Axionic's command line uses as it finds it, is empty; `masked` tells keys apart. To a key
    both are the masked one."""
    token = (await world.signed_up())["session"]["access_token"]
    async with world.client(token) as client:
        made = (await client.post("/auth/api-keys")).json()["api_key"]
        [listed] = (await client.get("/auth/api-keys")).json()
    assert (listed["key"], listed["masked"]) == ("", made[:11] + "…")
    [listed] = (await world.get("/auth/api-keys", made)).json()
    assert (listed["key"], listed["masked"]) == (made[:11] + "…", made[:11] + "…")


async def test_a_session_verifies_as_no_key(world):
    """verify-key: valid, without an id."""
    token = (await world.signed_up())["session"]["access_token"]
    verified = (await world.get("/auth/verify-key", token)).json()
    assert verified == {"valid": True, "id": None, "name": None, "selected_model": None}


async def test_a_session_binds_a_model_to_its_account(world):
    """To its sessions and keys at once, except keys with a model of their own; `default` unbinds."""
    token = (await world.signed_up())["session"]["access_token"]

    async def selected(credential):
        return (await world.get("/auth/verify-key", credential)).json()["selected_model"]

    async with world.client(token) as client:
        free, own = [(await client.post("/auth/api-keys")).json()["api_key"] for _ in range(2)]
        assert [await selected(each) for each in (token, free, own)] == [None] * 3
        bound = (await client.post("/auth/api-keys/set-model", json={"model_name": "alias"})).json()
        assert bound == {"id": (await client.get("/auth/whoami")).json()["id"], "selected_model": "org/model"}
        assert [await selected(each) for each in (token, free, own)] == ["org/model"] * 3
        async with world.client(own) as keyed:
            await keyed.post("/auth/api-keys/set-model", json={"model_name": "org/model"})
        await client.post("/auth/api-keys/set-model", json={"model_name": "default"})
        assert [await selected(each) for each in (token, free, own)] == [None, None, "org/model"]
        unknown = await client.post("/auth/api-keys/set-model", json={"model_name": "nope"})
    assert unknown.status_code == 404


async def test_the_balance_of_a_session_is_its_accounts(world):
    """What its sessions and all its keys used, revoked ones too; a key's is its own."""
    answer = await world.signed_up()
    async with world.client(answer["session"]["access_token"]) as client:
        kept, gone = [(await client.post("/auth/api-keys")).json() for _ in range(2)]
        world.state.meter.add(answer["user"]["id"], prompt_tokens=1, completion_tokens=10)
        world.state.meter.add(kept["id"], prompt_tokens=2, completion_tokens=20)
        world.state.meter.add(gone["id"], prompt_tokens=4, completion_tokens=40)
        await client.delete(f"/auth/api-keys/{gone['id']}")
        balance = (await client.get("/auth/api-keys/balance")).json()
    assert (balance["requests"], balance["prompt_tokens"], balance["completion_tokens"]) == (3, 7, 70)
    own = (await world.get("/auth/api-keys/balance", kept["api_key"])).json()
    assert (own["requests"], own["prompt_tokens"], own["completion_tokens"]) == (1, 2, 20)


async def test_a_refresh_is_an_answer_like_a_login(world):
    """With the same user and other tokens; what is no refresh token is a 401."""
    answer = await world.signed_up()
    async with world.client() as client:
        token = answer["session"]["refresh_token"]
        fresh = (await client.post("/auth/refresh", json={"refresh_token": token})).json()
        assert fresh["user"] == answer["user"]
        assert fresh["session"]["refresh_token"] != token
        for wrong in (answer["session"]["access_token"], "nonsense", ""):
            assert (await client.post("/auth/refresh", json={"refresh_token": wrong})).status_code == 401
    assert (await world.get("/auth/whoami", fresh["session"]["access_token"])).status_code == 200


async def test_each_refused_token_says_why(store):
    """Expired, of the other kind, forged, in the wrong header: a 401 that says what to do, counted apart."""
    world = World(store, lives=Lives(access=timedelta(seconds=-1)))
    session = (await world.signed_up())["session"]
    says = {
        session["access_token"]: "POST /auth/refresh",
        session["refresh_token"]: "send its access token",
        "a.b.c": "not an access token of this server",
        "sk-123": "48 hexadecimal digits",
    }
    for token, reason in says.items():
        answer = await world.get("/auth/whoami", token)
        assert (answer.status_code, reason in answer.json()["detail"]) == (401, True), answer.text
    assert world.counts == [("session", "invalid")] * 3 + [("bearer", "invalid")]
    async with world.client() as client:
        answer = await client.get("/auth/whoami", headers={"x-api-key": session["access_token"]})
    assert (answer.status_code, world.counts[-1]) == (401, ("x-api-key", "invalid"))


async def test_a_password_is_changed(world):
    """The new one logs in and the old one does not; other sessions end, this one and the keys stay."""
    token = (await world.signed_up())["session"]["access_token"]
    other = (await world.logged_in()).json()["session"]
    async with world.client(token) as client:
        key = (await client.post("/auth/api-keys")).json()["api_key"]
        changed = await client.post("/auth/change-password", json={"new_password": "a new password"})
        assert changed.json() == {"changed": True, "other_sessions_ended": 1}
        assert (await client.get("/auth/whoami")).status_code == 200
        refused = await client.post("/auth/refresh", json={"refresh_token": other["refresh_token"]})
        assert refused.status_code == 401
        for body in ({}, {"new_password": "short"}, {"new_password": None}):
            wrong = await client.post("/auth/change-password", json=body)
            assert (wrong.status_code, wrong.json()["detail"][0]["loc"]) == (422, ["body", "new_password"])
    assert (await world.get("/auth/whoami", other["access_token"])).status_code == 401
    assert (await world.get("/auth/whoami", key)).status_code == 200
    assert (await world.logged_in()).status_code == 401
    assert (await world.logged_in(password="a new password")).status_code == 200


async def test_an_address_is_changed(world):
    """At once; one that is taken is a conflict."""
    token = (await world.signed_up())["session"]["access_token"]
    await world.signed_up("bob@example.com")
    async with world.client(token) as client:
        changed = await client.post("/auth/change-email", json={"new_email": "Ada@example.org"})
        assert changed.json()["email"] == "ada@example.org"
        assert (await client.get("/auth/whoami")).json()["email"] == "ada@example.org"
        taken = await client.post("/auth/change-email", json={"new_email": "bob@example.com"})
        assert taken.status_code == 409
    assert (await world.logged_in()).status_code == 401
    assert (await world.logged_in("ada@example.org")).status_code == 200


async def test_an_account_is_deleted(world):
    """Its sessions and keys open nothing from then on, and its address is free; others stay."""
    answer = await world.signed_up()
    other = (await world.signed_up("bob@example.com"))["session"]["access_token"]
    async with world.client(answer["session"]["access_token"]) as client:
        key = (await client.post("/auth/api-keys")).json()["api_key"]
        assert (await world.get("/auth/whoami", key)).status_code == 200
        deleted = await client.delete("/auth/delete-account")
        assert deleted.json() == {"id": answer["user"]["id"], "deleted": True}
        assert (await client.get("/auth/whoami")).status_code == 401
    assert (await world.get("/auth/whoami", key)).status_code == 401
    assert (await world.get("/auth/whoami", other)).status_code == 200
    assert (await world.logged_in()).status_code == 401
    assert (await world.signed_up())["user"]["id"] != answer["user"]["id"]


@pytest.mark.parametrize(
    ("method", "path", "body"),
    [
        ("POST", "/auth/change-password", {"new_password": "a new password"}),
        ("POST", "/auth/change-email", {"new_email": "new@example.com"}),
        ("DELETE", "/auth/delete-account", None),
    ],
)
async def test_a_key_does_not_change_its_account(world, method, path, body):
    """A key, which may have been lent, is told to log in; nobody at all gets 401."""
    token = (await world.signed_up())["session"]["access_token"]
    async with world.client(token) as client:
        key = (await client.post("/auth/api-keys")).json()["api_key"]
    async with world.client(key) as client:
        refused = await client.request(method, path, json=body)
        assert (refused.status_code, "POST /auth/login" in refused.json()["detail"]) == (403, True)
    async with world.client() as client:
        assert (await client.request(method, path, json=body)).status_code == 401
    assert (await world.logged_in()).status_code == 200


async def test_the_operators_account_stays(world):
    """A session of it may not delete it: the keys of the command line are there."""
    session = await world.state.accounts.sessions.open(DEFAULT_ACCOUNT)
    async with world.client(session.access_token) as client:
        assert (await client.delete("/auth/delete-account")).status_code == 403
    assert len(await world.state.store.list_keys(DEFAULT_ACCOUNT)) == 1


async def test_guesses_are_slowed_down(world):
    """After ten wrong passwords even the right one has to wait, from there; the wait is told, and ends."""
    await world.signed_up()
    before = REGISTRY.get_sample_value(*ATTEMPTS) or 0
    for _ in range(10):
        assert (await world.logged_in(password="wrong guess")).status_code == 401
    limited = await world.logged_in()
    assert (limited.status_code, limited.headers["retry-after"]) == (429, "30")
    assert "try again in 30 s" in limited.json()["detail"]
    assert REGISTRY.get_sample_value(*ATTEMPTS) == before + 1
    async with world.client(address="198.51.100.7") as elsewhere:
        body = {"email": EMAIL, "password": PASSWORD}
        assert (await elsewhere.post("/auth/login", json=body)).status_code == 200
    world.now += 30
    assert (await world.logged_in()).status_code == 200


ATTEMPTS = ("steersman_auth_attempts_total", {"method": "password", "outcome": "limited"})


async def test_logins_are_no_guesses(world):
    """Somebody who logs in again and again with the right password never has to wait."""
    await world.signed_up()
    answers = [await world.logged_in() for _ in range(12)]
    assert {each.status_code for each in answers} == {200}


async def test_guesses_at_once_are_counted_too(world):
    """A burst of concurrent guesses gets no more tries than one after another."""
    await world.signed_up()
    answers = await asyncio.gather(*(world.logged_in(password="wrong guess") for _ in range(25)))
    assert sorted(each.status_code for each in answers) == [401] * 10 + [429] * 15


async def test_signups_are_slowed_down(world, monkeypatch):
    """Twenty from one address, then 429."""

    async def hashed(password):
        return "hash"

    monkeypatch.setattr(world.state.accounts._passwords, "hashed", hashed)
    for number in range(20):
        await world.signed_up(f"{number}@example.com")
    async with world.client() as client:
        body = {"email": EMAIL, "password": PASSWORD}
        assert (await client.post("/auth/signup", json=body)).status_code == 429


async def test_where_signup_is_closed_people_log_in(store):
    """Signup is a 403 that says who makes accounts; those there are log in."""
    await World(store).signed_up()
    world = World(store, "closed")
    async with world.client() as client:
        body = {"email": "bob@example.com", "password": PASSWORD}
        refused = await client.post("/auth/signup", json=body)
    assert (refused.status_code, "steersman accounts add" in refused.json()["detail"]) == (403, True)
    assert (await world.logged_in()).status_code == 200
    assert (await world.logged_in("bob@example.com")).status_code == 401


async def test_without_accounts_nothing_of_them_is_there(store):
    """Each route is a 404 that says how to have it, whoever asks, and a token of before is no credential."""
    session = (await World(store).signed_up())["session"]
    key = (await store.create_key(None, None)).key
    world = World(store, "off")
    credentials = {"email": EMAIL, "password": PASSWORD}
    requests = [
        (None, "POST", "/auth/signup", credentials),
        (None, "POST", "/auth/login", credentials),
        (None, "POST", "/auth/refresh", {"refresh_token": session["refresh_token"]}),
        (key, "POST", "/auth/login", credentials),
        (key, "POST", "/auth/change-password", {"new_password": PASSWORD}),
        (key, "POST", "/auth/change-email", {"new_email": EMAIL}),
        (key, "DELETE", "/auth/delete-account", None),
    ]
    for token, method, path, body in requests:
        async with world.client(token) as client:
            answer = await client.request(method, path, json=body)
        assert (answer.status_code, "--accounts" in answer.json()["detail"]) == (404, True), path
    refused = await world.get("/auth/whoami", session["access_token"])
    assert (refused.status_code, "48 hexadecimal digits" in refused.json()["detail"]) == (401, True)


async def test_an_outage_is_no_wrong_password(world):
    """While the database is away logins and tokens get 503, and nobody is called wrong."""
    from server.store import Store

    token = (await world.signed_up())["session"]["access_token"]
    away = World(Store("postgresql://127.0.0.1:1/x"))
    assert (await away.logged_in()).status_code == 503
    assert (await away.get("/auth/whoami", token)).status_code == 503
    assert away.counts == []


async def test_two_servers_know_the_same_sessions(world, store):
    """A token of one opens at the other, which refreshes it too."""
    session = (await world.signed_up())["session"]
    other = World(store)
    assert (await other.get("/auth/whoami", session["access_token"])).status_code == 200
    async with other.client() as client:
        body = {"refresh_token": session["refresh_token"]}
        assert (await client.post("/auth/refresh", json=body)).status_code == 200


async def test_the_answers_are_described(world):
    """The application's own schema has the shapes of AuthResponse under these paths."""
    async with world.client() as client:
        schema = (await client.get("/openapi.json")).json()
    for path in ("signup", "login", "refresh"):
        answer = schema["paths"][f"/auth/{path}"]["post"]["responses"]["200"]
        [name] = re.findall(r"\w+$", answer["content"]["application/json"]["schema"]["$ref"])
        assert set(schema["components"]["schemas"][name]["required"]) == {"user", "session"}
