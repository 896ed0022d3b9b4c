"""Steering through the running server: what is applied, to whom, and that it is applied to nobody else.

The server runs in float32, so log-probabilities are compared closely.
"""

import asyncio
import json

import httpx
import numpy as np
import pytest

from steering.spec import DEFAULT_ROWS
from tests.live.steered import CHAT, COMPLETIONS, WIDTH, differ, logprobs, noise, scored, upload

pytestmark = pytest.mark.engine


def test_the_answer_says_what_was_applied(ask, vector):
    """Id, digest, operation, layers, strength, dose, and the tokens that the worker counted."""
    answer = ask.chat("Name a river.", max_tokens=5, steering_vector_id=vector, steering_strength=1.5)
    steering = answer["steersman"]["steering"]
    (applied,) = steering["vectors"]
    assert applied["id"] == vector
    assert (applied["operation"], applied["strength"], applied["layers"]) == ("add", 1.5, [12])
    assert len(applied["digest"]) == 64
    assert 0.05 < applied["relative_dose"]["12"] < 1
    assert steering["prompt_tokens"] == answer["usage"]["prompt_tokens"]
    assert steering["generated_tokens"] == answer["usage"]["completion_tokens"] - 1  # the last is never read


def test_an_unsteered_answer_says_nothing_of_steering(ask):
    """No vector, no evidence."""
    assert "steering" not in ask.chat("Name a river.", max_tokens=2)["steersman"]


@pytest.mark.parametrize("route", ["/generate", "/sampling/generate", "/steering/run", "/v1/responses"])
def test_every_route_steers(ask, vector, route):
    """The same vector by the same field, with its evidence in the answer."""
    size = {"/generate": "max_tokens", "/steering/run": "max_tokens", "/v1/responses": "max_output_tokens"}
    text = "input" if route == "/v1/responses" else "prompt"
    body = {text: "Name a river.", size.get(route, "max_new_tokens"): 4}
    answer = ask.ok(route, **body, steering_vector_id=vector, steering_strength=1.0)
    steering = answer["steersman"]["steering"] if "steersman" in answer else answer["steering"]
    assert steering["vectors"][0]["id"] == vector
    assert steering["prompt_tokens"] > 0


def test_a_stream_ends_with_the_evidence(ask, vector):
    """The chunk before [DONE] carries it, with and without a usage chunk, and all others are as ever."""
    body = {"prompt": "Rivers are", "max_tokens": 5, "temperature": 0, "steering_vector_id": vector}
    for options in ({}, {"stream_options": {"include_usage": True}}):
        *chunks, last = ask.events(COMPLETIONS, **body, **options)
        assert last["steersman"]["steering"]["vectors"][0]["id"] == vector
        assert not any("steersman" in chunk for chunk in chunks)
    whole = ask.ok(COMPLETIONS, **body)["choices"][0]["text"]
    streamed = [chunk["choices"][0]["text"] for chunk in ask.events(COMPLETIONS, **body)]
    assert "".join(streamed) == whole


def test_a_streamed_response_ends_with_the_evidence(client, vector):
    """On /v1/responses in the event that completes the response."""
    body = {"input": "Name a river.", "max_output_tokens": 4, "stream": True, "steering_vector_id": vector}
    with client.stream("POST", "/v1/responses", json=body) as response:
        payloads = [json.loads(line[6:]) for line in response.iter_lines() if line.startswith("data: {")]
    assert payloads[-1]["response"]["steersman"]["steering"]["vectors"][0]["id"] == vector


def test_strength_zero_and_nothing_are_the_same(ask, vector):
    """Bit for bit: a vector at strength 0 is no vector."""
    assert scored(ask, steering_vector_id=vector, steering_strength=0)[0] == scored(ask)[0]


def test_phases_begin_where_they_say(ask, vector):
    """Generated-only leaves the prompt and the first token as they are; token_start -1 reaches that one."""
    plain, _ = scored(ask)
    count = len(plain) - 8
    for entry, first in ({"tokens": "generated"}, count + 1), ({"token_start": -1}, count):
        steered, evidence = scored(ask, steering={"vector_id": vector, "strength": 2, **entry})
        assert differ(steered[:first], plain[:first]) < 1e-4
        assert abs(steered[first] - plain[first]) > 1e-3
        assert evidence["generated_tokens"] == 7
    steered, evidence = scored(ask, steering={"vector_id": vector, "strength": 2, "tokens": "prompt"})
    assert evidence["generated_tokens"] == 0
    assert differ(steered[1:count], plain[1:count]) > 1e-3


def test_several_vectors_add_up(ask):
    """Two vectors at once are their sum, whether by a list of ids or inline."""
    one, two = noise(2), noise(3)
    both = {"12": (np.array(one["12"]) + np.array(two["12"])).tolist()}
    together, evidence = scored(ask, steering_vector=[one, two], steering_strength=[1.0, 1.0])
    assert len(evidence["vectors"]) == 2
    assert differ(together, scored(ask, steering_vector=both)[0]) < 1e-4


def test_a_conditional_vector_acts_where_its_gate_is_open(ask, vector):
    """A gate that no state passes changes nothing; one that every state passes changes as without a gate."""
    plain, free = scored(ask)[0], scored(ask, steering_vector_id=vector)[0]

    def gated(threshold):
        entry = {"vector_id": vector, "gate": {"kind": "cosine", "threshold": threshold}}
        return scored(ask, steering=entry)[0]

    assert differ(gated(0.999), plain) < 1e-4
    assert differ(gated(-1), free) < 1e-4


async def test_mixed_requests_do_not_meet(http, ask, vector, trained):
    """Sixteen requests, differently steered and unsteered, come out together as they do alone."""
    kinds = [
        {},
        {"steering_vector_id": vector},
        {"steering_vector_id": vector, "steering_strength": -1.0},
        {"steering_vector": noise(4, (3, 29))},
        {"steering_vector_id": trained, "steering_strength": 0.3},
        {"steering": {"vector_id": vector, "operation": "project-out"}},
        {"steering": {"vector_id": vector, "operation": "norm-preserving-add", "tokens": "generated"}},
        {"steering": {"vector_id": vector, "operation": "clamp", "low": 2.0, "token_start": 2}},
    ]
    bodies = [
        {
            "prompt": f"The {topic} is",
            "max_tokens": 8,
            "temperature": 0,
            "logprobs": 0,
            "ignore_eos": True,
            **kind,
        }
        for topic in ("river", "harvest")
        for kind in kinds
    ]
    alone = [logprobs(ask.ok(COMPLETIONS, **body)) for body in bodies]
    responses = await asyncio.gather(*(http.post(COMPLETIONS, json=body) for body in bodies))
    for body, apart, response in zip(bodies, alone, responses, strict=True):
        assert response.status_code == 200, response.text
        assert differ(logprobs(response.json()), apart) < 1e-4, body


def test_the_prefix_cache_keeps_them_apart(ask, vector):
    """One prefix of three blocks, steered, otherwise steered and plain, in any order, is as when fresh."""
    prefix = "In the spring of that year the committee met to discuss the new library by the harbour. " * 22
    kinds = [{}, {"steering_vector_id": vector}, {"steering_vector_id": vector, "steering_strength": -1.0}]

    def run(kind, salt):
        answer = ask.ok(
            COMPLETIONS,
            prompt=prefix,
            max_tokens=4,
            temperature=0,
            logprobs=0,
            cache_salt=salt,
            ignore_eos=True,
            **kind,
        )
        return logprobs(answer)

    fresh = [run(kind, f"fresh-{index}") for index, kind in enumerate(kinds)]
    assert differ(fresh[0], fresh[1]) > 1e-2
    for order in ((0, 1, 2, 0, 1, 2), (2, 1, 0), (1, 0, 2)):
        for index in order:
            assert differ(run(kinds[index], f"shared-{order}"), fresh[index]) < 1e-4, (order, index)


def test_beams_and_candidates_are_steered(ask, vector):
    """Beam search and siblings carry the vector in each of their engine requests, which all count."""
    beams = {"sampling_method": "constrained-beam-search", "beam_width": 2}
    for fields, prompts, generated in (
        # One request, then two for each further token, which read the prompt and what stands behind it anew.
        (beams, 1 + 3 * 2, 2 * (1 + 2 + 3)),
        ({"n": 2, "temperature": 0.8}, 2, 2 * 3),
        ({"n": 2, "temperature": 0.8, "sampling_method": "ads"}, 2, 2 * 3),
    ):
        answer = ask.chat("Name a river.", max_tokens=4, ignore_eos=True, steering_vector_id=vector, **fields)
        steering = answer["steersman"]["steering"]
        assert steering["prompt_tokens"] == prompts * answer["usage"]["prompt_tokens"], fields
        assert steering["generated_tokens"] == generated, fields


def test_a_schema_holds_under_steering(ask, vector):
    """Constraints mask whatever the states say."""
    schema = {"type": "object", "properties": {"ok": {"type": "boolean"}}, "required": ["ok"]}
    answer = ask.chat(
        "Is it?", max_tokens=30, json_schema=schema, steering_vector_id=vector, steering_strength=3
    )
    assert isinstance(json.loads(answer["choices"][0]["message"]["content"])["ok"], bool)


@pytest.mark.parametrize(
    ("fields", "status", "named"),
    [
        ({"steering_vector_id": "nope"}, 404, "steering_vector_id"),
        ({"steering_vector": {"12": [1.0, 2.0]}}, 400, "steering_vector"),
        ({"steering_vector": {"30": [1.0] * WIDTH}}, 400, "steering_vector"),
        ({"steering_vector": {"12": [0.0] * WIDTH}}, 400, "steering_vector"),
        ({"steering_vector": {"some.module": [1.0] * WIDTH}}, 400, "steering_vector"),
        ({"steering_preset": "kindness"}, 400, "steering_preset"),
        ({"steering_preset": "domain_specific"}, 400, "steering_preset"),
        ({"steering_strength": 1.0}, 400, "steering_strength"),
        ({"steering_vector": {"12": [1.0] * WIDTH}, "steering_strength": 1e300}, 400, "steering_strength"),
        ({"steering_vector": {"12": [50.0] * WIDTH}, "steering_strength": 100}, 400, "steering_vector"),
        ({"steering": {"vector_id": "x", "preset": "brevity"}}, 400, "steering"),
        ({"steering": {"vector_id": "x", "operation": "clamp"}}, 400, "steering"),
        ({"steering": {"vector_id": "x", "value": 3}}, 400, "steering"),
        ({"vllm_xargs": {"steersman_steering": "{}"}}, 400, "vllm_xargs"),
    ],
)
def test_what_cannot_be_applied_is_refused_by_name(ask, fields, status, named):
    """Never an unsteered answer in its place."""
    response = ask.post(CHAT, messages=[{"role": "user", "content": "Hi"}], max_tokens=2, **fields)
    assert response.status_code == status, response.text
    error = response.json()["error"]
    assert named in f"{error['param']} {error['message']}"


def test_a_high_dose_carries_a_warning(ask):
    """Above the safe dose the answer says so, in its header too."""
    response = ask.post(
        COMPLETIONS, prompt="Rivers", max_tokens=2, steering_vector=noise(5), steering_strength=9.0
    )
    steering = response.json()["steersman"]["steering"]
    assert 1 < steering["dose"] < 2
    assert "dose" in response.headers["x-steersman-warning"]
    assert response.headers["x-steersman-steering"] == steering["fingerprint"]


def test_vectors_in_turn_leave_no_trace(client, ask):
    """More vectors in turn than the table has room for run through it; one that had to leave for them comes
    back and is applied as at first."""
    layers, count = range(5, 13), 300
    assert len(layers) * count > DEFAULT_ROWS
    before = scored(ask, steering_vector=noise(0, (5, 6)))[0]
    small = noise(7, (5,), 0.1)["5"]
    body = {"prompt": "Rivers", "max_tokens": 1, "temperature": 0}
    limits = httpx.Limits(max_connections=16)

    async def run():
        headers = dict(client.headers)
        async with httpx.AsyncClient(
            base_url=client.base_url, headers=headers, limits=limits, timeout=240
        ) as http:
            for start in range(0, count, 50):
                rows = [[small[0] + number, *small[1:]] for number in range(start, start + 50)]
                vectors = [{str(layer): row for layer in layers} for row in rows]
                posts = [
                    http.post(COMPLETIONS, json={**body, "steering_vector": v, "steering_strength": 1e-3})
                    for v in vectors
                ]
                for response in await asyncio.gather(*posts):
                    assert response.status_code == 200, response.text

    asyncio.run(run())
    assert scored(ask, steering_vector=noise(0, (5, 6)))[0] == pytest.approx(before, abs=1e-4)
    used = [
        float(line.split()[-1])
        for line in client.get("/metrics").text.splitlines()
        if line.startswith("steersman_steering_rows_used")
    ]
    # It is full, to within a vector: they left only to make room.
    assert used and DEFAULT_ROWS - len(layers) < used[0] <= DEFAULT_ROWS


def test_a_vector_deleted_in_flight_finishes_what_it_began(client, ask):
    """The stream ends steered; the next request for that id gets 404."""
    identity = upload(client, noise(8))
    body = {
        "prompt": "Rivers",
        "max_tokens": 60,
        "stream": True,
        "steering_vector_id": identity,
        "ignore_eos": True,
    }
    with client.stream("POST", COMPLETIONS, json=body) as response:
        lines = response.iter_lines()
        next(lines)
        assert client.delete(f"/steering/vectors/{identity}").status_code in (200, 204)
        chunks = [json.loads(line[6:]) for line in lines if line.startswith("data: {")]
    assert chunks[-1]["steersman"]["steering"]["generated_tokens"] == 59
    assert ask.post(COMPLETIONS, prompt="x", steering_vector_id=identity).status_code == 404


def test_openai_streams_with_extra_body(oai, trained):
    """OpenAI's client passes the fields on and keeps the evidence, which the last chunk of a stream has."""
    asked = {
        "model": "default",
        "messages": [{"role": "user", "content": "Say hello."}],
        "max_tokens": 6,
        "temperature": 0,
        "extra_body": {"steering_vector_id": trained, "steering_strength": 0.3},
    }
    answer = oai.chat.completions.create(**asked)
    assert answer.model_extra["steersman"]["steering"]["vectors"][0]["id"] == trained
    *chunks, last = oai.chat.completions.create(**asked, stream=True)
    assert last.model_extra["steersman"]["steering"]["vectors"][0]["id"] == trained
    assert not any("steersman" in (chunk.model_extra or {}) for chunk in chunks)
    pieces = [chunk.choices[0].delta.content or "" for chunk in (*chunks, last)]
    assert "".join(pieces) == answer.choices[0].message.content
