"""The latents of a text, against the whole encoder's."""

import numpy as np
import pytest
import torch

from server.sae_features import TOP_TOKENS, features, strongest
from steering.sae.errors import SaeError
from tests.server.sae_world import LATENTS, WIDTH, stored

STATES = np.random.default_rng(3).normal(size=(700, WIDTH)).astype(np.float32) * 2
LATENT_ROWS = stored().sae.encode(torch.from_numpy(STATES)).numpy()


def test_the_strongest_come_first():
    """By their largest activation; those that are active nowhere are left out."""
    found = strongest(stored(), STATES, LATENTS)
    highest = LATENT_ROWS.max(axis=0)
    ranked = [int(latent) for latent in np.argsort(-highest) if highest[latent] > 0]
    assert [each.latent for each in found] == ranked
    assert [each.latent for each in strongest(stored(), STATES, 3)] == ranked[:3]


def test_figures_of_a_latent():
    """Maximum, mean, count, density and the states where it is strongest."""
    for each in features(stored(), STATES, list(range(LATENTS))):
        values = LATENT_ROWS[:, each.latent]
        assert each.max == pytest.approx(values.max(), rel=1e-5)
        assert each.mean == pytest.approx(values.mean(), rel=1e-4, abs=1e-7)
        assert each.active == (values > 0).sum()
        assert each.density == pytest.approx(each.latent / 9)
        wanted = [row for row in np.argsort(-values, kind="stable")[:TOP_TOKENS] if values[row] > 0]
        assert [firing.row for firing in each.top] == wanted
        assert [firing.activation for firing in each.top] == pytest.approx(values[wanted].tolist(), rel=1e-5)


def test_asked_for_by_number():
    """In the order asked for, silent ones too, and without a density where none is known."""
    quiet = np.zeros((2, WIDTH), np.float32) - 50
    found = features(stored(density=False), quiet, [7, 1])
    assert [each.latent for each in found] == [7, 1]
    assert {each.density for each in found} == {None}
    silent = [each for each in found if not each.active]
    assert all((each.max, each.mean, each.top) == (0, 0, ()) for each in silent)
    assert features(stored(), STATES, []) == []
    with pytest.raises(SaeError, match="no latent 10"):
        features(stored(), STATES, [10])
