"""States read from an ordinary forward pass."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from steering.apply import TorchPass
from steering.capture import Capture
from steering.layout import Batch
from steering.spec import CaptureSpec, Operation, SteeringSpec, Term
from steering.table import VectorTable
from steering.vector import SteeringVector

WIDTH, LAYERS, TOKENS = 6, 3, 20
VECTOR = SteeringVector.of({layer: np.arange(1, WIDTH + 1) for layer in range(LAYERS)})


@st.composite
def chunks(draw, total=TOKENS):
    cuts = sorted(draw(st.sets(st.integers(1, total - 1), max_size=6)))
    return list(zip([0, *cuts], [*cuts, total], strict=True))


@st.composite
def spans(draw):
    cuts = sorted(draw(st.sets(st.integers(0, TOKENS), min_size=2, max_size=8)))
    pairs = list(zip(cuts[::2], cuts[1::2], strict=False))
    return tuple(draw(st.permutations(pairs)))


class Run:
    """One request whose states are known, beside another, through any chunks."""

    def __init__(self, spec, steered=None, residual=True):
        table = VectorTable(LAYERS, WIDTH, torch.device("cpu"))
        table.load(VECTOR.digest, VECTOR.blob, LAYERS)
        self.batch, self.passing = Batch(table), TorchPass(table.bank, torch.float32)
        self.batch.capture("mine", spec)
        if steered:
            self.batch.admit("mine", steered, TOKENS)
        rng = np.random.default_rng(0)
        self.hidden, self.residual = rng.standard_normal((2, LAYERS, TOKENS, WIDTH)).astype(np.float32)
        if not residual:
            self.residual = None

    def chunk(self, start, end):
        other = 3
        self.take(["other", "mine"], [other, end - start], [0, start])
        for layer in range(LAYERS):
            rows = [np.full((other, WIDTH), 99, np.float32), self.hidden[layer, start:end]]
            hidden, residual = torch.from_numpy(np.concatenate(rows)), None
            if self.residual is not None:
                rows[1] = self.residual[layer, start:end]
                residual = torch.from_numpy(np.concatenate(rows))
            self.passing(hidden, residual, layer)

    def take(self, names, counts, computed):
        if self.batch.prepare(names, np.array(counts, np.int32), np.array(computed, np.int32)):
            self.passing.take(self.batch.layout)

    @property
    def states(self):
        return (self.hidden if self.residual is None else self.hidden + self.residual).astype(np.float64)

    def check(self, capture, states):
        assert capture.missing == 0
        picked = states[list(capture.spec.layers)]
        for number, (start, end) in enumerate(capture.spec.spans):
            mean = picked[:, start:end].mean(axis=1)
            norms = np.linalg.norm(picked[:, start:end], axis=-1).mean(axis=1)
            np.testing.assert_allclose(capture.means()[number], mean, rtol=1e-5, atol=1e-5)
            np.testing.assert_allclose(capture.norms()[number], norms, rtol=1e-5)


@settings(max_examples=100)
@given(chunks(), spans(), st.permutations(range(LAYERS)), st.integers(1, LAYERS), st.booleans())
def test_exact_over_any_chunks(pieces, wanted, order, count, residual):
    """Means and mean lengths are those of the states, however the prompt is cut, in the order of the spec."""
    run = Run(CaptureSpec("id", tuple(order[:count]), wanted), residual=residual)
    for start, end in pieces:
        run.chunk(start, end)
    run.check(run.batch.captured("id"), run.states)


@settings(max_examples=50)
@given(chunks(), chunks(), st.integers(0, 7))
def test_exact_over_a_preemption(first, second, ran):
    """States that are computed again are not read again, wherever the request was stopped."""
    run = Run(CaptureSpec("id", (0, 2), ((0, 5), (7, TOKENS))))
    for start, end in [*first[:ran], *second]:
        run.chunk(start, end)
    run.check(run.batch.captured("id"), run.states)


def test_a_preempted_prompt_is_not_read_at_its_old_place():
    """A chunk as long as the one before, but from the beginning again, is another step."""
    run = Run(CaptureSpec("id", (0,), ((11, TOKENS),)))
    for start, end in [(0, 10), (10, 14), (0, 4), (4, 10), (10, TOKENS)]:
        run.chunk(start, end)
    run.check(run.batch.captured("id"), run.states)


def test_computing_again_fills_no_gap():
    """A token that came twice does not stand for one that never came."""
    run = Run(CaptureSpec("id", (0, 2), ((0, 4),)))
    for start, end in [(0, 3), (0, 2), (2, 3)]:
        run.chunk(start, end)
    assert run.batch.captured("id").missing == 2


@pytest.mark.parametrize("after", [False, True])
def test_before_and_after_the_layers_own_change(after):
    """States are read as they were before steering, or as they leave."""
    spec = SteeringSpec((Term(VECTOR.digest, (0, 1, 2), Operation.ADD, 0.5),))
    run = Run(CaptureSpec("id", (0, 1, 2), ((2, 9),), after), steered=spec)
    run.chunk(0, TOKENS)
    moved = 0.5 * np.arange(1, WIDTH + 1) if after else 0
    run.check(run.batch.captured("id"), run.states + moved)


def test_a_short_capture_says_so():
    """States that were never computed are counted as missing, by layer and token."""
    run = Run(CaptureSpec("id", (0, 2), ((0, 4), (18, 25))))
    run.chunk(0, 3)
    assert run.batch.captured("id").missing == 2 * (1 + 7)
    assert Capture(CaptureSpec("id", (0,), ((0, 4),))).missing == 4


def test_a_result_is_handed_over_once():
    """Asked for again it is unknown, and nothing of it is held."""
    run = Run(CaptureSpec("id", (0,), ((0, 4),)))
    run.chunk(0, TOKENS)
    run.batch.retire("mine")
    assert run.batch.held()["captured"] == 1
    assert run.batch.captured("id") is not None
    assert run.batch.captured("id") is None
    assert not any(run.batch.held().values())
