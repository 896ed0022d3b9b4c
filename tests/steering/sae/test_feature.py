"""One latent as a vector: what it adds and clamps, against the autoencoder itself."""

import numpy as np
import pytest
import torch

from steering import ops
from steering.sae.encode import Architecture, Normalisation
from steering.sae.errors import SaeError
from steering.sae.feature import feature_vector
from steering.sae.sae import SparseAutoencoder

WIDTH, LATENTS = 12, 7


def autoencoder(architecture=Architecture.JUMPRELU, **more):
    torch.manual_seed(0)
    jumps = {"threshold": torch.rand(LATENTS)} if architecture is Architecture.JUMPRELU else {}
    return SparseAutoencoder(
        **{
            "architecture": architecture,
            "W_enc": torch.randn(WIDTH, LATENTS),
            "W_dec": torch.randn(LATENTS, WIDTH),
            "b_enc": torch.randn(LATENTS),
            "b_dec": torch.randn(WIDTH),
            "layer": 1,
            "apply_b_dec_to_input": True,
            **jumps,
            **more,
        }
    )


@pytest.mark.parametrize("architecture", [Architecture.JUMPRELU, Architecture.STANDARD])
@pytest.mark.parametrize("value", [0.0, 2.5])
def test_clamping_moves_a_state_by_the_latents_difference_alone(architecture, value):
    sae = autoencoder(architecture)
    vector = feature_vector(sae, 3)
    x = torch.randn(50, WIDTH) * 2
    units = {name: torch.from_numpy(part) for name, part in vars(vector.layers[1].units).items()}
    bound = torch.full((50, 1), value)
    moved = ops.clamp_latents(x, ops.Latents(**units), 1.0, bound, bound)
    latents = sae.encode(x)
    assert 0 < (latents[:, 3] > 0).float().mean() < 1
    expected = x + (value - latents[:, 3:4]) * sae.W_dec[3]
    np.testing.assert_allclose(moved, expected, atol=1e-4)


def test_its_direction_is_the_decoder_row():
    sae = autoencoder()
    np.testing.assert_array_equal(feature_vector(sae, 5).layers[1].direction, sae.W_dec[5].numpy())


@pytest.mark.parametrize(
    ("more", "latent", "message"),
    [
        ({"architecture": Architecture.TOPK, "k": 2}, 0, "topk"),
        ({"normalisation": Normalisation.LAYER_NORM}, 0, "layer_norm"),
        ({}, LATENTS, "numbered 0 to 6"),
        ({"W_dec": torch.zeros(LATENTS, WIDTH)}, 0, "writes nothing"),
    ],
)
def test_latents_that_one_threshold_does_not_tell_are_refused(more, latent, message):
    with pytest.raises(SaeError, match=message):
        feature_vector(autoencoder(**more), latent)
