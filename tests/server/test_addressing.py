"""What a model's name means, in which project, and what an alias brings."""

from types import SimpleNamespace

import pytest
from fastapi import Request

from server.addressing import STEERING, Directory, addressed
from server.aliases import Aliases
from server.assignment import Assignment
from server.auth import Principal
from server.errors import Conflict, Forbidden, InvalidRequest, NotFound
from server.logins import Logins
from server.projects import Projects
from server.roles import Role
from server.served_models import ServedModels
from server.vllm_wire import ChatRequest, CompletionRequest

SERVED = ("org/base", "tuned")


class Trials:
    """A/B tests by project; a session of an odd length is in them."""

    def __init__(self) -> None:
        self.running = {}

    async def route(self, project_id, session_id, campaign=None):
        model = self.running.get(project_id)
        if campaign is not None and campaign != "trial":
            raise NotFound(f"there is no A/B test {campaign!r}", param="ab_campaign")
        if model is None or (campaign is None and len(session_id) % 2 == 0):
            return None
        return Assignment("id", "trial", model)

    async def uses(self, project_id, model):
        return "trial" if self.running.get(project_id) == model else None


@pytest.fixture
def database_url(tmp_path):
    """One kind is enough: what is stored has tests of its own."""
    return f"sqlite:///{tmp_path / 'steersman.db'}"


@pytest.fixture
async def world(store):
    """Ada's project `lab` with an alias `calm`; Ada has one `mine` at home, Bob reads `lab`."""
    logins = Logins(store.database)
    ada = (await logins.add("ada@example.org", "hash")).id
    bob = (await logins.add("bob@example.org", "hash")).id
    serving = SimpleNamespace(
        base_model_paths=[SimpleNamespace(name=SERVED[0], model_path="x")], lora_requests={SERVED[1]: None}
    )
    projects, aliases, tests = Projects(store.database), Aliases(store.database), Trials()
    lab = (await projects.create(ada, key="lab", name="Lab")).id
    await projects.set_member(lab, "bob@example.org", Role.READER)
    await aliases.put(lab, "calm", model="tuned", defaults={"temperature": 0.5, "steering_preset": "brevity"})
    await aliases.put(ada, "mine", model="org/base", defaults={})
    directory = Directory(ServedModels(serving, 1), projects, aliases, tests)
    return SimpleNamespace(
        directory=directory, ada=ada, bob=bob, lab=lab, tests=tests, projects=projects, aliases=aliases
    )


def caller(account_id, bound=None):
    return Principal("key", account_id, None, bound)


def raw(world, principal):
    app = SimpleNamespace(state=SimpleNamespace(steersman=SimpleNamespace(directory=world.directory)))
    return Request({"type": "http", "app": app, "state": {"principal": principal}, "headers": []})


async def sent(world, request, principal=None, **more):
    http = raw(world, principal or caller(world.ada))
    return await addressed(request, http, **more), http.state.principal


def chat(model=None, **more):
    return ChatRequest.model_validate(
        {"model": model, "messages": [{"role": "user", "content": "x"}], **more}
    )


@pytest.mark.parametrize(
    ("name", "model", "alias", "project"),
    [
        ("org/base", "org/base", None, "home"),
        ("tuned", "tuned", None, "home"),
        ("mine", "org/base", "mine", "home"),
        ("lab/calm", "tuned", "calm", "lab"),
        ("lab/org/base", "org/base", None, "lab"),
        ("lab", "org/base", None, "lab"),
        ("default/mine", "org/base", "mine", "home"),
        ("default", "org/base", None, "home"),
        (None, "org/base", None, "home"),
    ],
)
async def test_a_name_is_found_in_its_order(world, name, model, alias, project):
    """Served names first, though they hold slashes; then the project's aliases, then projects."""
    found = await world.directory.find(name, caller(world.ada))
    assert (found.model, found.alias and found.alias.key) == (model, alias)
    assert found.principal.account_id == (world.lab if project == "lab" else world.ada)


@pytest.mark.parametrize(
    "name", ["", "calm", "lab/mine", "lab/", "lab/default", "nowhere", "nowhere/org/base", "/"]
)
async def test_what_is_called_nothing_is_not_found(world, name):
    """The error names the model and what is served, whether or not somebody else has such a project."""
    for who in (world.ada, "stranger"):
        with pytest.raises(NotFound) as raised:
            await world.directory.find(name, caller(who))
        assert (raised.value.param, raised.value.reason) == ("model", "model_not_found")
        assert name in raised.value.message


async def test_a_stranger_cannot_tell_whether_a_project_is_there(world):
    """The refusal of another's project is the one of none, but for the name."""
    messages = []
    for name in ("lab", "bal"):
        with pytest.raises(NotFound) as raised:
            await world.directory.find(name, caller("stranger"))
        messages.append(raised.value.message.replace(name, "?"))
    assert messages[0] == messages[1]


async def test_a_reader_generates_nothing(world):
    with pytest.raises(Forbidden):
        await world.directory.find("lab/tuned", caller(world.bob))


async def test_the_default_is_the_key_s_then_the_project_s_then_the_server_s(world):
    """A bound model counts at home only."""
    assert (await world.directory.find(None, caller(world.ada, "tuned"))).model == "tuned"
    assert (await world.directory.find("lab", caller(world.ada, "tuned"))).model == "org/base"
    await world.projects.set_default_model(world.lab, "calm")
    found = await world.directory.find("lab", caller(world.ada))
    assert (found.model, found.alias.key) == ("tuned", "calm")


async def test_an_ab_test_answers_for_the_default_only(world):
    """Not where a model is named; by its share of sessions, or where the request asks for it."""
    world.tests.running[world.lab] = "calm"
    find, ada = world.directory.find, caller(world.ada)
    assert (await find("lab", ada, session_id="odd")).assignment.model == "calm"
    assert (await find("lab", ada, session_id="even")).assignment is None
    assert (await find("lab", ada, session_id="even", campaign="trial")).assignment is not None
    assert (await find("lab/tuned", ada, session_id="odd")).assignment is None
    assert (await find(None, ada, session_id="odd")).assignment is None
    with pytest.raises(NotFound):
        await find("lab", ada, session_id="odd", campaign="unknown")


async def test_what_belongs_to_no_session_is_drawn_by_one_of_its_own(world):
    """Each request anew."""
    sessions = []

    async def route(project_id, session_id, campaign=None):
        sessions.append(session_id)

    world.tests.route = route
    for _ in range(2):
        await world.directory.find("lab", caller(world.ada))
    assert len(set(sessions)) == 2


@pytest.mark.parametrize("name", ["tuned", "lab/calm", "default/mine"])
async def test_an_ab_test_beside_a_model_is_refused(world, name):
    """Either would have to give way unsaid."""
    with pytest.raises(InvalidRequest) as raised:
        await world.directory.find(name, caller(world.ada), session_id="odd", campaign="trial")
    assert raised.value.param == "ab_campaign"


async def test_an_alias_fills_in_what_the_request_does_not_say(world):
    """The call is within the project from then on, and its answer carries the name that was asked for."""
    request, principal = await sent(world, chat("lab/calm"))
    assert (request.model, request.answers_as, principal.account_id) == ("tuned", "lab/calm", world.lab)
    assert request.temperature == 0.5
    assert [entry.preset for entry in request.steering_entries().values()] == ["brevity"]


async def test_what_the_request_says_wins(world):
    """By groups: a vector of the request's own is not steered by beside the alias's preset."""
    request, _ = await sent(world, chat("lab/calm", temperature=0, steering_vector_id="mine"))
    assert request.temperature == 0
    assert list(request.steering_entries()) == ["steering_vector_id"]


async def test_null_says_nothing(world):
    request, _ = await sent(world, chat("lab/calm", temperature=None))
    assert request.temperature == 0.5


async def test_completions_take_an_alias_too(world):
    request = CompletionRequest.model_validate({"model": "lab/calm", "prompt": "x"})
    assert (await sent(world, request))[0].temperature == 0.5


async def test_a_route_refuses_what_it_cannot_take_from_an_alias(world):
    """Rather than answer without it."""
    with pytest.raises(InvalidRequest, match="temperature") as raised:
        await sent(world, chat("lab/calm"), binds=STEERING)
    assert raised.value.param == "model"


async def test_a_json_preset_in_an_alias_constrains(world):
    """As it does in a request; a constraint of the request's own takes its place."""
    await world.aliases.put(world.ada, "json", model="tuned", defaults={"steering_preset": "json_compliance"})
    bound, _ = await sent(world, chat("json"))
    assert bound.response_format.type == "json_object"
    own, _ = await sent(world, chat("json", regex_pattern="a+"))
    assert (own.response_format, own.regex_pattern) == (None, "a+")


async def test_an_alias_that_answers_unnamed_requests_stays(world):
    """As the project's default, or in an A/B test that runs; afterwards it can go."""
    await world.projects.set_default_model(world.lab, "calm")
    with pytest.raises(Conflict, match="default"):
        await world.directory.remove(world.lab, "calm")
    await world.projects.set_default_model(world.lab, None)
    world.tests.running[world.lab] = "calm"
    with pytest.raises(Conflict, match="trial"):
        await world.directory.remove(world.lab, (await world.aliases.get(world.lab, "calm")).id)
    world.tests.running.clear()
    await world.directory.remove(world.lab, "calm")
    with pytest.raises(NotFound):
        await world.directory.remove(world.lab, "calm")
