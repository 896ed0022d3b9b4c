"""What the page of metrics, which is open to all, tells of drift."""

import numpy as np
import pytest
from prometheus_client import REGISTRY, generate_latest

from server.monitor import EVERYWHERE, Drift, Mode, Scores, Watched
from tests.server.watched_world import detector


@pytest.mark.parametrize(("path", "label"), [("behavior_names.0", "custom"), (EVERYWHERE, "told apart")])
def test_only_what_the_operator_watches_has_its_name_there(path, label):
    """What an account calls its behaviours is nobody else's."""
    name = "told apart" if path == EVERYWHERE else "quillwort tone"
    watched = Watched("id", "me", name, detector(1), 3, 0.5, 0.1, None, path, Mode.ONLINE)
    counted = "steersman_behavior_corrections_total"
    before = REGISTRY.get_sample_value(counted, {"behavior": label, "mode": "online"}) or 0
    Drift(watched, (Scores(np.ones(3, np.float32), fired=1),)).observe()
    assert REGISTRY.get_sample_value(counted, {"behavior": label, "mode": "online"}) == before + 1
    assert b"quillwort" not in generate_latest(REGISTRY)
