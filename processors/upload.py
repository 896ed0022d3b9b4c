"""Host numbers to the device, without waiting for it."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from numpy.typing import NDArray
from torch import Tensor


@dataclass(frozen=True, slots=True)
class Upload:
    """Copies numbers to `device`; from `pinned` memory the host goes on at once."""

    device: torch.device
    pinned: bool = False

    def __call__(self, values: Sequence[Any] | NDArray[Any], dtype: torch.dtype) -> Tensor:
        # A fresh host tensor each time: one still being copied must not be overwritten.
        return torch.tensor(values, dtype=dtype, pin_memory=self.pinned).to(self.device, non_blocking=True)
