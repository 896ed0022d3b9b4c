import math
from functools import partial
from unittest import mock

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers.generation.logits_process import TypicalLogitsWarper

from processors.typical import typical

NEG = -math.inf
MASSES = [0.05, 0.2, 0.5, 0.9, 0.95, 0.99]


def ours(z, mass, keep=1):
    return typical(z, torch.full((len(z),), mass), min_tokens_to_keep=keep)


def theirs(z, mass, keep=1):
    """The reference, its ties in the order of token ids: left to itself its sort puts them in any order."""
    with mock.patch.object(torch, "sort", partial(torch.sort, stable=True)):
        return untouched(z, mass, keep)


def untouched(z, mass, keep=1):
    return TypicalLogitsWarper(mass, min_tokens_to_keep=keep)(None, z)


def rows(count, columns, spread, seed=0):
    return torch.randn(count, columns, generator=torch.Generator().manual_seed(seed)) * spread


def zipf(count, columns, seed=0):
    """Rows shaped like a language model's: a power law with noise, 50 logits deep."""
    noise = rows(count, columns, 1.0, seed)
    return noise - 2.5 * torch.arange(1, columns + 1).log()[shuffled(columns)]


def shuffled(columns):
    return torch.randperm(columns, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("mass", MASSES)
@pytest.mark.parametrize("spread", [0.1, 1.0, 3.0, 10.0])
@pytest.mark.parametrize(("count", "columns"), [(64, 50), (32, 5000)])
def test_same_masks_as_hugging_face(mass, spread, count, columns):
    """Bit-equal results to the reference on random rows from flat to peaked."""
    z = rows(count, columns, spread)
    assert torch.equal(ours(z, mass), theirs(z, mass))


@pytest.mark.parametrize("mass", MASSES)
@pytest.mark.parametrize("columns", [32_000, 128_256])
def test_same_masks_at_a_real_vocabulary(mass, columns):
    """Bit-equal at full size too, on flat, peaked, language-like and half-masked rows."""
    z = torch.cat([rows(3, columns, 1.0), rows(3, columns, 5.0), zipf(6, columns)])
    z[-3:, shuffled(columns)[: columns // 2]] = NEG
    z = torch.cat([z, z.bfloat16().float()])  # what bf16 models give: ties everywhere
    assert torch.equal(ours(z, mass), theirs(z, mass))


def test_masses_on_the_edge():
    """Masses placed on a cumulative sum, where rounding alone decides, still equal the reference."""
    absorbed = torch.full((2, 120_000), math.log(3e-9))  # 3e-9 of mass each, lost in a float32 sum
    absorbed[:, :9] = torch.tensor([0.5, 0.2, 0.1, 0.08, 0.05, 0.03, 0.02, 0.01, 0.01]).log()
    for z in (zipf(40, 20_000, seed=3), absorbed):
        check_on_the_edge(z)


def check_on_the_edge(z):
    log_p = z.log_softmax(-1)
    distance = ((log_p * log_p.exp()).nansum(-1, keepdim=True) - log_p).abs()
    order = distance.argsort(stable=True, dim=-1)
    sums = z.gather(-1, order).softmax(-1).cumsum(-1)
    for row, sum_ in zip(z, sums, strict=True):
        for column in (0, 3, 7, 40):
            mass = float(sum_[column])
            for nearby in (mass, math.nextafter(mass, 2), mass + 6e-8, mass - 6e-8):
                if 0 < nearby < 1:
                    assert torch.equal(ours(row[None], nearby), theirs(row[None], nearby))


@pytest.mark.parametrize("mass", MASSES)
def test_the_order_of_ties_hardly_matters(mass):
    """The reference with its own sort decides otherwise only where rounding alone keeps or drops a token."""
    z = torch.cat([rows(8, 50_000, 2.0), zipf(8, 50_000)]).bfloat16().float()
    ours_, untouched_ = ours(z, mass) > NEG, untouched(z, mass) > NEG
    p = z.double().softmax(-1)
    assert ((p * ours_).sum(-1) - (p * untouched_).sum(-1)).abs().max() < 1e-4
    assert (ours_ == untouched_).all(-1).float().mean() > 0.8


values = st.sampled_from([NEG, -30.0, -1.0, 0.0, 0.5, 1.0, 20.0])


@settings(max_examples=300)
@given(st.lists(values, min_size=2, max_size=12), st.floats(0.01, 0.999), st.sampled_from([1, 2]))
def test_ties_and_masked_tokens(row, mass, keep):
    """Rows of few distinct values, so that ties and -inf meet every branch, equal the reference."""
    z = torch.tensor([row])
    if z.max() == NEG:
        assert torch.equal(ours(z, mass, keep), z)
    else:
        assert (ours(z, mass, keep) > NEG).any()
        # Which of two tied tokens min_tokens_to_keep = 2 rescues is the sort's choice, hence not compared.
        if keep == 1:
            assert torch.equal(ours(z, mass), theirs(z, mass))


def test_min_tokens_to_keep():
    """The nearest two survive where the mass needs one alone, as in the reference."""
    z = rows(50, 300, 5.0)
    assert torch.equal(ours(z, 0.05, keep=2), theirs(z, 0.05, keep=2))
    assert ((ours(z, 0.05, keep=2) > NEG).sum(-1) >= 2).all()


def test_may_drop_the_likeliest_token():
    """Typical is not nucleus: of (.6, .3, .1) at mass .2 only the .3 token, nearest the entropy, stays."""
    z = torch.tensor([[0.6, 0.3, 0.1]]).log()
    assert torch.equal(ours(z, 0.2) > NEG, torch.tensor([[False, True, False]]))


def test_uniform_rows_keep_every_tie():
    """All tokens are equally typical, so none goes."""
    z = torch.zeros(2, 9000)
    assert torch.equal(ours(z, 0.3), z)


def test_one_token_of_certain_mass():
    """A row with one legal token keeps it and nothing else."""
    z = torch.full((2, 9000), NEG)
    z[:, 17] = 3.0
    assert torch.equal(ours(z, 0.5), z)
    z[1, 18] = -40.0
    assert torch.equal(ours(z, 0.5), theirs(z, 0.5))


def test_mass_one_and_empty_rows_are_untouched():
    """Rows with mass 1 pass bit for bit, next to rows that do not; an all-masked row stays all masked."""
    z = rows(4, 9000, 3.0)
    z[0, 5] = -0.0
    z[3] = NEG
    result = typical(z, torch.tensor([1.0, 0.5, 1.0, 0.5]))
    assert torch.equal(result[[0, 2]].view(torch.int32), z[[0, 2]].view(torch.int32))
    assert torch.equal(result[3], z[3])
    assert torch.equal(result[1:2], theirs(z[1:2], 0.5))


def test_each_row_has_its_own_mass():
    """A batch of different masses equals the rows one by one."""
    z = rows(6, 9000, 3.0)
    result = typical(z, torch.tensor(MASSES))
    for row, mass in enumerate(MASSES):
        assert torch.equal(result[row], theirs(z, mass)[row])


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_judged_in_single(dtype):
    """Half-precision rows keep their dtype and the tokens that their float32 copy keeps."""
    z = rows(8, 5000, 3.0).to(dtype)
    result = ours(z, 0.9)
    assert result.dtype == dtype
    assert torch.equal(result.float(), theirs(z.float(), 0.9))


def test_input_is_not_modified():
    """The function is pure."""
    z = rows(3, 9000, 2.0)
    before = z.clone()
    ours(z, 0.5)
    assert torch.equal(z, before)
