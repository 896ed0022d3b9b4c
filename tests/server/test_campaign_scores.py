"""What the database counts of A/B tests' scores against what numpy makes of them."""

from dataclasses import replace
from datetime import UTC, datetime, timedelta

import numpy as np
import pytest
from sqlalchemy import text

from server.ab_report import Tally
from server.campaign import NewCampaign, ScoreType
from server.campaign_scores import CampaignScores
from server.campaigns import Campaigns
from server.comparisons import Comparisons, Tie
from server.errors import NotFound
from server.feedback import FeedbackStore, new_feedback
from server.interactions import Interactions, Sought
from server.outcomes import Outcomes
from server.project_metrics import MetricKind, ProjectMetrics, Scoring
from server.projects import Projects
from server.store import DEFAULT_ACCOUNT
from server.uploads import Uploads, uploaded

ASKED = [{"role": "user", "content": "Name a fruit."}]


class World:
    """A project with a metric, a campaign by it and one of another project."""

    def __init__(self, store):
        self.database = store.database
        self.metrics = ProjectMetrics(store.database)
        self.stirred = 0
        self.uploads = Uploads(store.database, self._stir)
        self.comparisons = Comparisons(store.database, self._stir)
        self.outcomes = Outcomes(store.database, self._stir)
        self.feedback = FeedbackStore(store.database, self._stir)
        self.scores = CampaignScores(store.database, self.metrics)
        self.campaigns = Campaigns(store.database, self.scores, Projects(store.database, 0.0), self._attached)

    def _stir(self):
        self.stirred += 1

    async def _attached(self, model, project_id):
        return True

    async def begin(self, kind=MetricKind.SCALAR, scoring=Scoring.HIGHER_IS_BETTER, **changes):
        self.metric = await self.metrics.create(
            DEFAULT_ACCOUNT, key="helpful", name="Helpful", kind=kind, scoring=scoring
        )
        new = NewCampaign("launch", "helpful", ("base", "tuned", "third"), **changes)
        self.campaign = await self.campaigns.create(DEFAULT_ACCOUNT, new)
        self.known = await self.scores.metric(DEFAULT_ACCOUNT, self.campaign.metric)

    async def answer(self, model, *values, session_id=None, campaign=True, metric=None, created_at=None):
        """A completion's id, with these scores of it."""
        given = [new_feedback(metric or self.metric, each, created_at=created_at) for each in values]
        campaign_id = self.campaign.id if campaign else None
        made = uploaded(
            DEFAULT_ACCOUNT,
            messages=ASKED,
            text="A pear.",
            model=model,
            session_id=session_id,
            campaign_id=campaign_id,
        )
        return (await self.uploads.add(made, given)).completion_id

    async def direct(self):
        return {each.model: each for each in await self.scores.direct(self.campaign, self.known)}

    async def compared(self):
        return sorted(
            await self.scores.comparisons(self.campaign, self.known),
            key=lambda tally: (tally.first, tally.second, tally.wins),
        )


@pytest.fixture
async def world(store):
    await store.first_key()
    return World(store)


async def test_sessions_are_the_units_of_direct_scores(world):
    """Their means are, of as many scores as each has."""
    await world.begin()
    random = np.random.default_rng(3)
    for model in ("base", "tuned"):
        sessions = {f"{model}-{number}": random.normal(1e6, 2, random.integers(1, 4)) for number in range(12)}
        for session, values in sessions.items():
            await world.answer(model, *values[:1].tolist(), session_id=session)
            if len(values) > 1:
                await world.answer(model, *values[1:].tolist(), session_id=session)
        means = [values.mean() for values in sessions.values()]
        found = (await world.direct())[model]
        assert (found.units, found.scores) == (12, sum(map(len, sessions.values())))
        assert found.mean == pytest.approx(np.mean(means), rel=1e-12)
        assert found.variance == pytest.approx(np.var(means, ddof=1), rel=1e-6)
    assert "third" not in await world.direct()


async def test_a_completion_without_a_session_is_a_unit_by_itself(world):
    await world.begin()
    for value in (1.0, 2.0, 4.0):
        await world.answer("base", value, value)
    async with world.database.writing() as connection:
        await connection.execute(text("UPDATE completions SET session_id = NULL"))
    found = (await world.direct())["base"]
    assert (found.units, found.scores) == (3, 6)
    assert found.variance == pytest.approx(np.var([1, 2, 4], ddof=1))


async def test_scores_of_others_are_not_the_campaigns(world):
    """Of other metrics, and of completions that it did not route."""
    await world.begin()
    other = await world.metrics.create(DEFAULT_ACCOUNT, key="polite", name="Polite", kind=MetricKind.SCALAR)
    await world.answer("base", 1.0)
    await world.answer("base", 9.0, metric=other)
    await world.answer("base", 9.0, campaign=False)
    found = (await world.direct())["base"]
    assert (found.units, found.mean, found.variance) == (1, 1.0, 0.0)
    await world.campaigns.cancel([DEFAULT_ACCOUNT], "launch")
    second = await world.campaigns.create(DEFAULT_ACCOUNT, NewCampaign("second", "helpful", ("base",)))
    assert await world.scores.direct(second, world.known) == []


async def test_outcomes_of_its_sessions_are_scores_of_the_campaign(world):
    await world.begin()
    for session in ("s-1", "s-2", "s-3", "s-4"):
        await world.answer("base" if session != "s-3" else "tuned", session_id=session)
    await world.answer("tuned", session_id="s-4")  # of two variants: neither's
    await world.answer("base", 1.0, session_id="s-1")
    for session, value in (("s-1", 0.0), ("s-2", 3.0), ("s-3", 7.0), ("s-4", 9.0)):
        await world.outcomes.add(DEFAULT_ACCOUNT, world.metric, value, session)
    found = await world.direct()
    base, tuned = found["base"], found["tuned"]
    assert (base.units, base.scores, base.mean) == (2, 3, np.mean([0.5, 3.0]))
    assert (tuned.units, tuned.scores, tuned.mean) == (1, 1, 7.0)


async def test_comparisons_are_counted_by_who_was_preferred(world):
    await world.begin(score_type=ScoreType.COMPARISON)
    base, tuned, third = [await world.answer(each) for each in world.campaign.models]
    for preferred, other, tied in (
        (base, tuned, None),
        (base, tuned, None),
        (tuned, base, None),
        (base, tuned, Tie.GOOD),
        (tuned, base, Tie.BAD),
        (third, base, None),
    ):
        await world.comparisons.add(DEFAULT_ACCOUNT, "helpful", preferred, other, tied=tied)
    assert await world.compared() == [
        Tally("base", "tuned", ties_good=1),
        Tally("base", "tuned", wins=2),
        Tally("third", "base", wins=1),
        Tally("tuned", "base", ties_bad=1),
        Tally("tuned", "base", wins=1),
    ]
    report = await world.campaigns.report(world.campaign)
    assert report.variants[0].comparisons == [
        Tally("base", "tuned", wins=2, losses=1, ties_good=1, ties_bad=1),
        Tally("base", "third", losses=1),
    ]
    assert report.scores == 6


async def test_completions_asked_for_by_name_are_compared_too_but_none_with_its_own_kind(world):
    await world.begin(score_type=ScoreType.COMPARISON)
    routed, named = await world.answer("base"), await world.answer("tuned", campaign=False)
    same, alien = await world.answer("base", campaign=False), await world.answer("alien", campaign=False)
    for other in (named, same, alien):
        await world.comparisons.add(DEFAULT_ACCOUNT, "helpful", routed, other)
    assert await world.compared() == [Tally("base", "tuned", wins=1)]


async def test_comparisons_before_the_campaign_and_by_other_metrics_are_not_its(world):
    await world.begin(score_type=ScoreType.COMPARISON)
    base, tuned = await world.answer("base"), await world.answer("tuned")
    await world.comparisons.add(DEFAULT_ACCOUNT, "helpful", base, tuned)
    await world.comparisons.add(DEFAULT_ACCOUNT, "other", base, tuned)
    assert await world.compared() == [Tally("base", "tuned", wins=1)]
    world.campaign = replace(world.campaign, begin_date=datetime.now(UTC) + timedelta(hours=1))
    assert await world.compared() == []


@pytest.mark.parametrize("score_type", list(ScoreType))
async def test_what_comes_after_its_end_is_not_a_campaigns(world, score_type):
    await world.begin(score_type=score_type)
    base, tuned = await world.answer("base", 1.0), await world.answer("tuned", 2.0)
    await world.comparisons.add(DEFAULT_ACCOUNT, "helpful", base, tuned)
    ended = await world.campaigns.cancel([DEFAULT_ACCOUNT], "launch")
    await world.answer("base", 1.0)
    await world.comparisons.add(DEFAULT_ACCOUNT, "helpful", base, tuned)
    await world.feedback.score(DEFAULT_ACCOUNT, tuned, world.metric, 3.0)
    session = (
        (await Interactions(world.database).list(Sought(DEFAULT_ACCOUNT), limit=1)).interactions[0].session_id
    )
    await world.outcomes.add(DEFAULT_ACCOUNT, world.metric, 3.0, session)
    report = await world.campaigns.report(ended)
    assert report.scores == (2 if score_type is ScoreType.DIRECT else 1)


@pytest.mark.parametrize(
    ("kind", "scoring", "is_bool", "higher"),
    [
        (MetricKind.BOOL, Scoring.LOWER_IS_BETTER, True, False),
        (MetricKind.SCALAR, Scoring.HIGHER_IS_BETTER, False, True),
    ],
)
async def test_a_metric_says_how_its_scores_are_to_be_read(world, kind, scoring, is_bool, higher):
    await world.begin(kind, scoring)
    for name in (world.metric.id, "helpful"):
        known = await world.scores.metric(DEFAULT_ACCOUNT, name)
        assert (known.id, known.key) == (world.metric.id, "helpful")
        assert (known.is_bool, known.higher_is_better) == (is_bool, higher)
    with pytest.raises(NotFound) as caught:
        await world.scores.metric(DEFAULT_ACCOUNT, "none")
    assert caught.value.param == "metric"


async def test_every_kind_of_score_is_heard_of(world):
    """So that campaigns are looked at."""
    await world.begin()
    base, tuned = await world.answer("base", session_id="s"), await world.answer("tuned", 1.0)
    assert world.stirred == 2
    await world.feedback.score(DEFAULT_ACCOUNT, base, world.metric, 1.0)
    assert world.stirred == 3
    chat = (await Interactions(world.database).list(Sought(DEFAULT_ACCOUNT), limit=1)).interactions[0].id
    await world.feedback.add(DEFAULT_ACCOUNT, chat, "helpful", 1.0, reason=None, details=None)
    assert world.stirred == 4
    await world.comparisons.add(DEFAULT_ACCOUNT, "helpful", base, tuned)
    assert world.stirred == 5
    await world.outcomes.add(DEFAULT_ACCOUNT, world.metric, 1.0, "s")
    assert world.stirred == 6


async def test_a_campaign_ends_by_the_scores_that_are_stored(world):
    await world.begin(MetricKind.BOOL, auto_deploy=True, min_scores=10)
    for number in range(40):
        for model, good in (
            ("base", number % 8 == 0),
            ("tuned", number % 8 != 0),
            ("third", number % 8 == 1),
        ):
            await world.answer(model, good)
    await world.campaigns.settle(world.campaign)
    assert (await world.campaigns.get([DEFAULT_ACCOUNT], "launch")).winner == "tuned"
    assert (await Projects(world.database).home(DEFAULT_ACCOUNT)).default_model == "tuned"
