import dataclasses

import numpy as np
import pytest
import torch

from steering.sae.encode import Architecture, Normalisation
from steering.sae.errors import SaeError
from tests.steering.sae import formulas

ARCHITECTURES = list(Architecture)
NORMALISATIONS = [Normalisation.NONE, Normalisation.CONSTANT_NORM, Normalisation.LAYER_NORM]
VARIANTS = [
    *((kind, norm, {}) for kind in ARCHITECTURES for norm in NORMALISATIONS),
    (Architecture.STANDARD, Normalisation.NONE, {"apply_b_dec_to_input": False}),
    (Architecture.TOPK, Normalisation.NONE, {"rescale_acts_by_decoder_norm": True}),
    (Architecture.TOPK, Normalisation.LAYER_NORM, {"rescale_acts_by_decoder_norm": True}),
]


@pytest.mark.parametrize(("architecture", "normalisation", "others"), VARIANTS)
def test_encode_and_decode_equal_the_formulas(made, states, architecture, normalisation, others):
    """For each architecture under each normalisation, one state at a time in float64."""
    sae = made(architecture, normalisation=normalisation, **others)
    latents = sae.encode(states)
    again = sae.decode(latents, states)
    assert latents.dtype is again.dtype is torch.float32
    for place in np.ndindex(states.shape[:-1]):
        x = states[place].numpy().astype(np.float64)
        expected = formulas.encoded(sae, x)
        assert 0 < np.count_nonzero(expected) < sae.d_sae
        np.testing.assert_allclose(latents[place], expected, rtol=1e-5, atol=1e-4)
        np.testing.assert_allclose(again[place], formulas.decoded(sae, expected, x), rtol=1e-4, atol=1e-3)


@pytest.mark.parametrize(("architecture", "normalisation", "others"), VARIANTS)
def test_some_latents_are_the_same_as_among_all(made, states, architecture, normalisation, others):
    """From their own columns, or, where latents are ranked, from the whole encoder."""
    sae = made(architecture, normalisation=normalisation, **others)
    chosen = [41, 3, 17, 58]
    all_latents = sae.encode(states)[..., chosen]
    torch.testing.assert_close(sae.encode_some(states, chosen), all_latents, rtol=1e-5, atol=1e-5)
    subset = sae.reads_only(chosen)
    torch.testing.assert_close(subset.encode(states), all_latents, rtol=1e-4, atol=1e-4)
    assert sae.subset_is_exact == (architecture is not Architecture.TOPK)
    assert len(subset.read) == (4 if sae.subset_is_exact else sae.d_sae)
    assert subset.write.shape == (4, sae.d_in)


@pytest.mark.parametrize(("architecture", "normalisation", "others"), VARIANTS)
def test_steering_moves_the_reconstruction_and_nothing_else(
    made, states, architecture, normalisation, others
):
    """The shift is the decoded difference; latents asked for as nan stay as they are."""
    sae = made(architecture, normalisation=normalisation, **others)
    chosen, wanted = [5, 9, 30], [4.0, 0.0, float("nan")]
    before = sae.encode(states)
    after = before.clone()
    after[..., 5], after[..., 9] = 4.0, 0.0
    expected = sae.decode(after, states) - sae.decode(before, states)
    shift = sae.reads_only(chosen).shift(states, torch.tensor(wanted).expand(*states.shape[:-1], 3))
    torch.testing.assert_close(shift, expected, rtol=1e-3, atol=2e-3)


def test_a_shift_to_what_is_there_is_nought(made, states):
    """The neutral element is exact."""
    subset = made(Architecture.JUMPRELU).reads_only([1, 2, 3])
    assert not subset.shift(states, subset.encode(states)).any()
    assert not subset.shift(states, torch.full((3, 7, 3), float("nan"))).any()


def test_half_precision_states_are_computed_in_float32(made, states):
    """States come in the model's own type; sums do not."""
    sae = made(Architecture.STANDARD)
    half = states.to(torch.bfloat16)
    assert torch.equal(sae.encode(half), sae.encode(half.float()))
    assert torch.equal(sae.reads_only([1]).encode(half), sae.reads_only([1]).encode(half.float()))


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_folding_a_factor_is_multiplying_states(made, states, architecture):
    """Expected average: the latents of c x, and a reconstruction over c."""
    sae, factor = made(architecture), 0.37
    folded = sae.folded(factor)
    torch.testing.assert_close(folded.encode(states), sae.encode(factor * states), rtol=1e-4, atol=1e-4)
    expected = sae.decode(sae.encode(factor * states)) / factor
    torch.testing.assert_close(folded.decode(folded.encode(states)), expected, rtol=1e-4, atol=1e-3)
    with pytest.raises(SaeError, match="positive"):
        sae.folded(0.0)


def test_digest_follows_all_that_matters(made):
    """The same for the same effect; another one for any other number, place or rule."""
    sae = made(Architecture.TOPK)
    assert sae.digest == made(Architecture.TOPK).digest
    others = [
        {"k": 8},
        {"layer": 2},
        {"apply_b_dec_to_input": False},
        {"normalisation": Normalisation.LAYER_NORM},
        {"rescale_acts_by_decoder_norm": True},
        {"b_dec": sae.b_dec + 1e-6},
    ]
    digests = {dataclasses.replace(sae, **other).digest for other in others}
    assert len(digests | {sae.digest}) == 1 + len(others)
    assert dataclasses.replace(sae, model="another name", hook="").digest == sae.digest


@pytest.mark.parametrize(
    ("architecture", "changed", "message"),
    [
        (Architecture.TOPK, {"k": None}, "topk keeps 1 to 60"),
        (Architecture.TOPK, {"k": 61}, "topk keeps 1 to 60"),
        (Architecture.STANDARD, {"threshold": torch.zeros(60)}, "has no threshold"),
        (Architecture.JUMPRELU, {"threshold": None}, "needs a threshold"),
        (Architecture.GATED, {"gate": None, "b_enc": torch.zeros(60)}, "b_gate"),
        (Architecture.STANDARD, {"b_enc": None}, "b_enc"),
        (Architecture.STANDARD, {"W_dec": torch.zeros(24, 60)}, r"W_dec is \[24, 60\]"),
        (Architecture.STANDARD, {"W_enc": torch.zeros(24)}, "W_enc is"),
        (Architecture.STANDARD, {"b_enc": torch.zeros(59)}, r"b_enc is \[59\]"),
        (Architecture.STANDARD, {"b_dec": torch.full((24,), float("nan"))}, "not a finite number"),
        (Architecture.STANDARD, {"b_dec": torch.zeros(24).double()}, "float32"),
        (Architecture.STANDARD, {"layer": -1}, "numbered from 0"),
        (Architecture.JUMPRELU, {"rescale_acts_by_decoder_norm": True}, "only topk"),
        (Architecture.STANDARD, {"normalisation": Normalisation.EXPECTED_AVERAGE}, "folded"),
    ],
)
def test_parts_that_do_not_belong_together_are_refused(made, architecture, changed, message):
    """The message names the part."""
    with pytest.raises(SaeError, match=message):
        made(architecture, **changed)


def test_unknown_latents_and_missing_states_are_refused(made, states):
    """Negative numbers would otherwise count from the end."""
    sae = made(Architecture.STANDARD, normalisation=Normalisation.LAYER_NORM)
    for latent in (-1, 60):
        with pytest.raises(SaeError, match="there is no latent"):
            sae.encode_some(states, [latent])
    with pytest.raises(SaeError, match="states they are of"):
        sae.decode(sae.encode(states))


def test_moving_keeps_the_same_autoencoder(made):
    """`to` moves every tensor and changes none."""
    for architecture in ARCHITECTURES:
        sae = made(architecture)
        assert sae.to("cpu").digest == sae.digest


def test_rescaling_can_be_put_into_the_weights(made, states):
    """The same latents and reconstructions; one without rescaling is itself."""
    sae = made(Architecture.TOPK, rescale_acts_by_decoder_norm=True)
    plain = sae.unscaled()
    assert not plain.rescale_acts_by_decoder_norm
    latents = sae.encode(states)
    torch.testing.assert_close(plain.encode(states), latents, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(plain.decode(latents), sae.decode(latents), rtol=1e-4, atol=1e-4)
    assert plain.unscaled() is plain
