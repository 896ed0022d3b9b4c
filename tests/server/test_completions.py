"""Completions by themselves, on SQLite and on a real PostgreSQL server."""

from dataclasses import replace
from datetime import UTC, datetime, timedelta
from statistics import fmean, stdev

import pytest
from sqlalchemy import event, text

from server.comparisons import Comparisons, Tie
from server.completion_filter import (
    Against,
    AllOf,
    AnyOf,
    Compared,
    FromSource,
    Labelled,
    Named,
    Not,
    OfCampaign,
    OfModel,
    OfPrompt,
    OfSession,
    OfUser,
    Scored,
    Within,
)
from server.completion_ids import completion_id
from server.completion_pages import MAX_PAGE, Paging
from server.completion_rows import Source, prompt_hash
from server.completions import MAX_GROUPS, Completions, GroupBy, GroupOrder
from server.errors import InvalidRequest, NotFound
from server.feedback import FeedbackStore
from server.interactions import Interactions
from server.project_metrics import MetricKind, ProjectMetrics
from server.store import DEFAULT_ACCOUNT
from tests.server.test_interactions import NOW, ONE

MINE = DEFAULT_ACCOUNT
ANSWERS = ("a pear", "a plum")


def named(name, minutes=0, **changes):
    """An interaction of two choices."""
    choices = [
        {"index": i, "message": {"role": "assistant", "content": each}} for i, each in enumerate(ANSWERS)
    ]
    answer = {**ONE.answer, "id": name, "choices": choices}
    return replace(
        ONE, **{"id": name, "answer": answer, "created_at": NOW + timedelta(minutes=minutes), **changes}
    )


def key(name, choice=0, account=MINE):
    return completion_id(account, name, choice)


@pytest.fixture
async def world(store):
    """Two accounts, and all that keeps and finds completions."""
    await store.first_key()
    async with store.database.writing() as connection:
        await connection.execute(
            text("INSERT INTO accounts VALUES ('other', 'other@localhost', '2026-01-01 00:00:00+00')")
        )

    class World:
        database = store.database
        interactions = Interactions(store.database)
        completions = Completions(store.database)
        feedback = FeedbackStore(store.database)
        metrics = ProjectMetrics(store.database)
        comparisons = Comparisons(store.database)

        async def found(self, *conditions, account=MINE):
            page = await self.completions.list(account, AllOf(conditions), newest_first=False)
            assert page.total == len(page.completions)
            return [(each.interaction.id, each.choice) for each in page.completions]

    return World()


async def test_a_completion_is_found_by_its_id_with_its_scores(world):
    """Each choice has its own; what was given on /v1 is the first one's. Another project's is not there."""
    await world.interactions.keep([named("a"), named("b"), named("a", account_id="other")])
    await world.feedback.add(MINE, "a", "polite", 1, reason="r", details={"by": ["me"]})
    short = await world.metrics.create(MINE, key="short", name="Is short", kind=MetricKind.BOOL)
    at = NOW - timedelta(days=3)
    given = await world.feedback.score(
        MINE, key("a", 1), short, True, reason="so", details="d", user_id="ann", created_at=at
    )
    assert (given.choice, given.value) == (1, 1.0)
    await world.comparisons.add(MINE, "short", key("a", 1), key("b"), tied=Tie.GOOD)
    first = await world.completions.get(MINE, key("a"))
    assert (first.id, first.choice, first.text) == (key("a"), 0, "a pear")
    assert first.interaction == named("a")
    (score,) = first.direct
    assert (score.metric.key, score.metric.kind, score.value) == ("polite", MetricKind.SCALAR, 1.0)
    assert (score.reason, score.details, score.details_text) == ("r", {"by": ["me"]}, '{"by": ["me"]}')
    assert first.comparisons == ()
    second = await world.completions.get(MINE, key("a", 1))
    assert second.text == "a plum"
    assert [(each.id, each.metric, each.created_at) for each in second.direct] == [(given.id, short, at)]
    (comparison,) = second.comparisons
    assert (comparison.metric, comparison.tied) == (short, Tie.GOOD)
    assert (comparison.preferred.id, comparison.preferred.text) == (key("a", 1), "a plum")
    assert (comparison.other.id, comparison.other.model) == (key("b"), "base")
    assert comparison.other.source is Source.LIVE
    assert (await world.completions.get(MINE, key("b"))).comparisons == [comparison]
    assert await world.completions.get("other", key("a")) is None
    assert (await world.completions.get("other", key("a", 0, "other"))).direct == ()
    assert await world.completions.owner(["other", MINE], key("a")) == MINE
    assert await world.completions.owner(["other"], key("a")) is None
    assert [each.choice for each in await world.feedback.list(MINE, "a")] == [1, 0]


async def test_they_are_found_by_what_they_are(world):
    """By every condition alone, denied, and together; never those of another project."""
    prompt = [{"role": "user", "content": "Else?"}]
    await world.interactions.keep(
        [
            named("a", labels={"team": "x"}),
            named("b", 1, model="tuned", labels={"team": "y", "rating": "good"}, session_id=None),
            named("c", 2, messages=prompt, user_id="ann", labels={}, source=Source.OFFLINE),
            named("d", 3, campaign_id="k", variant="base", session_id="s-2", labels={"rating": "bad"}),
            named("a", 4, account_id="other", user_id="ann", labels={"team": "x"}),
        ]
    )
    polite = await world.metrics.create(MINE, key="polite", name="p", kind=MetricKind.SCALAR)
    await world.feedback.score(MINE, key("a", 1), polite, 0.5, reason="kind")
    await world.feedback.score(MINE, key("d"), polite, -1)
    await world.comparisons.add(MINE, "polite", key("b"), key("c", 1))
    both = {name: [(name, 0), (name, 1)] for name in "abcd"}
    everything = [*both["a"], *both["b"], *both["c"], *both["d"]]

    async def check(condition, *expected):
        wanted = [each for part in expected for each in part]
        assert await world.found(condition) == wanted, condition
        assert await world.found(Not(condition)) == [each for each in everything if each not in wanted], (
            condition
        )

    await check(AllOf(), everything)
    await check(AnyOf([]))
    await check(OfModel(["tuned", "none"]), both["b"])
    await check(OfModel([]))
    await check(Within(NOW + timedelta(minutes=1), NOW + timedelta(minutes=3)), both["b"], both["c"])
    await check(Within(), everything)
    await check(OfSession("s-2"), both["d"])
    await check(OfUser(["ann"]), both["c"])
    await check(Named([key("a", 1), key("c"), "none", key("a", 0, "other")]), [("a", 1), ("c", 0)])
    await check(Labelled("team"), both["a"], both["b"])
    await check(Labelled("team", ["x", "z"]), both["a"])
    await check(Labelled("team", []))
    await check(OfPrompt([prompt_hash(prompt)]), both["c"])
    await check(FromSource([Source.OFFLINE, Source.DATASET]), both["c"])
    await check(OfCampaign("k"), both["d"])
    await check(OfCampaign("k", "tuned"))
    await check(Scored("polite"), [("a", 1), ("d", 0)])
    await check(Scored("polite", [(Against.ABOVE, -1), (Against.AT_MOST, 0.5)]), [("a", 1)])
    await check(Scored("polite", [(Against.EQUAL, -1)]), [("d", 0)])
    await check(Scored("polite", [(Against.UNEQUAL, -1)]), [("a", 1)])
    await check(Scored("polite", [(Against.AT_LEAST, -1), (Against.BELOW, 0.5)]), [("d", 0)])
    await check(Scored("polite", reasons=["kind"]), [("a", 1)])
    await check(Scored("short"))
    await check(Compared("polite"), [("b", 0), ("c", 1)])
    await check(AllOf([OfModel(["base"]), Labelled("team")]), both["a"])
    await check(AnyOf([OfUser(["ann"]), AllOf([OfSession("s-2"), Scored("polite")])]), both["c"], [("d", 0)])
    await check(OfUser(["\0"]))
    assert await world.found(OfUser(["ann"]), account="other") == [("a", 0), ("a", 1)]


async def test_pages_follow_one_another(world):
    """By the time they were made, not stored; forwards and backwards, in both orders, from a cursor and an
    offset on. Each page says whether there are more around it."""
    await world.interactions.keep([named(str(each), minutes=each * 5 % 7) for each in range(7)])
    order = [(str(each * 3 % 7), choice) for each in range(7) for choice in (0, 1)]

    async def page(newest_first, **paging):
        found = await world.completions.list(MINE, paging=Paging(**paging), newest_first=newest_first)
        assert found.total == 14
        shown = [(each.interaction.id, each.choice) for each in found.completions]
        return shown, found.cursors, found.has_previous, found.has_next

    for newest_first, expected in ((False, order), (True, order[::-1])):
        seen, after = [], None
        while len(seen) < 14:
            shown, cursors, previous, following = await page(newest_first, first=4, after=after)
            assert (previous, following) == (bool(seen), len(seen) + len(shown) < 14)
            seen, after = seen + shown, cursors[-1]
        assert seen == expected
        seen, before = [], None
        while len(seen) < 14:
            shown, cursors, previous, following = await page(newest_first, last=4, before=before)
            assert (previous, following) == (len(seen) + len(shown) < 14, bool(seen))
            seen, before = shown + seen, cursors[0]
        assert seen == expected
        assert (await page(newest_first, first=2, offset=3))[0] == expected[3:5]
        assert (await page(newest_first, first=2, after=cursors[0], offset=3))[0] == expected[4:6]
        assert (await page(newest_first, first=0))[0] == []
        assert (await page(newest_first))[0] == expected


@pytest.mark.parametrize(
    ("paging", "param"),
    [
        ({"first": -1}, "first"),
        ({"first": MAX_PAGE + 1}, "first"),
        ({"last": MAX_PAGE + 1}, "last"),
        ({"first": 1, "last": 1}, "last"),
        ({"first": 1, "before": "x"}, "before"),
        ({"last": 1, "after": "x"}, "after"),
        ({"offset": -1}, "offset"),
        ({"after": "x"}, "after"),
        ({"after": "é"}, "after"),
        ({"after": "MS4y"}, "after"),
        ({"before": "OTk5OTk5OTk5OTk5OTk5OTk5OTk5OTk5OTkuMS4x", "last": 1}, "before"),
        ({"after": "OTIyMzM3MjAzNjg1NDc3NTgwNy4xLjE="}, "after"),
    ],
)
async def test_a_page_that_is_none_is_refused_by_its_field(paging, param):
    """Before anything is asked of the database."""
    with pytest.raises(InvalidRequest) as refused:
        await Completions(None).list(MINE, paging=Paging(**paging))
    assert refused.value.param == param


async def test_groups_have_their_scores_and_their_latest(world):
    """By model or prompt, the largest first or in the order of their keys, page by page; of the completions
    sought alone."""
    prompts = [[{"role": "user", "content": each}] for each in ("p", "q")]
    await world.interactions.keep(
        [
            named(f"c{each}", each, model="tuned" if each < 2 else "base", messages=prompts[each % 2])
            for each in range(5)
        ]
        + [named("x", account_id="other"), named("z", model="", labels={})]
    )
    scores = {("c0", 0): 1e9 + 1, ("c0", 1): 1e9 + 2, ("c1", 0): 1e9 + 4, ("c4", 0): 3.0}
    rate = await world.metrics.create(MINE, key="rate", name="r", kind=MetricKind.SCALAR)
    for (name, choice), value in scores.items():
        await world.feedback.score(MINE, key(name, choice), rate, value)
    page = await world.completions.groups(MINE, GroupBy.MODEL, shown=3)
    assert (page.total, page.has_next, page.has_previous) == (3, False, False)
    assert [(each.key, each.count) for each in page.groups] == [("base", 6), ("tuned", 4), ("", 2)]
    base, tuned, unnamed = page.groups
    latest = [(each.interaction.id, each.choice) for each in base.completions]
    assert latest == [("c4", 1), ("c4", 0), ("c3", 1)]
    assert [each.value for each in base.completions[1].direct] == [3.0]
    (stats,) = tuned.statistics
    values = [value for value in scores.values() if value > 3]
    assert (stats.metric, stats.count, stats.least, stats.most) == (rate, 3, min(values), max(values))
    assert stats.average == pytest.approx(fmean(values), rel=1e-12)
    assert stats.sum == pytest.approx(sum(values), rel=1e-12)
    assert stats.stddev == pytest.approx(stdev(values), rel=1e-6)
    assert (base.statistics[0].stddev, unnamed.statistics) == (None, ())
    ordered = await world.completions.groups(
        MINE,
        GroupBy.PROMPT,
        Not(OfModel([""])),
        order=GroupOrder.KEY,
        descending=False,
        paging=Paging(first=1),
    )
    hashes = sorted(map(prompt_hash, prompts))
    assert (ordered.total, ordered.has_next, ordered.groups[0].key) == (2, True, hashes[0])
    assert {each.interaction.prompt_hash for each in ordered.groups[0].completions} == {hashes[0]}
    by_key = {"order": GroupOrder.KEY, "descending": False}
    rest = await world.completions.groups(
        MINE, GroupBy.PROMPT, Not(OfModel([""])), paging=Paging(first=5, after=ordered.cursors[0]), **by_key
    )
    assert ([each.key for each in rest.groups], rest.has_next, rest.has_previous) == (
        [hashes[1]],
        False,
        True,
    )
    back = await world.completions.groups(MINE, GroupBy.MODEL, paging=Paging(last=1, before=page.cursors[2]))
    assert [each.key for each in back.groups] == ["tuned"]
    assert (await world.completions.groups(MINE, GroupBy.MODEL, AnyOf([]))).groups == []
    with pytest.raises(InvalidRequest):
        await world.completions.groups(MINE, GroupBy.MODEL, paging=Paging(first=MAX_GROUPS + 1))


async def test_a_page_takes_as_many_statements_however_many_it_shows(world):
    """Scores are asked for together."""
    await world.interactions.keep([named(str(each), each) for each in range(10)])
    polite = await world.metrics.create(MINE, key="polite", name="p", kind=MetricKind.SCALAR)
    for each in range(10):
        await world.feedback.score(MINE, key(str(each)), polite, each)
        await world.comparisons.add(MINE, "polite", key(str(each)), key(str(each), 1))
    asked = []
    engine = world.database._engine.sync_engine
    event.listen(engine, "before_cursor_execute", lambda *args: asked.append(args[2]))
    counts = []
    for size in (1, 20):
        asked.clear()
        page = await world.completions.list(MINE, paging=Paging(first=size))
        assert len(page.completions) == size
        counts.append(len(asked))
    assert counts[0] == counts[1] <= 8


async def test_what_goes_takes_its_completions_and_their_scores(world):
    """Deleted, replaced by one of the same id, or pruned; a comparison goes with either side."""
    polite = await world.metrics.create(MINE, key="polite", name="p", kind=MetricKind.SCALAR)
    await world.interactions.keep([named("a"), named("b"), named("c"), named("d")])
    await world.comparisons.add(MINE, "polite", key("a"), key("b"))
    await world.comparisons.add(MINE, "polite", key("c"), key("a", 1))
    await world.feedback.score(MINE, key("b"), polite, 1)
    await world.interactions.delete(MINE, "a")
    assert await world.completions.get(MINE, key("a")) is None
    assert (await world.completions.get(MINE, key("b"))).comparisons == ()
    await world.interactions.keep([named("b")])
    assert (await world.completions.get(MINE, key("b"))).direct == ()
    with pytest.raises(NotFound) as refused:
        await world.feedback.score(MINE, key("a"), polite, 1)
    assert refused.value.param == "completion_id"
    await world.interactions.prune(most=1, since=NOW - timedelta(days=1))
    assert await world.found() == [("b", 0), ("b", 1)]


async def test_an_upload_stays_as_long_as_what_was_answered_when_it_came(world):
    """However long ago it happened."""
    old = datetime(2020, 1, 1, tzinfo=UTC)
    await world.interactions.keep([named("old", created_at=old), named("up", created_at=old, stored_at=NOW)])
    await world.interactions.prune(most=9, since=NOW - timedelta(days=30))
    assert await world.found() == [("up", 0), ("up", 1)]


def test_the_same_prompt_has_the_same_hash():
    """Whether its text stands alone or in a list; another role, text or call is another prompt."""
    plain = [{"role": "user", "content": "Hi"}]
    assert prompt_hash(plain) == prompt_hash([{"content": [{"type": "text", "text": "Hi"}], "role": "user"}])
    assert prompt_hash(plain) == prompt_hash([{**plain[0], "completion_id": "x", "name": None}])
    others = [
        [{"role": "system", "content": "Hi"}],
        [{"role": "user", "content": "Hi."}],
        [{"role": "user", "content": None}],
        [{**plain[0], "tool_calls": [{"id": "1"}]}],
        plain * 2,
        [],
    ]
    assert len({prompt_hash(each) for each in [plain, *others]}) == 7
