"""States kept from an ordinary forward pass: sums over spans of tokens, by layer."""

import numpy as np
from numpy.typing import NDArray

from steering.spec import CaptureSpec


class Capture:
    """Fills as the prompt's chunks pass; exact over any split, since it adds by absolute position.

    Positions below `read` were seen: a token that is computed again, after preemption, is not read again.
    """

    def __init__(self, spec: CaptureSpec) -> None:
        self.spec = spec
        self.read = 0
        self._slots = {layer: slot for slot, layer in enumerate(spec.layers)}
        self._sums: NDArray[np.float64] | None = None  # [spans, layers, hidden]
        self._norms = np.zeros((len(spec.spans), len(spec.layers)))
        self._counts = np.zeros((len(spec.spans), len(spec.layers)), np.int64)

    def wants(self, layer: int) -> bool:
        return layer in self._slots

    def add(self, span: int, layer: int, total: NDArray[np.floating], norms: float, tokens: int) -> None:
        """`total` is the `[hidden]` sum of `tokens` states, `norms` the sum of their lengths."""
        slot = self._slots[layer]
        if self._sums is None:
            self._sums = np.zeros((len(self.spec.spans), len(self.spec.layers), len(total)))
        self._sums[span, slot] += total
        self._norms[span, slot] += norms
        self._counts[span, slot] += tokens

    @property
    def missing(self) -> int:
        """How many states of `spec` were never computed: a short capture is a fault, not a smaller array."""
        wanted = np.array([[end - start] for start, end in self.spec.spans])
        return int(np.maximum(0, wanted - self._counts).sum())

    def means(self) -> NDArray[np.float32]:
        """`[spans, layers, hidden]`."""
        assert self._sums is not None
        return (self._sums / self._counts[..., None]).astype(np.float32)

    def norms(self) -> NDArray[np.float32]:
        """Mean length of the states, `[spans, layers]`."""
        return (self._norms / self._counts).astype(np.float32)
