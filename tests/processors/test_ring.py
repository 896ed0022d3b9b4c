import random

import pytest
import torch

from processors.ring import MAX_COVERED, Seat, SiblingRing, window
from processors.upload import Upload


def make(groups):
    return SiblingRing(groups, Upload(torch.device("cpu")))


def seen(ring, seat):
    """Tokens the seat's siblings said, sorted."""
    (tokens,) = ring.gather(torch.tensor(ring.reach([seat]))).tolist()
    assert len(tokens) == MAX_COVERED
    return sorted(token for token in tokens if token >= 0)


@pytest.mark.parametrize(("siblings", "length"), [(2, 64), (3, 56), (8, 16), (16, 7)])
def test_documented_windows(siblings, length):
    """History per sibling is as documented, and all of it fits the row."""
    assert window(siblings) == length
    assert (siblings - 1) * length <= MAX_COVERED


@pytest.mark.parametrize("siblings", [2, 3, 8, 16])
def test_sees_the_last_window_of_every_other_slot(siblings):
    """After any number of tokens, a seat sees each sibling's last W and never its own."""
    ring = make(2)
    seats = [Seat("g", slot, siblings) for slot in range(siblings)]
    ring.seat(["g"])
    said = {slot: [] for slot in range(siblings)}
    pick = random.Random(siblings)
    for step in range(150):
        for seat in pick.sample(seats, pick.randint(1, siblings)):
            position = len(said[seat.slot])
            token = seat.slot * 1000 + step
            said[seat.slot].append(token)
            ring.write([ring.cell(seat, position)], [token])
    for seat in seats:
        others = [said[slot][-window(siblings) :] for slot in range(siblings) if slot != seat.slot]
        assert seen(ring, seat) == sorted(token for tokens in others for token in tokens)


def test_writing_twice_changes_nothing():
    """A request replayed after preemption leaves the ring as it was."""
    ring = make(1)
    ring.seat(["g"])
    writer, reader = Seat("g", 0, 2), Seat("g", 1, 2)
    cells = [ring.cell(writer, position) for position in range(5)]
    ring.write(cells, [5, 6, 7, 8, 9])
    ring.write(cells, [5, 6, 7, 8, 9])
    assert seen(ring, reader) == [5, 6, 7, 8, 9]


def test_groups_do_not_see_each_other():
    """Two groups, even of equal slots, share nothing; a seat without siblings sees nothing."""
    ring = make(4)
    ring.seat(["a", "b"])
    ring.write([ring.cell(Seat("a", 0, 2), 0)], [42])
    assert seen(ring, Seat("a", 1, 2)) == [42]
    assert seen(ring, Seat("b", 1, 2)) == []
    assert ring.gather(torch.tensor(ring.reach([None]))).max() == -1


def test_a_reused_place_is_empty():
    """A new group in an old one's place sees nothing of it, and the old one returns to nothing."""
    ring = make(1)
    ring.seat(["a"])
    ring.write([ring.cell(Seat("a", 0, 2), 0)], [42])
    ring.seat(["b"])
    assert seen(ring, Seat("b", 1, 2)) == []
    ring.seat(["a"])
    assert seen(ring, Seat("a", 1, 2)) == []


def test_the_batch_is_never_evicted():
    """Groups with a row in the batch keep their history, however long ago they came."""
    ring = make(3)
    ring.seat(["old"])
    ring.write([ring.cell(Seat("old", 0, 2), 0)], [42])
    for newcomer in range(10):
        ring.seat([newcomer, newcomer + 100, "old"])
        assert seen(ring, Seat("old", 1, 2)) == [42]


def test_a_finished_group_stays_while_there_is_room():
    """Siblings that come late still see those that finished early."""
    ring = make(3)
    ring.seat(["a"])
    ring.write([ring.cell(Seat("a", 0, 2), 0)], [42])
    ring.seat(["b"])
    ring.seat([])
    ring.seat(["a"])
    assert seen(ring, Seat("a", 1, 2)) == [42]
