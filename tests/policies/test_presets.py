"""The policies that come with the server."""

import pytest

from policies.policy import RuntimePolicy
from policies.presets import PRESETS
from server.policies import plain


@pytest.mark.parametrize("preset_id", PRESETS)
def test_every_preset_is_a_policy(preset_id):
    """Nothing of it is unknown or without effect, and it says what it is for."""
    preset = PRESETS[preset_id]
    policy = RuntimePolicy.model_validate(preset.policy)
    assert plain(policy) == preset.policy
    assert policy.name == preset_id.removeprefix("steersman:")
    assert preset.name
    assert preset.description.endswith(".")
    assert preset.tags
