"""POST /api/graphql: what a request may be, and how what goes wrong is told."""

import json
import logging

import pytest

from server.errors import NotFound, Unavailable, graphql_error
from server.store import DEFAULT_ACCOUNT, DEFAULT_EMAIL
from tests.server.graphql.documents import ME, failure


async def post(world, **request):
    async with world.http() as http:
        return await http.post("/api/graphql", **request)


@pytest.mark.parametrize(
    ("request_", "said"),
    [
        ({"content": b"{", "headers": {"content-type": "application/json"}}, "not valid JSON"),
        ({"json": {}}, "query"),
        ({"json": {"query": ""}}, "query"),
        ({"json": {"query": 7}}, "query"),
        ({"json": {"query": ME, "variables": []}}, "variables"),
        ({"json": {"query": ME, "operation": "x"}}, "operation"),
        ({"json": [{"query": ME}]}, "one operation"),
        ({"content": b"null", "headers": {"content-type": "application/json"}}, "object"),
        ({"content": ME.encode(), "headers": {"content-type": "application/graphql"}}, "application/json"),
        ({"json": {"query": "{ a }" + " " * 60_000}}, "query"),
        ({"files": {"0": b"x"}, "data": {"map": "{}"}}, "operations"),
        ({"files": {"0": b"x"}, "data": {"operations": "{", "map": "{}"}}, "operations"),
        ({"files": {"0": b"x"}, "data": {"operations": "{}", "map": '{"9": ["variables.file"]}'}}, "map"),
    ],
)
async def test_a_malformed_request_is_refused(world, request_, said):
    """With 400, which GraphQL over HTTP asks for, and what is wrong with it."""
    response = await post(world, **request_)
    assert response.status_code == 400, response.text
    (error,) = response.json()["errors"]
    assert said in error["message"]


async def test_a_credential_is_needed(world):
    async with world.http("ax_" + "0" * 48) as http:
        response = await http.post("/api/graphql", json={"query": ME})
    assert response.status_code == 401
    assert "API key" in response.json()["errors"][0]["message"]


async def test_what_is_wrong_with_an_operation_is_told_in_the_answer(world):
    """With 200 and no data, where nothing was executed."""
    for query, said in (
        ("{ me {", "Syntax Error"),
        ("{ me { password } }", "password"),
        ("query A { me { email } } query B { me { id } }", "several"),
        ("subscription { jobs { id } }", "Subscriptions"),
        ("mutation { createJob { id } }", "'createJob' is not served here"),
        ("{" + "a " * 20 + "}", "fields at its root"),
        ("query M($p: CursorPageInput!) { me { email } }", "p"),
    ):
        answer = await world.ask(query)
        assert said in failure(answer), query
        assert "data" not in answer
    response = await post(world, json={"query": ME, "operationName": "Other"})
    assert "'Other'" in failure(response.json())


async def test_one_of_several_operations_is_chosen_by_its_name(world):
    query = "query A { me { email } } query B { me { id } }"
    response = await post(world, json={"query": query, "operationName": "B"})
    assert response.json() == {"data": {"me": {"id": DEFAULT_ACCOUNT}}}


async def test_a_multipart_request_is_read(world):
    """One that uploads something asks for what is not served, and is told so."""
    upload = "mutation Up($file: Upload!) { createRecipe(file: $file) { id } }"
    for query, said in ((ME, None), (upload, "'createRecipe' is not served here")):
        operations = {"query": query, "variables": {"file": None}}
        data = {"operations": json.dumps(operations), "map": json.dumps({"0": ["variables.file"]})}
        response = await post(world, data=data, files={"0": ("recipe.py", b"pass")})
        assert response.status_code == 200, response.text
        answer = response.json()
        if said is None:
            assert answer == {"data": {"me": {"email": DEFAULT_EMAIL}}}
        else:
            assert said in failure(answer)


async def test_the_schema_may_be_asked_for(world):
    answer = await world.ask('{ __schema { queryType { name } } __type(name: "Metric") { kind } }')
    assert answer["data"] == {"__schema": {"queryType": {"name": "Query"}}, "__type": {"kind": "OBJECT"}}


async def test_our_own_fault_is_logged_and_told_without_details(world, caplog):
    async def fails(*args, **kwargs):
        raise RuntimeError("the secret")

    world.metrics.list = fails
    with caplog.at_level(logging.ERROR):
        answer = await world.ask("{ metrics { key } }")
    assert failure(answer) == "internal error"
    assert answer["errors"][0]["path"] == ["metrics"]
    assert "the secret" in caplog.text


async def test_what_fails_later_leaves_the_rest(world):
    """A field that may be null is null, the error says where; the kind of the error is told too."""

    async def fails(*args, **kwargs):
        raise Unavailable("The database does not answer.")

    world.metrics.find = fails
    query = '{ me { email } metric(metricIdOrKey: "x", projectIdOrKey: "default") { key } }'
    answer = await world.ask(query)
    assert answer["data"]["metric"] is None
    assert answer["data"]["me"]
    assert failure(answer) == "The database does not answer."
    assert answer["errors"][0]["extensions"]["type"] == "unavailable_error"


@pytest.mark.parametrize(
    ("error", "entity"),
    [
        (NotFound("There is no project 'x'.", param="project"), "project"),
        (NotFound("metric 'x' is not known", param="metric"), "metric"),
        (NotFound("metric 'my-project' is not known", param="metric"), "metric"),
        (NotFound("model 'x' is not served", param="model"), "model"),
        (NotFound("model 'metric-model' is not served", param="models"), "model"),
        (NotFound("There is no account of 'a project'", param="user"), "user"),
        (NotFound("There is no A/B test 'x'.", param="ab_campaign"), None),
        (NotFound("There is no A/B test 'model-x'.", param="ab_campaign"), None),
        (NotFound("EntityNotFound: metric 'x'", param="metric"), "metric"),
    ],
)
def test_the_client_understands_what_is_missing(error, entity):
    """It takes the first word that it knows, anywhere in the message, for what is missing: never another."""
    handling = pytest.importorskip("adaptive_sdk.error_handling", reason="pip install adaptive-sdk")
    message = graphql_error(error)["message"]
    assert message.startswith("EntityNotFound:")
    assert message.count("EntityNotFound") == 1
    read = next((each.value for each in handling.EntityCode if each.value in message.lower()), None)
    assert read == entity
    assert handling.adaptive_error_message_triage(message) is handling.AdaptiveEntityNotFoundError
