"""Some latents of an autoencoder, to monitor and to steer."""

from dataclasses import dataclass

import torch
from torch import Tensor

from steering.sae.encode import Nonlinearity, Normalisation, normalised, scales


@dataclass(frozen=True, eq=False)
class Subset:
    """Some latents of an autoencoder, as they are monitored and steered, without what only others need.

    `write` is `[latents, d_in]`: what one latent adds to a (normalised) state. `read` likewise, or, where all
    latents are ranked, `[d_sae, d_in]`; `among` then are these latents' lines. The subtraction of b_dec from
    the input is part of the biases.
    """

    latents: tuple[int, ...]
    read: Tensor
    write: Tensor
    nonlinearity: Nonlinearity
    among: Tensor | None
    normalisation: Normalisation

    def encode(self, x: Tensor) -> Tensor:
        """`[..., latents]` in float32, for states `[..., d_in]`."""
        return self._activated(normalised(x.to(self.read.dtype), self.normalisation))

    def shift(self, x: Tensor, to: Tensor) -> Tensor:
        """What to add to states so that these latents become `to` `[..., latents]`; nan leaves one as it is.

        The reconstruction error stays as it is: only the difference of latents is decoded. To ablate is 0, to
        clamp a value, to add `encode(x) + value`.
        """
        x = x.to(self.read.dtype)
        now = self._activated(normalised(x, self.normalisation))
        moved = torch.nan_to_num(to.to(now.dtype) - now, nan=0.0) @ self.write
        if self.normalisation is Normalisation.NONE:
            return moved
        return moved * scales(x, self.normalisation)[2]

    def _activated(self, inner: Tensor) -> Tensor:
        latents = self.nonlinearity(inner @ self.read.T)
        return latents if self.among is None else latents[..., self.among]
