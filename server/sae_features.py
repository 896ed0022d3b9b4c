"""The latents of a text: which are strongest, and where."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
import torch

from server.saes import StoredSae
from steering.vector import Array

TOP_TOKENS: Final = 5
_CHUNK: Final = 256  # states encoded at once: wide autoencoders have 100,000 latents and more


@dataclass(frozen=True, slots=True)
class Firing:
    """`row` is the number of the state among those given."""

    row: int
    activation: float


@dataclass(frozen=True, slots=True)
class Feature:
    """One latent over some states: its mean is over all, `active` counts those where it is above 0."""

    latent: int
    max: float
    mean: float
    active: int
    density: float | None
    top: tuple[Firing, ...]


def strongest(stored: StoredSae, states: Array, limit: int) -> list[Feature]:
    """The `limit` latents of highest activation over `states` `[n, d_in]`, of those active at all."""
    highest = torch.zeros(stored.sae.d_sae)
    for start in range(0, len(states), _CHUNK):
        latents = stored.sae.encode(torch.from_numpy(states[start : start + _CHUNK]))
        highest = torch.maximum(highest, latents.amax(dim=0))
    values, which = highest.topk(min(limit, stored.sae.d_sae))
    return features(stored, states, [int(latent) for latent in which[values > 0]])


def features(stored: StoredSae, states: Array, latents: Sequence[int]) -> list[Feature]:
    """These `latents`, in their order, over `states` `[n, d_in]`. Raises SaeError for numbers of none."""
    if not latents:
        return []
    values = stored.sae.encode_some(torch.from_numpy(states), latents).numpy()
    return [_feature(latent, values[:, column], stored.density) for column, latent in enumerate(latents)]


def _feature(latent: int, values: Array, density: Array | None) -> Feature:
    ranked = np.argsort(-values, kind="stable")[:TOP_TOKENS]
    return Feature(
        latent=latent,
        max=float(values.max(initial=0.0)),
        mean=float(values.mean()) if len(values) else 0.0,
        active=int((values > 0).sum()),
        density=None if density is None else float(density[latent]),
        top=tuple(Firing(int(row), float(values[row])) for row in ranked if values[row] > 0),
    )
