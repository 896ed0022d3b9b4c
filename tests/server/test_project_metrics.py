"""Metrics of projects, on SQLite and on a real PostgreSQL server, and what their scores may be."""

import asyncio
import math

import pytest

from server.errors import Conflict, InvalidRequest, NotFound
from server.feedback import FeedbackStore
from server.project_metrics import MAX_METRIC, Metric, MetricKind, MetricUse, Scoring
from server.store import DEFAULT_ACCOUNT
from tests.server.test_completions import NOW, key, named, world  # noqa: F401  # a fixture

SCALAR = Metric("i", "a", "rate", "Rate", MetricKind.SCALAR, Scoring.LOWER_IS_BETTER, "", None, NOW)
BOOL = Metric("i", "a", "good", "Good", MetricKind.BOOL, Scoring.HIGHER_IS_BETTER, "", None, NOW)


async def test_a_metric_is_made_found_and_listed(world):  # noqa: F811
    """By its id or its key, in its own project; a key is there once."""
    metrics = world.metrics
    made = await metrics.create(
        DEFAULT_ACCOUNT,
        key="rate",
        name="Rate",
        kind=MetricKind.SCALAR,
        scoring=Scoring.LOWER_IS_BETTER,
        description="How slow\0",
        unit="ms",
    )
    assert (made.key, made.name, made.unit, made.scoring) == ("rate", "Rate", "ms", Scoring.LOWER_IS_BETTER)
    named_only = await metrics.create(DEFAULT_ACCOUNT, key=None, name="short", kind=MetricKind.BOOL)
    assert named_only.key == "short"
    other = await metrics.create("other", key="rate", name="Theirs", kind=MetricKind.BOOL)
    assert await metrics.get(DEFAULT_ACCOUNT, "rate") == made
    assert await metrics.get(DEFAULT_ACCOUNT, made.id) == made
    assert await metrics.get("other", "rate") == other
    assert await metrics.find(DEFAULT_ACCOUNT, other.id) is None
    assert list(await metrics.list([DEFAULT_ACCOUNT])) == [made, named_only]
    assert list(await metrics.list([DEFAULT_ACCOUNT, "other"])) == [made, named_only, other]
    with pytest.raises(Conflict, match="'rate'"):
        await metrics.create(DEFAULT_ACCOUNT, key="rate", name="Again", kind=MetricKind.BOOL)
    with pytest.raises(NotFound, match="metric 'stars'") as refused:
        await metrics.get(DEFAULT_ACCOUNT, "stars")
    assert refused.value.param == "metric"
    for wrong in ({"key": ""}, {"key": "x" * (MAX_METRIC + 1)}, {"name": ""}, {"unit": "x" * 201}):
        with pytest.raises(InvalidRequest) as refused:
            await metrics.create(
                DEFAULT_ACCOUNT, **{"key": "k", "name": "n", "kind": MetricKind.BOOL, **wrong}
            )
        assert refused.value.param == next(iter(wrong))


async def test_one_key_is_one_metric_however_many_make_it(world):  # noqa: F811
    """At the same time: scores on /v1 make it once, and of those who create it one does."""
    await world.interactions.keep([named("a")])
    feedback = FeedbackStore(world.database)
    given = (feedback.add(DEFAULT_ACCOUNT, "a", "rate", each, reason=None, details=None) for each in range(4))
    await asyncio.gather(*given)
    assert [each.key for each in await world.metrics.list([DEFAULT_ACCOUNT])] == ["rate"]
    creations = (
        world.metrics.create(DEFAULT_ACCOUNT, key="new", name="n", kind=MetricKind.BOOL) for _ in range(4)
    )
    made = await asyncio.gather(*creations, return_exceptions=True)
    assert sum(isinstance(each, Conflict) for each in made) == 3


async def test_it_is_known_how_metrics_are_used(world):  # noqa: F811
    """In their own project."""
    await world.interactions.keep([named("a"), named("b", account_id="other")])
    made = [
        await world.metrics.create(account, key=each, name=each, kind=MetricKind.SCALAR)
        for account, each in (("other", "x"), (DEFAULT_ACCOUNT, "x"), (DEFAULT_ACCOUNT, "y"))
    ]
    await world.feedback.score(DEFAULT_ACCOUNT, key("a"), made[1], 1)
    await world.comparisons.add(DEFAULT_ACCOUNT, "y", key("a"), key("a", 1))
    uses = await world.metrics.uses(made)
    assert [uses[each.id] for each in made] == [
        MetricUse(False, False),
        MetricUse(True, False),
        MetricUse(False, True),
    ]
    assert await world.metrics.uses([]) == {}


@pytest.mark.parametrize(
    ("metric", "given", "value"),
    [
        (SCALAR, 1, 1.0),
        (SCALAR, -2.5, -2.5),
        (SCALAR, 0, 0.0),
        (BOOL, True, 1.0),
        (BOOL, 0, 0.0),
        (BOOL, 1.0, 1.0),
    ],
)
def test_a_score_is_a_number(metric, given, value):
    made = metric.value(given)
    assert (made, type(made)) == (value, float)


@pytest.mark.parametrize(
    ("metric", "given"),
    [
        *((SCALAR, each) for each in (True, "1", None, math.nan, math.inf, 10**400, [1])),
        *((BOOL, each) for each in (2, 0.5, "true", None, -1, math.nan, {})),
    ],
)
def test_a_score_of_another_kind_is_refused(metric, given):
    """The message says what would be right."""
    with pytest.raises(InvalidRequest, match=r"true and false" if metric is BOOL else r"finite") as refused:
        metric.value(given, "feedbacks.0.value")
    assert refused.value.param == "feedbacks.0.value"
