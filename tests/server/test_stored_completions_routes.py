"""Stored chat completions over HTTP, as OpenAI's client asks for them and parses them."""

import json
from dataclasses import replace
from types import SimpleNamespace

import httpx
import openai
import pytest
from sqlalchemy import text

from server.auth import Authentication, KeyRing
from server.feedback import FeedbackStore
from server.interaction_log import InteractionLog, Keep
from server.interactions import Interactions
from server.redaction import Redaction
from server.routes import feedback
from server.routes.stored_completions import router
from server.wire import StoredFields
from tests.server.apps import routes_alone
from tests.server.test_interaction_log import transcript
from tests.server.test_interactions import ONE, named

PATH = "/v1/chat/completions"


@pytest.fixture
async def world(store):
    """Two accounts' clients: plain HTTP with `get`, and what it takes to make OpenAI's."""
    app = routes_alone(feedback.router, router)
    key = await store.first_key()
    async with store.database.writing() as connection:
        await connection.execute(
            text("INSERT INTO accounts VALUES ('other', 'other@localhost', '2026-01-01 00:00:00+00')")
        )
    interactions = Interactions(store.database)
    log = InteractionLog(interactions, which=Keep.ASKED, most=100, days=9999, redaction=Redaction(["0x"]))
    app.state.steersman = SimpleNamespace(
        interactions=interactions, interaction_log=log, feedback=FeedbackStore(store.database)
    )
    signed = Authentication(app, KeyRing(store.find_key, ttl=60), lambda method, outcome: None)
    other = (await store.create_key("other", None)).key
    async with httpx.AsyncClient(
        transport=httpx.ASGITransport(signed), base_url="http://test", headers={"x-api-key": key}
    ) as http:
        yield SimpleNamespace(
            http=http, interactions=interactions, log=log, app=signed, key=key, other={"x-api-key": other}
        )


@pytest.fixture
async def client(world):
    """OpenAI's own, which talks to the application in this process."""
    httpx2 = pytest.importorskip("httpx2", reason="an older client of OpenAI's")
    transport = httpx2.ASGITransport(world.app)
    async with (
        httpx2.AsyncClient(transport=transport) as http,
        openai.AsyncOpenAI(
            base_url="http://test/v1", api_key=world.key, http_client=http, max_retries=0
        ) as made,
    ):
        yield made


async def test_the_client_reads_a_stored_completion(world, client):
    """Its own fields filled, what was asked told beside the answer, the evidence as it was."""
    await world.interactions.keep([ONE])
    found = await client.chat.completions.retrieve(ONE.id)
    assert (found.id, found.object, found.created, found.model) == (
        ONE.id,
        "chat.completion",
        ONE.answer["created"],
        "base",
    )
    assert found.choices[0].message.content == "a pear"
    assert found.usage.total_tokens == 9
    assert found.metadata == dict(ONE.labels)
    extra = found.model_extra
    assert (extra["temperature"], extra["seed"], extra["session_id"]) == (0, None, "s-1")
    assert extra["steersman"] == {"steering": {"dose": 0.1}}


async def test_the_client_walks_all_pages(world, client):
    """In both orders, filtered by model and by label."""
    names = [f"c{index}" for index in range(5)]
    await world.interactions.keep([named(name) for name in names])
    await world.interactions.keep([named("adapted", model="adapter", labels={"team": "a&b=c [x]"})])

    async def listed(**asked):
        return [each.id async for each in client.chat.completions.list(limit=2, **asked)]

    assert await listed() == [*names, "adapted"]
    assert await listed(order="desc") == ["adapted", *names[::-1]]
    assert await listed(model="adapter") == ["adapted"]
    assert await listed(metadata={"team": "search", "rating": "good"}) == names
    assert await listed(metadata={"team": "a&b=c [x]"}) == ["adapted"]
    assert await listed(metadata={}) == [*names, "adapted"]
    assert await listed(after="c3") == ["c4", "adapted"]
    page = await client.chat.completions.list(limit=2)
    assert page.has_more
    assert page.model_extra["first_id"] == "c0"
    assert page.model_extra["last_id"] == "c1"


async def test_the_client_changes_and_deletes(world, client):
    await world.interactions.keep([ONE, named("b")])
    changed = await client.chat.completions.update(ONE.id, metadata={"rating": "bad 0xff"})
    assert changed.metadata == {"rating": "bad [redacted]ff"}
    assert (await client.chat.completions.retrieve(ONE.id)).metadata == changed.metadata
    assert (await client.chat.completions.update(ONE.id, metadata=None)).metadata == {}
    gone = await client.chat.completions.delete(ONE.id)
    assert (gone.id, gone.deleted, gone.object) == (ONE.id, True, "chat.completion.deleted")
    with pytest.raises(openai.NotFoundError) as refused:
        await client.chat.completions.retrieve(ONE.id)
    assert refused.value.param == "completion_id"
    assert [each.id async for each in client.chat.completions.list()] == ["b"]


async def test_the_client_reads_the_messages(world, client):
    """Texts as content, lists of parts as parts, in pages of either order."""
    messages = [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": [{"type": "text", "text": "Hi"}], "name": "Ann"},
        {"role": "assistant", "content": None, "tool_calls": [{"id": "t", "type": "function"}]},
    ]
    await world.interactions.keep([replace(ONE, messages=messages)])
    found = [each async for each in client.chat.completions.messages.list(ONE.id, limit=2)]
    assert [each.id for each in found] == [f"{ONE.id}-{index}" for index in range(3)]
    assert [each.role for each in found] == ["system", "user", "assistant"]
    assert (found[0].content, found[0].content_parts) == ("Be brief.", None)
    assert (found[1].content, found[1].content_parts[0].text) == (None, "Hi")
    assert found[1].model_extra["name"] == "Ann"
    assert found[2].tool_calls[0].id == "t"
    backwards = client.chat.completions.messages.list(ONE.id, order="desc", after=f"{ONE.id}-2")
    assert [each.id async for each in backwards] == [f"{ONE.id}-1", f"{ONE.id}-0"]
    with pytest.raises(openai.NotFoundError) as refused:
        await client.chat.completions.messages.list(ONE.id, after="x")
    assert refused.value.param == "after"


async def test_what_was_just_answered_is_found_at_once(world):
    """Though it was not written yet; by its id, and in the list."""
    made = transcript("fresh")
    made.account_id = ONE.account_id
    world.log.add(made)
    assert (await world.http.get(f"{PATH}/fresh")).status_code == 200
    made = transcript("fresher")
    made.account_id = ONE.account_id
    world.log.add(made)
    listed = (await world.http.get(PATH)).json()
    assert [each["id"] for each in listed["data"]] == ["fresh", "fresher"]
    assert (listed["object"], listed["first_id"], listed["last_id"], listed["has_more"]) == (
        "list",
        "fresh",
        "fresher",
        False,
    )


async def test_another_accounts_completions_are_not_found(world):
    await world.interactions.keep([ONE])
    for method, path, body in (
        ("GET", f"{PATH}/{ONE.id}", None),
        ("GET", f"{PATH}/{ONE.id}/messages", None),
        ("POST", f"{PATH}/{ONE.id}", {"metadata": {}}),
        ("DELETE", f"{PATH}/{ONE.id}", None),
        ("GET", f"{PATH}?after={ONE.id}", None),
        ("GET", f"{PATH}/{ONE.id}/feedback", None),
        ("POST", f"{PATH}/{ONE.id}/feedback", {"metric": "m", "value": 1}),
        ("DELETE", f"{PATH}/{ONE.id}/feedback/x", None),
    ):
        answer = await world.http.request(method, path, json=body, headers=world.other)
        assert answer.status_code == 404, (method, path)
    assert (await world.http.get(PATH, headers=world.other)).json()["data"] == []
    assert (await world.http.get(f"{PATH}/{ONE.id}")).status_code == 200


@pytest.mark.parametrize(
    ("query", "param"),
    [
        ("limit=0", "limit"),
        ("limit=101", "limit"),
        ("limit=x", "limit"),
        ("order=up", "order"),
        ("metadata.team=x", "metadata.team"),
        ("metadata[]=x", "metadata[]"),
        ("metadata=x", "metadata"),
        ("metadata[a]=x&metadata[a]=y", "metadata[a]"),
        ("before=x", "before"),
    ],
)
async def test_a_bad_parameter_is_refused_by_name(world, query, param):
    """None is ignored: a filter that has no effect would list what was not asked for."""
    answer = await world.http.get(f"{PATH}?{query}")
    assert answer.status_code == 400
    assert answer.json()["error"]["param"] == param


@pytest.mark.parametrize(
    ("body", "param"),
    [
        ({}, "metadata"),
        ({"metadata": {"a": 1}}, "metadata.a"),
        ({"metadata": {"": "x"}}, "metadata."),
        ({"metadata": {"a": "x" * 513}}, "metadata.a"),
        ({"metadata": {str(index): "" for index in range(17)}}, "metadata"),
        ({"metadata": {}, "model": "x"}, "model"),
    ],
)
async def test_bad_metadata_is_refused_by_name(world, body, param):
    """With OpenAI's limits; they are all that can be changed."""
    await world.interactions.keep([ONE])
    answer = await world.http.post(f"{PATH}/{ONE.id}", json=body)
    assert answer.status_code == 400
    assert answer.json()["error"]["param"] == param


async def test_an_id_may_hold_any_sign(world):
    """It holds what a client sent as x-request-id."""
    await world.interactions.keep([named("chatcmpl-a/b c?d")])
    answer = await world.http.get(f"{PATH}/chatcmpl-a/b%20c%3Fd")
    assert answer.json()["id"] == "chatcmpl-a/b c?d"
    messages = await world.http.get(f"{PATH}/chatcmpl-a%2Fb%20c%3Fd/messages")
    assert messages.json()["first_id"] == "chatcmpl-a/b c?d-0"


async def test_feedback_is_given_listed_and_taken_back(world):
    """With what is to be redacted left out; it goes with its completion."""
    await world.interactions.keep([ONE, named("b")])
    path = f"{PATH}/{ONE.id}/feedback"
    body = {"metric": "polite", "value": True, "reason": "0x!", "details": {"by": ["me", "0x"]}}
    first = await world.http.post(path, json=body)
    assert first.status_code == 201, first.text
    assert first.json() | {"id": "", "created_at": ""} == {
        "id": "",
        "completion_id": ONE.id,
        "choice": 0,
        "metric": "polite",
        "value": 1.0,
        "reason": "[redacted]!",
        "details": {"by": ["me", "[redacted]"]},
        "created_at": "",
    }
    second = await world.http.post(path, json={"metric": "short", "value": -2.5})
    assert (await world.http.get(path)).json() == {"object": "list", "data": [first.json(), second.json()]}
    assert (await world.http.get(f"{PATH}/b/feedback")).json()["data"] == []
    assert (await world.http.delete(f"{PATH}/b/feedback/{first.json()['id']}")).status_code == 404
    gone = await world.http.delete(f"{path}/{first.json()['id']}")
    assert gone.json() == {"id": first.json()["id"], "deleted": True}
    assert (await world.http.get(path)).json()["data"] == [second.json()]
    await world.interactions.delete(ONE.account_id, ONE.id)
    assert (await world.http.get(path)).status_code == 404


@pytest.mark.parametrize(
    ("body", "param"),
    [
        ({"metric": "m"}, "value"),
        ({"metric": "", "value": 1}, "metric"),
        ({"metric": "m" * 201, "value": 1}, "metric"),
        ({"metric": "m", "value": "much"}, "value"),
        ({"metric": "m", "value": None}, "value"),
        ({"metric": "m", "value": 1, "reason": "x" * 10_001}, "reason"),
        ({"metric": "m", "value": 1, "score": 1}, "score"),
    ],
)
async def test_bad_feedback_is_refused_by_name(world, body, param):
    await world.interactions.keep([ONE])
    answer = await world.http.post(f"{PATH}/{ONE.id}/feedback", json=body)
    assert answer.status_code == 400
    assert answer.json()["error"]["param"] == param


def test_metadata_and_labels_are_one_map():
    """Two names of it may stand side by side where they do not differ."""
    given = StoredFields(metadata={"a": "1"}, labels={"a": "1", "b": "2"})
    assert given.all_labels == {"a": "1", "b": "2"}
    assert StoredFields().all_labels == {}
    assert json.loads(StoredFields(labels={"a": "x"}).model_dump_json())["labels"] == {"a": "x"}
