"""An A/B test's life on the running server, from its first request to the promotion of its winner."""

import sqlite3
import time

import pytest

from server.assignment import drawn
from server.campaign import NewCampaign, Status
from server.campaign_scores import CampaignScores
from server.campaigns import Campaigns
from server.database import Database
from server.project_metrics import MetricKind, ProjectMetrics
from server.projects import Projects

pytestmark = pytest.mark.engine

PROJECT, SESSIONS = "trial", 40
HEADERS = {"OpenAI-Project": PROJECT}


@pytest.fixture
async def campaigns(server):
    """As another process on the same database has them."""
    database = Database(f"sqlite:///{server.home / 'test.db'}")

    async def attached(model, project_id):
        return True

    scores = CampaignScores(database, ProjectMetrics(database))
    yield Campaigns(database, scores, Projects(database), attached), ProjectMetrics(database)
    await database.close()


async def test_scores_end_an_ab_test_and_its_winner_becomes_the_default(server, client, ask, campaigns):
    """Sessions get the model that their hash says, answers are kept as that variant's, and what people think
    of them decides."""
    campaigns, metrics = campaigns
    made = client.post("/projects", json={"key": PROJECT, "name": "Trial"})
    assert made.status_code < 300, made.text
    project_id = made.json()["id"]
    base = client.get("/v1/models").json()["data"][0]["id"]
    alias = {"model": base, "defaults": {"temperature": 0}}
    assert client.put(f"/projects/{PROJECT}/models/calm", json=alias).status_code < 300
    await metrics.create(project_id, key="liked", name="Liked", kind=MetricKind.BOOL)
    models = (base, "calm")
    new = NewCampaign("launch", "liked", models, auto_deploy=True, min_scores=10)
    campaign = await campaigns.create(project_id, new)
    time.sleep(2.1)  # noqa: ASYNC251  # the server knows of it by then
    expected = {}
    for number in range(SESSIONS):
        session = f"session-{number}"
        told = ask.chat(model=PROJECT, session_id=session, store=True, max_tokens=1)
        expected[told["id"]] = drawn(campaign.id, session, models)
    for completion_id, variant in expected.items():  # afterwards: the test may end at any of them
        path = f"/v1/chat/completions/{completion_id}/feedback"
        liked = {"metric": "liked", "value": variant == "calm"}
        given = client.post(path, json=liked, headers=HEADERS)
        assert given.status_code == 201, given.text
    with sqlite3.connect(server.home / "test.db") as rows:
        query = "SELECT id, variant FROM interactions WHERE campaign_id = ?"
        assert dict(rows.execute(query, (campaign.id,)).fetchall()) == expected
    deadline = time.monotonic() + 60
    while (ended := await campaigns.get([project_id], "launch")).active:
        assert time.monotonic() < deadline, await campaigns.report(ended)
        time.sleep(0.5)  # noqa: ASYNC251  # nothing else runs here
    assert (ended.status, ended.winner) == (Status.DONE, "calm")
    default = client.get(f"/projects/{PROJECT}").json()["default_model"]
    assert default == "calm"
    client.delete(f"/projects/{PROJECT}")
