"""Device buffers that the host prepares in pinned copies: what a kernel reads when a graph is replayed."""

from collections.abc import Sequence

import torch


class CapacityError(Exception):
    """The message names the buffer that a layout overflows."""


class Mirror:
    """A device buffer, and the pinned copy in which the host prepares it."""

    def __init__(self, shape: Sequence[int], device: torch.device, dtype: torch.dtype = torch.int32) -> None:
        self.device = torch.zeros(*shape, dtype=dtype, device=device)
        self._pinned = torch.zeros(*shape, dtype=dtype, pin_memory=device.type == "cuda")
        self.host = self._pinned.numpy()

    def send(self, start: int, end: int) -> None:
        if start < end:
            self.device[start:end].copy_(self._pinned[start:end], non_blocking=True)


class TokenMap(Mirror):
    """A number per token, 0 where nothing happens, also beyond the batch: graphs run at padded sizes."""

    def __init__(self, tokens: int, device: torch.device) -> None:
        super().__init__((tokens,), device)
        self._end = 0

    def fill(self, parts: Sequence[tuple[int, int, int]]) -> None:
        """Each is the number of the tokens `[start, end)`."""
        before, self._end = self._end, max((end for _, end, _ in parts), default=0)
        self.host[:before] = 0
        for start, end, number in parts:
            self.host[start:end] = number
        self.send(0, max(before, self._end))


class Rows(Mirror):
    """Rows that are written one after the other, and sent together."""

    def __init__(
        self, name: str, shape: Sequence[int], device: torch.device, dtype: torch.dtype = torch.int32
    ) -> None:
        super().__init__(shape, device, dtype)
        self._name = name
        self._used = self._sent = 0

    def claim(self, count: int) -> int:
        """The first of `count` new rows. Raises CapacityError."""
        first, self._used = self._used, self._used + count
        if self._used > len(self.host):
            raise CapacityError(f"a step needs more than the {len(self.host)} {self._name} there are")
        return first

    def flush(self) -> None:
        self.send(self._sent, self._used)
        self._sent = self._used

    def clear(self) -> None:
        self._used = self._sent = 0
