"""Behaviours on the running server: made from examples by Axionic's client, listed, repaired, refused."""

import json

import pytest

from tests.live.conftest import BEHAVIOUR as NAME
from tests.live.conftest import EXAMPLES as TRAINED
from tests.live.steered import PAIRS, pairs_body

pytestmark = pytest.mark.engine


def test_a_behaviour_is_told_from_its_opposite(behaviour, client):
    """On texts held out; its threshold and its strength were measured, and its vector is stored."""
    assert behaviour["readiness"]["ready"] is True
    assert behaviour["auroc"] > 0.8
    assert behaviour["peak_auroc"] > 0.7
    assert behaviour["false_positive_rate"] < 0.2
    assert behaviour["steering_strength"] < 0
    evidence = behaviour["sae_baseline"]["evidence"]
    assert (evidence["positive"], evidence["negative"]) == (TRAINED, TRAINED)
    vector = client.get(f"/steering/vectors/{behaviour['steering_vector_id']}").json()
    assert (vector["category"], vector["method"], vector["name"]) == ("behavior", "caa", NAME)
    assert vector["scale"] == pytest.approx(-behaviour["steering_strength"])
    assert behaviour["evidence"]["correction"]
    assert client.get(behaviour["sae_baseline_path"]).json() == behaviour
    assert len(client.get(behaviour["generation_prompts_path"]).json()) == TRAINED


def test_mechanex_makes_and_lists_behaviours(mx, server, client, behaviour, tmp_path):
    """Axionic's client, unchanged: from lists with a vector of one's own, from a file, and the list."""
    mx.set_key(server.key)
    vector = behaviour["steering_vector_id"]
    body = pairs_body(8, 30)
    lists = (body["prompts"], body["positive_answers"], body["negative_answers"])
    one = mx.sae.create_behavior("from lists", *lists, description="formal", steering_vector_id=vector)
    path = tmp_path / "pairs.jsonl"
    path.write_text("\n".join(json.dumps(pair) for pair in PAIRS[40:52]))
    other = mx.sae.create_behavior_from_jsonl("from a file", str(path))
    try:
        assert (one["behavior_name"], one["steering_vector_id"]) == ("from lists", vector)
        assert other["steering_vector_id"] not in ("", vector)
        listed = {item["id"]: item["behavior_name"] for item in mx.sae.list_behaviors()}
        assert listed[one["id"]] == "from lists"
        assert listed[other["id"]] == "from a file"
        assert listed[behaviour["id"]] == NAME
    finally:
        client.delete(f"/steering/vectors/{other['steering_vector_id']}")
        for made in (one, other):
            client.delete(f"/behaviors/{made['id']}")


def test_mechanex_shows_what_is_wrong(mx, server, behaviour):
    """Too few examples, and a name that is taken."""
    errors = pytest.importorskip("mechanex.errors", reason="pip install mechanex")
    mx.set_key(server.key)
    few = pairs_body(3)
    with pytest.raises(errors.ValidationError, match="positive_answers"):
        mx.sae.create_behavior("few", few["prompts"], few["positive_answers"], few["negative_answers"])
    body = pairs_body(8)
    with pytest.raises(errors.APIError, match="already"):
        mx.sae.create_behavior(NAME, body["prompts"], body["positive_answers"], body["negative_answers"])


def test_a_lost_vector_is_made_anew(client, ask, behaviour):
    """Readiness tells what is missing, and calibrating anew mends it, with the same baseline."""
    made = ask.ok("/behaviors/create", behavior_name="to be mended", **pairs_body(6, 60))
    path = f"/behaviors/{made['id']}"
    client.delete(f"/steering/vectors/{made['steering_vector_id']}")
    found = client.get(f"{path}/readiness").json()
    assert (found["state"], [each["part"] for each in found["missing"]]) == ("partial", ["steering_vector"])
    partial = client.get("/observability/behaviors", params={"state": "partial"}).json()
    assert made["id"] in [item["id"] for item in partial["behaviors"]]
    answer = ask.ok("/behaviors/recompute-baselines", model_id="default", behavior_ids=[made["id"]])
    assert (answer["succeeded"], answer["failed"]) == (1, 0)
    mended = client.get(path).json()
    assert mended["readiness"]["ready"] is True
    assert mended["sae_baseline"]["latents"] == made["sae_baseline"]["latents"]
    client.delete(path)
    client.delete(f"/steering/vectors/{mended['steering_vector_id']}")


def test_a_layer_that_no_autoencoder_reads_is_refused(ask, behaviour):
    body = pairs_body(4, behavior_name="elsewhere", layer_names=[f"layers.{behaviour['layer'] - 1}"])
    refused = ask.post("/behaviors/create", **body)
    assert refused.status_code == 422
    assert refused.json()["detail"][0]["loc"] == ["body", "layer_names", 0]
    assert f"reads layers.{behaviour['layer']}" in refused.text
