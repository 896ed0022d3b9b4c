"""Which interactions are found, how many queries that takes, and what scores they may be given."""

import uuid

import pytest

from server.completion_ids import completion_id
from server.store import DEFAULT_ACCOUNT
from tests.server.graphql.conftest import ADAPTER, BASE
from tests.server.graphql.documents import COUNT, GROUPS, LIST, METRIC, SCORE, failure


@pytest.mark.parametrize(
    ("expression", "expected"),
    [
        ({}, "abc"),
        ({"and": []}, "abc"),
        ({"or": []}, ""),
        ({"or": [{"model": {"eq": ADAPTER}}, {"label": {"key": "team", "value": {"eq": "ads"}}}]}, "bc"),
        ({"not": {"model": {"in": [BASE]}}}, "b"),
        ({"model": {"neq": BASE}}, "b"),
        ({"label": {"key": "team", "value": {"neq": "ads"}}}, "ab"),
        ({"label": {"key": "none"}}, ""),
        ({"scores": {"metric": "stars", "value": {"gte": 2, "lt": 5}}}, "b"),
        ({"scores": {"metric": "stars"}}, "ab"),
        ({"userId": "u-1"}, "c"),
        ({"createdBy": {"in": ["u-1", "u-2"]}}, "c"),
        ({"source": "LIVE", "sessionId": "s-1"}, "abc"),
    ],
)
async def test_conditions_mean_what_they_say(world, expression, expected):
    ids = await world.keep("a")
    ids += await world.keep("b", model=ADAPTER)
    ids += await world.keep("c", labels={"team": "ads"}, user_id="u-1")
    await world.ask(METRIC, project="default", key="stars")
    for index, stars in ((0, 5), (1, 2)):
        await world.ask(SCORE, id=ids[index], metric="stars", value=stars)
    answer = await world.ask(LIST, project="default", filter=expression)
    assert {each["id"] for each in answer["data"]["completions"]["nodes"]} == {
        ids["abc".index(name)] for name in expected
    }


async def test_a_filter_is_sound(world):
    deep = {"model": {"eq": "x"}}
    for _ in range(12):
        deep = {"not": deep}
    for expression, said in (
        (deep, "nests"),
        ({"or": [{"sessionId": str(index)} for index in range(101)]}, "conditions"),
        ({"and": [{}]}, "says nothing"),
        ({"scores": {"metric": "none"}}, "EntityNotFound: metric"),
        ({"completion": {"contains": "pear"}}, "cannot be searched"),
    ):
        assert said in failure(await world.ask(LIST, project="default", filter=expression)), expression
    both = {"project": "default", "sessionId": "s", "advancedFilter": {"and": []}}
    assert "advancedFilter" in failure(await world.ask(COUNT, filter=both))


async def test_a_page_is_sound(world):
    """At most a hundred interactions, or fifty groups of as many; in one order."""
    mine = {"project": "default"}
    for variables, param in (
        ({"page": {"first": 101}}, "page.first"),
        ({"page": {"first": 0}}, "page.first"),
        ({"page": {"first": 1, "last": 1}}, "page.first"),
        ({"page": {"offset": -1}}, "page.offset"),
        ({"page": {"after": "x"}}, "after"),
        ({"order": [{"field": "cost", "order": "ASC"}]}, "order"),
    ):
        answer = await world.ask(COUNT, filter=mine, **variables)
        assert answer["errors"][0]["extensions"]["param"] == param, answer
    await world.keep("one")
    few = {"first": 2}
    for variables, param in (
        ({"page": {"first": 51}, "shown": few}, "page.first"),
        ({"page": few, "shown": {"first": 3}}, "page"),
        ({"page": few, "shown": {"first": 1, "offset": 1}}, "page"),
        ({"page": few, "shown": few, "order": [{"field": "cost", "order": "ASC"}]}, "order"),
        ({"page": few, "shown": few, "inner": [{"field": "created_at", "order": "ASC"}]}, "order"),
    ):
        answer = await world.ask(GROUPS, **variables)
        assert answer["errors"][0]["extensions"]["param"] == param, answer


async def test_groups_come_in_the_order_asked_for(world):
    """By their key unless by their count; each shows its latest."""
    ids = await world.keep("a", "b", "c", model="zebra")
    await world.keep("d", model="ant")
    for order, expected in (
        (None, ["ant", "zebra"]),
        ([{"field": "group", "order": "DESC"}], ["zebra", "ant"]),
        ([{"field": "count", "order": "DESC"}], ["zebra", "ant"]),
        ([{"field": "count", "order": "ASC"}], ["ant", "zebra"]),
    ):
        answer = await world.ask(GROUPS, page={"first": 2}, shown={"first": 2}, order=order)
        groups = answer["data"]["completionsGrouped"]["nodes"]
        assert [each["key"] for each in groups] == expected
        shown = next(each for each in groups if each["key"] == "zebra")["completions"]["nodes"]
        assert [each["id"] for each in shown] == [ids[2], ids[1]]


async def test_a_page_takes_as_many_queries_however_long_it_is(world):
    """Scores, comparisons and what they name are read together, for one interaction as for fifty."""
    first = await world.keep(*(f"c{index}" for index in range(50)))
    await world.ask(METRIC, project="default", key="ok")
    for completion, other in zip(first, [*first[1:], first[0]], strict=True):
        await world.ask(SCORE, id=completion, metric="ok", value=1)
        await world.comparisons.add(DEFAULT_ACCOUNT, "ok", completion, other, tied=None, user_id=None)
    counts = []
    for size in (1, 50):
        async with world.counted() as statements:
            answer = await world.ask(LIST, project="default", page={"first": size})
        nodes = answer["data"]["completions"]["nodes"]
        assert len(nodes) == size
        assert all(len(each["comparisonScores"]) == 2 for each in nodes)
        assert all(each["directScores"][0]["metric"]["hasComparisonScores"] for each in nodes)
        counts.append(len(statements))
    assert counts[0] == counts[1] <= 30, counts


async def test_projects_take_as_many_queries_however_many_there_are(world):
    query = (
        "{ projects { key metrics { key } modelServices { key model { key } } permissions"
        " shares { team { key } role { key } } } }"
    )
    counts = []
    for name in ("p1", "p2", "p3"):
        made = await world.directory.projects.create(DEFAULT_ACCOUNT, key=name, name=name)
        await world.directory.aliases.put(made.id, "kind", model=BASE, defaults={})
        async with world.counted() as statements:
            answer = await world.ask(query)
        assert "errors" not in answer
        counts.append(len(statements))
    assert counts[0] == counts[2], counts


async def test_a_score_needs_a_stored_completion_and_a_fitting_value(world):
    await world.ask(METRIC, project="default", key="stars")
    for name in (str(uuid.uuid4()), completion_id(DEFAULT_ACCOUNT, "unstored", 0)):
        answer = await world.ask(SCORE, id=name, metric="stars", value=1)
        assert failure(answer).startswith("EntityNotFound: completion")
    (completion,) = await world.keep("one")
    for value in ("much", None, [1], True):
        answer = await world.ask(SCORE, id=completion, metric="stars", value=value)
        assert answer["errors"], value
        assert answer.get("data") is None
    assert "UUID" in failure(await world.ask(SCORE, id="chatcmpl-1", metric="stars", value=1))


async def test_an_answer_does_not_grow_without_end(world, monkeypatch):
    """What leads back to itself, projects to models to projects, and a comparison to its sides', stops."""
    monkeypatch.setattr("server.graphql.context.MAX_PROJECTS", 200)
    for index in range(6):
        made = await world.directory.projects.create(DEFAULT_ACCOUNT, key=f"p{index}", name="x")
        await world.directory.aliases.put(made.id, BASE, model=BASE, defaults={})
    models = "modelServices { model { projects { key } } }"
    assert "errors" not in await world.ask(f"{{ projects {{ {models} }} }}")
    for _ in range(3):
        models = f"modelServices {{ model {{ projects {{ {models} }} }} }}"
    answer = await world.ask(f"{{ projects {{ {models} }} }}")
    assert {"ask for less" in each["message"] for each in answer["errors"]} == {True}


async def test_what_goes_wrong_often_is_told_a_few_times(world):
    """And how often it did. The comparisons of a comparison's side lead back to it, and are refused."""
    first, *others = await world.keep(*(f"c{index}" for index in range(12)))
    await world.ask(METRIC, project="default", key="ok")
    for other in others:
        await world.comparisons.add(DEFAULT_ACCOUNT, "ok", first, other, tied=None, user_id=None)
    query = """
    query Q($id: UUID!) {
      completion(project: "default", id: $id) {
        comparisonScores { preferedCompletion { id FIELD { id } } otherCompletion { id FIELD { id } } }
      }
    }
    """
    answer = await world.ask(query.replace("FIELD", "comparisonScores"), id=first)
    *errors, more = answer["errors"]
    assert {each["extensions"]["param"] for each in errors} == {"comparisonScores"}
    assert (len(errors), more) == (20, {"message": "There are 2 more errors."})
    answer = await world.ask(query.replace("FIELD", "directScores"), id=first)
    assert len(answer["data"]["completion"]["comparisonScores"]) == 11
