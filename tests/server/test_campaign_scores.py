"""What was thought of an A/B test's variants, on SQLite and on a real PostgreSQL server."""

from dataclasses import astuple
from datetime import timedelta

from server.campaign_scores import CampaignScores
from server.comparisons import Tie
from server.project_metrics import MetricKind
from server.uploads import uploaded
from tests.server.test_completions import MINE, NOW, key, named, world  # noqa: F401  # a fixture


async def test_direct_scores_come_by_variant_in_the_order_they_were_given(world):  # noqa: F811
    """Those of this test alone, by this metric, of the time asked for."""
    run = {"campaign_id": "k", "session_id": None}
    await world.interactions.keep(
        [
            named("a", variant="x", **run | {"session_id": "s"}),
            named("b", variant="y", **run),
            named("c", variant="x", campaign_id="l"),
            named("d"),
            named("e", variant="x", account_id="other", **run),
        ]
    )
    rate = await world.metrics.create(MINE, key="rate", name="r", kind=MetricKind.SCALAR)
    other = await world.metrics.create(MINE, key="other", name="r", kind=MetricKind.SCALAR)
    theirs = await world.metrics.create("other", key="rate", name="r", kind=MetricKind.SCALAR)
    moments = [NOW + timedelta(minutes=each) for each in range(3)]
    await world.feedback.score(MINE, key("b", 1), rate, 2, created_at=moments[1])
    await world.feedback.score(MINE, key("a"), rate, 1, created_at=moments[0])
    await world.feedback.score(MINE, key("a", 1), rate, 3, created_at=moments[2])
    await world.feedback.score(MINE, key("a"), other, 9)
    for each in ("c", "d"):
        await world.feedback.score(MINE, key(each), rate, 9)
    await world.feedback.score("other", key("e", 0, "other"), theirs, 9)
    scores = CampaignScores(world.database)
    expected = [("x", 1.0, "s", moments[0]), ("y", 2.0, None, moments[1]), ("x", 3.0, "s", moments[2])]
    assert [astuple(each) for each in await scores.direct(MINE, "k", "rate")] == expected
    between = await scores.direct(MINE, "k", "rate", since=moments[1], until=moments[2])
    assert [astuple(each) for each in between] == expected[1:2]
    assert await scores.direct("other", "k", "other") == []


async def test_comparisons_come_by_both_variants(world):  # noqa: F811
    """Of two variants of the test; texts that were uploaded count where their models are variants."""
    await world.interactions.keep(
        [
            named("a", campaign_id="k", variant="x", session_id="s"),
            named("b", campaign_id="k", variant="y", session_id=None),
            named("c", campaign_id="l", variant="y"),
            named("d", model="m-y"),
        ]
    )
    await world.metrics.create(MINE, key="rate", name="r", kind=MetricKind.SCALAR)
    texts = [
        uploaded(MINE, messages=[{"role": "user", "content": "?"}], text="t", model=each, session_id="t")
        for each in ("m-x", "m-y", "m-z", "m-x", "m-y")
    ]
    add = world.comparisons.add
    await add(MINE, "rate", key("a"), key("b"))
    await add(MINE, "rate", key("b"), key("a", 1), tied=Tie.BAD)
    await add(MINE, "rate", key("a"), key("a", 1))
    await add(MINE, "rate", key("a"), key("c"))
    await add(MINE, "rate", key("a"), key("d"))
    await add(MINE, "other", key("a"), key("b"))
    await add(MINE, "rate", texts[1], texts[0])
    await add(MINE, "rate", texts[3], texts[2])
    await add(MINE, "rate", key("a"), texts[4])
    scores = CampaignScores(world.database)

    async def told(**more):
        found = await scores.comparisons(MINE, "k", "rate", **more)
        return [(each.preferred, each.other, each.tied) for each in found]

    stored = [("x", "y", None), ("y", "x", Tie.BAD)]
    assert await told() == stored
    variants = {"m-x": "x", "m-y": "y"}
    assert await told(variants=variants) == [*stored, ("y", "x", None), ("x", "y", None)]
    assert await told(until=NOW) == []
    first = (await scores.comparisons(MINE, "k", "rate"))[0]
    assert (first.preferred_session, first.other_session) == ("s", None)
    assert await told(since=first.created_at) == stored
    assert await scores.comparisons("other", "k", "rate") == []
