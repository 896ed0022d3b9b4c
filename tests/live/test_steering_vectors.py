"""Making steering vectors with the running server: training, presets, trials, pairs; what comes out acts."""

import json
import math
import time

import pytest

from tests.live.steered import CHAT, PAIRS, WIDTH, differ, pairs_body, scored

pytestmark = pytest.mark.engine


def test_training_reports_progress_and_can_be_looked_up(client, ask):
    """Events until the id; the job and the vector stay afterwards, with what training found out."""
    body = pairs_body(6, 20, name="formal", layer_idxs=[10, 12])
    with client.stream("POST", "/steering/generate", json=body) as response:
        job = response.headers["x-steersman-job"]
        *events, last = [json.loads(line[6:]) for line in response.iter_lines() if line.startswith("data: ")]
    assert {event["status"] for event in events} == {"processing"}
    assert {event["job_id"] for event in events} == {job}
    assert all(event["progress"]["stage"] for event in events)
    assert last["status"] == "complete"
    identity = last["result"]["steering_vector_id"]
    assert client.get(f"/steering/jobs/{job}").json()["status"] == "complete"
    found = client.get(f"/steering/vectors/{identity}").json()
    assert (found["method"], found["layers"], found["name"]) == ("caa", [10, 12], "formal")
    assert found["evidence"]["10"]["auroc"] > 0.8
    downloaded = client.get(f"/steering/vectors/{identity}/download").json()
    assert {key: len(row) for key, row in downloaded.items()} == {"10": WIDTH, "12": WIDTH}


def test_a_job_outlives_its_client(client):
    """A client that goes away after the first event still gets its vector, by looking the job up."""
    with client.stream("POST", "/steering/generate", json=pairs_body(30, 30)) as response:
        job = response.headers["x-steersman-job"]
        first = next(line for line in response.iter_lines() if line.startswith("data: "))
    assert json.loads(first[6:])["status"] == "processing"
    for _ in range(600):
        record = client.get(f"/steering/jobs/{job}").json()
        if record["status"] not in ("queued", "running"):
            break
        time.sleep(0.2)
    assert record["status"] == "complete", record
    assert client.get(f"/steering/vectors/{record['result']['steering_vector_id']}").status_code == 200


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"method": "magic"}, "method"),
        ({"layer_idxs": [99]}, "layer"),
        ({"negative_answers": None}, "negative"),
        ({"positive_answers": ["x"]}, "equal length"),
        ({"fewshot_lr": 0.1}, "fewshot_lr"),
    ],
)
def test_bad_training_requests_are_refused_before_they_queue(client, ask, fields, said):
    """422 that names the field, and no job."""

    def jobs():
        return [job["id"] for job in client.get("/steering/jobs", params={"limit": 1000}).json()]

    before = jobs()
    response = ask.post("/steering/generate", **{**pairs_body(4), "method": "caa", **fields})
    assert response.status_code == 422, response.text
    assert said in response.text
    assert jobs() == before


@pytest.mark.parametrize("method", ["asas", "steering-perceptrons"])
def test_sparse_and_gated_vectors_act(ask, method):
    """Trained from states captured in the engine, they are applied with their own latents and gates."""
    body = pairs_body(16, method=method, layer_idxs=[12])
    identity = ask.ok("/steering/generate", **body)["steering_vector_id"]
    steered, evidence = scored(ask, steering_vector_id=identity)
    assert differ(steered, scored(ask)[0]) > 1e-3
    assert evidence["vectors"][0]["gate"]["kind"] in ("ramp", "probe")


def test_a_few_shot_vector_learns_its_answer(ask):
    """Optimised on one completion alone, it makes exactly that completion likelier."""
    body = {
        "prompts": ["What is your favourite colour?"],
        "positive_answers": ["My favourite colour is a deep violet."],
        "negative_answers": None,
        "method": "few-shot",
        "layer_idxs": [12],
        "fewshot_iterations": 8,
    }
    identity = ask.ok("/steering/generate", **body)["steering_vector_id"]

    def likelihood(**fields):
        messages = [
            {"role": "user", "content": body["prompts"][0]},
            {"role": "assistant", "content": body["positive_answers"][0]},
        ]
        answer = ask.ok(CHAT, messages=messages, max_tokens=1, prompt_logprobs=0, **fields)
        steps = [next(iter(step.values()))["logprob"] for step in answer["prompt_logprobs"] if step]
        return sum(steps[-10:])

    assert likelihood(steering_vector_id=identity) > likelihood() + 1


def test_mechanex_trains_steers_and_saves(mx, server, tmp_path):
    """Axionic's client, unchanged: vectors by CAA, generation by id and inline through a policy, download."""
    mx.set_key(server.key)
    body = pairs_body(6, 40)
    lists = (body["prompts"], body["positive_answers"], body["negative_answers"])
    identity = mx.steering.generate_vectors(*lists, layer_idxs=[12], method="caa")
    plain = mx.generation.generate("Say hello.", sampling_method="greedy", max_tokens=12)
    steered = mx.generation.generate(
        "Say hello.", sampling_method="greedy", max_tokens=12, steering_vector=identity, steering_strength=4
    )
    assert steered != plain
    mx.steering.save_vectors(identity, str(tmp_path / "v.json"))
    loaded = mx.steering.load_vectors(str(tmp_path / "v.json"))
    assert {layer: tuple(row.shape) for layer, row in loaded.items()} == {12: (WIDTH,)}
    inline = {str(layer): row.tolist() for layer, row in loaded.items()}
    # Confidence makes the client send a policy; at a threshold of 0 nothing is regenerated.
    policied = mx.generation.generate(
        "Say hello.",
        sampling_method="greedy",
        confidence_triggered_regeneration=True,
        confidence_threshold=0.0,
        max_tokens=12,
        steering_vector=inline,
        steering_strength=4,
    )
    assert policied == steered


def test_mechanex_tries_a_vector_and_has_pairs_written(mx, server, trained):
    """Axionic's client reads the cosines of a trial, a judge's view of answers, and pairs for a persona."""
    mx.set_key(server.key)
    held = PAIRS[40:48]
    tried = mx.steering.evaluate(
        trained,
        [pair["positive_answer"] for pair in held],
        [pair["negative_answer"] for pair in held],
        test_prompts=["How do I boil an egg?"],
        persona_description="formal language",
        strength=0.5,
    )
    assert tried["cosine_metrics"]["difference"] > 0
    assert tried["cosine_metrics"]["auroc"] > 0.8
    assert tried["judge_evaluation"]["judge_model"]
    written = mx.steering.generate_pairs("pirate", "speaks like a pirate", num_pairs=2, batch_size=2)
    assert written["persona"]
    assert written["total_pairs"] == len(written["pairs"]) == 2
    for pair in written["pairs"]:
        assert pair["prompt"]
        assert pair["positive_answer"] != pair["negative_answer"]


def test_a_preset_is_made_from_ones_own_examples(client, ask):
    """domain_specific: asked for by name it is refused until there are examples, then it steers."""
    named = {"steering_preset": "domain_specific", "steering_strength": 0.5}
    refused = ask.post("/v1/completions", prompt="Rivers", max_tokens=2, **named)
    assert refused.status_code == 400
    assert refused.json()["error"]["param"] == "steering_preset"
    examples = {name: value for name, value in pairs_body(8).items() if name != "method"}
    made = client.post("/steering/presets/domain_specific", json=examples, timeout=240)
    assert made.status_code == 200, made.text
    steered, evidence = scored(ask, **named)
    assert evidence["vectors"][0]["id"] == made.json()["id"]
    assert evidence["vectors"][0]["name"] == "domain_specific"
    assert differ(steered, scored(ask)[0]) > 1e-3
    client.delete(f"/steering/vectors/{made.json()['id']}")


def test_norms_of_states_are_finite_numbers(client, trained):
    """Doses at strength 1 are stored with a vector, in the order of a tenth for a mean difference."""
    doses = client.get(f"/steering/vectors/{trained}").json()["doses"]
    assert all(0.01 < dose < 1 and math.isfinite(dose) for dose in doses.values())
