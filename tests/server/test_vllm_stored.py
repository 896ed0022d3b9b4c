"""Chat completions that ask to be stored, answered by Steersman's own serving."""

import json
from contextlib import asynccontextmanager
from dataclasses import replace
from types import SimpleNamespace

import httpx
import pytest

from server import interaction_log as module
from server.addressing import Address
from server.aliases import Alias
from server.assignment import Assignment
from server.interaction_log import InteractionLog, Keep
from server.routes import openai
from tests.server.apps import routes_alone
from tests.server.directories import Plain
from tests.server.steering_app import SignedIn
from tests.server.test_interaction_log import Keeper, transcript
from tests.server.test_interactions import NOW
from tests.server.vllm_policy_world import CHAT, COMPLETIONS, always, chat, in_turn, policy_runs
from tests.server.watched_world import World

pytestmark = pytest.mark.filterwarnings("ignore:max_tokens is deprecated")


@asynccontextmanager
async def opened(world, which=Keep.ASKED):
    """A client whose stored interactions are in `client.kept` once `client.settle` was awaited."""
    keeper = Keeper()
    log = InteractionLog(keeper, which=which, most=100, days=1)
    app = routes_alone(openai.router)
    served = world.serving()
    app.state.steersman = SimpleNamespace(
        serving=served,
        policy_runs=policy_runs(served),
        interaction_log=log,
        directory=Plain(served.models),
    )
    async with httpx.AsyncClient(
        transport=httpx.ASGITransport(SignedIn(app)), base_url="http://test"
    ) as http:
        http.kept, http.settle, http.log = keeper.kept, log.flush, log
        http.state = app.state.steersman
        yield http


async def stored(world, body, which=Keep.ASKED):
    """The answer, and what is stored of it."""
    async with opened(world, which) as http:
        answer = await http.post(CHAT, json=body)
        await http.settle()
        return answer, http.kept


def chunks(answer):
    events = answer.text.split("\n\n")
    return [json.loads(event[6:]) for event in events if event.startswith("data: {")]


async def test_an_answer_is_stored_as_it_was_sent():
    body = chat(store=True, metadata={"a": "b"}, labels={"c": "d"}, session_id="s", temperature=0)
    answer, [kept] = await stored(World(always("a pear")), body)
    assert answer.status_code == 200, answer.text
    assert kept.answer == answer.json()
    assert (kept.id, kept.model, kept.account_id) == (answer.json()["id"], "base", "me")
    assert kept.messages == body["messages"]
    assert (kept.labels, kept.session_id) == ({"a": "b", "c": "d"}, "s")
    assert kept.parameters == {"max_tokens": 16, "temperature": 0}
    assert kept.answer["steersman"]["method_used"] == "greedy"


@pytest.mark.parametrize("include_usage", [True, False])
async def test_a_stream_is_stored_as_the_same_answer_without_one(include_usage):
    options = {"stream_options": {"include_usage": True}} if include_usage else {}
    whole, [of_whole] = await stored(World(always("a pear", "a fig")), chat(store=True, n=2))
    body = chat(store=True, n=2, stream=True, **options)
    answer, [kept] = await stored(World(always("a pear", "a fig")), body)
    assert kept.id == chunks(answer)[0]["id"]
    for ours, theirs in zip(kept.answer["choices"], of_whole.answer["choices"], strict=True):
        for name in ("index", "finish_reason"):
            assert ours[name] == theirs[name]
        assert ours["message"]["content"] == theirs["message"]["content"]
    assert kept.answer["steersman"]["method_used"] == whole.json()["steersman"]["method_used"]
    assert kept.first_token_ms is not None
    if include_usage:
        assert kept.completion_tokens == of_whole.completion_tokens


@pytest.mark.parametrize("stream", [False, True])
async def test_steering_is_stored_as_it_is_told(stream):
    body = chat(store=True, stream=stream, steering_vector_id="one", steering_strength=0.1)
    answer, [kept] = await stored(World(always("a pear")), body)
    told = chunks(answer)[-1]["steersman"] if stream else answer.json()["steersman"]
    assert told["steering"]["vectors"][0]["id"] == "one"
    assert kept.answer["steersman"]["steering"] == told["steering"]


@pytest.mark.parametrize("stream", [False, True])
async def test_a_policys_winner_is_stored_with_its_outcome(stream):
    policy = {"constraints": {"regex_pattern": "[a-z]+"}, "optimization": {"best_of_n": 2}}
    body = chat(store=True, stream=stream, policy=policy)
    _, [kept] = await stored(World(in_turn("NO", "yes")), body)
    assert kept.answer["choices"][0]["message"]["content"] == "yes"
    assert kept.answer["steersman"]["policy"]


async def test_what_does_not_ask_is_not_stored():
    for store in ({}, {"store": False}, {"store": None}):
        answer, kept = await stored(World(always("x")), chat(**store))
        assert (answer.status_code, kept) == (200, [])


async def test_a_server_may_store_all_but_what_declines():
    _, kept = await stored(World(always("x")), chat(), Keep.ALL)
    assert len(kept) == 1
    _, kept = await stored(World(always("x")), chat(store=False), Keep.ALL)
    assert kept == []


@pytest.mark.parametrize("stream", [False, True])
async def test_what_fails_is_not_stored(stream):
    answer, kept = await stored(World(always("x")), chat(store=True, model="gone", stream=stream))
    assert (answer.status_code, kept) == (404, [])


async def test_a_stream_that_breaks_off_is_not_stored():
    """Its client has no answer either."""

    class Breaking(World):
        def serving(self):
            async def chat_completion(request, raw):
                async def events():
                    yield 'data: {"id":"x","created":1,"model":"base","choices":[]}\n\n'
                    yield 'data: {"error":{"message":"gone"}}\n\n'
                    yield "data: [DONE]\n\n"

                return events()

            self.engine.create_chat_completion = chat_completion
            return super().serving()

    answer, kept = await stored(Breaking(always("x")), chat(store=True, stream=True))
    assert "gone" in answer.text
    assert kept == []


async def test_a_full_log_refuses_before_anything_is_generated(monkeypatch):
    """503 and when to come back; without `store` the same request is answered."""
    monkeypatch.setattr(module, "WAITING", 1)
    monkeypatch.setattr(module, "PATIENCE_SECONDS", 0.02)
    world = World(always("x"))
    async with opened(world) as http:
        http.log.add(transcript())
        refused = await http.post(CHAT, json=chat(store=True))
        assert refused.status_code == 503
        assert refused.headers["retry-after"]
        assert "store" in refused.json()["error"]["message"]
        assert world.engine.requests == []
        assert (await http.post(CHAT, json=chat())).status_code == 200


async def test_a_server_that_stores_nothing_refuses_by_name():
    answer, _ = await stored(World(always("x")), chat(store=True), Keep.NONE)
    assert answer.status_code == 501
    assert answer.json()["error"]["param"] == "store"


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"metadata": {"a": "1"}, "labels": {"a": "2"}}, "labels.a"),
        ({"metadata": {str(i): "" for i in range(10)}, "labels": {f"l{i}": "" for i in range(7)}}, "labels"),
        ({"metadata": {"k" * 65: "x"}}, "metadata." + "k" * 65),
        ({"session_id": ""}, "session_id"),
        ({"session_id": "s" * 201}, "session_id"),
        ({"store": "maybe"}, "store"),
    ],
)
async def test_bad_labels_are_refused_by_name(fields, param):
    answer, kept = await stored(World(always("x")), chat(**{"store": True, **fields}))
    assert (answer.status_code, kept) == (400, [])
    assert answer.json()["error"]["param"] == param


async def test_completions_say_that_they_are_not_stored():
    """OpenAI stores chats alone; `store` would have no effect here."""
    async with opened(World(always("x"))) as http:
        answer = await http.post(COMPLETIONS, json={"prompt": "x", "store": True})
        assert answer.status_code == 400
        assert answer.json()["error"]["param"] == "store"
        assert (await http.post(COMPLETIONS, json={"prompt": "x", "store": False})).status_code == 200


class Elsewhere(Plain):
    """Finds every name in a project, as an alias; with a variant of an A/B test, if told one."""

    def __init__(self, models, assignment=None):
        super().__init__(models)
        self._assignment = assignment

    async def find(self, name, principal, **more):
        alias = Alias("i", "p", "kind", "Kind", "base", {"temperature": 0}, NOW)
        entered = replace(principal, account_id="p")
        return Address(entered, "base", None if name == "fruit" else alias, self._assignment)


@pytest.mark.parametrize("stream", [False, True])
async def test_an_answer_is_stored_under_its_model_s_name_in_the_project(stream):
    """However its request named it, so that it is found by one; the answer itself stays as it was sent. What
    an A/B test chose is stored as its variant."""
    for asked, assignment, kept_as in (
        ("fruit/kind", None, ("kind", None, None)),
        ("kind", None, ("kind", None, None)),
        ("fruit", None, ("base", None, None)),
        ("fruit/kind", Assignment("c", "key", "kind"), ("kind", "c", "kind")),
        (None, None, ("kind", None, None)),
    ):
        async with opened(World(always("a pear"))) as http:
            state = http.state
            state.directory = Elsewhere(state.serving.models, assignment)
            answer = await http.post(CHAT, json=chat(store=True, stream=stream, model=asked, user="ann"))
            assert answer.status_code == 200, answer.text
            await http.settle()
            [kept] = http.kept
        assert (kept.model, kept.campaign_id, kept.variant) == kept_as
        assert (kept.answer["model"], kept.account_id, kept.user_id) == (asked or "base", "p", "ann")
