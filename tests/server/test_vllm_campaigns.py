"""Chat completions of a project with an A/B test, answered by Steersman's own serving and kept."""

from collections import Counter
from types import SimpleNamespace

import httpx
import pytest
from sqlalchemy import text

from server.addressing import Directory
from server.aliases import Aliases
from server.assignment import drawn
from server.campaign import NewCampaign, Status
from server.campaign_scores import CampaignScores
from server.campaign_settling import Settling
from server.campaigns import Campaigns
from server.feedback import FeedbackStore
from server.interaction_log import InteractionLog, Keep
from server.interactions import Interactions, Sought
from server.project_metrics import MetricKind, ProjectMetrics
from server.projects import Projects
from server.routes import openai
from tests.server.apps import routes_alone
from tests.server.steering_app import SignedIn
from tests.server.vllm_policy_world import CHAT, always, chat, policy_runs
from tests.server.watched_world import World

pytestmark = pytest.mark.filterwarnings("ignore:max_tokens is deprecated")
ME, MODELS = "me", ("base", "calm")


@pytest.fixture
def database_url(tmp_path):
    """One kind is enough: what is stored has tests of its own."""
    return f"sqlite:///{tmp_path / 'steersman.db'}"


@pytest.fixture
async def project(store):
    """A server with the alias `calm` and a test of it; `kept` are its interactions by their ids."""
    async with store.database.writing() as connection:
        await connection.execute(
            text("INSERT INTO accounts VALUES ('me', 'me@localhost', '2026-01-01 00:00:00+00')")
        )
    database = store.database
    metrics, aliases = ProjectMetrics(database), Aliases(database)
    interactions, projects = Interactions(database), Projects(database, 0.0)
    serving = World(always("a pear")).serving()
    names = Directory(serving.models, projects, aliases)
    campaigns = Campaigns(database, CampaignScores(database, metrics), projects, names.served)
    settling = Settling(campaigns)
    log = InteractionLog(interactions, which=Keep.ASKED, most=1000, days=1)
    app = routes_alone(openai.router)
    app.state.steersman = SimpleNamespace(
        serving=serving,
        policy_runs=policy_runs(serving),
        interaction_log=log,
        directory=Directory(serving.models, projects, aliases, campaigns),
    )
    await aliases.put(ME, "calm", model="base", defaults={"temperature": 0})
    liked = await metrics.create(ME, key="liked", name="Liked", kind=MetricKind.BOOL)

    async def kept():
        await log.flush()
        page = await interactions.list(Sought(ME), limit=500)
        return {each.id: each for each in page.interactions}

    async with httpx.AsyncClient(
        transport=httpx.ASGITransport(SignedIn(app)), base_url="http://test"
    ) as http:
        yield SimpleNamespace(
            http=http,
            kept=kept,
            liked=liked,
            campaigns=campaigns,
            settling=settling,
            projects=projects,
            feedback=FeedbackStore(database, settling.scores_came),
        )


async def asked(project, **fields):
    answer = await project.http.post(CHAT, json=chat(store=True, **fields))
    assert answer.status_code == 200, answer.text
    return answer.json()["id"] if not fields.get("stream") else answer.text


async def test_answers_are_kept_as_the_variant_s_that_their_session_got(project):
    """With the default's, and those that name a model, as nobody's."""
    campaign = await project.campaigns.create(ME, NewCampaign("launch", "liked", MODELS, traffic_split=0.6))
    expected = {}
    for number in range(30):
        session = f"s-{number}"
        variant = drawn(campaign.id, session, MODELS, traffic_split=0.6)
        expected[await asked(project, session_id=session)] = variant and (campaign.id, variant)
        expected[await asked(project, session_id=session, model="base")] = None
    kept = await project.kept()
    told = {each.id: each.variant and (each.campaign_id, each.variant) for each in kept.values()}
    assert told == expected
    assert len(Counter(expected.values())) == 3


@pytest.mark.parametrize(
    "fields",
    [{"n": 2}, {"stream": True}, {"best_of": 2}, {"policy": {"optimization": {"best_of_n": 2}}}],
    ids=["n", "stream", "best_of", "policy"],
)
async def test_every_way_to_an_answer_keeps_its_variant(project, fields):
    campaign = await project.campaigns.create(ME, NewCampaign("launch", "liked", ("calm",)))
    await asked(project, session_id="s", **fields)
    (kept,) = (await project.kept()).values()
    assert (kept.campaign_id, kept.variant, kept.session_id) == (campaign.id, "calm", "s")


async def test_what_is_thought_of_answers_ends_the_test_and_promotes_the_better_model(project):
    new = NewCampaign("launch", "liked", MODELS, auto_deploy=True, min_scores=10)
    await project.campaigns.create(ME, new)
    for number in range(40):
        await asked(project, session_id=f"s-{number}")
    for each in (await project.kept()).values():
        good = each.variant == "calm"
        await project.feedback.add(ME, each.id, "liked", good, reason=None, details=None)
    await project.settling.settle()
    ended = await project.campaigns.get([ME], "launch")
    assert (ended.status, ended.winner) == (Status.DONE, "calm")
    assert (await project.projects.home(ME)).default_model == "calm"
    last = await asked(project, session_id="s-1")
    kept = (await project.kept())[last]
    assert (kept.campaign_id, kept.variant) == (None, None)
