"""What autoencoders must come to, by formula: one state at a time, in float64."""

import numpy as np

from steering.sae.encode import Architecture, Normalisation


def wide(tensor):
    return None if tensor is None else tensor.numpy().astype(np.float64)


def normed(sae, x):
    """The state as the autoencoder sees it, and what brings it back."""
    if sae.normalisation is Normalisation.CONSTANT_NORM:
        factor = len(x) ** 0.5 / np.sqrt((x**2).sum())
        return x * factor, lambda y: y / factor
    if sae.normalisation is Normalisation.LAYER_NORM:
        mean, deviation = x.mean(), x.std(ddof=1)
        return (x - mean) / (deviation + 1e-5), lambda y: y * deviation + mean
    return x, lambda y: y


def encoded(sae, x):
    inner, _ = normed(sae, x)
    if sae.apply_b_dec_to_input:
        inner = inner - wide(sae.b_dec)
    latents = []
    for latent in range(sae.d_sae):
        a = sum(inner[i] * float(sae.W_enc[i, latent]) for i in range(sae.d_in))
        if sae.architecture is Architecture.GATED:
            magnitude = a * np.exp(float(sae.gate.r_mag[latent])) + float(sae.gate.b_mag[latent])
            is_open = a + float(sae.gate.b_gate[latent]) > 0
            latents.append(max(magnitude, 0.0) if is_open else 0.0)
            continue
        pre = a + float(sae.b_enc[latent])
        if sae.rescale_acts_by_decoder_norm:
            pre *= np.sqrt((wide(sae.W_dec)[latent] ** 2).sum())
        if sae.threshold is not None and pre <= float(sae.threshold[latent]):
            pre = 0.0
        latents.append(pre)
    latents = np.array(latents)
    if sae.architecture is Architecture.TOPK:
        latents[np.argsort(-latents)[sae.k :]] = 0.0
    return np.maximum(latents, 0.0)


def decoded(sae, latents, x):
    rows = wide(sae.W_dec)
    if sae.rescale_acts_by_decoder_norm:
        rows = rows / np.linalg.norm(rows, axis=1, keepdims=True)
    return normed(sae, x)[1](latents @ rows + wide(sae.b_dec))
