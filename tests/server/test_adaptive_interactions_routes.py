"""Interactions, scores, comparisons and outcomes over HTTP, as Adaptive's clients send them."""

import uuid
from datetime import UTC, datetime, timedelta
from types import SimpleNamespace

import httpx
import pytest

from server.auth import Authentication, KeyRing
from server.comparisons import Comparisons, Tie
from server.completion_filter import FromSource, OfCampaign, OfSession
from server.completion_ids import completion_id
from server.completion_rows import Source
from server.completions import Completions
from server.errors import NotFound
from server.feedback import FeedbackStore
from server.interaction_log import InteractionLog, Keep
from server.interactions import Interactions
from server.outcomes import Outcomes
from server.project_metrics import MetricKind, ProjectMetrics
from server.projects import Projects
from server.redaction import Redaction
from server.roles import Role
from server.routes import feedback as v1_feedback
from server.routes.adaptive_interactions import router
from server.uploads import Uploads
from tests.server.apps import routes_alone
from tests.server.test_interaction_log import transcript

SESSION = "7d1a4c4e-3f5b-4e0b-9c55-1b1f0c9a9d11"
ASKED = [
    {"role": "system", "content": "Be brief.", "name": "op"},
    {
        "role": "user",
        "content": [
            {"type": "text", "text": "Which 0x?"},
            {"type": "image_url", "image_url": "data:image/png;base64,iVBORw0KGgo="},
        ],
        "completion_id": SESSION,
        "metadata": {"a": [1]},
    },
]
UPLOAD = {"project": "fruit", "messages": ASKED, "completion": "A pear 0xff."}


class OneCampaign:
    async def get(self, project_ids, id_or_key):
        if id_or_key != "test":
            raise NotFound(f"There is no A/B test {id_or_key!r}.", param="ab_campaign")
        return SimpleNamespace(id="campaign", models=("base", "tuned"))


@pytest.fixture
async def world(store):
    """The owner of a project `fruit` with two metrics, a reader of it, and somebody else."""
    own = await store.first_key()
    database = store.database
    projects = Projects(database, seconds=0)
    owner = (await store.find_key(own)).account_id
    fruit = await projects.create(owner, key="fruit", name="Fruit")
    ids = {"reader": str(uuid.uuid4()), "other": str(uuid.uuid4())}
    async with database.writing() as connection:
        for name, account_id in ids.items():
            values = f"'{account_id}', '{name}@localhost', '2026-01-01 00:00:00+00'"
            await connection.exec_driver_sql(f"INSERT INTO accounts VALUES ({values})")
    await projects.set_member(fruit.id, "reader@localhost", Role.READER)
    interactions = Interactions(database)
    state = SimpleNamespace(
        projects=projects,
        interactions=interactions,
        interaction_log=InteractionLog(
            interactions, which=Keep.ASKED, most=100, days=9999, redaction=Redaction(["0x"])
        ),
        metrics=ProjectMetrics(database),
        completions=Completions(database),
        feedback=FeedbackStore(database),
        comparisons=Comparisons(database),
        outcomes=Outcomes(database),
        uploads=Uploads(database),
        campaigns=OneCampaign(),
    )
    app = routes_alone(router, v1_feedback.router)
    app.state.steersman = state
    signed = Authentication(app, KeyRing(store.find_key, ttl=60), lambda method, outcome: None)
    state.keys = {"owner": own} | {
        name: (await store.create_key(account_id, None)).key for name, account_id in ids.items()
    }
    state.project, state.owner = fruit.id, owner
    state.polite = await state.metrics.create(fruit.id, key="polite", name="Polite", kind=MetricKind.SCALAR)
    state.good = await state.metrics.create(fruit.id, key="good", name="Good", kind=MetricKind.BOOL)
    transport = httpx.ASGITransport(signed)
    async with httpx.AsyncClient(transport=transport, base_url="http://test/api/v1") as state.http:
        yield state


async def post(world, path, body, who="owner"):
    return await world.http.post(path, json=body, headers={"x-api-key": world.keys[who]})


def live(world, name="live", session=SESSION):
    """An answer of this server that was not written yet."""
    made = transcript(name)
    made.account_id, made.session_id = world.project, session
    world.interaction_log.add(made)
    return completion_id(world.project, name, 0)


async def test_an_interaction_is_kept_with_its_feedback(world):
    """All that was sent, redacted; it is of the time and the session that it says."""
    at = "2024-02-21T10:51:03+01:00"
    body = {
        **UPLOAD,
        "model_service": "base",
        "user": "ann 0x",
        "session_id": SESSION.upper(),
        "created_at": at,
        "labels": {"team": "0x"},
        "feedbacks": [
            {"metric": "polite", "value": 2, "reason": "0x", "details": "so", "created_at": at},
            {"metric": world.good.id, "value": True},
        ],
    }
    answer = await post(world, "/interactions", body)
    assert answer.status_code == 201, answer.text
    told = answer.json()
    assert told.keys() == {"completion_id", "session_id", "feedback_ids"}
    assert told["session_id"] == SESSION
    found = await world.completions.get(world.project, told["completion_id"])
    kept, moment = found.interaction, datetime(2024, 2, 21, 9, 51, 3, tzinfo=UTC)
    assert (kept.source, kept.model, kept.user_id) == (Source.OFFLINE, "base", "ann [redacted]")
    assert (kept.created_at, kept.session_id, kept.labels) == (moment, SESSION, {"team": "[redacted]"})
    assert found.text == "A pear [redacted]ff."
    assert kept.messages[0] == ASKED[0]
    assert kept.messages[1]["content"][0]["text"] == "Which [redacted]?"
    assert kept.messages[1]["metadata"] == {"a": [1]}
    by_metric = {each.metric.key: each for each in found.direct}
    assert {each.id for each in found.direct} == set(told["feedback_ids"])
    polite, good = by_metric["polite"], by_metric["good"]
    assert (polite.value, polite.reason, polite.details, polite.created_at) == (2, "[redacted]", "so", moment)
    assert good.value == 1
    assert datetime.now(UTC) - good.created_at < timedelta(minutes=1)


async def test_an_interaction_needs_little(world):
    """Without a model, a session or a time: of no model, a session of its own, of now."""
    answer = await post(world, "/interactions", {**UPLOAD, "model_service": None, "feedbacks": None})
    told = answer.json()
    found = (await world.completions.get(world.project, told["completion_id"])).interaction
    assert (found.model, found.session_id, told["feedback_ids"]) == ("", told["session_id"], [])
    assert datetime.now(UTC) - found.created_at < timedelta(minutes=1)


async def test_an_interaction_of_an_ab_test_is_of_one_of_its_models(world):
    """By which it is found."""
    body = {**UPLOAD, "ab_campaign": "test", "model_service": "tuned"}
    told = (await post(world, "/interactions", body)).json()
    page = await world.completions.list(world.project, OfCampaign("campaign", "tuned"))
    assert [each.id for each in page.completions] == [told["completion_id"]]
    for model in (None, "third"):
        refused = await post(world, "/interactions", {**body, "model_service": model})
        assert refused.status_code == 400
        assert "base, tuned" in refused.text
    assert (await post(world, "/interactions", {**body, "ab_campaign": "x"})).status_code == 404


async def test_what_was_just_answered_is_scored_at_once(world):
    """Before it was written; what /v1 is told is a direct score of the first choice too."""
    body = {"completion_id": live(world), "metric": "good", "value": 0, "reason": "0x", "user_id": "ann"}
    given = await post(world, "/feedback", body)
    assert given.status_code == 201, given.text
    headers = {"x-api-key": world.keys["owner"]}
    path = "http://test/v1/chat/completions/live/feedback"
    assert (
        await world.http.post(path, json={"metric": "new", "value": 7}, headers=headers)
    ).status_code == 404
    await world.feedback.add(world.project, "live", "new", 7, reason=None, details=None)
    found = await world.completions.get(world.project, body["completion_id"])
    assert [(each.metric.key, each.value, each.reason) for each in found.direct] == [
        ("good", 0, "[redacted]"),
        ("new", 7, None),
    ]
    assert found.direct[0].id == given.json()["feedback_id"]


async def test_v1_makes_a_metric_and_holds_to_one_that_there_is(world):
    """A new one is a scalar; a bool takes 0 and 1 there too."""
    made = transcript("mine")
    made.account_id = world.owner
    world.interaction_log.add(made)
    await world.metrics.create(world.owner, key="yes", name="Yes", kind=MetricKind.BOOL)
    headers = {"x-api-key": world.keys["owner"]}
    path = "http://test/v1/chat/completions/mine/feedback"

    async def give(metric, value):
        answer = await world.http.post(path, json={"metric": metric, "value": value}, headers=headers)
        return answer.status_code

    assert (await give("yes", 0.5), await give("yes", True), await give("stars", 4.5)) == (400, 201, 201)
    metrics = {each.key: each.kind for each in await world.metrics.list([world.owner])}
    assert metrics == {"yes": MetricKind.BOOL, "stars": MetricKind.SCALAR}
    found = await world.completions.get(world.owner, completion_id(world.owner, "mine", 0))
    assert [(each.metric.key, each.value) for each in found.direct] == [("yes", 1), ("stars", 4.5)]


async def test_completions_are_compared(world):
    """Stored ones by their ids, and texts that are stored for it, together."""
    first, second = live(world, "one"), live(world, "two")
    both = {"project": "fruit", "metric": "polite", "preferred_completion": first, "other_completion": second}
    told = await post(world, "/comparison", {**both, "tied": "bad", "user_id": "ann"})
    assert told.status_code == 201, told.text
    (comparison,) = (await world.completions.get(world.project, first)).comparisons
    assert (comparison.id, comparison.tied) == (told.json()["comparison_id"], Tie.BAD)
    assert (comparison.preferred.id, comparison.other.id) == (first, second)
    raw = {"text": "A plum 0x.", "model": "tuned"}
    mixed = {**both, "preferred_completion": raw, "messages": ASKED}
    assert (await post(world, "/comparison", mixed)).status_code == 201
    page = await world.completions.list(world.project, FromSource([Source.OFFLINE]))
    (uploaded,) = page.completions
    assert (uploaded.text, uploaded.interaction.model) == ("A plum [redacted].", "tuned")
    assert uploaded.interaction.messages[0] == ASKED[0]
    texts = {**mixed, "other_completion": {"text": "No.", "model": "base"}}
    assert (await post(world, "/comparison", texts)).status_code == 201
    page = await world.completions.list(world.project, FromSource([Source.OFFLINE]))
    assert page.total == 3
    newest, other = page.completions[:2]
    assert newest.interaction.session_id == other.interaction.session_id
    assert newest.comparisons == other.comparisons


async def test_a_session_has_outcomes(world):
    live(world)
    body = {"project_id": world.project, "metric": "good", "value": True, "session_id": SESSION}
    told = await post(world, "/outcome", {**body, "user_id": "ann 0x"})
    assert told.status_code == 201, told.text
    (outcome,) = await world.outcomes.list(world.project, SESSION)
    assert (outcome.id, outcome.metric, outcome.value) == (told.json()["outcome_id"], "good", 1)
    assert outcome.user_id == "ann [redacted]"
    refused = await post(world, "/outcome", {**body, "session_id": str(uuid.uuid4())})
    assert refused.status_code == 404
    assert "session" in refused.text


SCORE = {"metric": "polite", "value": 1}


WRONG = (
    ("interactions", {"messages": []}, "messages"),
    ("interactions", {"messages": [{"role": "user"}]}, "messages.0.content"),
    ("interactions", {"messages": [{**ASKED[0], "x": 1}]}, "messages.0.x"),
    (
        "interactions",
        {"messages": [{**ASKED[0], "completion_id": "x"}]},
        "completion_id",
    ),
    ("interactions", {"completion": None}, "completion"),
    ("interactions", {"session_id": "s-1"}, "session_id"),
    ("interactions", {"created_at": "yesterday"}, "created_at"),
    ("interactions", {"created_at": "0001-01-01T00:00:00+14:00"}, "created_at"),
    ("interactions", {"user": "x" * 201}, "user"),
    ("interactions", {"labels": {"a": 1}}, "labels.a"),
    ("interactions", {"feedbacks": [SCORE, {"metric": "good", "value": 0.5}]}, "feedbacks.1.value"),
    ("interactions", {"feedbacks": [{"metric": "polite", "value": True}]}, "feedbacks.0.value"),
    ("interactions", {"feedbacks": [{"metric": "polite", "value": "1"}]}, "feedbacks.0.value"),
    ("interactions", {"feedbacks": [{"metric": "polite", "value": 10**400}]}, "feedbacks.0.value"),
    ("interactions", {"feedbacks": [{**SCORE, "score": 1}]}, "feedbacks.0.score"),
    ("interactions", {"model": "base"}, "model"),
    ("feedback", {"value": None}, "value"),
    ("feedback", {"completion_id": "chatcmpl-1"}, "completion_id"),
    ("comparison", {"tied": "maybe"}, "tied"),
    ("comparison", {"other_completion": {"text": "x"}}, "other_completion"),
    ("comparison", {"other_completion": {"text": "x", "model": "base"}}, "messages"),
    ("comparison", {"other_completion": SESSION, "preferred_completion": SESSION}, "other_completion"),
    ("outcome", {"value": "much"}, "value"),
    ("outcome", {"session_id": None}, "session_id"),
)


async def test_what_is_wrong_is_refused_by_its_field(world):
    """And nothing of it is kept."""
    completion = live(world)
    side = {"preferred_completion": completion, "other_completion": completion}
    whole = {
        "interactions": UPLOAD,
        "feedback": {"completion_id": completion, **SCORE},
        "comparison": {"project": "fruit", "metric": "polite", **side},
        "outcome": {"project_id": "fruit", "session_id": SESSION, **SCORE},
    }
    for path, body, named in WRONG:
        answer = await post(world, f"/{path}", {**whole[path], **body})
        assert answer.status_code == 400, (path, body, answer.text)
        assert named in answer.text
    assert (await world.completions.list(world.project)).total == 1
    assert (await world.completions.get(world.project, completion)).direct == ()


async def test_what_is_not_there_is_not_found(world):
    """Metrics, projects and completions that were not stored, or that are another project's."""
    mine = live(world)
    foreign = {"messages": ASKED, "completion": "x", "project": "default"}
    other = (await post(world, "/interactions", foreign, "other")).json()
    gone, theirs = str(uuid.uuid4()), other["completion_id"]
    score = {"completion_id": mine, **SCORE}
    compared = {"project": "fruit", "metric": "polite", "preferred_completion": mine}
    outcome = {"project_id": "fruit", "session_id": other["session_id"], **SCORE}
    for path, body, who, named in (
        ("feedback", {**score, "metric": "stars"}, "owner", "metric"),
        ("feedback", {**score, "completion_id": gone}, "owner", "completion"),
        ("feedback", {**score, "completion_id": other["completion_id"]}, "owner", "completion"),
        (
            "feedback",
            {**score, "completion_id": other["completion_id"], "project": "fruit"},
            "owner",
            gone[:0],
        ),
        ("feedback", score, "other", "completion"),
        ("feedback", {**score, "project": "fruit"}, "other", "project"),
        ("interactions", UPLOAD, "other", "project"),
        ("interactions", {**UPLOAD, "feedbacks": [{"metric": "stars", "value": 1}]}, "owner", "metric"),
        ("interactions", {**UPLOAD, "project": "none"}, "owner", "project"),
        ("comparison", {**compared, "other_completion": gone}, "owner", "completion"),
        ("comparison", {**compared, "other_completion": theirs}, "owner", "completion"),
        ("comparison", {**compared, "other_completion": mine}, "other", "project"),
        ("outcome", outcome, "owner", "session"),
        ("outcome", {**outcome, "project_id": "fruit"}, "other", "project"),
    ):
        answer = await post(world, f"/{path}", body, who)
        assert answer.status_code == 404, (path, body, answer.text)
        assert named in answer.text
        assert named == "project" or "project" not in answer.text
    assert (await world.completions.list(world.project)).total == 1
    other_session = await world.completions.list(world.project, OfSession(other["session_id"]))
    assert other_session.total == 0


async def test_a_reader_scores_nothing(world):
    for path, body in (("interactions", UPLOAD), ("feedback", {"completion_id": live(world), **SCORE})):
        assert (await post(world, f"/{path}", body, "reader")).status_code == 403


async def test_a_server_that_stores_nothing_takes_no_upload(world):
    """What it has stored before may still be scored."""
    completion = live(world)
    await world.interaction_log.flush()
    world.interaction_log = InteractionLog(world.interactions, which=Keep.NONE, most=1, days=1)
    assert (await post(world, "/interactions", UPLOAD)).status_code == 501
    assert (await post(world, "/feedback", {"completion_id": completion, **SCORE})).status_code == 201


async def test_adaptive_s_own_client_is_understood(world):
    """What its resources send of an interaction and a comparison, and how they read the answers."""
    types = pytest.importorskip("adaptive_sdk.rest.rest_types", reason="scripts/install.sh installs it")
    message = types.ChatMessageInput(role="user", content="Which?")
    request = types.AddInteractionsRequest(
        project="fruit",
        messages=[message],
        completion="A pear.",
        model_service="base",
        feedbacks=[types.InteractionFeedback(metric="polite", value=2, details="so")],
        user=uuid.uuid4(),
        session_id=uuid.UUID(SESSION),
        labels={"team": "x"},
        created_at="2024-02-21T09:51:03Z",
    )
    answer = await post(world, "/interactions", request.model_dump(mode="json", exclude_none=True))
    told = types.AddInteractionsResponse.model_validate(answer.json())
    found = await world.completions.get(world.project, str(told.completion_id))
    assert found.interaction.user_id == str(request.user)
    assert [each.id for each in found.direct] == [str(each) for each in told.feedback_ids]
    sides = [types.CompletionIdOrText1(text=each, model="base") for each in ("A pear.", "No.")]
    comparison = types.AddComparisonRequest(
        metric="polite",
        project="fruit",
        preferred_completion=sides[0],
        other_completion=sides[1],
        messages=[message],
    )
    answer = await post(world, "/comparison", comparison.model_dump(exclude_none=True))
    assert types.ComparisonOutput.model_validate(answer.json()).comparison_id
