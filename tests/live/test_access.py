"""What is one project's shows to no other, on any route: `tests/access.py` is the matrix, here are its runs.

Every stranger's request is made again about things that nobody has: an answer that differed would tell that
the thing is there. Then whoever has too small a role in the project, and at last whoever has just enough, who
gets what the stranger did not.
"""

import http.client
import re
import uuid

import httpx
import pytest

from server.roles import Role
from tests.access import ASKS, CHAT, READING, ROUTES, Access, guarded, plain_path, spellings
from tests.live.belongings import account, belongings, calling

pytestmark = pytest.mark.engine

UUID = re.compile(r"[0-9a-f]{8}-[0-9a-f]{4}-4[0-9a-f]{3}-[89ab][0-9a-f]{3}-[0-9a-f]{12}")
NOT_SECRET = {"model"}
OWN = f"of-{uuid.uuid4().hex[:8]}.example"  # where the accounts of this run have their addresses


def routes_of(asks):
    return list(dict.fromkeys(ask.route for ask in asks))


def asks_of(route):
    return [ask for ask in ASKS if ask.route == route]


SHOWN = [
    route
    for route, access in ROUTES.items()
    if isinstance(access, Access) and route.startswith("GET ") and "{" not in route
]
_MOVING = {"last_used", "created", "permission"}  # by themselves between two looks


@pytest.fixture(scope="module")
def accounts(server):
    """Id and key of each."""
    names = ("owner", "member", "reader", "stranger", "newcomer")
    return {who: account(server, f"{who}@{OWN}") for who in names}


@pytest.fixture(scope="module")
def project(server, accounts):
    """One with a member of each role."""
    mark = f"quillwort{uuid.uuid4().hex[:8]}"
    with calling(server, accounts["owner"][1]) as client:
        made = client.post("/projects", json={"key": f"{mark}-project", "description": mark}).json()
        for who, role in (("member", Role.MEMBER), ("reader", Role.READER)):
            body = {"email": f"{who}@{OWN}", "role": role}
            assert client.put(f"/projects/{made['id']}/members", json=body).status_code == 200
    known = {"member_id": accounts["member"][0], "member_email": f"member@{OWN}"}
    return {"mark": mark, "project_id": made["id"], "project_key": made["key"], **known}


@pytest.fixture(scope="module")
def clients(server, accounts, project):
    """Those with a role call in the project, the others at home."""
    within = {"openai-project": project["project_key"]}
    made = {
        who: calling(server, key, **({} if who in ("stranger", "newcomer") else within))
        for who, (_, key) in accounts.items()
    }
    yield made
    for client in made.values():
        client.close()


@pytest.fixture
def owner(clients):
    return clients["owner"]


@pytest.fixture
def stranger(clients):
    return clients["stranger"]


@pytest.fixture
def newcomer(clients):
    """Who has asked for nothing before, so that its lists are empty but for what is for all."""
    return clients["newcomer"]


@pytest.fixture(scope="module")
def things(server, clients, project, autoencoder):
    """The project's, by name."""
    return belongings(server, clients["owner"], project)


@pytest.fixture(scope="module")
def unchanged(clients, things):
    """Asserts that the owner sees what it saw: nothing changes until `test_whoever_may_gets_it`."""
    before = world(clients["owner"], things)

    def check():
        assert world(clients["owner"], things) == before

    return check


@pytest.fixture(scope="module")
def nothings(things):
    """Names of the same form for what nobody has."""
    made = {}
    for name, value in things.items():
        form = UUID.sub(lambda _: str(uuid.uuid4()), value).replace(things["mark"], "spikemoss00000000")
        form = re.sub(r"[0-9a-f]{16,}", lambda _: uuid.uuid4().hex, form)
        made[name] = value if name in NOT_SECRET else form
    return made


def sent(client, ask, things):
    path, body = ask.filled(things)
    return client.request(ask.method, path, **({} if body is None else {"json": body}))


def asked(client, route, **headers):
    """A request to a route as it is."""
    method, path = route.split(" ")[0], re.sub(r"\{\w+\}", "x", plain_path(route))
    return client.request(method, path, json={}, headers=headers)


def last(ask):
    """What ends a thing comes after what does not, then the member, and the project last of all."""
    return ask.ends, ask.route == "DELETE /projects/{project}", ask.route.endswith("{account_id}")


def leaked(response, things, ask=None):
    """Which of the owner's things an answer names beyond those that the request named itself."""
    said = response.text + str(response.headers)
    for value in named(ask, things) if ask else ():
        said = said.replace(value, "")
    return {name for name, value in things.items() if name not in NOT_SECRET and value in said}


def named(ask, things):
    """Longest first, since some are parts of others."""
    asked = "".join(map(str, (ask.path or plain_path(ask.route), ask.body)))
    return sorted((value for name, value in things.items() if f"{{{name}}}" in asked), key=len, reverse=True)


def plain(value):
    """JSON without what moves."""
    if isinstance(value, dict):
        return {key: plain(each) for key, each in value.items() if key not in _MOVING}
    return [plain(each) for each in value] if isinstance(value, list) else value


def world(client, things):
    """All that the owner sees of what it has, and of its own key and usage."""
    paths = {ask.filled(things)[0] for ask in ASKS if ask.method == "GET"}
    paths |= {plain_path(route) for route, access in ROUTES.items() if mine(route, access)}
    found = {path: client.get(path) for path in sorted(paths)}
    return {path: (answer.status_code, told(answer)) for path, answer in found.items()}


def mine(route, access):
    return access is Access.CALLER and route.startswith("GET ")


def told(answer):
    return plain(answer.json()) if answer.headers["content-type"] == "application/json" else answer.content


def without(text, things):
    """`text` without names and moments of its own."""
    for value in sorted(things.values(), key=len, reverse=True):
        text = text.replace(value, "…")
    return text


def test_ids_are_no_guesses(things):
    """They are random, but for policies, whose ids are their account's own."""
    ids = {name: value for name, value in things.items() if name.endswith("_id")}
    for name in ids.keys() - {"policy_id"}:
        digits = re.sub(r"^(chatcmpl|resp)[-_]", "", ids[name]).replace("-", "")
        assert re.fullmatch(r"[0-9a-f]{16,}", digits), (name, ids[name])


@pytest.mark.parametrize("ask", [ask for ask in ASKS if ask.lists], ids=str)
def test_a_list_has_nothing_of_anothers(ask, newcomer, things):
    """Nor does a search for it find any."""
    response = sent(newcomer, ask, things)
    assert response.status_code == ask.stranger, response.text
    assert leaked(response, things, ask) == set()


@pytest.mark.parametrize("route", routes_of(ask for ask in ASKS if not ask.lists))
def test_a_stranger_gets_nothing_and_changes_nothing(route, stranger, things, nothings, unchanged):
    """Refused as for what is not there, with nothing of the owner's in the answer."""
    for ask in asks_of(route):
        if ask.lists:
            continue
        response = sent(stranger, ask, things)
        assert response.status_code == ask.stranger, (str(ask), response.text)
        assert leaked(response, things, ask) == set(), str(ask)
        other = sent(stranger, ask, nothings)
        assert other.status_code == response.status_code, str(ask)
        assert without(other.text, nothings) == without(response.text, things), str(ask)
    if not route.startswith("GET "):
        unchanged()


@pytest.mark.parametrize("route", SHOWN)
def test_what_is_for_all_shows_nothing_of_anyones(route, newcomer, things):
    """Open routes among them: metrics and descriptions. What is the caller's own shows nothing of others'."""
    assert leaked(newcomer.get(plain_path(route)), things) == set()


def test_a_completion_of_the_same_id_is_another(stranger, things, unchanged):
    """Clients choose ids by x-request-id: whoever takes another's neither reads nor replaces it."""
    chosen = {"x-request-id": things["request_id"]}
    answer = stranger.post("/v1/chat/completions", json={**CHAT, "store": True}, headers=chosen)
    assert answer.json()["id"] == things["completion_id"]
    path = f"/v1/chat/completions/{things['completion_id']}"
    assert stranger.get(path).json()["choices"] == answer.json()["choices"]
    assert stranger.get(f"{path}/feedback").json()["data"] == []
    assert stranger.delete(f"{path}/feedback/{things['feedback_id']}").status_code == 404
    assert stranger.delete(path).status_code == 200
    unchanged()


def test_a_policy_of_the_same_id_is_another(stranger, things, unchanged):
    """A project chooses its policies' ids; that another has one of that id neither shows nor matters."""
    saved = stranger.post("/policies/save", json={"policy": {"id": things["policy_id"]}})
    assert saved.json() == {"policy_id": things["policy_id"], "version": 1}
    assert stranger.delete(f"/policies/{things['policy_id']}").status_code == 200
    unchanged()


def test_a_public_preset_shows_what_was_published_alone(owner, stranger, things):
    """Its policy and names are its publisher's wish; whose it is, and the vector it names, stay theirs."""
    policy = {"name": "shown", "steering": {"enabled": True, "vector_id": things["vector_id"]}}
    body = {"name": "shown", "policy": policy, "visibility": "public"}
    made = owner.post("/policies/presets/publish", json=body).json()["preset_id"]
    try:
        [item] = [each for each in stranger.get("/policies/presets").json() if each["id"] == made]
        assert item["owner_api_key_id"] is None
        cloned = stranger.post(f"/policies/presets/{made}/clone").json()["policy_id"]
        run = stranger.post(f"/policies/{cloned}/run", json={"prompt": "Hi", "max_new_tokens": 1})
        assert run.status_code == 404
        assert stranger.delete(f"/policies/presets/{made}").status_code == 404
    finally:
        assert owner.delete(f"/policies/presets/{made}").status_code == 200


def test_a_projects_key_is_within_it_alone(server, owner, accounts, things):
    """It sees what the project has, is held to its own role, and enters nothing else of its maker's."""
    key = owner.post("/auth/api-keys", json={"role": "read-only"}).json()
    with calling(server, key["api_key"]) as other:
        assert things["mark"] in other.get(f"/steering/vectors/{things['vector_id']}").text
        assert things["policy_id"] in other.get("/policies").text
        assert other.delete(f"/policies/{things['policy_id']}").status_code == 403
        assert other.get("/auth/api-keys").status_code == 403
        for elsewhere in (accounts["owner"][0], accounts["member"][0]):
            assert other.get("/policies", headers={"openai-project": elsewhere}).status_code == 404
    assert owner.delete(f"/auth/api-keys/{key['id']}").status_code == 200


@pytest.mark.parametrize("ask", [ask for ask in ASKS if ask.method == "GET"], ids=str)
def test_a_member_at_home_is_a_stranger(ask, server, accounts, things):
    """What the project has shows in the project alone; what names the project itself shows there too."""
    with calling(server, accounts["member"][1]) as home:
        response = sent(home, ask, things)
    if "/projects" in ask.route or "{project_key}" in ask.path:
        assert response.status_code == 200
    else:
        assert response.status_code == ask.stranger, response.text
        assert leaked(response, things, ask) == set()


def test_a_stranger_does_not_enter(stranger, things, nothings):
    """By the project's key or its id, on any route; no more than a project that is not there."""
    for route in guarded():
        for name in ("project_key", "project_id"):
            said = {}
            for these in (things, nothings):
                answer = asked(stranger, route, **{"openai-project": these[name]})
                assert answer.status_code == 404, (route, answer.text)
                said[these[name]] = without(answer.text, these)
            assert len(set(said.values())) == 1, route


def test_a_reader_only_reads(clients, unchanged):
    """Whatever is no GET is refused, but for two routes that only count tokens, and nothing changes."""
    for route in guarded():
        if not route.startswith(("GET ", *READING)):
            assert asked(clients["reader"], route).status_code == 403, route
    for route in READING:
        assert asked(clients["reader"], route).status_code != 403, route
    unchanged()


@pytest.mark.parametrize("route", routes_of(ask for ask in ASKS if ask.needs is not Role.READER))
def test_too_small_a_role_is_refused(route, clients, things, unchanged):
    """A reader where a member may, a member where an owner may."""
    for ask in asks_of(route):
        if ask.needs is not Role.READER:
            response = sent(clients["member" if ask.needs is Role.OWNER else "reader"], ask, things)
            assert response.status_code == 403, (str(ask), response.text)
    unchanged()


def test_no_spelling_of_a_path_leads_past_the_key(server):
    """As a client writes it on the wire, and as the server's own parser reads it."""
    connection = http.client.HTTPConnection(httpx.URL(server.url).host, httpx.URL(server.url).port)
    for route in guarded():
        method, path = route.split(" ")[0], re.sub(r"\{\w+\}", "x", plain_path(route))
        for written in (path, *spellings(path)):
            connection.request(method, written, body=b"{}", headers={"content-type": "application/json"})
            answer = connection.getresponse()
            assert (answer.status, answer.read()[:1]) in {(401, b"{"), (401, b"")}, (method, written)
    connection.close()


MAY = {Role.READER: "reader", Role.MEMBER: "member", Role.OWNER: "owner"}


@pytest.mark.parametrize("ask", sorted((ask for ask in ASKS if ask.owner), key=last), ids=str)
def test_whoever_may_gets_it(ask, clients, things):
    """The stranger's requests succeed when made in the project: they were right but for who made them."""
    response = sent(clients[MAY[ask.needs]], ask, things)
    assert response.status_code == ask.owner, response.text
    if ask.shows:
        assert things[ask.shows] in response.text
