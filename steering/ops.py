"""How the residual stream changes: pure functions on rows of it, float32.

`x` is `[tokens, hidden]`; vectors are `[tokens, hidden]` or `[1, hidden]`, scalars `[tokens, 1]` or floats.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from steering.vector import Scaling

Scalar = Tensor | float


def add(x: Tensor, v: Tensor, strength: Scalar) -> Tensor:
    return x + strength * v


def norm_preserving_add(x: Tensor, v: Tensor, strength: Scalar) -> Tensor:
    """The sum, rescaled to the length that x had; x itself where the sum vanishes."""
    y = x + strength * v
    before, after = x.norm(dim=-1, keepdim=True), y.norm(dim=-1, keepdim=True)
    return torch.where(after > 0, y * (before / after), x)


def clamp(x: Tensor, u: Tensor, strength: Scalar, low: Tensor, high: Tensor) -> Tensor:
    """Bring the component along the unit vector u into [low, high]; strength 1 goes all the way."""
    c = (x * u).sum(dim=-1, keepdim=True)
    return x + strength * (torch.minimum(torch.maximum(c, low), high) - c) * u


@dataclass(frozen=True, slots=True)
class Latents:
    """`read` and `write` are `[latents, hidden]`, the others `[latents]`."""

    read: Tensor
    write: Tensor
    bias: Tensor
    offset: Tensor
    threshold: Tensor


def units(x: Tensor, latents: Latents, strength: Scalar) -> Tensor:
    """Shift the pre-activation of sparse latents (arXiv 2503.00177, eq. 5, by the decoder's linearity).

    What the latents do not explain of x stays as it is.
    """
    a = x @ latents.read.T + latents.bias
    before = _active(a, latents.threshold)
    after = _active(a + strength * latents.offset, latents.threshold)
    return x + (after - before) @ latents.write


@dataclass(frozen=True, slots=True)
class Detected:
    """As `steering.vector.Detector`: `read` is `[latents, hidden]`, the tensors after it `[latents]`."""

    read: Tensor
    bias: Tensor
    threshold: Tensor
    gain: Tensor
    shift: Tensor
    weight: Tensor
    offset: float
    scaling: Scaling


def detect(x: Tensor, detector: Detected) -> Tensor:
    """Scores `[tokens]`."""
    a = _scaled(x, detector.scaling) @ detector.read.T + detector.bias
    latents = torch.where(a > detector.threshold, torch.relu(a * detector.gain + detector.shift), 0.0)
    scores: Tensor = latents @ detector.weight + detector.offset
    return scores


def _scaled(x: Tensor, scaling: Scaling) -> Tensor:
    """As `steering.sae.encode.normalised`, which the worker does without."""
    if scaling is Scaling.NONE:
        return x
    if scaling is Scaling.CONSTANT_NORM:
        length: Tensor = x.norm(dim=-1, keepdim=True).clamp(min=1e-30)
        return x * (math.sqrt(x.shape[-1]) / length)
    centred: Tensor = x - x.mean(dim=-1, keepdim=True)
    deviation: Tensor = centred.std(dim=-1, keepdim=True)
    return centred / (deviation + 1e-5)


def clamp_latents(x: Tensor, latents: Latents, strength: Scalar, low: Tensor, high: Tensor) -> Tensor:
    """Bring latents into [low, high] and decode the difference alone: what they leave out of x stays."""
    f = _active(x @ latents.read.T + latents.bias, latents.threshold)
    moved: Tensor = (torch.minimum(torch.maximum(f, low), high) - f) @ latents.write
    return x + strength * moved


def _active(a: Tensor, threshold: Tensor) -> Tensor:
    return torch.where(a > threshold, a, 0.0)


def cosine_gate(x: Tensor, w: Tensor, threshold: Scalar) -> Tensor:
    """1 where cos(x, w) exceeds the threshold, else 0; `[tokens, 1]` as all gates are."""
    cosine = (x * w).sum(dim=-1, keepdim=True) / (x.norm(dim=-1, keepdim=True) * w.norm(dim=-1, keepdim=True))
    return torch.where(cosine > threshold, 1.0, 0.0)


def probe_gate(x: Tensor, w: Tensor, bias: Scalar, slope: Scalar) -> Tensor:
    return torch.sigmoid(slope * ((x * w).sum(dim=-1, keepdim=True) + bias))


def ramp_gate(x: Tensor, w: Tensor, bias: Scalar, slope: Scalar, threshold: Scalar) -> Tensor:
    """1 far below the threshold, 0 from it on."""
    score = (x * w).sum(dim=-1, keepdim=True) + bias
    return torch.clamp(slope * (threshold - score), 0.0, 1.0)
