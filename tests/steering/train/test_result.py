"""What training tells of a vector."""

import math

from steering.train.result import Evidence


def test_evidence_is_of_numbers_alone():
    """What was not measured is left out, and so is what came out as no number: databases take neither."""
    evidence = Evidence(norm=1.0, auroc=math.nan, loss=math.inf, pairs=3)
    assert evidence.known() == {"norm": 1.0, "pairs": 3}
