import importlib.util
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from processors.ads import AdsRows, ads, gain, gate, pool_of

_spec = importlib.util.spec_from_file_location("ads_reference", Path(__file__).with_name("ads_reference.py"))
reference = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(reference)

NEG = -math.inf
V = 300


def logits(count, columns=V, spread=3.0, seed=0):
    return torch.randn(count, columns, generator=torch.Generator().manual_seed(seed)) * spread


def arguments(count, *, m=8, beta=0.3, top_k=0, top_p=1.0, min_p=0.0, width=64):
    def column(value, dtype=torch.float32):
        return torch.full((count,), value, dtype=dtype)

    return AdsRows(
        pool=column(min(m, top_k or m), torch.int64),
        strength=column(beta / (1 - beta)),
        top_p=column(top_p),
        log_min_p=column(math.log(min_p) if min_p else NEG),
        width=width,
        nucleus=top_p < 1,
        floor=min_p > 0,
    )


def nothing(count, width=112):
    return torch.full((count, width), -1)


def said(z, count, seed=0):
    """Covered tokens taken from the rows' own likely ones, a third of the cells empty."""
    pick = torch.Generator().manual_seed(seed)
    likely = z.topk(12).indices
    tokens = likely.gather(1, torch.randint(0, 12, (len(z), count), generator=pick))
    return tokens.masked_fill(torch.rand(tokens.shape, generator=pick) < 0.3, -1)


def unit_table(columns=V, width=24, seed=0):
    rows = torch.randn(columns, width, generator=torch.Generator().manual_seed(seed))
    return torch.nn.functional.normalize(rows).half()


def log_r(z, covered, table=None, **kwargs):
    return ads(z.clone(), arguments(len(z), **kwargs), covered, table).log_softmax(-1)


@pytest.mark.parametrize("alpha", [0.0, 0.5])
@pytest.mark.parametrize(
    "truncation",
    [{}, {"top_k": 5}, {"top_p": 0.8}, {"min_p": 0.1}, {"top_k": 20, "top_p": 0.9, "min_p": 0.02}],
)
@pytest.mark.parametrize(("m", "beta"), [(1, 0.5), (8, 0.3), (10, 0.5), (32, 0.9)])
def test_equals_the_definition(alpha, truncation, m, beta):
    """Six steps in float32 equal the float64 determinants of an independent implementation."""
    z = logits(6, seed=m)
    covered = said(z, 40)
    table = unit_table() if alpha else None
    result = log_r(z, covered, table, m=m, beta=beta, **truncation).double().numpy()
    for row in range(len(z)):
        expected = reference.ads(
            z[row].double().numpy(),
            m=m,
            beta=beta,
            covered=[int(t) for t in covered[row] if t >= 0],
            alpha=alpha,
            table=table,
            **truncation,
        )
        assert np.array_equal(np.isfinite(result[row]), np.isfinite(expected))
        inside = np.isfinite(expected)
        np.testing.assert_allclose(np.exp(result[row][inside]), np.exp(expected[inside]), atol=3e-5)
        np.testing.assert_allclose(result[row][inside], expected[inside], atol=2e-3)


def plain_top(z, m):
    """Top-k as vLLM does it: ties with the last stay."""
    return z.masked_fill(z < z.topk(m).values[:, -1:], NEG)


@pytest.mark.parametrize("m", [1, 2, 8, 32])
@pytest.mark.parametrize("kernel", [False, True])
def test_beta_zero_is_top_m(m, kernel):
    """At β = 0 the row's own values stay on top-m, bit for bit, ties included and -inf elsewhere."""
    z = logits(200).bfloat16().float()
    z[::3, ::2] = NEG
    table = unit_table() if kernel else None
    result = ads(z.clone(), arguments(len(z), m=m, beta=0.0), said(z, 40), table)
    assert torch.equal(result, plain_top(z, m))
    ties = (plain_top(z, m) > NEG).sum(-1) > m
    assert ties.any()


@pytest.mark.parametrize("width", [16, 64])
def test_more_ties_than_columns(width):
    """Ties beyond the pool's columns stay too: a uniform row is returned as it came."""
    z = torch.zeros(3, V)
    z[1, :5] = 2.0
    z[2, 7:] = NEG
    result = ads(z.clone(), arguments(3, beta=0.0, width=width), nothing(3))
    assert torch.equal(result, plain_top(z, 8))


@given(st.lists(st.sampled_from([NEG, -1.0, 0.0, 0.25, 4.0]), min_size=1, max_size=90), st.integers(1, 32))
@settings(max_examples=200)
def test_beta_zero_is_top_m_on_rows_of_few_values(row, m):
    """Rows full of ties, shorter and longer than the pool's columns, obey the same rule."""
    z = torch.tensor([row])
    expected = z.masked_fill(z < z.topk(min(m, len(row))).values[:, -1:], NEG)
    assert torch.equal(ads(z.clone(), arguments(1, m=m, beta=0.0), nothing(1)), expected)


@pytest.mark.parametrize("kernel", [False, True])
@pytest.mark.parametrize("beta", [0.0, 0.3, 0.9])
def test_support(kernel, beta):
    """Finite on the whole pool and nowhere else; a masked token never returns."""
    z = logits(100, spread=6.0)
    z[:, 1::2] = NEG
    table = unit_table() if kernel else None
    result = log_r(z, said(z, 112), table, beta=beta, m=32, top_p=0.999)
    pool = pool_of(z, arguments(100, m=32, top_p=0.999))
    expected = torch.zeros_like(z, dtype=torch.bool).scatter_(-1, pool.tokens, pool.keep)
    assert torch.equal(result > NEG, expected)
    assert torch.isfinite(result[expected]).all()
    assert torch.allclose(result.exp().sum(-1), torch.ones(100), atol=1e-6)


@pytest.mark.parametrize("kernel", [False, True])
def test_one_legal_token_and_none(kernel):
    """One legal token keeps its value whatever was said; a row without any stays empty, free of NaN."""
    z = torch.full((2, V), NEG)
    z[0, 7] = -3.25
    covered = torch.full((2, 112), 7)
    result = ads(
        z.clone(), arguments(2, beta=0.9, top_p=0.9, min_p=0.1), covered, unit_table() if kernel else None
    )
    assert torch.equal(result, z)


def test_without_siblings_nothing_changes():
    """α = 0 and nothing said: r is p."""
    z = logits(50)
    expected = plain_top(z, 8)
    assert torch.equal(ads(z.clone(), arguments(50, beta=0.9), nothing(50)), expected)


def test_counting_is_the_identity_kernel():
    """h = 1 / (1 + γ·count): the general path with one-hot vectors gives the counting path's result."""
    z = logits(50)
    covered = said(z, 60)
    one_hot = torch.eye(V).half()
    pool = pool_of(z, arguments(50, m=16))
    count = (pool.tokens[:, :, None] == covered[:, None, :]).sum(-1)
    h = gain(pool, covered, one_hot)
    assert torch.allclose(h[pool.keep], (1 / (1 + 4.0 * count))[pool.keep], atol=2e-5)


@settings(max_examples=60)
@given(st.integers(0, 10_000), st.integers(1, 20))
def test_saying_more_never_makes_a_token_newer(seed, extra):
    """Adding tokens to A lowers or keeps every h, and h ≥ 1 / (1 + γ(N+1))."""
    z = logits(4, seed=seed)
    table = unit_table(seed=seed)
    pool = pool_of(z, arguments(4, m=12))
    more = said(z, 30, seed)
    less = more.clone()
    less[:, :extra] = -1
    fewer, all_said = gain(pool, less, table), gain(pool, more, table)
    assert (all_said <= fewer + 1e-5).all()
    assert (all_said[pool.keep] >= 1 / (1 + 4.0 * 31) - 1e-6).all()


@pytest.mark.parametrize("kernel", [False, True])
def test_beta_moves_one_way(kernel):
    """KL(r‖p) and the expected log gain never fall as β grows."""
    z = logits(128, spread=2.0)
    covered = said(z, 60)
    table = unit_table() if kernel else None
    log_p = log_r(z, covered, table, beta=0.0)
    inside = log_p > NEG
    strong = log_r(z, covered, table, beta=0.5)  # κ = 1
    score = (strong - log_p).masked_fill(~inside, 0.0)  # gate · log h, up to a constant of the row
    last_kl, last_score = torch.full((128,), -1e-6), torch.full((128,), -1e9)
    for beta in (0.0, 0.1, 0.3, 0.5, 0.7, 0.9):
        log_q = log_r(z, covered, table, beta=beta)
        q = log_q.exp()
        kl = (q * (log_q - log_p).masked_fill(~inside, 0.0)).sum(-1)
        mean = (q * score).sum(-1)
        assert (kl >= last_kl - 1e-5).all()
        assert (mean >= last_score - 1e-5).all()
        last_kl, last_score = kl, mean
    assert (last_kl > 0.01).any()


def test_order_does_not_matter():
    """Renumbering the vocabulary or shuffling what was said renumbers the result and no more."""
    z = logits(20)
    covered = said(z, 50)
    table = unit_table()
    shuffle = torch.randperm(V, generator=torch.Generator().manual_seed(1))
    inverse = shuffle.argsort()
    renumbered = torch.where(covered >= 0, inverse[covered.clamp(min=0)], -1)
    plain = log_r(z, covered, table).exp()
    assert torch.allclose(
        log_r(z[:, shuffle], renumbered, table[shuffle]).exp(), plain[:, shuffle], atol=5e-6
    )
    mixed = covered[:, torch.randperm(50, generator=torch.Generator().manual_seed(2))]
    assert torch.allclose(log_r(z, mixed, table).exp(), plain, atol=5e-6)


@pytest.mark.parametrize("kernel", [False, True])
def test_rows_are_independent(kernel):
    """A row alone equals the row in a batch, bit for bit without a kernel."""
    z = logits(12)
    covered = said(z, 112)
    table = unit_table() if kernel else None
    together = ads(z.clone(), arguments(12, m=16), covered, table)
    for row in range(12):
        alone = ads(z[row : row + 1].clone(), arguments(1, m=16), covered[row : row + 1], table)
        if kernel:
            assert torch.allclose(alone, together[row : row + 1], atol=1e-5)
        else:
            assert torch.equal(alone, together[row : row + 1])


def test_gate():
    """Off at certainty, full from one bit, in between the entropy in bits."""
    z = torch.full((4, V), NEG)
    z[0, :2] = 0.0
    z[1, 0] = 0.0
    z[2, 0], z[2, 1] = math.log(0.9), math.log(0.1)
    z[3, :8] = 1.0
    bits = -(0.9 * math.log2(0.9) + 0.1 * math.log2(0.1))
    assert torch.allclose(
        gate(pool_of(z, arguments(4)))[:, 0], torch.tensor([1.0, 0.0, bits, 1.0]), atol=1e-6
    )


def test_a_repeated_token_loses_by_the_stated_amount():
    """Said c times, a token loses a·κ·log(1 + 4c) and no other token loses anything."""
    z = torch.full((1, V), NEG)
    z[0, :4] = 1.0
    covered = nothing(1)
    covered[0, 3:6] = 2
    result = ads(z.clone(), arguments(1, beta=0.5), covered)
    assert torch.allclose(result[0, :4], torch.tensor([1.0, 1.0, 1.0 - math.log(13), 1.0]))


def test_a_similar_token_is_covered_too():
    """With a table, a sibling's synonym lowers a token; an unrelated one does not."""
    table = torch.eye(V).half()
    table[1] = torch.nn.functional.normalize(table[0] + 0.2 * table[1], dim=0)
    z = torch.full((1, V), NEG)
    z[0, 1:4] = 0.0
    covered = nothing(1)
    covered[0, 0] = 0
    r = log_r(z, covered, table, beta=0.5).exp()[0]
    assert r[1] < 0.85 * r[2]
    assert torch.isclose(r[2], r[3])


def test_no_nucleus_beside_one():
    """A row with top_p off keeps its whole pool though the first token's p rounds to 1."""
    z = torch.full((2, V), -25.0)
    z[:, 0] = 0.0
    mixed = AdsRows(
        pool=torch.tensor([32, 32]),
        strength=torch.zeros(2),
        top_p=torch.tensor([1.0, 0.9]),
        log_min_p=torch.full((2,), NEG),
        nucleus=True,
    )
    result = ads(z.clone(), mixed, nothing(2))
    assert torch.equal(result[0], z[0])
    assert (result[1] > NEG).nonzero().tolist() == [[0]]


def test_mixed_rows_keep_their_own_truncation():
    """A row with top_p or min_p off is untouched by the flags its neighbours raise."""
    z = logits(3, spread=0.5)
    mixed = AdsRows(
        pool=torch.tensor([32, 32, 32]),
        strength=torch.zeros(3),
        top_p=torch.tensor([1.0, 0.05, 1.0]),
        log_min_p=torch.tensor([NEG, NEG, math.log(0.5)]),
        nucleus=True,
        floor=True,
    )
    result = ads(z.clone(), mixed, nothing(3))
    assert torch.equal(result[:1], plain_top(z[:1], 32))
    for row, kwargs in ((1, {"top_p": 0.05}), (2, {"min_p": 0.5})):
        kept = torch.nonzero(result[row] > NEG)[:, 0].tolist()
        assert kept == reference.pool(z[row].numpy(), 32, **kwargs).tolist()
