"""Interactions, scores, comparisons and outcomes on the running server, by Adaptive's own client."""

import uuid

import pytest

from server.completion_ids import completion_id
from server.embedded import NAME

pytestmark = pytest.mark.engine

CHAT = "/v1/chat/completions"
ASKED = [{"role": "user", "content": "Name a river."}]


@pytest.fixture(scope="module")
def sdk(server):
    """Adaptive's client as its documentation makes one."""
    adaptive_sdk = pytest.importorskip("adaptive_sdk", reason="scripts/install.sh installs it")
    made = adaptive_sdk.Adaptive(base_url=server.url, api_key=server.key)
    made.set_default_project("default")
    yield made
    made.close()


@pytest.fixture(scope="module")
def answered(client):
    """A stored answer of two choices, of a session, scored once by a metric of this module's own."""
    session, metric = str(uuid.uuid4()), f"stars-{uuid.uuid4().hex}"
    body = {"model": NAME, "messages": ASKED, "max_tokens": 8, "n": 2, "store": True, "session_id": session}
    answer = client.post(CHAT, json=body).json()
    score = {"metric": metric, "value": 4}
    assert client.post(f"{CHAT}/{answer['id']}/feedback", json=score).status_code == 201
    return answer["id"], session, metric


def post(client, path, status=201, **body):
    answer = client.post(f"/api/v1/{path}", json=body)
    assert answer.status_code == status, answer.text
    return answer.json()


def home(client):
    """The id of the caller's own project."""
    return client.get("/projects").json()[0]["id"]


def test_an_upload_is_kept_with_its_feedback(sdk, client, answered):
    """And found among what was answered here."""
    _, session, metric = answered
    label = uuid.uuid4().hex
    made = sdk.interactions.create(
        messages=ASKED,
        completion="The Nile.",
        model="elsewhere",
        feedbacks=[{"feedback_key": metric, "value": 5, "details": "long"}],
        user=uuid.uuid4(),
        session_id=session,
        labels={"run": label},
        created_at="2024-02-21T09:51:03Z",
    )
    assert str(made.session_id) == session
    assert len(made.feedback_ids) == 1
    (found,) = client.get(CHAT, params={"metadata[run]": label}).json()["data"]
    assert (found["model"], found["choices"][0]["message"]["content"]) == ("elsewhere", "The Nile.")
    scores = client.get(f"{CHAT}/{found['id']}/feedback").json()["data"]
    assert [(each["id"], each["value"]) for each in scores] == [(str(made.feedback_ids[0]), 5)]


def test_texts_are_compared(sdk, answered):
    """As the client sends them: of completions it can name none (its comparisons with ids are no JSON)."""
    sides = [{"text": text, "model": NAME} for text in ("The Rhine.", "The sea.")]
    made = sdk.feedback.log_preference(answered[2], *sides, messages=ASKED)
    assert uuid.UUID(str(made.comparison_id))


def test_each_choice_is_scored_compared_and_its_session_judged(client, answered):
    """By ids that follow from the answer's; an unknown metric is an entity that was not found."""
    name, session, metric = answered
    project = home(client)
    first, second = (completion_id(project, name, each) for each in (0, 1))
    post(client, "feedback", completion_id=second, metric=metric, value=2)
    sides = {"preferred_completion": first, "other_completion": second}
    post(client, "comparison", project="default", metric=metric, tied="good", **sides)
    post(client, "outcome", project_id="default", metric=metric, value=1.5, session_id=session)
    scores = client.get(f"{CHAT}/{name}/feedback").json()["data"]
    assert [each["value"] for each in scores] == [4, 2]
    told = post(client, "feedback", 404, completion_id=second, metric="none", value=2)
    assert "metric" in str(told["error"])


def test_what_was_not_to_be_stored_cannot_be_scored(client, answered):
    answer = client.post(
        CHAT, json={"model": NAME, "messages": ASKED, "max_tokens": 2, "store": False}
    ).json()
    gone = completion_id(home(client), answer["id"], 0)
    told = post(client, "feedback", 404, completion_id=gone, metric=answered[2], value=2)
    assert "store: false" in str(told["error"])
