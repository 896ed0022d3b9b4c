"""A baseline and its part of the autoencoder as the engine watches it: a vector that reads, never acts."""

from typing import Final

import numpy as np
import torch

from steering.sae.baseline import Baseline
from steering.sae.encode import Architecture, Normalisation
from steering.sae.errors import SaeError
from steering.sae.sae import SparseAutoencoder
from steering.vector import Detector, Layer, Scaling, SteeringVector

_SCALINGS: Final = {
    Normalisation.NONE: Scaling.NONE,
    Normalisation.CONSTANT_NORM: Scaling.CONSTANT_NORM,
    Normalisation.LAYER_NORM: Scaling.LAYER_NORM,
}


def detector_of(sae: SparseAutoencoder, baseline: Baseline) -> SteeringVector:
    """`baseline`'s score of states that leave the block `sae.layer`.

    Its direction is the one in which the score rises where all latents are active. Raises SaeError for an
    autoencoder that ranks all its latents (see `train.with_threshold`), and for another than the baseline's.
    """
    if baseline.sae != sae.digest:
        raise SaeError("the baseline was made with another autoencoder")
    if not sae.subset_is_exact:
        raise SaeError("the autoencoder ranks all its latents: replace the ranking by a threshold first")
    subset = sae.reads_only(baseline.latents)
    act = subset.nonlinearity
    zeros, ones = torch.zeros_like(act.bias), torch.ones_like(act.bias)
    threshold, gain, shift = zeros, ones, zeros
    if act.architecture is Architecture.GATED:
        assert act.gain is not None
        assert act.magnitude_bias is not None
        gain, shift = act.gain, act.magnitude_bias - act.gain * act.bias
    elif act.threshold is not None:
        threshold = act.threshold
    weight = np.array(baseline.weights, np.float32)
    read = subset.read.numpy()
    return SteeringVector(
        {
            sae.layer: Layer(
                (weight * gain.numpy()) @ read,
                detector=Detector(
                    read=read,
                    bias=act.bias.numpy(),
                    threshold=threshold.numpy(),
                    gain=gain.numpy(),
                    shift=shift.numpy(),
                    weight=weight,
                    offset=baseline.bias,
                    scaling=_SCALINGS[subset.normalisation],
                ),
            )
        }
    )
