"""A/B tests and what becomes of them, on SQLite and on a real PostgreSQL server."""

import asyncio
import math
import subprocess
import sys
from collections import Counter
from dataclasses import replace
from datetime import UTC, datetime

import pytest
from sqlalchemy import text

from server.ab_report import Sample, Tally
from server.assignment import Assignment
from server.campaign import ACTIVE, NewCampaign, ScoredMetric, ScoreType, Status
from server.campaign_settling import Settling
from server.campaigns import Campaigns
from server.errors import Conflict, InvalidRequest, NotFound, Unavailable
from server.projects import Projects
from server.store import DEFAULT_ACCOUNT

MODELS = ("base", "tuned")
NEW = NewCampaign("launch", "helpful", MODELS)
FEW = {"base": Sample("base", 12, 10, 0.4, 0.1), "tuned": Sample("tuned", 12, 10, 0.5, 0.1)}
MANY = {"base": Sample("base", 60, 50, 0.4, 0.1), "tuned": Sample("tuned", 60, 50, 0.5, 0.1)}
CLEAR = {"base": Sample("base", 200, 200, 0.4, 0.1), "tuned": Sample("tuned", 200, 200, 0.7, 0.1)}


class Scores:
    """What is known of every campaign's scores."""

    def __init__(self, found=None, tallies=()):
        self.found, self.tallies = dict(found or {}), list(tallies)
        self.higher_is_better = True

    async def metric(self, project_id, id_or_key):
        if id_or_key not in ("helpful", "m-1"):
            raise NotFound(f"There is no metric {id_or_key!r}.", param="metric")
        return ScoredMetric("m-1", "helpful", is_bool=False, higher_is_better=self.higher_is_better)

    async def direct(self, campaign, metric):
        assert metric.key == "helpful"
        return list(self.found.values())

    async def comparisons(self, campaign, metric):
        return self.tallies


async def attached(model, project_id):
    return model in (*MODELS, "third")


@pytest.fixture
async def projects(store):
    """Of a database that has two accounts."""
    await store.first_key()
    async with store.database.writing() as connection:
        await connection.execute(
            text("INSERT INTO accounts VALUES ('other', 'other@localhost', '2026-01-01 00:00:00+00')")
        )
    return Projects(store.database, 0.0)


@pytest.fixture
def scores():
    return Scores()


@pytest.fixture
def campaigns(store, projects, scores):
    return Campaigns(store.database, scores, projects, attached)


def test_what_knows_of_campaigns_does_not_wait_for_scipy():
    """Which takes a second to import, for commands that never ask for a report too."""
    check = "import sys, server.campaigns; sys.exit('scipy' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", check], check=False).returncode == 0


async def test_a_campaign_begins_as_it_was_asked_for(campaigns):
    before = datetime.now(UTC)
    made = await campaigns.create(
        DEFAULT_ACCOUNT, replace(NEW, traffic_split=0.25, auto_deploy=True, score_type=ScoreType.COMPARISON)
    )
    assert made == await campaigns.get([DEFAULT_ACCOUNT], "launch")
    assert made == await campaigns.get(["other", DEFAULT_ACCOUNT], made.id)
    assert (made.key, made.name, made.metric, made.models) == ("launch", "launch", "m-1", MODELS)
    assert (made.status, made.winner, made.end_date) == (Status.WARMUP, None, None)
    assert (made.traffic_split, made.auto_deploy, made.score_type) == (0.25, True, ScoreType.COMPARISON)
    assert (made.alpha, made.min_scores) == (0.05, 30)
    assert before <= made.begin_date <= datetime.now(UTC)


@pytest.mark.parametrize(
    ("changes", "param"),
    [
        ({"key": ""}, "key"),
        ({"key": "a/b"}, "key"),
        ({"key": "k" * 201}, "key"),
        ({"name": "n" * 201}, "name"),
        ({"models": ()}, "models"),
        ({"models": ("base", "base")}, "models"),
        ({"models": tuple(f"m{number}" for number in range(17))}, "models"),
        ({"models": ("base",), "auto_deploy": True}, "auto_deploy"),
        ({"traffic_split": 0.0}, "traffic_split"),
        ({"traffic_split": 1.01}, "traffic_split"),
        ({"traffic_split": math.nan}, "traffic_split"),
        ({"alpha": 0.0}, "alpha"),
        ({"alpha": 1.0}, "alpha"),
        ({"min_scores": 9}, "min_scores"),
    ],
)
def test_what_is_wrong_with_a_new_campaign_is_named(changes, param):
    NEW.require_sound()
    with pytest.raises(InvalidRequest) as caught:
        replace(NEW, **changes).require_sound()
    assert caught.value.param == param


async def test_what_a_new_campaign_names_has_to_be_there(campaigns):
    for changes, param in (({"metric": "none"}, "metric"), ({"models": ("base", "gone")}, "models")):
        with pytest.raises(NotFound) as caught:
            await campaigns.create(DEFAULT_ACCOUNT, replace(NEW, **changes))
        assert caught.value.param == param
    with pytest.raises(NotFound):
        await campaigns.create("nobody", NEW)
    assert await campaigns.list([DEFAULT_ACCOUNT]) == []


async def test_a_project_has_one_active_campaign_and_one_of_each_key(campaigns):
    await campaigns.create(DEFAULT_ACCOUNT, NEW)
    with pytest.raises(Conflict, match="'launch' of this project is active"):
        await campaigns.create(DEFAULT_ACCOUNT, replace(NEW, key="second"))
    await campaigns.create("other", NEW)
    await campaigns.cancel([DEFAULT_ACCOUNT], "launch")
    with pytest.raises(Conflict, match="has an A/B test 'launch'"):
        await campaigns.create(DEFAULT_ACCOUNT, NEW)
    await campaigns.create(DEFAULT_ACCOUNT, replace(NEW, key="second"))


async def test_of_campaigns_that_begin_at_once_one_does(store, projects, scores):
    processes = [Campaigns(store.database, scores, projects, attached) for _ in range(4)]
    made = await asyncio.gather(
        *(
            each.create(DEFAULT_ACCOUNT, replace(NEW, key=f"c{number}"))
            for number, each in enumerate(processes)
        ),
        return_exceptions=True,
    )
    assert sorted(type(each).__name__ for each in made) == ["Campaign", *["Conflict"] * 3]


async def test_campaigns_of_other_projects_are_not_found(campaigns):
    made = await campaigns.create(DEFAULT_ACCOUNT, NEW)
    for name in (made.id, "launch"):
        with pytest.raises(NotFound):
            await campaigns.get(["other"], name)
        with pytest.raises(NotFound):
            await campaigns.cancel(["other"], name)
        with pytest.raises(NotFound):
            await campaigns.route("other", "s", name)
    assert await campaigns.list(["other"]) == []
    assert (await campaigns.get([DEFAULT_ACCOUNT], "launch")).active


async def test_a_key_that_several_projects_have_is_not_guessed(campaigns):
    mine = await campaigns.create(DEFAULT_ACCOUNT, NEW)
    await campaigns.create("other", NEW)
    with pytest.raises(Conflict, match="by its id"):
        await campaigns.cancel([DEFAULT_ACCOUNT, "other"], "launch")
    assert (await campaigns.get([DEFAULT_ACCOUNT, "other"], mine.id)).project_id == DEFAULT_ACCOUNT


async def test_campaigns_are_listed_newest_first_by_what_became_of_them(campaigns):
    for key in ("first", "second", "third"):
        await campaigns.create(DEFAULT_ACCOUNT, replace(NEW, key=key))
        if key != "third":
            await campaigns.cancel([DEFAULT_ACCOUNT], key)

    async def keys(**filters):
        return [each.key for each in await campaigns.list([DEFAULT_ACCOUNT], **filters)]

    assert await keys() == ["third", "second", "first"]
    assert await keys(active=True) == await keys(status=Status.WARMUP) == ["third"]
    assert await keys(active=False) == await keys(status=Status.CANCELLED) == ["second", "first"]
    assert await keys(active=True, status=Status.CANCELLED) == []
    assert await campaigns.list([]) == []


async def test_a_cancelled_campaign_has_ended(campaigns):
    await campaigns.create(DEFAULT_ACCOUNT, NEW)
    ended = await campaigns.cancel([DEFAULT_ACCOUNT], "launch")
    assert (ended.status, ended.winner) == (Status.CANCELLED, None)
    assert ended.end_date >= ended.begin_date
    assert await campaigns.route(DEFAULT_ACCOUNT, "s") is None
    with pytest.raises(Conflict, match="ended already"):
        await campaigns.cancel([DEFAULT_ACCOUNT], "launch")


async def test_sessions_are_routed_by_the_split_and_stay_where_they_are(campaigns):
    made = await campaigns.create(DEFAULT_ACCOUNT, replace(NEW, traffic_split=0.5))
    routed = [await campaigns.route(DEFAULT_ACCOUNT, f"s-{number}") for number in range(400)]
    assert routed == [await campaigns.route(DEFAULT_ACCOUNT, f"s-{number}") for number in range(400)]
    shares = Counter(routed)
    base, tuned = (Assignment(made.id, "launch", model) for model in MODELS)
    assert shares.keys() == {None, base, tuned}
    assert 160 < shares[None] < 240
    assert 70 < shares[base] < 130
    assert await campaigns.route("other", "s-1") is None


async def test_a_request_that_asks_for_a_campaign_is_its_whatever_the_split(campaigns):
    made = await campaigns.create(DEFAULT_ACCOUNT, replace(NEW, traffic_split=0.001))
    for name in (made.id, "launch"):
        routed = [await campaigns.route(DEFAULT_ACCOUNT, f"s-{number}", name) for number in range(200)]
        assert {each.model for each in routed} == set(MODELS)
    with pytest.raises(NotFound) as caught:
        await campaigns.route(DEFAULT_ACCOUNT, "s", "none")
    assert caught.value.param == "ab_campaign"


async def test_a_request_that_asks_for_a_cancelled_campaign_is_told_so(campaigns):
    await campaigns.create(DEFAULT_ACCOUNT, NEW)
    await campaigns.route(DEFAULT_ACCOUNT, "s", "launch")
    await campaigns.cancel([DEFAULT_ACCOUNT], "launch")
    with pytest.raises(Conflict, match="cancelled") as caught:
        await campaigns.route(DEFAULT_ACCOUNT, "s", "launch")
    assert caught.value.param == "ab_campaign"


async def test_a_project_with_a_campaign_is_asked_for_once_in_a_while(store, projects, scores):
    """Requests that name no model are not to wait for the database each."""
    one, other = (Campaigns(store.database, scores, projects, attached) for _ in range(2))
    assert await one.route(DEFAULT_ACCOUNT, "s") is None
    await other.create(DEFAULT_ACCOUNT, NEW)
    assert await one.route(DEFAULT_ACCOUNT, "s") is None
    assert await other.route(DEFAULT_ACCOUNT, "s") is not None
    await store.close()
    assert await one.route(DEFAULT_ACCOUNT, "s") is None


async def test_a_campaign_warms_up_until_each_variant_has_enough_scores(campaigns, scores):
    made = await campaigns.create(DEFAULT_ACCOUNT, NEW)
    await campaigns.settle(made)
    scores.found = FEW
    await campaigns.settle(made)
    assert (await campaigns.get([DEFAULT_ACCOUNT], "launch")).status is Status.WARMUP
    scores.found = MANY
    await campaigns.settle(made)
    assert (await campaigns.get([DEFAULT_ACCOUNT], "launch")).status is Status.IN_PROGRESS
    assert await campaigns.route(DEFAULT_ACCOUNT, "s") is not None


@pytest.mark.parametrize(("higher", "winner"), [(True, "tuned"), (False, "base")])
async def test_a_campaign_with_a_winner_is_done(campaigns, scores, higher, winner):
    made = await campaigns.create(DEFAULT_ACCOUNT, NEW)
    scores.found, scores.higher_is_better = CLEAR, higher
    await campaigns.settle(made)
    ended = await campaigns.get([DEFAULT_ACCOUNT], "launch")
    assert (ended.status, ended.winner) == (Status.DONE, winner)
    assert ended.end_date >= ended.begin_date
    assert await campaigns.route(DEFAULT_ACCOUNT, "s") is None
    asked = await campaigns.route(DEFAULT_ACCOUNT, "s", "launch")
    assert asked.model == winner


async def test_comparisons_end_a_campaign_by_them(campaigns, scores):
    made = await campaigns.create(DEFAULT_ACCOUNT, replace(NEW, score_type=ScoreType.COMPARISON))
    scores.tallies = [Tally("tuned", "base", wins=70, losses=20), Tally("base", "tuned", wins=2, losses=9)]
    report = await campaigns.report(made)
    assert report.variants[1].comparisons == [Tally("tuned", "base", wins=79, losses=22)]
    await campaigns.settle(made)
    assert (await campaigns.get([DEFAULT_ACCOUNT], "launch")).winner == "tuned"


async def test_the_winner_is_deployed_where_that_is_asked_for(campaigns, projects, scores):
    scores.found = CLEAR
    for account, deploys in ((DEFAULT_ACCOUNT, False), ("other", True)):
        await campaigns.settle(await campaigns.create(account, replace(NEW, auto_deploy=deploys)))
    assert (await projects.home(DEFAULT_ACCOUNT)).default_model is None
    assert (await projects.home("other")).default_model == "tuned"


async def test_of_processes_that_settle_at_once_one_deploys(store, scores, monkeypatch):
    await store.first_key()
    promoted = []

    class Counted(Projects):
        async def promote(self, connection, project_id, model):
            promoted.append(model)
            await super().promote(connection, project_id, model)

    processes = [Campaigns(store.database, scores, Counted(store.database, 0.0), attached) for _ in range(4)]
    made = await processes[0].create(DEFAULT_ACCOUNT, replace(NEW, auto_deploy=True))
    scores.found = CLEAR
    await asyncio.gather(*(each.settle(made) for each in processes))
    assert promoted == ["tuned"]
    projects = Projects(store.database)
    await projects.set_default_model(DEFAULT_ACCOUNT, "base")
    await processes[1].settle(made)
    assert (await Projects(store.database).home(DEFAULT_ACCOUNT)).default_model == "base"


async def test_a_winner_that_could_not_be_deployed_is_not_lost(store, scores):
    await store.first_key()

    class Away(Projects):
        async def promote(self, connection, project_id, model):
            raise Unavailable("The database does not answer.")

    broken = Campaigns(store.database, scores, Away(store.database), attached)
    made = await broken.create(DEFAULT_ACCOUNT, replace(NEW, auto_deploy=True))
    scores.found = CLEAR
    with pytest.raises(Unavailable):
        await broken.settle(made)
    projects = Projects(store.database, 0.0)
    campaigns = Campaigns(store.database, scores, projects, attached)
    assert (await campaigns.get([DEFAULT_ACCOUNT], "launch")).status in ACTIVE
    await campaigns.settle(made)
    assert (await projects.home(DEFAULT_ACCOUNT)).default_model == "tuned"


async def test_a_campaign_cancelled_meanwhile_deploys_nothing(campaigns, projects, scores):
    made = await campaigns.create(DEFAULT_ACCOUNT, replace(NEW, auto_deploy=True))
    await campaigns.cancel([DEFAULT_ACCOUNT], "launch")
    scores.found = CLEAR
    await campaigns.settle(made)
    assert (await campaigns.get([DEFAULT_ACCOUNT], "launch")).status is Status.CANCELLED
    assert (await projects.home(DEFAULT_ACCOUNT)).default_model is None


async def test_campaigns_go_with_their_project(store, campaigns):
    await campaigns.create("other", NEW)
    async with store.database.writing() as connection:
        await connection.execute(text("DELETE FROM accounts WHERE id = 'other'"))
    assert await campaigns.unsettled() == []


async def test_settling_looks_at_all_that_are_active(campaigns, scores):
    await campaigns.create(DEFAULT_ACCOUNT, NEW)
    await campaigns.create("other", NEW)
    scores.found = CLEAR
    await Settling(campaigns).settle()
    assert await campaigns.unsettled() == []
    ended = await campaigns.list([DEFAULT_ACCOUNT, "other"])
    assert [each.status for each in ended] == [Status.DONE, Status.DONE]
