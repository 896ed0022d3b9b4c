import numpy as np
import pytest
import torch

from steering import ops
from steering.train import autoencoder
from steering.train.sparse import Options, asas
from steering.train.states import TokenStates
from steering.vector import SteeringVector

HIDDEN, FEATURES = 32, 12
ENCODER = autoencoder.Options(latents=24, active=3, steps=600, lr=1e-2)


def features():
    rows = np.random.default_rng(0).normal(size=(FEATURES, HIDDEN))
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


def planted(own, seed, texts=40, tokens=15):
    """States made of sparse features about a common mean; feature `own` is in this class alone.

    Features 0 and 1 belong to classes, the others appear everywhere.
    """
    random = np.random.default_rng(seed)
    codes = (random.uniform(size=(texts, tokens, FEATURES)) < 0.15) * random.uniform(
        2, 4, (texts, tokens, FEATURES)
    )
    codes[:, :, :2] = 0.0
    if own is not None:
        codes[:, :, own] = (random.uniform(size=(texts, tokens)) < 0.5) * random.uniform(
            2, 4, (texts, tokens)
        )
    rows = codes @ features() + 0.02 * random.normal(size=(texts, tokens, HIDDEN)) + 7.0
    return TokenStates.of(list(rows.astype(np.float32)))


@pytest.fixture(scope="module")
def trained():
    return asas({3: planted(0, 1)}, {3: planted(1, 2)}, Options(encoder=ENCODER))


def cosines(rows, others):
    rows = rows / np.linalg.norm(rows, axis=-1, keepdims=True)
    return rows @ others.T


def test_planted_features_are_recovered(trained):
    """Both classes' own features are found, with the right sign, and shared ones are not among the units."""
    units = trained.vector.layers[3].units
    found = cosines(units.write, features())
    assert found[units.offset > 0, 0].max() > 0.95
    assert found[units.offset < 0, 1].max() > 0.95
    shares = np.abs(units.offset @ units.write @ np.linalg.pinv(features()))
    assert shares[:2].min() > 3 * shares[2:].max()
    assert len(units.offset) <= 12


def test_direction_is_the_dense_equivalent(trained):
    """The direction is offset @ write, and points from one planted feature to the other."""
    layer = trained.vector.layers[3]
    np.testing.assert_allclose(layer.direction, layer.units.offset @ layer.units.write, rtol=1e-4, atol=1e-6)
    planted_direction = features()[0] - features()[1]
    assert cosines(layer.direction, planted_direction[None] / np.linalg.norm(planted_direction))[0] > 0.95
    assert (layer.units.threshold == 0).all()
    np.testing.assert_allclose(np.linalg.norm(layer.units.write, axis=1), 1.0, rtol=1e-5)


def test_units_take_the_trait_away_and_bring_it(trained):
    """Applied to negative texts the units lower the negative feature and raise the positive one."""
    units = trained.vector.layers[3].units
    x = torch.from_numpy(planted(1, 5).rows)
    parts = (torch.from_numpy(getattr(units, name)) for name in units.__dataclass_fields__)
    latents = ops.Latents(*parts)
    moved = (ops.units(x, latents, 1.0) - x).mean(0).numpy() @ np.linalg.pinv(features())
    assert moved[0] > 0.5
    assert moved[1] < -0.3
    assert np.abs(moved[2:]).max() < 0.3
    torch.testing.assert_close(ops.units(x, latents, 0.0), x)


def test_the_ramp_works_on_negative_tokens_alone(trained):
    """The score is -1 and 1 at the class means, so the default ramp is 1 at one and 0 at the other."""
    probe = trained.vector.layers[3].probe
    means = [planted(0, 1).rows.mean(0), planted(1, 2).rows.mean(0)]
    scores = [float(mean @ probe.weight + probe.bias) for mean in means]
    assert scores == pytest.approx([1.0, -1.0], abs=1e-3)
    x = torch.from_numpy(np.stack(means))
    gates = ops.ramp_gate(x, torch.from_numpy(probe.weight), probe.bias, 1.0, 0.0)
    torch.testing.assert_close(gates[:, 0], torch.tensor([0.0, 1.0]), atol=1e-3, rtol=0)
    assert probe.slope > 0


def test_evidence(trained):
    """Planted classes are told apart on held-out texts; the autoencoder explains the states sparsely."""
    evidence = trained.evidence[3]
    assert evidence.auroc > 0.99
    assert evidence.explained > 0.75
    assert evidence.active <= ENCODER.active + 0.1
    assert evidence.latents == len(trained.vector.layers[3].units.offset)
    assert evidence.norm == pytest.approx(trained.vector.norms[3])


def test_same_job_same_vector(trained):
    """Nothing is left to chance: the same states and seed give the same bytes, and a file keeps them."""
    again = asas({3: planted(0, 1)}, {3: planted(1, 2)}, Options(encoder=ENCODER)).vector
    assert again.digest == trained.vector.digest
    assert SteeringVector.from_blob(again.blob).digest == again.digest


def test_the_largest_offsets_are_kept():
    """No more latents than asked for, and these are the ones that differ most."""
    states = {3: planted(0, 1)}, {3: planted(1, 2)}
    many = asas(*states, Options(encoder=ENCODER)).vector.layers[3].units.offset
    few = asas(*states, Options(encoder=ENCODER, latents=2)).vector.layers[3].units.offset
    assert len(few) == 2
    np.testing.assert_allclose(np.sort(np.abs(few)), np.sort(np.abs(many))[-2:])


def test_nothing_left_says_what_to_lower():
    """Two classes of the same make have no latent of their own; the error names layer and parameter."""
    same = {3: planted(None, 1)}
    with pytest.raises(ValueError, match=r"layer 3: .*lower sparsity_threshold, now 0\.9"):
        asas(same, same, Options(encoder=autoencoder.Options(16, 3, 50), sparsity_threshold=0.9))


def test_refinement_separates_better_at_the_same_length():
    """More steps lower the logistic loss of projected mean states; length, reads and writes stay."""
    states = {0: planted(0, 1, texts=12)}, {0: planted(1, 2, texts=12)}
    plain, refined = (
        asas(*states, Options(encoder=ENCODER, sparsity_threshold=0.5, refine_steps=steps, refine_lr=0.05))
        for steps in (0, 100)
    )
    before, after = plain.vector.layers[0], refined.vector.layers[0]
    np.testing.assert_array_equal(before.units.write, after.units.write)
    assert plain.evidence[0].norm == pytest.approx(refined.evidence[0].norm, rel=1e-4)
    assert not np.allclose(before.units.offset, after.units.offset)

    def loss(layer):
        above, below = states[0][0].means(), states[1][0].means()
        unit = layer.direction / np.linalg.norm(layer.direction)
        start = before.direction / np.linalg.norm(before.direction)
        middle = (above.mean(0) + below.mean(0)) / 2
        spread = np.std(np.concatenate([above, below]) @ start, ddof=1)
        scores = np.concatenate([(above - middle) @ unit, -(below - middle) @ unit]) / spread
        return np.logaddexp(0, -scores).mean()

    assert loss(after) < loss(before)


def test_options_are_checked():
    """A threshold outside (0, 1], negative steps and states of different layers are refused."""
    for wrong in (
        {"sparsity_threshold": 0.0},
        {"sparsity_threshold": 1.1},
        {"refine_steps": -1},
        {"refine_lr": 0},
    ):
        with pytest.raises(ValueError, match=next(iter(wrong))):
            Options(**wrong)
    with pytest.raises(ValueError, match="same layers"):
        asas({0: planted(0, 1)}, {1: planted(1, 2)})
    flat = TokenStates(np.ones((8, 4), np.float32), np.arange(8) // 2)
    with pytest.raises(ValueError, match="layer 0: all states are the same"):
        asas({0: flat}, {0: flat})
