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
