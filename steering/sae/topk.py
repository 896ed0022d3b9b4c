"""Gradient descent on a TopK autoencoder: one step at a time, for every trainer there is."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

import torch
from torch import Tensor
from torch.nn.functional import embedding_bag

_PARAMETERS: Final = ("read", "write", "bias", "offset")
_MOMENTS: Final = ("exp_avg", "exp_avg_sq")  # as Adam calls them


@dataclass(frozen=True, slots=True)
class Revival:
    """How latents that never fire come back (Gao et al., arXiv 2406.04093, A.2).

    The `active` strongest of the latents marked in `dead` explain what the others left of each state;
    `weight` is what this counts beside the error itself.
    """

    dead: Tensor
    active: int
    weight: float


class Descent:
    """Adam on the squared error of `offset + Σ ReLU(x·read + bias) write` over the `active` largest latents.

    `read` and `write` are `[latents, width]`; rows of `write` keep norm 1. States are best centred, and of
    mean squared norm `width`.
    """

    def __init__(self, start: Tensor, active: int, gain: float = 1.0) -> None:
        """Latents begin as the rows of `start`: they write its unit rows, and read `gain` times those."""
        latents, width = start.shape
        self.active = active
        self.steps = 0
        rows = unit(start)
        parameters = [gain * rows, rows.clone(), torch.zeros(latents), torch.zeros(width)]
        self.parameters = [parameter.requires_grad_() for parameter in parameters]
        self.read, self.write, self.bias, self.offset = self.parameters
        self._adam = torch.optim.Adam(self.parameters)

    def step(self, x: Tensor, lr: float, revival: Revival | None = None) -> tuple[float, Tensor]:
        """Learn from states `[rows, width]`: their squared error before, and which latents are active."""
        before = x @ self.read.T + self.bias
        kept, which = torch.relu(before).topk(self.active, dim=1)
        left = x - self.offset - _weighted(which, self.write, kept)
        error = left.square().sum()
        loss = error / x.numel()
        if revival is not None:
            loss = loss + self._revived(before, left.detach(), revival)
        self._adam.param_groups[0]["lr"] = lr
        self._adam.zero_grad()
        loss.backward()
        self._adam.step()
        self.steps += 1
        with torch.no_grad():
            self.write.copy_(unit(self.write))
        return float(error.detach()), which[kept > 0].unique()

    def _revived(self, before: Tensor, left: Tensor, revival: Revival) -> Tensor:
        dead = revival.dead.nonzero().squeeze(1)
        kept, among = torch.relu(before[:, dead]).topk(min(revival.active, len(dead)), dim=1)
        missed = (left - _weighted(dead[among], self.write, kept)).square().sum()
        return revival.weight * missed / left.square().sum().clamp(min=1e-12)

    @torch.no_grad()
    def reconstruct(self, x: Tensor) -> Tensor:
        kept, which = torch.relu(x @ self.read.T + self.bias).topk(self.active, dim=1)
        return self.offset + _weighted(which, self.write, kept)

    def tensors(self) -> dict[str, Tensor]:
        """All that the next step depends on."""
        state = {name: tensor.detach() for name, tensor in zip(_PARAMETERS, self.parameters, strict=True)}
        for name, parameter in zip(_PARAMETERS, self.parameters, strict=True):
            for moment in _MOMENTS if self.steps else ():
                state[f"{name}.{moment}"] = self._adam.state[parameter][moment]
        return state

    @classmethod
    def restored(cls, tensors: Mapping[str, Tensor], active: int, steps: int) -> "Descent":
        """From `tensors()`: the next step is the same to the bit."""
        made = cls(tensors["read"], active)
        made.steps = steps
        for name, parameter in zip(_PARAMETERS, made.parameters, strict=True):
            with torch.no_grad():
                parameter.copy_(tensors[name])
            if steps:
                moments = {moment: tensors[f"{name}.{moment}"].clone() for moment in _MOMENTS}
                made._adam.state[parameter] = {"step": torch.tensor(float(steps)), **moments}
        return made


def unit(rows: Tensor) -> Tensor:
    units: Tensor = rows / rows.norm(dim=1, keepdim=True).clamp(min=1e-12)
    return units


def _weighted(which: Tensor, rows: Tensor, weights: Tensor) -> Tensor:
    """Σ weights rows[which], without the zeros of a dense product."""
    return embedding_bag(which, rows, per_sample_weights=weights, mode="sum")
