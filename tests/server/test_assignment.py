"""Which models sessions get: without a row for any, and yet as if it were drawn."""

import uuid
from collections import Counter

import pytest
from scipy import stats

from server.assignment import drawn

CAMPAIGN = "6d0f1f0e-0f7c-4e43-9a63-2f3a4f6f1e11"
SESSIONS = [str(uuid.UUID(int=number * 0x9E3779B97F4A7C15)) for number in range(20_000)]


@pytest.mark.parametrize("split", [1.0, 0.5, 0.1])
@pytest.mark.parametrize("sessions", [SESSIONS, [f"user-{number}" for number in range(20_000)]])
def test_models_share_the_traffic_evenly_and_the_rest_is_the_projects(split, sessions):
    models = ["a", "b", "c"]
    got = Counter(drawn(CAMPAIGN, session, models, traffic_split=split) for session in sessions)
    expected = {None: 1 - split, **dict.fromkeys(models, split / 3)}
    expected = {model: share * len(sessions) for model, share in expected.items() if share}
    assert got.keys() == expected.keys()
    found = stats.chisquare([got[model] for model in expected], list(expected.values()))
    assert found.pvalue > 0.001


def test_a_session_always_gets_the_same_model():
    """On servers of other versions, too."""
    sessions = ("s-1", "s-2", "s-3", "s-4", "s-5", "é\ud800")
    got = [drawn(CAMPAIGN, session, ["a", "b"], traffic_split=0.5) for session in sessions]
    assert got == [None, None, "b", None, "a", None]


def test_what_a_session_got_in_one_campaign_tells_nothing_of_the_next():
    following = str(uuid.UUID(int=7))
    pairs = Counter((drawn(CAMPAIGN, each, "ab"), drawn(following, each, "ab")) for each in SESSIONS)
    table = [[pairs[first, second] for second in "ab"] for first in "ab"]
    assert stats.chi2_contingency(table).pvalue > 0.001


def test_a_greater_split_keeps_the_sessions_that_a_smaller_one_had():
    fewer = {each for each in SESSIONS if drawn(CAMPAIGN, each, "ab", traffic_split=0.2)}
    more = {each for each in SESSIONS if drawn(CAMPAIGN, each, "ab", traffic_split=0.3)}
    assert fewer < more
