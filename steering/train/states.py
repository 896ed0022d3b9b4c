"""Token states of one layer, and which text each of them comes from."""

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from steering.vector import Array


@dataclass(frozen=True)
class TokenStates:
    """`rows` is `[tokens, hidden]`, `texts` `[tokens]`: the number of the text, the same for both of a pair.

    The first position of a text is best left out: its state is an attention sink and tells nothing.
    """

    rows: Array
    texts: NDArray[np.int64]

    def __post_init__(self) -> None:
        if self.rows.ndim != 2 or self.texts.shape != self.rows.shape[:1] or not len(self.rows):
            raise ValueError(f"states are [tokens, hidden] with a text each, not {self.rows.shape}")
        if not np.isfinite(self.rows).all():
            raise ValueError("states hold values that are not finite numbers")

    @classmethod
    def of(cls, texts: list[Array]) -> "TokenStates":
        """From the states of each text, `[tokens, hidden]`."""
        return cls(np.concatenate(texts), np.repeat(np.arange(len(texts)), [len(rows) for rows in texts]))

    @property
    def numbers(self) -> NDArray[np.int64]:
        """The texts there are, in order."""
        return np.unique(self.texts)

    @property
    def mean_norm(self) -> float:
        return float(np.linalg.norm(self.rows, axis=1).mean(dtype=np.float64))

    def means(self, values: NDArray[np.floating[Any]] | None = None) -> NDArray[np.float64]:
        """Mean per text, in the order of `numbers`, of `values` `[tokens, n]`, or else of the states."""
        values = self.rows if values is None else values
        _, inverse, counts = np.unique(self.texts, return_inverse=True, return_counts=True)
        sums = np.zeros((len(counts), values.shape[1]))
        np.add.at(sums, inverse, values)
        return np.asarray(sums / counts[:, None], np.float64)
