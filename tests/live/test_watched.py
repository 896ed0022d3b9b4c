"""Requests watched for a behaviour on the running server, by Axionic's client, OpenAI's and plain HTTP."""

import json
import re

import pytest

from tests.live.steered import pairs_body

pytestmark = pytest.mark.engine

PROMPT = "Write a short formal letter to the mayor about the new library."


def events(client, **body):
    """Of one watched request, which must end well."""
    with client.stream(
        "POST", "/sae/generate", json={"prompt": PROMPT, "max_new_tokens": 24, **body}
    ) as response:
        lines = [json.loads(line[6:]) for line in response.iter_lines() if line.startswith("data: ")]
    assert response.status_code == 200, lines
    assert lines[-1]["status"] == "complete", lines[-1]
    return lines


@pytest.mark.parametrize("mode", ["monitor", "online", "regenerate"])
def test_the_stream_ends_with_what_was_seen_and_done(client, behaviour, mode):
    told = events(client, behavior_names=[behaviour["behavior_name"]], behavior_mode=mode, temperature=0)
    result = told[-1]["result"]
    last = result["attempts"]
    tokens = [event["token"] for event in told if event["status"] == "token" and event["attempt"] == last]
    assert "".join(tokens) == result["text"] == result["output"]
    drift = [event for event in told if event["status"] == "drift" and event["attempt"] == last]
    levels = [level for event in drift for level in event["behaviors"][0]["drift"]]
    [seen] = result["behaviors"]
    assert len(levels) == seen["tokens"] > 0
    assert max(levels) == pytest.approx(seen["max_drift"], abs=1e-3)
    assert next(event["first_token"] for event in drift) == 0
    assert seen["drifted"] == (max(levels) > seen["threshold"])
    if mode == "monitor":
        assert seen["corrected"] is False
    if mode == "online":
        assert seen["corrected"] == seen["drifted"]
    if mode == "regenerate":
        assert (last == 2) == seen["corrected"] == ("before" in seen)


def test_mechanex_generates_under_watch(mx, server, behaviour):
    mx.set_key(server.key)
    text = mx.sae.generate(PROMPT, max_new_tokens=12, behavior_names=[behaviour["behavior_name"]])
    assert text.strip()
    text = mx.sae.generate(PROMPT, max_new_tokens=12, force_steering=[behaviour["id"]])
    assert text.strip()


def test_openais_client_watches_and_streams(oai, behaviour):
    more = {"behavior_names": [behaviour["id"]], "behavior_mode": "monitor"}
    messages = [{"role": "user", "content": PROMPT}]
    plain = {"model": "default", "messages": messages, "max_tokens": 12, "temperature": 0}
    whole = oai.chat.completions.create(**plain, extra_body=more)
    [seen] = whole.model_extra["steersman"]["behaviors"]
    assert (seen["tokens"], seen["mode"]) == (11, "monitor")
    chunks = list(oai.chat.completions.create(**plain, extra_body=more, stream=True))
    [again] = chunks[-1].model_extra["steersman"]["behaviors"]
    assert again["max_drift"] == pytest.approx(seen["max_drift"], abs=0.01)
    unwatched = oai.chat.completions.create(**plain)
    assert unwatched.choices[0].message.content == whole.choices[0].message.content


def test_a_forced_correction_changes_the_text(ask, behaviour):
    plain = ask.chat(PROMPT, temperature=0)
    forced = ask.chat(PROMPT, temperature=0, force_steering=[behaviour["id"]])
    assert forced["choices"][0]["message"]["content"] != plain["choices"][0]["message"]["content"]
    [vector] = forced["steersman"]["steering"]["vectors"]
    assert vector["id"] == behaviour["steering_vector_id"]
    assert vector["strength"] == pytest.approx(behaviour["steering_strength"])
    assert forced["steersman"]["behaviors"][0]["corrected"] is True


async def test_watched_and_unwatched_requests_share_a_batch(ask, behaviour):
    """Each answers as it does alone."""
    plain = {"prompt": "Rivers are", "max_tokens": 12, "temperature": 0}
    watched = plain | {"behavior_names": [behaviour["id"]], "behavior_mode": "monitor"}
    alone = ask.ok("/v1/completions", **plain)["choices"][0]["text"]
    answers = await ask.together([("/v1/completions", body) for body in [plain, watched] * 6])
    assert {answer.json()["choices"][0]["text"] for answer in answers} == {alone}
    peaks = {answer.json()["steersman"]["behaviors"][0]["max_drift"] for answer in answers[1::2]}
    assert max(peaks) - min(peaks) < 0.01


def test_a_behaviour_deleted_in_flight_watches_on(client, ask, behaviour):
    made = ask.ok(
        "/behaviors/create",
        behavior_name="short of life",
        steering_vector_id=behaviour["steering_vector_id"],
        **pairs_body(6, 20),
    )
    body = {
        "prompt": PROMPT,
        "max_new_tokens": 40,
        "behavior_names": [made["id"]],
        "behavior_mode": "monitor",
    }
    with client.stream("POST", "/sae/generate", json=body) as response:
        lines = response.iter_lines()
        assert "token" in next(line for line in lines if line.startswith("data: "))
        assert client.delete(f"/behaviors/{made['id']}").status_code == 200
        last = [json.loads(line[6:]) for line in lines if line.startswith("data: ")][-1]
    assert last["result"]["behaviors"][0]["tokens"] > 20
    assert ask.post("/sae/generate", **body).status_code == 404


def test_a_policys_candidates_are_watched(ask, behaviour):
    answer = ask.chat(
        PROMPT,
        behavior_names=[behaviour["id"]],
        policy={"optimization": {"best_of_n": 2}},
        include_trace=True,
    )
    assert answer["steersman"]["behaviors"][0]["tokens"] == 2 * 11


def test_drift_and_corrections_are_counted(client, ask, behaviour):
    ask.chat(PROMPT, force_steering=[behaviour["id"]])
    metrics = client.get("/metrics").text
    assert re.search(r'steersman_sae_drift_score_count{behavior="custom"} [1-9]', metrics)
    assert re.search(r'steersman_behavior_corrections_total{behavior="custom",mode="forced"} [1-9]', metrics)


def test_latents_are_clamped_and_ablated(ask, client, autoencoder):
    """The strongest latents of a text, held at nought or far above, change what follows it."""
    found = client.get("/sae/features", params={"text": PROMPT, "limit": 3}).json()
    number = found["features"][0]["feature"]
    plain = {"prompt": PROMPT, "max_tokens": 12, "temperature": 0, "logprobs": 1}
    before = ask.ok("/v1/completions", **plain)["choices"][0]["logprobs"]["token_logprobs"]
    for entry in ({"op": "ablate"}, {"op": "clamp", "value": 30.0}, {"op": "add", "value": 30.0}):
        steering = {"feature": number, "sae": autoencoder, **entry}
        answer = ask.ok("/v1/completions", **plain, steering=steering)
        assert answer["choices"][0]["logprobs"]["token_logprobs"] != before, entry
        assert answer["steersman"]["steering"]["vectors"][0]["name"] == f"{autoencoder}/{number}"
    refused = ask.post("/v1/completions", **plain, steering={"feature": 10**6, "op": "ablate"})
    assert refused.status_code == 400
    assert refused.json()["error"]["param"] == "steering.feature"
