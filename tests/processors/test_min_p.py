import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers.generation.logits_process import MinPLogitsWarper

from processors.min_p import min_p

NEG = -math.inf


def log(values):
    return torch.tensor(values, dtype=torch.float32).log()


@pytest.mark.parametrize("threshold", [0.01, 0.05, 0.1, 0.3, 0.9])
@pytest.mark.parametrize(
    ("rows", "columns", "spread"), [(500, 1000, 1.0), (100, 1000, 4.0), (4, 128_256, 3.0)]
)
def test_same_masks_as_hugging_face(threshold, rows, columns, spread):
    """Logit form and HF's softmax form keep the same tokens."""
    z = torch.randn(rows, columns, generator=torch.Generator().manual_seed(1)) * spread
    z[:, ::7] = NEG
    assert torch.equal(min_p(z, log([threshold] * rows)), MinPLogitsWarper(threshold)(None, z))


@given(st.lists(st.sampled_from([NEG, -2.0, 0.0, 0.5, 3.0]), min_size=1, max_size=8), st.floats(0, 1))
def test_against_the_definition(row, threshold):
    """Kept iff p ≥ min_p · p_max, in exact float64; no row empties that had a token."""
    z = torch.tensor([row])
    kept = (min_p(z, log([threshold])) > NEG)[0].tolist()
    top = max(row)
    for value, keep in zip(row, kept, strict=True):
        ratio = math.exp(value - top) if value > NEG else -1.0
        if abs(ratio - threshold) > 1e-6 or ratio == 1:
            assert keep == (ratio >= threshold)


def test_extremes():
    """0 is off bit for bit, 1 keeps all ties with the maximum, an empty row stays empty."""
    z = torch.tensor([[1.0, 1.0, 0.0, NEG], [1.0, 1.0, 0.0, NEG], [NEG, NEG, NEG, NEG]])
    result = min_p(z, log([0.0, 1.0, 0.5]))
    assert torch.equal(result, torch.tensor([[1.0, 1.0, 0.0, NEG], [1.0, 1.0, NEG, NEG], [NEG] * 4]))
