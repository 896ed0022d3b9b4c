"""Adaptive's SDK asks, and reads the answers: every operation of the inference workflow."""

import uuid
from datetime import UTC, datetime, timedelta

import pytest

from server.comparisons import Tie
from server.roles import Role
from server.store import DEFAULT_ACCOUNT, DEFAULT_EMAIL
from tests.server.graphql.conftest import ADAPTER, BASE, EMAIL, SLASHED
from tests.server.test_interactions import NOW, ONE

NAMESPACE = uuid.UUID("5a0f0f0e-53a4-5c0f-9a43-5d1f6f3e4b02")  # of the ids of served models: it stays


async def test_a_metric_is_registered_found_and_listed(world, sdk):
    made = await sdk.feedback.register_key(
        "default", "helpful", "bool", "lower_is_better", "Helpful?", "Was it?"
    )
    assert (made.key, made.name, made.kind.value, made.description) == (
        "helpful",
        "Helpful?",
        "BOOL",
        "Was it?",
    )
    assert made.scoring_type.value == "LOWER_IS_BETTER"
    assert (made.has_direct_scores, made.has_comparison_scores) == (False, False)
    assert abs(made.created_at / 1000 - datetime.now(UTC).timestamp()) < 60
    for project, name in (("default", "helpful"), (DEFAULT_ACCOUNT, made.id)):
        assert (await sdk.feedback.get_key(project, name)).model_dump() == made.model_dump()
    assert await sdk.feedback.get_key("default", "none") is None
    await world.directory.projects.create(DEFAULT_ACCOUNT, key="p2", name="Second")
    await sdk.feedback.register_key("p2", "helpful", "scalar")
    listed = await sdk.feedback.list_keys()
    assert [(each.kind.value, [p.key for p in each.projects]) for each in listed] == [
        ("BOOL", ["default"]),
        ("SCALAR", ["p2"]),
    ]


async def test_a_completion_is_scored_and_shows_its_scores(world, sdk):
    """By key and by id, numbers and booleans; the metric then says that it has scores."""
    (completion,) = await world.keep("one")
    bool_ = await sdk.feedback.register_key("default", "ok", "bool")
    scalar = await sdk.feedback.register_key("default", "stars", "scalar")
    first = await sdk.feedback.log_metric(True, completion, "ok", details="fine 0x")
    second = await sdk.feedback.log_metric(4.5, completion, scalar.id)
    found = await sdk.interactions.get(completion)
    assert [(score.id, score.value, score.metric.key) for score in found.direct_scores] == [
        (str(first.feedback_id), 1.0, "ok"),
        (str(second.feedback_id), 4.5, "stars"),
    ]
    assert "fine" in found.direct_scores[0].details
    assert "0x" not in found.direct_scores[0].details
    assert found.direct_scores[1].details is None
    assert found.direct_scores[0].metric.has_direct_scores
    assert (await sdk.feedback.get_key("default", bool_.id)).has_direct_scores


async def test_an_interaction_reads_as_it_was(world, sdk):
    """Messages as text, labels, tokens, timings; another's or an unknown one is none."""
    (completion,) = await world.keep("one")
    found = await sdk.interactions.get(completion)
    assert found.id == completion
    assert found.completion == "a pear"
    stored = await world.interactions.get(DEFAULT_ACCOUNT, "one")
    assert [(each.role, each.content) for each in found.chat_messages] == [
        ("user", stored.messages[0]["content"][0]["text"])
    ]
    assert {each.key: each.value for each in found.labels} == dict(ONE.labels)
    assert found.source.value == "LIVE"
    assert (found.model.key, found.model.name) == (BASE, BASE)
    assert found.created_at == int(NOW.timestamp() * 1000)
    usage = found.metadata.usage
    assert (usage.prompt_tokens, usage.completion_tokens, usage.total_tokens) == (7, 2, 9)
    assert found.metadata.parameters == {"temperature": 0, "stop": None}
    assert found.metadata.timings == {"latency_ms": 12.5, "first_token_ms": 3.25}
    assert found.metadata.system == {"steering": {"dose": 0.1}}
    assert (found.direct_scores, found.comparison_scores) == ([], [])
    assert await sdk.interactions.get(str(uuid.uuid4())) is None
    (foreign,) = await world.keep("foreign", account=world.other)
    assert await sdk.interactions.get(foreign) is None


async def test_pages_of_interactions_follow_one_another(world, sdk):
    """Newest first unless asked otherwise; each page tells where the next one begins."""
    names = [f"c{index}" for index in range(5)]
    ids = []
    for index, name in enumerate(names):
        ids += await world.keep(name, created_at=NOW + timedelta(minutes=index))
    page = await sdk.interactions.list(page={"first": 2})
    assert (page.total_count, page.page_info.has_next_page) == (5, True)
    assert [each.id for each in page.nodes] == [ids[4], ids[3]]
    page = await sdk.interactions.list(page={"first": 3, "after": page.page_info.end_cursor})
    assert [each.id for each in page.nodes] == [ids[2], ids[1], ids[0]]
    assert not page.page_info.has_next_page
    oldest = await sdk.interactions.list(order=[{"field": "created_at", "order": "ASC"}], page={"first": 1})
    assert [each.id for each in oldest.nodes] == [ids[0]]


@pytest.mark.parametrize(
    ("filters", "expected"),
    [
        ({}, {"a", "b", "c"}),
        ({"models": [BASE]}, {"a", "c"}),
        ({"models": [BASE, ADAPTER]}, {"a", "b", "c"}),
        ({"labels": [{"key": "team", "value": ["search"]}]}, {"a", "b"}),
        ({"labels": [{"key": "team"}]}, {"a", "b", "c"}),
        ({"session_id": "s-9"}, {"c"}),
        ({"source": ["OFFLINE"]}, set()),
        ({"timerange": {"from_": NOW.isoformat(), "to": (NOW + timedelta(hours=1)).isoformat()}}, {"a", "b"}),
        ({"timerange": {"from_": 0, "to": 1}}, set()),
    ],
)
async def test_interactions_are_found_by_what_is_known_of_them(world, sdk, filters, expected):
    ids = dict(zip("a", await world.keep("a"), strict=True))
    ids |= dict(zip("b", await world.keep("b", model=ADAPTER), strict=True))
    ids |= dict(
        zip(
            "c",
            await world.keep(
                "c", session_id="s-9", labels={"team": "ads"}, created_at=NOW + timedelta(days=1)
            ),
            strict=True,
        )
    )
    page = await sdk.interactions.list(filters=filters)
    assert {each.id for each in page.nodes} == {ids[name] for name in expected}
    assert page.total_count == len(expected)


async def test_interactions_are_grouped(world, sdk):
    """By model, with the statistics of their scores and their latest; the page is of groups."""
    first, second, third = await world.keep("a", "b", "c")
    (poem,) = await world.keep("d", model=ADAPTER)
    await sdk.feedback.register_key("default", "stars", "scalar")
    for completion, stars in ((first, 1), (second, 2), (third, 6), (poem, 5)):
        await sdk.feedback.log_metric(stars, completion, "stars")
    grouped = await sdk.interactions.list(group_by="model")
    assert (grouped.total_count, grouped.group_by.value) == (2, "MODEL")
    assert [(group.key, group.count) for group in grouped.nodes] == [(BASE, 3), (ADAPTER, 1)]
    stats = grouped.nodes[0].direct_scores_stats[0]
    assert (stats.metric.key, stats.scores, stats.average, stats.min, stats.max, stats.sum) == (
        "stars",
        3,
        3.0,
        1.0,
        6.0,
        9.0,
    )
    assert stats.stddev == pytest.approx(7**0.5)
    assert {each.id for each in grouped.nodes[0].completions.nodes} == {first, second, third}
    page = await sdk.interactions.list(group_by="model", page={"first": 1})
    assert [group.key for group in page.nodes] == [BASE]
    page = await sdk.interactions.list(
        group_by="model", page={"first": 1, "after": page.page_info.end_cursor}
    )
    assert [group.key for group in page.nodes] == [ADAPTER]
    assert len(page.nodes[0].completions.nodes) == 1
    by_prompt = await sdk.interactions.list(group_by="prompt")
    assert [group.count for group in by_prompt.nodes] == [4]


async def test_a_comparison_shows_both_its_sides(world, sdk):
    first, second = await world.keep("a", "b")
    await sdk.feedback.register_key("default", "better", "bool")
    made = await world.comparisons.add(DEFAULT_ACCOUNT, "better", first, second, tied=Tie.GOOD, user_id=None)
    (score,) = (await sdk.interactions.get(second)).comparison_scores
    assert (score.id, score.metric.key, score.project.key) == (made.id, "better", "default")
    assert (score.prefered_completion.id, score.other_completion.id) == (first, second)
    assert (score.prefered_completion.completion, score.other_completion.model.key) == ("a pear", BASE)
    assert (await sdk.feedback.get_key("default", "better")).has_comparison_scores


async def test_an_ab_test_is_made_found_and_cancelled(world, sdk):
    metric = await sdk.feedback.register_key("default", "ok", "bool")
    made = await sdk.ab_tests.create("first", "ok", [BASE, ADAPTER], traffic_split=0.5)
    assert (made.key, made.status.value) == ("first", "WARMUP")
    found = await sdk.ab_tests.get("first")
    assert (found.id, found.traffic_split, found.score_type.value) == (made.id, 0.5, "DIRECT")
    assert found.metric.model_dump() == metric.model_dump()
    assert (found.project.key, found.end_date, found.scores, found.has_enough_scores) == (
        "default",
        None,
        0,
        False,
    )
    assert [each.key for each in found.models] == [BASE, ADAPTER]
    assert [each.variant.key for each in found.report.variants] == [BASE, ADAPTER]
    assert found.report.p_value is None
    assert [each.id for each in await sdk.ab_tests.list(active=True)] == [made.id]
    assert await sdk.ab_tests.list(active=False) == []
    assert await sdk.ab_tests.cancel("first") == "first"
    assert [each.status.value for each in await sdk.ab_tests.list(status="cancelled")] == ["CANCELLED"]
    assert await sdk.ab_tests.get("none") is None


async def test_an_ab_test_compares_by_preference_too(world, sdk):
    await sdk.feedback.register_key("default", "better", "bool")
    await sdk.ab_tests.create("second", "better", [BASE, ADAPTER], feedback_type="preference")
    found = await sdk.ab_tests.get("second")
    assert found.score_type.value == "COMPARISON"
    assert [[other.variant.key for other in each.comparisons] for each in found.report.variants] in (
        [[ADAPTER], [BASE]],
        [[], []],
    )


async def test_models_are_what_is_served_and_what_projects_call_it(world, sdk):
    """Adapters on their base; an alias on what it names; the same ids at every start."""
    await world.directory.aliases.put(DEFAULT_ACCOUNT, "kind", model=BASE, defaults={"temperature": 0})
    models = {each.key: each for each in await sdk.models.list()}
    assert set(models) == {BASE, SLASHED, ADAPTER, "kind"}
    assert {each.online.value for each in models.values()} == {"ONLINE"}
    assert (models[ADAPTER].is_adapter, models[ADAPTER].backbone.key) == (True, BASE)
    assert (models["kind"].is_adapter, models["kind"].backbone.key) == (False, BASE)
    assert [each.key for each in models["kind"].projects] == ["default"]
    assert models[BASE].backbone is None
    for key, each in models.items():
        assert (await sdk.models.get(key)).id == (await sdk.models.get(each.id)).id == each.id
    assert await sdk.models.get("gpt-2") is None
    assert models[BASE].id == str(uuid.uuid5(NAMESPACE, BASE))


@pytest.mark.parametrize(
    ("filter", "count"),
    [
        ({"online": ["ONLINE"]}, 3),
        ({"online": ["OFFLINE"]}, 0),
        ({"available": True, "in_storage": True, "published": True, "view_all": True}, 3),
        ({"trainable": True}, 0),
        ({"capabilities": {"any": ["Embedding", "TextGeneration"]}}, 3),
        ({"capabilities": {"all": ["Embedding", "TextGeneration"]}}, 0),
    ],
)
async def test_models_are_found_by_what_they_can(sdk, filter, count):
    assert len(await sdk.models.list(filter)) == count


async def test_a_model_is_attached_made_the_default_and_removed(world, sdk):
    """A name with a slash loses its owner; attaching again changes nothing."""
    client = sdk._gql_client
    inputs = pytest.importorskip("adaptive_sdk.graphql_client")
    added = inputs.AddModelsToProjectInput(project="default", models=[SLASHED, "gpt-2"])
    for _ in range(2):
        told = (await client.add_models_to_project(added)).add_models_to_project
        assert not told.success
        assert [each.model for each in told.failures] == ["gpt-2"]
    wanted = inputs.DeployModelInput(project="default", model=SLASHED, wait=True)
    deployed = (await client.deploy_model(wanted)).deploy_model
    service = deployed.model_service
    assert (service.key, service.name, service.is_default, deployed.warnings) == ("tiny", SLASHED, False, [])
    assert (service.model.key, service.desired_online) == (SLASHED, True)
    assert (await sdk.models.update(SLASHED, is_default=True, desired_online=True)).is_default
    project = await sdk.projects.get("default")
    assert [(each.key, each.is_default) for each in project.model_services] == [("tiny", True)]
    assert (await world.directory.projects.home(DEFAULT_ACCOUNT)).default_model == "tiny"
    assert not (await sdk.models.update(service.id, is_default=False)).is_default
    removed = inputs.RemoveModelFromProjectInput(project="default", model="tiny")
    assert (await client.remove_model_from_project(removed)).remove_model_from_project
    assert (await sdk.projects.get("default")).model_services == []


async def test_a_project_is_made_and_listed_with_what_it_has(world, sdk):
    made = await sdk.projects.create("support", "Customer support", "Answers")
    assert (made.key, made.name, made.description, made.model_services) == (
        "support",
        "Customer support",
        "Answers",
        [],
    )
    await sdk.feedback.register_key("support", "ok", "bool")
    await world.directory.projects.set_member(made.id, EMAIL, Role.READER)
    listed = {each.key: each for each in await sdk.projects.list()}
    assert set(listed) == {"default", "support"}
    assert [each.key for each in listed["support"].metrics] == ["ok"]
    assert [(each.team.key, each.role.key, each.is_owner) for each in listed["support"].shares] == [
        (DEFAULT_EMAIL, "owner", True),
        (EMAIL, "read-only", False),
    ]
    assert [each.team.key for each in listed["default"].shares] == [DEFAULT_EMAIL]
    assert "project:update" in listed["support"].permissions
    async with world.sdk(world.other_key) as other:
        seen = await other.projects.get("support")
        assert "project:update" not in seen.permissions
        assert await other.projects.get("none") is None


async def test_who_calls(world, sdk):
    me = await sdk.users.me()
    assert (me.id, me.email) == (DEFAULT_ACCOUNT, DEFAULT_EMAIL)
    assert [each.role.key for each in me.teams] == ["owner"]
    async with world.sdk(world.other_key) as other:
        assert (await other.users.me()).email == EMAIL
