import math

import torch

from processors.args import AdsArgs, TypicalArgs
from processors.tables import ads_table, typical_table
from processors.upload import Upload

upload = Upload(torch.device("cpu"))


def test_rows_with_nothing_to_do_are_not_listed():
    """Typical at mass 1 without min-p, or nobody at all, makes no table, so nothing is computed."""
    assert typical_table([], upload) is None
    assert typical_table([(0, TypicalArgs(1.0)), (3, TypicalArgs(1))], upload) is None
    assert ads_table([], [], upload, kernel=False) is None


def test_typical_values_stand_by_row():
    """Each listed row has its mass and log min-p, off being -inf; the flags say what occurs at all."""
    table = typical_table([(1, TypicalArgs(0.5)), (2, TypicalArgs(1.0)), (4, TypicalArgs(1.0, 0.1))], upload)
    assert table.rows.tolist() == [1, 4]
    assert table.mass.tolist() == [0.5, 1.0]
    assert torch.allclose(table.log_min_p, torch.tensor([-math.inf, math.log(0.1)]))
    assert table.truncates
    assert table.floor
    assert not typical_table([(0, TypicalArgs(1.0, 0.1))], upload).truncates
    assert not typical_table([(0, TypicalArgs(0.9))], upload).floor


def test_ads_values_stand_by_row():
    """The pool is the smaller of m and top_k, the strength β/(1-β); flags only where a row asks."""
    rows = [(2, AdsArgs(subset_size=8, beta=0.5)), (5, AdsArgs(subset_size=8, beta=0.0, top_k=3, top_p=0.9))]
    table = ads_table(rows, [[0, 1], [2, 3]], upload, kernel=False)
    assert table.rows.tolist() == [2, 5]
    assert table.args.pool.tolist() == [8, 3]
    assert table.args.strength.tolist() == [1.0, 0.0]
    assert table.siblings.tolist() == [[0, 1], [2, 3]]
    assert (table.args.nucleus, table.args.floor) == (True, False)


def test_leading_rows_need_no_selection():
    """Rows 0, 1, 2 … are a view of the batch; any others are listed, also a permutation's gap."""
    assert typical_table([(0, TypicalArgs(0.5)), (1, TypicalArgs(0.6))], upload).rows is None
    assert typical_table([(1, TypicalArgs(0.5))], upload).rows.tolist() == [1]


def test_width_follows_the_batch_with_a_kernel_only():
    """Twice the largest pool, at most 64, bounds the kernel's cost; without one the width is constant."""
    rows = [(0, AdsArgs(subset_size=4)), (1, AdsArgs(subset_size=10))]
    assert ads_table(rows, [[0], [0]], upload, kernel=True).args.width == 20
    assert ads_table(rows, [[0], [0]], upload, kernel=False).args.width == 64
    assert ads_table([(0, AdsArgs(subset_size=32))], [[0]], upload, kernel=True).args.width == 64
