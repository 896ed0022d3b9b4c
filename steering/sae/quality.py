"""How good an autoencoder is, on states it has not learned from."""

import math
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import torch

from steering.sae.errors import SaeError
from steering.sae.sae import SparseAutoencoder
from steering.vector import Array

_CHUNK = 1024


@dataclass(frozen=True, eq=False)
class Quality:
    """Over `rows` states, `passed_over` not among them.

    `explained` is the share of variance about their mean that reconstructions hold, 1 at best; `l0` is the
    mean number of active latents, `dead` the share of latents active nowhere, `density` `[d_sae]` the share
    of states in which each is active.
    """

    rows: int
    passed_over: int
    explained: float
    l0: float
    dead: float
    density: Array


def measure(sae: SparseAutoencoder, states: Iterable[Array], longest: float = math.inf) -> Quality:
    """`states` come as arrays `[any, d_in]`, and only some of them are held at a time.

    Those longer than `longest` (see `train.longest_ordinary`) are passed over: one attention sink holds more
    variance than ten thousand other states.
    """
    device = sae.W_enc.device
    rows, passed_over, error = 0, 0, 0.0
    shift: torch.Tensor | None = None  # sums are taken about the first states' mean: far less cancels
    total = torch.zeros(sae.d_in, dtype=torch.float64, device=device)
    squares = torch.zeros((), dtype=torch.float64, device=device)
    active = torch.zeros(sae.d_sae, dtype=torch.int64, device=device)
    for array in states:
        for start in range(0, len(array), _CHUNK):
            x = torch.from_numpy(np.asarray(array[start : start + _CHUNK], np.float32)).to(device)
            ordinary = x.norm(dim=1) <= longest
            passed_over += int((~ordinary).sum())
            x = x[ordinary]
            if not len(x):
                continue
            latents = sae.encode(x)
            error += float((x - sae.decode(latents, x)).double().square().sum())
            active += (latents > 0).sum(dim=0)
            shift = x.double().mean(dim=0) if shift is None else shift
            about = x.double() - shift
            total += about.sum(dim=0)
            squares += about.square().sum()
            rows += len(x)
    if not rows:
        raise SaeError("there are no states to measure on")
    variance = float(squares - total.square().sum() / rows)
    if not variance > 0:
        raise SaeError("all states are the same: there is no variance to explain")
    return Quality(
        rows=rows,
        passed_over=passed_over,
        explained=1.0 - error / variance,
        l0=float(active.sum()) / rows,
        dead=float((active == 0).double().mean()),
        density=(active.double() / rows).float().cpu().numpy(),
    )


def cross_entropy_recovered(clean: float, reconstructed: float, ablated: float) -> float:
    """1 where the model predicts as well from reconstructions as from its own states, 0 as if it had none.

    The three are mean cross-entropies of the same tokens: with states as they are, reconstructed, and
    replaced by 0 (or by their mean). Raises SaeError where ablation does no harm, which leaves no scale.
    """
    if not all(math.isfinite(value) for value in (clean, reconstructed, ablated)) or not ablated > clean:
        raise SaeError(f"cross-entropy must rise without the states, not go from {clean} to {ablated}")
    return (ablated - reconstructed) / (ablated - clean)
