"""A small sparse autoencoder, learned from the states of one job: no pretrained one is needed."""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from steering.sae.topk import Descent
from steering.vector import Array

_BATCH = 512
_SAMPLE = 8192  # states on which the threshold is calibrated, at most


@dataclass(frozen=True, slots=True)
class Options:
    """`latents` is at most four times the width; None chooses by width and number of states.

    `active` latents explain one state while learning.
    """

    latents: int | None = None
    active: int = 32
    steps: int = 300
    lr: float = 5e-3
    seed: int = 0


@dataclass(frozen=True)
class Autoencoder:
    """Latents `ReLU(x·read + bias)`; `read` and `write` are `[latents, hidden]`, rows of `write` of norm 1.

    Learning keeps the k largest latents of each state. Serving cannot rank them without the whole encoder, so
    k is approximated by one threshold that leaves k latents active per state on average, and `bias` has this
    threshold taken off: what remains is a plain ReLU, continuous where a latent sets in. `explained` is the
    share of variance under the threshold, `active` the mean count of active latents.
    """

    read: Array
    write: Array
    bias: Array
    explained: float
    active: float

    def encode(self, rows: Array) -> Array:
        """`[tokens, latents]`."""
        latents: Array = np.maximum(rows @ self.read.T + self.bias, 0.0, dtype=np.float32)
        return latents


def learn(rows: Array, options: Options) -> Autoencoder:
    """The same for the same rows and seed."""
    count, hidden = rows.shape
    latents = min(options.latents or min(1024, hidden, max(count // 2, 16)), 4 * hidden)
    active = min(options.active, latents)
    x = torch.from_numpy(rows)
    centre = x.mean(dim=0)
    # States of mean squared norm `hidden`, so that the learning rate suits every layer and model.
    scale = float((x - centre).square().sum(dim=1).mean().sqrt()) / hidden**0.5
    if scale == 0:
        raise ValueError("all states are the same: there is nothing to learn from")
    x = (x - centre) / scale
    read, write, bias, offset = _descend(x, latents, active, options)
    x = x[:: -(-count // _SAMPLE)]
    before = x @ read.T + bias
    # A quantile of all activations: on average `active` of each state's exceed it.
    rank = max(1, len(x) * (latents - active))
    threshold = max(0.0, float(before.flatten().kthvalue(rank).values))
    kept = torch.where(before > threshold, before, 0.0)
    explained = 1.0 - float((x - offset - kept @ write).square().sum() / x.square().sum())
    return Autoencoder(
        read=read.numpy(),
        write=write.numpy(),
        bias=(scale * (bias - threshold) - read @ centre).numpy(),
        explained=explained,
        active=float((kept > 0).sum() / len(x)),
    )


def _descend(x: Tensor, latents: int, active: int, options: Options) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Encoder and decoder rows, encoder and decoder bias."""
    generator = torch.Generator().manual_seed(options.seed)
    # Latents begin as states: few then stay dead, and features that states hold are found in few steps.
    start = x[torch.randint(len(x), (latents,), generator=generator)]
    descent = Descent(start + 0.3 * torch.randn(start.shape, generator=generator), active)
    for step in range(options.steps):
        rows = x[torch.randint(len(x), (min(_BATCH, len(x)),), generator=generator)]
        descent.step(rows, options.lr * (1.0 - step / options.steps))
    read, write, bias, offset = (parameter.detach() for parameter in descent.parameters)
    return read, write, bias, offset
