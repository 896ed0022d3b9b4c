"""What the siblings of a prompt said last: a ring of token ids per group and slot, on the device."""

from collections import OrderedDict
from collections.abc import Hashable, Iterable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from processors.args import MAX_SIBLINGS
from processors.upload import Upload

LENGTH = 64
MAX_COVERED = 112  # sibling tokens a row can see; a kernel over them stays small
_SHORTEST = 4


def window(siblings: int) -> int:
    """Tokens of history kept per sibling, W, for at least two siblings."""
    return min(max(MAX_COVERED // (siblings - 1), _SHORTEST), LENGTH)


@dataclass(frozen=True, slots=True)
class Seat:
    """One request's place: `group`, `slot` among `siblings`, at least two."""

    group: Hashable
    slot: int
    siblings: int


class SiblingRing:
    """Tokens of up to `groups` groups, [groups · 16 · 64] int64, -1 = empty, plus one cell that stays empty.

    A token's cell follows from its position alone, so writing twice is harmless: a preempted request may
    come back, and a finished one stays until its group is the longest unused and another needs the place.
    """

    def __init__(self, groups: int, upload: Upload) -> None:
        self._upload = upload
        self._empty = groups * MAX_SIBLINGS * LENGTH
        self._cells = torch.full((self._empty + 1,), -1, dtype=torch.int64, device=upload.device)
        self._free = list(range(groups))
        self._places: OrderedDict[Hashable, int] = OrderedDict()  # longest unused first

    def seat(self, groups: Iterable[Hashable]) -> None:
        """Give every group of the batch a place; groups no longer in the batch go first, the oldest first.

        At most as many groups as the ring holds, which the batch's row limit ensures.
        """
        wanted = list(dict.fromkeys(groups))
        for group in wanted:
            if group in self._places:
                self._places.move_to_end(group)
        for group in wanted:
            if group not in self._places:
                self._places[group] = self._take()

    def _take(self) -> int:
        if self._free:
            return self._free.pop()
        _, place = self._places.popitem(last=False)
        start = place * MAX_SIBLINGS * LENGTH
        self._cells[start : start + MAX_SIBLINGS * LENGTH].fill_(-1)
        return place

    def cell(self, seat: Seat, position: int) -> int:
        """Where the token at `position`, counted from the first output token, belongs."""
        return self._start(seat, seat.slot) + position % window(seat.siblings)

    def write(self, cells: Sequence[int], tokens: Sequence[int]) -> None:
        """Store `tokens` at `cells`; copies to the device without waiting for it."""
        where, what = self._upload((cells, tokens), torch.int64)
        self._cells[where] = what

    def reach(self, seats: Sequence[Seat | None]) -> list[list[int]]:
        """Cells of the other slots' windows for each seat, padded with the empty cell to `MAX_COVERED`."""
        return [self._others(seat) if seat else [self._empty] * MAX_COVERED for seat in seats]

    def _others(self, seat: Seat) -> list[int]:
        cells = [
            self._start(seat, slot) + offset
            for slot in range(seat.siblings)
            if slot != seat.slot
            for offset in range(window(seat.siblings))
        ]
        return cells + [self._empty] * (MAX_COVERED - len(cells))

    def gather(self, cells: Tensor) -> Tensor:
        """Tokens at `cells` [R, N], -1 where nobody has written."""
        return self._cells[cells]

    def _start(self, seat: Seat, slot: int) -> int:
        return (self._places[seat.group] * MAX_SIBLINGS + slot) * LENGTH
