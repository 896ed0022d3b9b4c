"""Who may do what: projects are kept apart, readers read, members make, owners decide."""

from server.roles import Role
from server.store import DEFAULT_ACCOUNT
from tests.server.graphql.conftest import ADAPTER, BASE, EMAIL, SLASHED
from tests.server.graphql.documents import (
    ADD,
    CANCEL,
    COUNT,
    DEPLOY,
    LIST,
    METRIC,
    PROJECT,
    REMOVE,
    SCORE,
    TEST,
    UPDATE,
    campaign,
    failure,
)

DESCRIBE_PROJECT = "query Q($name: IdOrKey!) { project(idOrKey: $name) { key } }"
DESCRIBE_TEST = "query Q($name: IdOrKey!) { abCampaign(idOrKey: $name) { key } }"
DESCRIBE_MODEL = "query Q($name: IdOrKey!) { model(idOrKey: $name) { key } }"
DESCRIBE_METRIC = """
query Q($project: IdOrKey!) { metric(metricIdOrKey: "ok", projectIdOrKey: $project) { id } }
"""
DESCRIBE_COMPLETION = """
query Q($project: IdOrKey!, $id: UUID!) { completion(project: $project, id: $id) { id } }
"""
LIST_TESTS = "query Q($project: IdOrKey) { abCampaigns(filter: {project: $project}) { key } }"


async def test_another_projects_things_are_not_found(world):
    """Neither listed nor looked up, scored, changed or cancelled, by id or by key."""
    (mine,) = await world.keep("mine")
    (theirs,) = await world.keep("theirs", account=world.other)
    metric = (await world.ask(METRIC, project="default", key="ok"))["data"]["createMetric"]
    test = (await world.ask(TEST, input=campaign()))["data"]["createAbCampaign"]
    alias = await world.directory.aliases.put(DEFAULT_ACCOUNT, "kind", model=BASE, defaults={"stop": "."})

    async def ask(query, **variables):
        return await world.ask(query, world.other_key, **variables)

    for project in (DEFAULT_ACCOUNT, "none"):
        for query, variables in (
            (DESCRIBE_COMPLETION, {"project": project, "id": mine}),
            (DESCRIBE_METRIC, {"project": project}),
            (COUNT, {"filter": {"project": project}}),
            (LIST_TESTS, {"project": project}),
            (REMOVE, {"input": {"project": project, "model": "kind"}}),
        ):
            message = failure(await ask(query, **variables))
            assert message.startswith("EntityNotFound: There is no project"), query
        assert (await ask(DESCRIBE_PROJECT, name=project))["data"] == {"project": None}
    for name in ("t", test["id"]):
        assert (await ask(DESCRIBE_TEST, name=name))["data"] == {"abCampaign": None}
        assert "EntityNotFound: There is no A/B test" in failure(await ask(CANCEL, input=name))
    for name in ("kind", alias.id):
        assert (await ask(DESCRIBE_MODEL, name=name))["data"] == {"model": None}
    assert failure(await ask(SCORE, id=mine, metric="ok", value=1)).startswith("EntityNotFound: completion")
    other_metric = await ask(SCORE, id=theirs, metric=metric["id"], value=1)
    assert failure(other_metric).startswith("EntityNotFound: metric")
    for query, expected in (
        ("{ metrics { key } }", {"metrics": []}),
        (LIST_TESTS, {"abCampaigns": []}),
        ("{ models(filter: {}) { key } }", {"models": [{"key": each} for each in (BASE, SLASHED, ADAPTER)]}),
    ):
        assert (await ask(query))["data"] == expected


async def test_a_reader_reads_and_changes_nothing(world, reader):
    (completion,) = await world.keep("one")
    await world.ask(METRIC, project="default", key="ok")
    answer = await world.ask(LIST, reader, project="default")
    assert answer["data"]["completions"]["totalCount"] == 1
    default = {"project": "default"}
    for query, variables in (
        (SCORE, {"id": completion, "metric": "ok", "value": 1}),
        (METRIC, {"project": "default", "key": "other"}),
        (TEST, {"input": campaign()}),
        (PROJECT, {"input": {"name": "x"}}),
        (ADD, {"input": {**default, "models": []}}),
        (REMOVE, {"input": {**default, "model": "x"}}),
        (DEPLOY, {"input": {**default, "model": BASE}}),
        (UPDATE, {"input": {**default, "modelService": "x", "name": "y"}}),
    ):
        answer = await world.ask(query, reader, **variables)
        assert answer["errors"][0]["extensions"]["type"] == "permission_error", query


async def test_a_member_runs_tests_and_an_owner_decides_what_is_the_default(world):
    """A test that deploys its winner changes the default too."""
    projects = world.directory.projects
    shared = await projects.create(DEFAULT_ACCOUNT, key="shared", name="Shared")
    await projects.set_member(shared.id, EMAIL, Role.MEMBER)
    await world.ask(METRIC, project="shared", key="ok")
    await world.ask(ADD, input={"project": "shared", "models": [BASE]})
    default = {"project": "shared", "modelService": BASE, "isDefault": True}
    deploying = campaign("d", "shared", autoDeploy=True)
    for query, given in ((UPDATE, default), (TEST, deploying)):
        assert "needs the role owner" in failure(await world.ask(query, world.other_key, input=given))
    made = await world.ask(TEST, world.other_key, input=campaign("m", "shared"))
    assert made["data"]["createAbCampaign"]["key"] == "m"
    assert (await world.ask(CANCEL, world.other_key, input="m"))["data"] == {"cancelAbCampaign": "m"}
    assert (await world.ask(UPDATE, input=default))["data"]["updateModelService"]["isDefault"]
    made = await world.ask(TEST, input=deploying)
    assert made["data"]["createAbCampaign"]["key"] == "d"


async def test_the_project_that_a_call_is_within_comes_first(world):
    """Where a key stands for an A/B test of several projects."""
    made = {}
    for project in ("default", "second"):
        if project == "second":
            await world.directory.projects.create(DEFAULT_ACCOUNT, key=project, name=project)
        await world.ask(METRIC, project=project, key="ok")
        created = await world.ask(TEST, input=campaign("same", project))
        made[project] = created["data"]["createAbCampaign"]["id"]
    for project, test in made.items():
        async with world.http(**{"openai-project": project}) as http:
            query = {"query": '{ abCampaign(idOrKey: "same") { id } }'}
            answer = (await http.post("/api/graphql", json=query)).json()
        assert answer["data"]["abCampaign"]["id"] == test
