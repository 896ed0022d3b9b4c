"""One latent of an autoencoder as a vector that adds to it, or clamps it."""

import numpy as np

from steering.sae.encode import Architecture, Normalisation
from steering.sae.errors import SaeError
from steering.sae.sae import SparseAutoencoder
from steering.vector import Layer, SteeringVector, Units


def feature_vector(sae: SparseAutoencoder, latent: int) -> SteeringVector:
    """Its direction is the latent's decoder row: to add v times it adds v to the latent. As its one unit the
    latent can be clamped, whatever else the autoencoder leaves out of a state.

    Raises SaeError for a latent that is not there, or is not had by one threshold: where all are ranked,
    gated, or states are normalised first.
    """
    if not sae.subset_is_exact or sae.architecture is Architecture.GATED:
        raise SaeError(f"single latents of {sae.architecture} autoencoders are not steered")
    if sae.normalisation is not Normalisation.NONE:
        raise SaeError(f"latents of states under {sae.normalisation} are not steered")
    subset = sae.reads_only([latent])
    act = subset.nonlinearity
    bias = act.bias.numpy()
    threshold = np.zeros_like(bias) if act.threshold is None else np.maximum(act.threshold.numpy(), 0)
    write = subset.write.numpy()
    if not np.linalg.norm(write) > 0:
        raise SaeError(f"the latent {latent} writes nothing")
    units = Units(subset.read.numpy(), write, bias, np.zeros_like(bias), threshold)
    return SteeringVector({sae.layer: Layer(write[0], units=units)})
