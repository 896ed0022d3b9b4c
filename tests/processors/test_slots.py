from hypothesis import given
from hypothesis import strategies as st

from processors.slots import Slots

ROWS = 6
row = st.integers(0, ROWS - 1)
change = st.tuples(
    st.lists(row, unique=True),
    st.lists(st.tuples(row, st.booleans()), max_size=4),
    st.lists(st.tuples(row, row, st.booleans()).filter(lambda move: move[0] != move[1]), max_size=4),
)


@given(st.lists(change, max_size=12))
def test_follows_any_sequence_of_batch_changes(changes):
    """Removed, added, replaced, moved and swapped requests end where a plain list has them."""
    slots: Slots[object] = Slots()
    model: list[object | None] = [None] * ROWS
    for removed, added, moved in changes:
        before = list(model)
        fresh = [(row, object() if wanted else None) for row, wanted in added]
        for index in removed:
            model[index] = None
        for index, value in fresh:
            model[index] = value
        for source, target, swap in moved:
            displaced = model[target]
            model[target] = model[source]
            model[source] = displaced if swap else None
        changed = slots.update(removed, fresh, moved)
        assert slots.rows() == [(index, value) for index, value in enumerate(model) if value is not None]
        assert changed == any(old is not new for old, new in zip(before, model, strict=True))


def test_equal_arguments_are_still_different_requests():
    """Replacing a request by one with equal arguments is a change: its history is another."""
    slots: Slots[list[int]] = Slots()
    assert slots.update([], [(0, [])], [])
    assert slots.update([], [(0, [])], [])
    assert not slots.update([], [], [])
