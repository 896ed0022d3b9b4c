import math

import pytest
import torch

from processors.ban import ban
from processors.upload import Upload

UPLOAD = Upload(torch.device("cpu"))
NEG = -math.inf


def ids(*tokens):
    return torch.tensor(tokens, dtype=torch.int64)


@pytest.mark.parametrize("yields", [False, True])
def test_only_the_named_cells_change(yields):
    """Each row loses its own tokens; rows that are not named, and all other cells, keep their bits."""
    z = torch.randn(4, 6)
    result = z.clone()
    ban(result, [3, 1], [ids(0, 5), ids(2)], UPLOAD, yields=yields)
    assert (result == NEG).nonzero().tolist() == [[1, 2], [3, 0], [3, 5]]
    assert torch.equal(result.where(result > NEG, z), z)


def test_a_row_never_becomes_empty():
    """Where a ban that yields meets all that is left, that stays; what a mask took is not given back."""
    z = torch.tensor([[NEG, 1.0, 2.0], [NEG, 1.0, 2.0], [NEG, NEG, NEG]])
    result = z.clone()
    ban(result, [0, 1, 2], [ids(1, 2), ids(1), ids(0)], UPLOAD, yields=True)
    assert result.tolist() == [[NEG, 1.0, 2.0], [NEG, NEG, 2.0], [NEG, NEG, NEG]]


@pytest.mark.parametrize("yields", [False, True])
def test_nothing_to_ban(yields):
    """No rows, no change."""
    z = torch.randn(2, 3)
    result = z.clone()
    ban(result, [], [], UPLOAD, yields=yields)
    assert torch.equal(result, z)
