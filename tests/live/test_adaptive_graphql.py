"""Adaptive's SDK against the running server: what it asks over GraphQL."""

import uuid
from concurrent.futures import ThreadPoolExecutor

import pytest

from server.embedded import NAME

pytestmark = pytest.mark.engine

MESSAGES = [{"role": "user", "content": "Name a river."}]


@pytest.fixture(scope="module")
def sdk(server):
    """Of a project of its own, so that it finds its own things alone."""
    adaptive_sdk = pytest.importorskip("adaptive_sdk", reason="scripts/install.sh installs it")
    made = adaptive_sdk.Adaptive(base_url=server.url, api_key=server.key)
    project = made.projects.create(f"graphql-{uuid.uuid4().hex[:8]}", "GraphQL", "What the tests make")
    made.set_default_project(project.key)
    yield made
    made.close()


@pytest.fixture(scope="module")
def completion(client, sdk):
    """The id of a stored completion of that project."""
    return ask(client, sdk)


def ask(client, sdk, **fields):
    """A stored chat completion on `/v1`; returns the id that its choice is scored by."""
    body = {"model": NAME, "messages": MESSAGES, "max_tokens": 8, "temperature": 0, "store": True, **fields}
    headers = {"openai-project": sdk.default_project}
    response = client.post("/v1/chat/completions", json=body, headers=headers)
    assert response.status_code == 200, response.text
    return response.json()["choices"][0]["completion_id"]


def test_who_calls_and_what_is_theirs(sdk):
    me = sdk.users.me()
    assert me.email == "owner@localhost"
    project = sdk.projects.get()
    assert (project.name, project.description) == ("GraphQL", "What the tests make")
    assert [(share.team.key, share.is_owner) for share in project.shares] == [(me.email, True)]
    assert {"default", project.key} <= {each.key for each in sdk.projects.list()}


def test_an_interaction_is_found_at_once(sdk, completion, client):
    """In the list, by itself, and in its group, with what it was asked and answered."""
    found = sdk.interactions.get(completion)
    assert [(each.role, each.content) for each in found.chat_messages] == [("user", "Name a river.")]
    assert found.completion
    assert found.model.key == NAME
    assert found.metadata.usage.completion_tokens > 0
    assert found.metadata.parameters["temperature"] == 0
    label = uuid.uuid4().hex
    labelled = ask(client, sdk, metadata={"run": label})
    page = sdk.interactions.list(filters={"labels": [{"key": "run", "value": [label]}], "models": [NAME]})
    assert (page.total_count, [each.id for each in page.nodes]) == (1, [labelled])
    page = sdk.interactions.list(page={"first": 1})
    assert page.page_info.has_next_page
    after = sdk.interactions.list(page={"first": 100, "after": page.page_info.end_cursor})
    assert completion in [each.id for each in [*page.nodes, *after.nodes]]
    for by in ("model", "prompt"):
        grouped = sdk.interactions.list(group_by=by)
        (group,) = [
            each for each in grouped.nodes if completion in [node.id for node in each.completions.nodes]
        ]
        assert group.count >= 2


def test_a_metric_is_registered_and_scored(sdk, completion):
    key = f"stars-{uuid.uuid4().hex[:8]}"
    made = sdk.feedback.register_key(sdk.default_project, key, "scalar", description="How good it was")
    logged = sdk.feedback.log_metric(4, completion, key, details="well said")
    (score,) = [each for each in sdk.interactions.get(completion).direct_scores if each.metric.key == key]
    assert (score.id, score.value, score.details) == (str(logged.feedback_id), 4.0, "well said")
    assert sdk.feedback.get_key(sdk.default_project, made.id).has_direct_scores
    assert key in [each.key for each in sdk.feedback.list_keys()]


def test_models_are_listed_and_attached(sdk):
    """What is served is online; the project's name for it may become its default."""
    (model,) = [each for each in sdk.models.list() if each.key == NAME]
    assert model.online.value == "ONLINE"
    assert sdk.models.get(model.id).key == NAME
    assert sdk.models.get("gpt-2") is None
    service = sdk.models.attach(NAME, wait=True, make_default=True)
    assert service.is_default
    assert [(each.key, each.is_default) for each in sdk.projects.get().model_services] == [(NAME, True)]
    assert not sdk.models.update(NAME, is_default=False).is_default
    assert sdk.models.add_to_project(NAME)
    assert sdk.models.detach(NAME, sdk.default_project)
    assert sdk.projects.get().model_services == []
    with pytest.raises(Exception, match="chosen when the server starts"):
        sdk.models.terminate(NAME, force=True)


def test_an_ab_test_lives(sdk):
    metric, key = f"ok-{uuid.uuid4().hex[:8]}", f"test-{uuid.uuid4().hex[:8]}"
    sdk.feedback.register_key(sdk.default_project, metric, "bool")
    made = sdk.ab_tests.create(key, metric, [NAME], traffic_split=0.5)
    found = sdk.ab_tests.get(key)
    assert (found.id, found.metric.key, found.traffic_split) == (made.id, metric, 0.5)
    assert [each.variant.key for each in found.report.variants] == [NAME]
    assert key in [each.key for each in sdk.ab_tests.list(active=True)]
    assert sdk.ab_tests.cancel(key) == key
    assert sdk.ab_tests.get(key).status.value == "CANCELLED"


def test_what_is_missing_has_its_own_exception(sdk, completion):
    """With the client's own advice, which it chooses by the words of the message."""
    from adaptive_sdk.error_handling import AdaptiveEntityNotFoundError

    with pytest.raises(AdaptiveEntityNotFoundError, match="Project key"):
        sdk.interactions.list(project="no-such-project")
    with pytest.raises(AdaptiveEntityNotFoundError, match="Feedback key"):
        sdk.feedback.log_metric(1, completion, "no-such-metric")
    with pytest.raises(AdaptiveEntityNotFoundError, match="Model key"):
        sdk.models.deploy("no-such-model")
    with pytest.raises(AdaptiveEntityNotFoundError, match="is not stored"):
        sdk.feedback.log_metric(1, uuid.uuid4(), "no-such-metric")


def test_many_ask_at_once(sdk, completion):
    """Each answer is its own."""
    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(lambda _: sdk.interactions.get(completion).id, range(24)))
    assert set(found) == {completion}
