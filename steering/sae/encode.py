"""From a state to latents: what is done before and after the encoder's matrix."""

from dataclasses import dataclass, replace
from enum import StrEnum
from typing import Final

import torch
from torch import Tensor

_EPSILON: Final = 1e-5  # of layer_norm, as it is in the libraries that train with it


class Architecture(StrEnum):
    """How pre-activations become latents. BATCHTOPK serves as the JumpReLU that its training ends in."""

    STANDARD = "standard"  # ReLU(pre)
    TOPK = "topk"  # the k largest, then ReLU
    BATCHTOPK = "batchtopk"  # like jumprelu, k latents on average
    JUMPRELU = "jumprelu"  # ReLU(pre) where pre > threshold
    GATED = "gated"  # ReLU(exp(r_mag) (pre - bias) + b_mag) where pre, its bias being b_gate, > 0


class Normalisation(StrEnum):
    """What is done to a state before it is encoded, and undone after decoding."""

    NONE = "none"
    EXPECTED_AVERAGE = (
        "expected_average_only_in"  # one factor for all states: `folded` puts it in the weights
    )
    CONSTANT_NORM = "constant_norm_rescale"  # to length sqrt(d_in)
    LAYER_NORM = "layer_norm"  # less its mean, over its standard deviation


@dataclass(frozen=True, eq=False, slots=True)
class Nonlinearity:
    """From x' W_enc to latents; vectors are `[latents]`. See `Architecture`."""

    architecture: Architecture
    bias: Tensor
    threshold: Tensor | None = None
    gain: Tensor | None = None
    magnitude_bias: Tensor | None = None
    k: int | None = None
    norms: Tensor | None = None

    def __call__(self, a: Tensor) -> Tensor:
        pre = a + self.bias
        match self.architecture:
            case Architecture.STANDARD:
                return torch.relu(pre)
            case Architecture.JUMPRELU | Architecture.BATCHTOPK:
                assert self.threshold is not None
                return torch.where(pre > self.threshold, torch.relu(pre), 0.0)
            case Architecture.GATED:
                assert self.gain is not None
                assert self.magnitude_bias is not None
                return torch.where(pre > 0, torch.relu(a * self.gain + self.magnitude_bias), 0.0)
            case Architecture.TOPK:
                assert self.k is not None
                values, which = (pre if self.norms is None else pre * self.norms).topk(self.k, dim=-1)
                return torch.zeros_like(pre).scatter(-1, which, torch.relu(values))

    def of(self, latents: Tensor) -> "Nonlinearity":
        """That of some latents; not for TopK, which ranks all."""
        assert self.architecture is not Architecture.TOPK
        return replace(
            self,
            bias=self.bias[latents],
            threshold=None if self.threshold is None else self.threshold[latents],
            gain=None if self.gain is None else self.gain[latents],
            magnitude_bias=None if self.magnitude_bias is None else self.magnitude_bias[latents],
        )

    def shifted(self, shift: Tensor) -> "Nonlinearity":
        """The same of `a + shift`."""
        if self.gain is None or self.magnitude_bias is None:
            return replace(self, bias=self.bias + shift)
        magnitude_bias = self.magnitude_bias + self.gain * shift
        return replace(self, bias=self.bias + shift, magnitude_bias=magnitude_bias)


def normalised(x: Tensor, normalisation: Normalisation) -> Tensor:
    if normalisation is Normalisation.NONE:
        return x
    mean, inward, _ = scales(x, normalisation)
    return (x - mean) * inward


def scales(x: Tensor, normalisation: Normalisation) -> tuple[Tensor | float, Tensor, Tensor]:
    """Mean, factor on the way in, factor on the way out; `[..., 1]` each.

    The two factors are not quite inverse under layer_norm: autoencoders were trained like this.
    """
    if normalisation is Normalisation.CONSTANT_NORM:
        length = x.norm(dim=-1, keepdim=True).clamp(min=1e-30) / x.shape[-1] ** 0.5
        return 0.0, 1.0 / length, length
    assert normalisation is Normalisation.LAYER_NORM
    mean = x.mean(dim=-1, keepdim=True)
    deviation = (x - mean).std(dim=-1, keepdim=True)
    return mean, 1.0 / (deviation + _EPSILON), deviation
