"""Which request sits in which row of the batch."""

from collections.abc import Iterable
from typing import Generic, TypeVar

T = TypeVar("T")


class Slots(Generic[T]):
    """Values of the rows that have one, kept right while the engine removes, adds and moves requests."""

    def __init__(self) -> None:
        self._values: dict[int, T] = {}

    def update(
        self,
        removed: Iterable[int],
        added: Iterable[tuple[int, T | None]],
        moved: Iterable[tuple[int, int, bool]],
    ) -> bool:
        """Apply one batch change in the engine's order; True when some value came, went or moved.

        `added` (row, value) may replace a row's request, None = nothing to keep for it. `moved` is
        (from, to, swap): one way, the request at `to` is overwritten; with swap, both rows change places.
        """
        before = dict(self._values)
        for row in removed:
            self._values.pop(row, None)
        for row, value in added:
            self._put(row, value)
        for source, target, swap in moved:
            displaced = self._values.get(target)
            self._put(target, self._values.pop(source, None))
            if swap:
                self._put(source, displaced)
        # Identity, not equality: two requests with equal arguments still have histories of their own.
        return before.keys() != self._values.keys() or any(
            before[row] is not value for row, value in self._values.items()
        )

    def rows(self) -> list[tuple[int, T]]:
        """(row, value), by row."""
        return sorted(self._values.items(), key=lambda item: item[0])

    def _put(self, row: int, value: T | None) -> None:
        if value is None:
            self._values.pop(row, None)
        else:
            self._values[row] = value
