"""ASAS: sparse activation steering (SAS: Bayat et al., arXiv 2503.00177) with an adaptive gate.

A sparse autoencoder names what is in a state. Latents that one class of texts has and the other has not are
moved by the difference of their means; the probe tells, token by token, how much is left to do.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from steering.train import autoencoder
from steering.train.auroc import mean_auroc
from steering.train.autoencoder import Autoencoder
from steering.train.result import Evidence, Trained
from steering.train.states import TokenStates
from steering.vector import Array, Layer, Probe, SteeringVector, Units

_Wide = NDArray[np.float64]
_RESTING = 0.1


@dataclass(frozen=True, slots=True)
class Options:
    """`sparsity_threshold` is the share of a class's texts in which a latent must be active to be kept.

    `refine_steps` of gradient descent move the offsets; see `_refined`.
    """

    sparsity_threshold: float = 0.7
    latents: int = 64
    refine_steps: int = 0
    refine_lr: float = 0.01
    folds: int = 5
    encoder: autoencoder.Options = field(default_factory=autoencoder.Options)

    def __post_init__(self) -> None:
        if not 0.0 < self.sparsity_threshold <= 1.0:
            raise ValueError("sparsity_threshold lies above 0, and at most at 1")
        if self.refine_steps < 0 or not self.refine_lr > 0:
            raise ValueError("refine_steps must not be negative, refine_lr must be positive")


def asas(
    positive: Mapping[int, TokenStates],
    negative: Mapping[int, TokenStates],
    options: Options | None = None,
    *,
    on_layer: Callable[[int], None] = lambda _layer: None,
) -> Trained:
    """Units, their dense equivalent as direction, and a probe for each layer of both mappings.

    The units are in ReLU form (threshold 0); how the k active latents of learning become a ReLU says
    `Autoencoder`. `on_layer` hears of each layer done. Raises ValueError for a layer at which no latent is
    left.
    """
    if positive.keys() != negative.keys():
        raise ValueError("both classes need states of the same layers")
    layers: dict[int, Layer] = {}
    evidence: dict[int, Evidence] = {}
    for index in sorted(positive):
        try:
            layers[index], evidence[index] = _layer(positive[index], negative[index], options or Options())
        except ValueError as error:
            raise ValueError(f"layer {index}: {error}") from error
        on_layer(index)
    return Trained(SteeringVector(layers), evidence)


def _layer(positive: TokenStates, negative: TokenStates, options: Options) -> tuple[Layer, Evidence]:
    rows = np.concatenate([positive.rows, negative.rows]).astype(np.float32, copy=False)
    encoder = autoencoder.learn(rows, options.encoder)
    above = positive.means(encoder.encode(positive.rows))
    below = negative.means(encoder.encode(negative.rows))
    offset = _offsets(above, below, options)
    chosen = np.flatnonzero(offset)
    if not len(chosen):
        raise ValueError(
            "no latent is active in the texts of one class alone; "
            f"lower sparsity_threshold, now {options.sparsity_threshold:g}"
        )
    write = encoder.write[chosen]
    kept = offset[chosen]
    if options.refine_steps:
        kept = _refined(kept, write, positive.means(), negative.means(), options)
    offsets = kept.astype(np.float32)
    read = encoder.read[chosen]
    bias = _resting(negative.rows @ read.T + encoder.bias[chosen], encoder.bias[chosen], offsets)
    units = Units(read, write, bias, offsets, np.zeros_like(offsets))
    direction = (kept @ write).astype(np.float32)
    norm = float(np.linalg.norm(direction))
    return Layer(direction, _probe(positive, negative), units), Evidence(
        norm=norm,
        relative_dose=norm * 2 / (positive.mean_norm + negative.mean_norm),
        pairs=len(above),
        auroc=_auroc(positive, negative, encoder, options),
        latents=len(chosen),
        explained=encoder.explained,
        active=encoder.active,
    )


def _offsets(above: _Wide, below: _Wide, options: Options) -> _Wide:
    """The difference of class means where one class alone has a latent, else 0.

    Inputs are `[texts, latents]`. A latent counts as active in a text when it is so at any of its tokens.
    """
    had = (above > 0).mean(axis=0) >= options.sparsity_threshold
    lacked = (below > 0).mean(axis=0) >= options.sparsity_threshold
    offset = np.where(had ^ lacked, above.mean(axis=0) - below.mean(axis=0), 0.0)
    offset[np.argsort(-np.abs(offset), kind="stable")[options.latents :]] = 0.0
    return np.asarray(offset, np.float64)


def _resting(before: Array, bias: Array, offset: Array) -> Array:
    """The bias of each unit, given the activations `before` its ReLU on the negative tokens.

    A latent to be lowered keeps the threshold of learning: only where it is active is there something to
    take. One to be raised must set in at once, as in the paper, which adds to what the ReLU has let through;
    but it rests far below its ReLU, where a shift would vanish. So its threshold goes down to its resting
    level: all but the lowest tenth of the negative tokens lie above.
    """
    lift = -np.minimum(np.quantile(before, _RESTING, axis=0), 0.0)
    return np.where(offset > 0, bias + lift, bias).astype(np.float32)


def _refined(offset: _Wide, write: Array, above: _Wide, below: _Wide, options: Options) -> _Wide:
    """Offsets of the same latents under which the texts' mean states separate better along the direction.

    Minimised by Adam is the logistic loss of the mean states projected on the direction `offset @ write`,
    about the midpoint of the classes and in units of the spread found at the start. The direction keeps its
    length, so the strength means what it did; which latents act, and what they read and write, stays.
    """
    rows = torch.from_numpy(write.astype(np.float64))
    states = torch.from_numpy(np.concatenate([above, below]))
    states = states - (states[: len(above)].mean(dim=0) + states[len(above) :].mean(dim=0)) / 2
    sides = torch.where(torch.arange(len(states)) < len(above), 1.0, -1.0).double()
    start = torch.from_numpy(offset @ write.astype(np.float64))
    length = start.norm()
    spread = (states @ start / length).std().clamp(min=1e-12)
    # In units of the mean offset, so that refine_lr suits every layer and model.
    scale = float(np.abs(offset).mean())
    ratio = torch.from_numpy(offset / scale).requires_grad_()
    adam = torch.optim.Adam([ratio], lr=options.refine_lr)

    def direction() -> Tensor:
        along: Tensor = ratio @ rows
        unit: Tensor = along / along.norm()
        return unit

    for _ in range(options.refine_steps):
        adam.zero_grad()
        loss = torch.nn.functional.softplus(-sides * (states @ direction()) / spread).mean()
        loss.backward()
        adam.step()
    with torch.no_grad():
        ratio *= length / (scale * (ratio @ rows).norm())
    return np.asarray(scale * ratio.detach().numpy(), np.float64)


def _probe(positive: TokenStates, negative: TokenStates) -> Probe:
    """The monitor of the ramp gate: -1 at the mean of the negative tokens, 1 at that of the positive ones.

    The gate clip(kappa (target - score), 0, lam_max) thus does all of its work where a token looks negative
    and none where it has come to look like the target. The score runs along the difference of means, the best
    plain detector there is; `slope` makes it log-odds for classes of normal spread.
    """
    high, low = positive.rows.mean(axis=0, dtype=np.float64), negative.rows.mean(axis=0, dtype=np.float64)
    gap = float((high - low) @ (high - low))
    if gap == 0:
        raise ValueError("both classes have the same mean state")
    weight = 2.0 * (high - low) / gap
    bias = -float(weight @ (high + low)) / 2
    within = (np.var(positive.rows @ weight) + np.var(negative.rows @ weight)) / 2
    return Probe(weight.astype(np.float32), bias, float(2.0 / max(within, 1e-6)))


def _auroc(
    positive: TokenStates, negative: TokenStates, encoder: Autoencoder, options: Options
) -> float | None:
    """Of held-out texts' mean latents projected on the offsets found without them.

    The autoencoder has seen their states, but no labels.
    """
    sides = [(states.numbers, states.means(encoder.encode(states.rows))) for states in (positive, negative)]
    (first, above), (second, below) = sides
    folds = min(options.folds, len(first))
    scores = []
    for fold in range(folds):
        held, matched = first % folds == fold, second % folds == fold
        if held.all() or matched.all():
            return None
        offset = _offsets(above[~held], below[~matched], options)
        if offset.any():
            scores.append((above[held] @ offset, below[matched] @ offset))
    return mean_auroc(scores)
