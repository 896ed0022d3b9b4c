"""Small autoencoders of a small model, as they lie on disk."""

from datetime import UTC, datetime

import numpy as np
import torch

from server.saes import SaeCard, StoredSae
from server.steering import SteeredModel
from steering.sae.encode import Architecture
from steering.sae.sae import SparseAutoencoder

LAYERS, WIDTH, LATENTS = 6, 4, 10
MODEL = SteeredModel("org/model", "f" * 64, LAYERS, WIDTH, np.ones(LAYERS, np.float32))


def autoencoder(layer=4, seed=0, architecture=Architecture.JUMPRELU, width=WIDTH, **more):
    random = np.random.default_rng(seed)

    def normal(*shape):
        return torch.from_numpy(random.normal(size=shape).astype(np.float32))

    parts = {
        "architecture": architecture,
        "W_enc": normal(width, LATENTS),
        "W_dec": normal(LATENTS, width),
        "b_enc": normal(LATENTS),
        "b_dec": normal(width),
        "layer": layer,
        "hook": f"blocks.{layer}.hook_resid_post",
        "model": "org/model",
    }
    if architecture is Architecture.TOPK:
        parts["k"] = 3
    else:
        parts["threshold"] = normal(LATENTS).abs()
    return SparseAutoencoder(**(parts | more))


def stored(name="small", layer=4, seed=0, fingerprint=MODEL.fingerprint, density=True, **more):
    """`more` are fields of the card."""
    sae = autoencoder(layer, seed, width=more.pop("width", WIDTH))
    parts = {
        "name": name,
        "source": "hf:someone/some-sae",
        "architecture": "jumprelu",
        "layer": layer,
        "hook": sae.hook,
        "d_in": sae.d_in,
        "d_sae": sae.d_sae,
        "digest": sae.digest,
        "model_name": "org/model",
        "model_fingerprint": fingerprint,
        "quality": {"explained": 0.75, "l0": 31.5, "dead": 0.1},
        "approximated": False,
        "created_at": datetime(2026, 1, 2, 3, 4, tzinfo=UTC).isoformat(),
    }
    rows = np.linspace(0, 1, LATENTS, dtype=np.float32) if density else None
    return StoredSae(SaeCard(**(parts | more)), sae, rows)
