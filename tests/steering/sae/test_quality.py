import numpy as np
import pytest
import torch

from steering.sae.encode import Architecture, Normalisation
from steering.sae.errors import SaeError
from steering.sae.quality import cross_entropy_recovered, measure


@pytest.mark.parametrize("normalisation", [Normalisation.NONE, Normalisation.LAYER_NORM])
def test_equals_the_definitions_in_float64(made, normalisation):
    """However the states are cut, and far from the origin, where squares cancel."""
    sae = made(Architecture.JUMPRELU, normalisation=normalisation)
    rows = (np.random.default_rng(0).normal(size=(2500, 24)) + 300).astype(np.float32)
    found = measure(sae, [rows[:1], rows[1:1700], rows[1700:]])
    x = torch.from_numpy(rows)
    latents = sae.encode(x)
    again = sae.decode(latents, x).double().numpy()
    error = ((rows - again) ** 2).sum() / ((rows - rows.mean(axis=0, dtype=np.float64)) ** 2).sum()
    assert found.explained == pytest.approx(1 - error, rel=1e-6)
    active = latents.numpy() > 0
    assert found.rows == 2500
    assert found.l0 == pytest.approx(active.sum(axis=1).mean())
    assert found.dead == pytest.approx((~active.any(axis=0)).mean())
    np.testing.assert_allclose(found.density, active.mean(axis=0), rtol=1e-6)


def test_states_without_variance_are_refused(made):
    sae = made(Architecture.STANDARD)
    for states in ([], [np.zeros((0, 24), np.float32)], [np.ones((5, 24), np.float32)]):
        with pytest.raises(SaeError, match=r"no states|all states are the same"):
            measure(sae, states)


def test_cross_entropy_recovered():
    """1 as with the states themselves, 0 as without; beyond both where it is better or worse."""
    assert cross_entropy_recovered(3.0, 3.0, 8.0) == 1.0
    assert cross_entropy_recovered(3.0, 8.0, 8.0) == 0.0
    assert cross_entropy_recovered(3.0, 3.5, 8.0) == pytest.approx(0.9)
    assert cross_entropy_recovered(3.0, 13.0, 8.0) == -1.0
    for values in ((3.0, 3.0, 3.0), (3.0, float("nan"), 8.0)):
        with pytest.raises(SaeError, match="must rise"):
            cross_entropy_recovered(*values)
