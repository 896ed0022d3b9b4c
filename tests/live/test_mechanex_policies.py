"""Axionic's own SDK saves, finds, publishes and clones policies on the running server."""

import httpx
import pytest

pytestmark = pytest.mark.engine

errors = pytest.importorskip("mechanex.errors", reason="pip install mechanex")

SCHEMA = {"type": "object", "properties": {"river": {"enum": ["Nile", "Rhine"]}}, "required": ["river"]}


@pytest.fixture(autouse=True)
def _signed_in(mx, server):
    mx.set_key(server.key)


@pytest.fixture
def sent(mx):
    """A policy as the SDK's own factory writes it."""
    return mx.policy.strict_json_extraction(SCHEMA, name="rivers")


def forget(client: httpx.Client, *policy_ids: str) -> None:
    """The server is shared: what a test saves, it takes away."""
    for policy_id in policy_ids:
        assert client.delete(f"/policies/{policy_id}").status_code == 200


def test_a_policy_is_saved_listed_and_found(mx, client, sent):
    """save returns an id; get and list have the policy as it was sent, with that id."""
    policy_id = mx.policy.save(sent)
    try:
        found = mx.policy.get(policy_id)
        assert found == {"id": policy_id, **sent}
        assert found in mx.policy.list()
    finally:
        forget(client, policy_id)
    with pytest.raises(errors.NotFoundError):
        mx.policy.get(policy_id)


def test_saving_what_get_returned_makes_a_version(mx, client, sent):
    """The id is reused, the change is what get returns, and the first version stays readable."""
    policy_id = mx.policy.save(sent)
    try:
        changed = mx.policy.get(policy_id)
        changed["sampling"]["temperature"] = 0.4
        assert mx.policy.save(changed) == policy_id
        assert mx.policy.get(policy_id) == changed
        assert [each["id"] for each in mx.policy.list()].count(policy_id) == 1
        first = client.get(f"/policies/{policy_id}", params={"version": 1}).json()
        assert first == {"id": policy_id, **sent}
    finally:
        forget(client, policy_id)


def test_an_id_of_one_s_own_is_kept(mx, client, sent):
    """A policy sent with an id is saved under it; an id that cannot be a path is a ValidationError."""
    assert mx.policy.save({"id": "rivers:v1", **sent}) == "rivers:v1"
    try:
        assert mx.policy.get("rivers:v1")["name"] == "rivers"
    finally:
        forget(client, "rivers:v1")
    with pytest.raises(errors.ValidationError, match="id"):
        mx.policy.save({"id": "rivers/v1", **sent})


def test_a_policy_with_a_typing_error_is_refused(mx, sent):
    """The SDK raises a ValidationError that names the field, and nothing is saved."""
    before = mx.policy.list()
    with pytest.raises(errors.ValidationError, match="temprature"):
        mx.policy.save({**sent, "sampling": {"temprature": 0.2}})
    assert mx.policy.list() == before


@pytest.mark.parametrize("visibility", ["private", "public"])
def test_a_preset_is_published_listed_and_cloned(mx, client, sent, visibility):
    """The list has the preset whether public ones are asked for or not; its clone is an ordinary policy."""
    preset_id = mx.policy.publish_preset("rivers", sent, visibility, ["json"], "names one river")
    cloned = []
    try:
        for include_public in (True, False):
            [item] = [each for each in mx.policy.list_presets(include_public) if each["id"] == preset_id]
            assert (item["name"], item["visibility"], item["tags"]) == ("rivers", visibility, ["json"])
            assert (item["policy"], item["description"]) == (sent, "names one river")
            assert item["updated_at"]
        cloned.append(mx.policy.clone_preset(preset_id))
        assert mx.policy.get(cloned[0]) == {"id": cloned[0], **sent}
    finally:
        assert client.delete(f"/policies/presets/{preset_id}").status_code == 200
        forget(client, *cloned)
    with pytest.raises(errors.NotFoundError):
        mx.policy.clone_preset(preset_id)


def test_the_least_that_the_sdk_sends_is_enough(mx, client):
    """publish_preset with a name and a policy alone makes a private preset without tags."""
    preset_id = mx.policy.publish_preset("bare", {})
    [item] = [each for each in mx.policy.list_presets() if each["id"] == preset_id]
    assert (item["visibility"], item["tags"], item["description"]) == ("private", [], None)
    assert client.delete(f"/policies/presets/{preset_id}").status_code == 200


def test_a_key_of_the_same_account_has_the_same_policies(mx, client, sent):
    """Policies belong to the account: another of its keys finds them."""
    policy_id = mx.policy.save(sent)
    try:
        made = mx.create_api_key("policies")
        mx.set_key(made["api_key"])
        assert mx.policy.get(policy_id)["name"] == "rivers"
        assert client.delete(f"/auth/api-keys/{made['id']}").status_code == 200
    finally:
        forget(client, policy_id)


FACTORIES = {
    "strict": lambda policy: policy.strict_json_extraction(SCHEMA),
    "router": lambda policy: policy.fast_tool_router(),
    "diverse": lambda policy: policy.diverse_chatbot(),
    "vote": lambda policy: policy.ensemble_vote([]),
    "steered": lambda policy: policy.steering_preset("json_compliance"),
}


@pytest.mark.parametrize("name", FACTORIES)
def test_every_factory_runs(mx, name):
    """What the SDK's factories write runs as it is, with a trace of every candidate."""
    answer = mx.policy.run("Name a river as JSON.", FACTORIES[name](mx.policy), max_new_tokens=16)
    assert isinstance(answer["accepted"], bool)
    trace = answer["trace"]
    assert answer["output"] in [each["output"] for each in trace["candidates"]]
    assert trace["selection"]["score"] == answer["score"]
    assert {"policy_name", "candidates", "retry_events", "selection"} <= trace.keys()


def test_policies_are_compared_and_evaluated(mx, client, sent):
    """compare has one result for each policy in order; evaluate counts over prompts, by id too."""
    results = mx.policy.compare("Which river?", [sent, {"name": "plain"}], max_new_tokens=16)["results"]
    assert [each["trace"]["policy_name"] for each in results] == ["rivers", "plain"]
    policy_id = mx.policy.save(sent)
    try:
        found = mx.policy.evaluate(
            ["Which river?", "A river in Egypt?"], policy_id=policy_id, max_new_tokens=16
        )
    finally:
        forget(client, policy_id)
    assert (found["num_prompts"], found["pass_count"] + found["fail_count"]) == (2, 2)
    assert found["success_rate"] == found["pass_count"] / 2
    assert [each["policy_id"] for each in found["outputs"]] == [policy_id] * 2


def test_auto_tune_finds_the_best(mx, sent):
    """Trials in the order of the grid; the best is one of them."""
    found = mx.policy.auto_tune(
        ["Which river?"],
        base_policy=sent,
        search_space={"sampling.temperature": [0.1, 0.8], "optimization.best_of_n": [1]},
        max_new_tokens=16,
    )
    assert [trial["policy"]["sampling"]["temperature"] for trial in found["trials"]] == [0.1, 0.8]
    assert found["best_policy"] == found["best_trial"]["policy"]


@pytest.mark.parametrize(
    "advanced",
    [
        {"best_of_n": 2},
        {"regex_pattern": "[a-z]{3,9}"},
        {"code_unit_tests": ["assert True"]},
        {"json_schema": SCHEMA},
        {"min_p": 0.1},
        {"typical_p": 0.9},
        {"sampling_method": "ads", "ads_subset_size": 8},
        {"adaptive_temperature": True, "adaptive_temperature_schedule": [0.2, 0.9]},
        {"adaptive_top_p": True, "adaptive_top_p_schedule": [0.5]},
        {"confidence_triggered_regeneration": True, "confidence_threshold": 0.2},
        {"steering_preset": "json_compliance"},
    ],
    ids=lambda advanced: next(iter(advanced)),
)
def test_generates_advanced_arguments_run(mx, advanced):
    """Each argument of generation.generate that makes the SDK write a policy gets an answer."""
    assert isinstance(mx.generation.generate("Which river?", max_tokens=16, **advanced), str)
