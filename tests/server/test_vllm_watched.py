"""Requests that are watched for behaviours: what each mode does, and what their answers say."""

import asyncio
import json

import numpy as np
import pytest

from server.monitor import Mode, WatchList
from steering.drift import SMOOTHING, drift
from tests.server.steering_app import events
from tests.server.vllm_policy_world import Engine, always, chat, in_turn
from tests.server.watched_world import LOUD, QUIET, THRESHOLD, World

pytestmark = pytest.mark.filterwarnings("ignore:max_tokens is deprecated")

SAE, CHAT = "/sae/generate", "/v1/chat/completions"


def asked(**more):
    return {"prompt": "Name a fruit.", "behavior_names": ["gloom"], "stream": False} | more


async def posted(world, path, body):
    async with world.opened() as http:
        return await http.post(path, json=body)


async def test_monitoring_tells_drift_and_changes_nothing():
    world = World(always("a pear"), LOUD)
    answer = (await posted(world, SAE, asked(behavior_mode="monitor"))).json()
    [told] = answer["behaviors"]
    level, levels = 0.0, []
    for score in LOUD:
        level += (score - level) / 16
        levels.append(level)
    assert told["max_drift"] == pytest.approx(max(levels), abs=1e-4)
    assert told["mean_drift"] == pytest.approx(sum(levels) / 4, abs=1e-4)
    assert (told["name"], told["id"], told["mode"], told["threshold"]) == (
        "gloom",
        "b1",
        "monitor",
        THRESHOLD,
    )
    assert (told["drifted"], told["drifted_after"], told["tokens"]) == (True, 3, 4)
    assert (told["corrected"], told["corrections"]) == (False, 0)
    assert answer["text"] == answer["output"] == "a pear"
    assert "steering" not in answer
    [spec] = world.specs
    assert not spec.acts
    assert [watch.terms for watch in spec.watches] == [()]


@pytest.mark.parametrize(("scores", "corrections"), [(QUIET, 0), (LOUD, 1)])
async def test_online_hands_the_engine_what_to_correct_with(scores, corrections):
    world = World(always("a pear"), scores)
    answer = (await posted(world, SAE, asked(behavior_mode="online"))).json()
    [told] = answer["behaviors"]
    assert (told["corrected"], told["corrections"]) == (corrections > 0, corrections)
    [spec] = world.specs
    [watch] = spec.watches
    assert [(term.strength, term.layers) for term in watch.terms] == [(-0.5, (1, 2))]
    assert spec.terms == ()
    assert len(world.engine.requests) == 1


async def test_a_drifting_answer_is_generated_again_with_the_correction_from_its_start():
    world = World(in_turn("gloomy words", "bright ones"), LOUD, QUIET)
    answer = (await posted(world, SAE, asked())).json()
    assert (answer["text"], answer["attempts"]) == ("bright ones", 2)
    [told] = answer["behaviors"]
    assert (told["mode"], told["drifted"], told["corrected"], told["corrections"]) == (
        "regenerate",
        False,
        True,
        1,
    )
    assert told["before"]["drifted"] is True
    assert told["before"]["drifted_after"] == 3
    first, second = world.specs
    assert not first.acts
    assert [term.strength for term in second.terms] == [-0.5]
    assert answer["steering"]["vectors"][0]["id"] == "one"


@pytest.mark.parametrize("stream", [False, True])
async def test_the_drift_of_each_token_is_told_where_it_is_asked_for(stream):
    """The moving average of its scores, as the formula has it, in a chat's answer and at a stream's end."""
    body = chat(behavior_names=["gloom"], behavior_levels=True, stream=stream)
    answer = await posted(World(always("words"), LOUD), CHAT, body)
    if stream:
        events = [json.loads(line[6:]) for line in answer.text.splitlines() if line.startswith("data: {")]
        [told] = next(each["steersman"]["behaviors"] for each in events if each.get("steersman"))
    else:
        [told] = answer.json()["steersman"]["behaviors"]
    [levels] = told["levels"]
    np.testing.assert_allclose(levels, drift(np.array(LOUD, np.float32), SMOOTHING), atol=1e-4)
    assert max(levels) == told["max_drift"]
    unasked = await posted(World(always("words"), LOUD), CHAT, chat(behavior_names=["gloom"]))
    assert "levels" not in unasked.json()["steersman"]["behaviors"][0]


async def test_an_answer_that_does_not_drift_is_kept():
    world = World(in_turn("fine", "never seen"), QUIET)
    answer = (await posted(world, SAE, asked())).json()
    assert (answer["text"], answer["attempts"]) == ("fine", 1)
    assert "before" not in answer["behaviors"][0]
    assert len(world.engine.requests) == 1


async def test_only_what_drifted_is_corrected():
    world = World(always("words"), LOUD, QUIET, QUIET, QUIET)
    world.steering_engine.watches = 2
    answer = (await posted(world, SAE, asked(behavior_names=["gloom", "haste"]))).json()
    gloom, haste = answer["behaviors"]
    assert (gloom["corrected"], haste["corrected"]) == (True, False)
    assert len(world.specs[1].terms) == 1


async def test_forced_corrections_act_from_the_start_and_are_watched():
    world = World(always("words"), LOUD)
    body = {"prompt": "Name a fruit.", "force_steering": ["gloom"], "stream": False}
    answer = (await posted(world, SAE, body)).json()
    [told] = answer["behaviors"]
    assert (told["forced"], told["corrected"], told["drifted"]) == (True, True, True)
    assert [term.strength for term in world.specs[0].terms] == [-0.5]
    assert len(world.engine.requests) == 1


async def test_the_stream_tells_tokens_drift_and_the_second_attempt():
    world = World(in_turn("gloomy", "bright"), LOUD, QUIET)
    response = await posted(world, SAE, asked(stream=True))
    told = events(response)
    kinds = [event["status"] for event in told]
    assert kinds == ["token", "drift", "regenerating", "token", "drift", "complete"]
    assert [told[0]["token"], told[0]["attempt"], told[3]["token"], told[3]["attempt"]] == [
        "gloomy",
        1,
        "bright",
        2,
    ]
    assert told[1]["behaviors"][0]["scores"] == LOUD
    assert told[1]["first_token"] == 0
    assert told[2]["behaviors"] == ["gloom"]
    result = told[5]["result"]
    assert (result["text"], result["output"], result["attempts"]) == ("bright", "bright", 2)
    assert result["behaviors"][0]["before"]["drifted"]


async def test_axionics_own_body_is_taken_as_its_client_sends_it():
    world = World(always("a pear"), QUIET)
    body = {"prompt": "x", "max_new_tokens": 50, "behavior_names": ["b1"], "force_steering": None}
    told = events(await posted(world, SAE, body))
    assert told[-1]["result"]["text"] == "a pear"


@pytest.mark.parametrize("stream", [False, True])
async def test_openais_routes_watch_too_and_correct_online(stream):
    world = World(always("a pear"), LOUD)
    response = await posted(world, CHAT, chat(behavior_names=["gloom"], stream=stream))
    if stream:
        chunks = [json.loads(line[6:]) for line in response.text.splitlines() if line.startswith("data: {")]
        [told] = chunks[-1]["steersman"]["behaviors"]
    else:
        [told] = response.json()["steersman"]["behaviors"]
    assert (told["mode"], told["corrected"]) == ("online", True)


async def test_a_judged_answer_is_streamed_once_it_is_known():
    world = World(in_turn("gloomy", "bright"), LOUD, QUIET)
    body = chat(behavior_names=["gloom"], behavior_mode="regenerate", stream=True)
    response = await posted(world, CHAT, body)
    chunks = [json.loads(line[6:]) for line in response.text.splitlines() if line.startswith("data: {")]
    assert "".join(c["delta"].get("content") or "" for chunk in chunks for c in chunk["choices"]) == "bright"
    assert chunks[-1]["steersman"]["behaviors"][0]["corrections"] == 1


async def test_the_rest_of_a_drifting_answer_is_not_generated():
    class Endless(Engine):
        ended = None

        async def create_chat_completion(self, request, raw):
            if self.requests:
                return await super().create_chat_completion(request, raw)
            self.requests.append(request)
            try:
                await asyncio.sleep(60)
            except asyncio.CancelledError:
                self.ended = "aborted"
                raise

    engine = Endless(always("bright"))
    world = World(always("unused"), LOUD, QUIET, engine=engine)
    async with asyncio.timeout(5):
        answer = (await posted(world, SAE, asked())).json()
    assert (answer["text"], engine.ended) == ("bright", "aborted")


async def test_a_server_may_watch_everything():
    world = World(always("a pear"), LOUD, everywhere=WatchList(("b1",), mode=Mode.MONITOR))
    [told] = (await posted(world, CHAT, chat())).json()["steersman"]["behaviors"]
    assert (told["name"], told["mode"], told["drifted"]) == ("gloom", "monitor", True)


async def test_what_a_request_says_of_a_behaviour_wins_over_the_server():
    world = World(always("a pear"), LOUD, everywhere=WatchList(("b1",), mode=Mode.MONITOR))
    [told] = (await posted(world, CHAT, chat(behavior_names=["gloom"]))).json()["steersman"]["behaviors"]
    assert told["mode"] == "online"


async def test_what_is_to_be_watched_everywhere_does_not_run_unwatched():
    world = World(always("a pear"), everywhere=WatchList(("gone",)))
    assert (await posted(world, CHAT, chat())).status_code == 503
    assert world.engine.requests == []


@pytest.mark.parametrize(
    ("path", "body", "status", "param"),
    [
        (SAE, {"prompt": "x", "stream": False}, 422, "behavior_names"),
        (SAE, asked(behavior_names=["gloom", "joy"]), 404, "joy"),
        (SAE, {"prompt": "x", "force_steering": ["joy"]}, 404, "joy"),
        (SAE, asked(behavior_names=["frail"]), 409, "no correction"),
        (SAE, asked(behavior_names=["old"], behavior_mode="monitor"), 409, "recompute-baselines"),
        (SAE, asked(behavior_names=["bereft"]), 404, "gone"),
        (SAE, asked(behavior_mode="loud"), 422, "behavior_mode"),
        (SAE, asked(behavior_names=[f"b{n}" for n in range(9)]), 422, "behavior_names"),
        (SAE, asked(behaviours=["gloom"]), 422, "behaviours"),
        (CHAT, chat(behavior_names=["gloom", "joy"]), 404, "behavior_names.1"),
        (CHAT, chat(behavior_mode="monitor"), 400, "behavior_mode"),
        (CHAT, chat(behavior_levels=True), 400, "behavior_levels"),
        (CHAT, chat(behavior_names=["gloom"], behavior_mode="regenerate", n=2), 400, "behavior_mode"),
        (CHAT, chat(behavior_names=["gloom"], use_beam_search=True, n=2), 501, "behavior_names"),
    ],
)
async def test_what_cannot_be_watched_is_refused_by_name(path, body, status, param):
    world = World(always("a pear"), QUIET)
    response = await posted(world, path, body)
    assert response.status_code == status, response.text
    assert param in response.text
    assert world.engine.requests == []


async def test_a_behaviour_without_a_correction_can_be_monitored():
    world = World(always("a pear"), LOUD)
    answer = await posted(world, SAE, asked(behavior_names=["frail"], behavior_mode="monitor"))
    assert answer.json()["behaviors"][0]["drifted"] is True


async def test_a_server_that_cannot_watch_says_why():
    world = World(always("a pear"))
    world.monitor = None
    response = await posted(world, CHAT, chat(behavior_names=["gloom"]))
    assert response.status_code == 501
    assert "behavior_names" in response.text
