"""States of all tokens of several texts, and their way over the wire."""

from types import SimpleNamespace

import numpy as np
import pytest

from server.errors import Unavailable
from server.text_states import TextStates, text_states


class Engine:
    """A state is [token, position, layer]; notes how many captures ran at once."""

    def __init__(self):
        self.fails = False

    async def capture(self, tokens, spans, layers):
        if self.fails:
            raise Unavailable("no room")
        rows = [[[tokens[start], start, layer] for layer in layers] for start, end in spans]
        assert all(end == start + 1 for start, end in spans)
        return SimpleNamespace(means=np.array(rows, np.float32))


TEXTS = [[5, 6, 7], [], [8], [9, 10], list(range(100, 700))]


async def found():
    return await text_states(Engine(), TEXTS, 3, 3, lambda lines: 2)


async def test_every_token_but_the_first_has_its_state():
    """In the order of the texts, each line says which text and token it is of."""
    states = await found()
    wanted = [
        (text, ids[position], position) for text, ids in enumerate(TEXTS) for position in range(1, len(ids))
    ]
    assert [tuple(row) for row in states.states.tolist()] == [(t, p, 3) for _, t, p in wanted]
    assert states.tokens.tolist() == [token for _, token, _ in wanted]
    assert states.text.tolist() == [text for text, _, _ in wanted]
    assert states.first.tolist() == [5, -1, 8, 9, 100]
    assert states.ids == TEXTS


async def test_as_many_at_once_as_the_engine_takes():
    """The engine is asked with the lines of the longest text, at most those of one capture."""
    asked = []

    def at_once(lines):
        asked.append(lines)
        return 1

    await text_states(Engine(), [[1, 2, 3], [4, 5]], 0, 3, at_once)
    await text_states(Engine(), TEXTS, 0, 3, at_once)
    assert asked == [3, 256]


async def test_a_failure_is_raised():
    """Half of the states are none."""
    engine = Engine()
    engine.fails = True
    with pytest.raises(Unavailable):
        await text_states(engine, TEXTS, 0, 3, lambda lines: 4)


async def test_texts_without_states():
    """The width is kept, so that files say what they are of."""
    states = await text_states(Engine(), [[], [4]], 0, 3, lambda lines: 1)
    again = TextStates.read(states.blob)
    assert again.states.shape == (0, 3)
    assert again.ids == [[], [4]]


async def test_over_the_wire_and_joined():
    """A file holds all of it; joined parts number their texts on."""
    states = await found()
    again = TextStates.read(states.blob)
    joined = TextStates.joined([again, again])
    np.testing.assert_array_equal(joined.states, np.concatenate([states.states] * 2))
    assert joined.ids == TEXTS * 2
    assert again.states.dtype == np.float32
    assert {part.dtype for part in (again.tokens, again.text, again.first)} == {np.dtype(np.int32)}


@pytest.mark.parametrize("blob", [b"", b"no", b"\x80\x04K\x01."])
def test_other_bytes_are_refused(blob):
    """Whatever answers in the server's place, it is no traceback from deep within."""
    with pytest.raises(ValueError, match="no states of texts"):
        TextStates.read(blob)
