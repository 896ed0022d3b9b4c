"""The changes of the residual stream against their formulas, one token at a time in float64."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from steering import ops
from steering.spec import Gate, GateKind, Operation, Term
from steering.vector import Layer, Probe, Units
from tests.steering.formulas import changed, opened

TOKENS, WIDTH, LATENTS = 5, 24, 3
seeds = st.integers(0, 2**32 - 1)
strengths = st.floats(-3, 3, width=32, allow_subnormal=False)


def drawn(seed):
    """States, and a layer's vector with probe and latents."""
    rng = np.random.default_rng(seed)
    rows = [
        rng.standard_normal((count, WIDTH)).astype(np.float32) for count in (TOKENS, 1, 1, LATENTS, LATENTS)
    ]
    x, direction, weight, read, write = rows
    bias, offset, threshold = rng.standard_normal((3, LATENTS)).astype(np.float32)
    probe = Probe(weight[0], float(np.float32(rng.standard_normal())), 1.5)
    return x, Layer(direction[0], probe, Units(read, write, bias, offset, threshold))


def tensor(array):
    return torch.from_numpy(np.ascontiguousarray(array))


def close(found, expected):
    np.testing.assert_allclose(found.numpy(), np.stack(expected), rtol=2e-5, atol=2e-5)


def rows(function, x):
    return [function(row) for row in x.astype(np.float64)]


@given(seeds, strengths)
def test_add(seed, strength):
    """x + s v."""
    x, layer = drawn(seed)
    term = Term("", (0,), Operation.ADD, strength)
    found = ops.add(tensor(x), tensor(layer.direction)[None], strength)
    close(found, rows(lambda row: changed(term, row, layer), x))


@given(seeds, strengths)
def test_norm_preserving_add(seed, strength):
    """The sum at the length that the state had."""
    x, layer = drawn(seed)
    term = Term("", (0,), Operation.NORM_ADD, strength)
    found = ops.norm_preserving_add(tensor(x), tensor(layer.direction)[None], strength)
    close(found, rows(lambda row: changed(term, row, layer), x))
    np.testing.assert_allclose(found.norm(dim=-1).numpy(), np.linalg.norm(x, axis=-1), rtol=1e-5)


def test_norm_preserving_add_keeps_a_state_whose_sum_vanishes():
    """Where x + s v is zero there is no direction to scale: x stays, and nothing is NaN."""
    x = torch.tensor([[3.0, 4.0], [0.0, 0.0], [1.0, 0.0]])
    found = ops.norm_preserving_add(x, torch.tensor([[3.0, 4.0]]), -1.0)
    assert torch.equal(found[0], x[0])
    assert torch.equal(found[1], x[1])
    assert torch.isfinite(found).all()


@given(
    seeds,
    strengths,
    st.floats(-2, 2, width=32, allow_subnormal=False),
    st.floats(0, 2, width=32, allow_subnormal=False),
)
def test_clamp(seed, strength, low, extent):
    """The component along u goes into [low, high], all the way at strength 1; the rest stays."""
    x, layer = drawn(seed)
    unit = tensor(layer.direction)[None] / float(np.linalg.norm(layer.direction))
    bounds = torch.tensor([[low]]), torch.tensor([[low + extent]])
    term = Term("", (0,), Operation.CLAMP, strength, low, low + extent)
    close(ops.clamp(tensor(x), unit, strength, *bounds), rows(lambda row: changed(term, row, layer), x))
    component = (ops.clamp(tensor(x), unit, 1.0, *bounds) * unit).sum(dim=-1)
    assert (component >= low - 1e-5).all()
    assert (component <= low + extent + 1e-5).all()


def test_clamp_without_bounds_changes_nothing():
    """From -inf to inf every component is within: not a bit moves."""
    x, layer = drawn(1)
    unit = tensor(layer.direction)[None] / float(np.linalg.norm(layer.direction))
    infinite = torch.tensor([[-torch.inf]]), torch.tensor([[torch.inf]])
    assert torch.equal(ops.clamp(tensor(x), unit, 1.0, *infinite), tensor(x))


@given(seeds)
def test_projecting_out_leaves_no_component(seed):
    """A clamp to [0, 0] removes the direction and nothing else."""
    x, layer = drawn(seed)
    unit = tensor(layer.direction)[None] / float(np.linalg.norm(layer.direction))
    found = ops.clamp(tensor(x), unit, 1.0, torch.zeros(1, 1), torch.zeros(1, 1))
    assert (found @ unit.T).abs().max() < 1e-5
    moved = tensor(x) - found
    torch.testing.assert_close(moved, (moved @ unit.T) * unit, atol=1e-5, rtol=1e-5)


def latents(layer):
    return ops.Latents(*(tensor(getattr(layer.units, name)) for name in Units.__dataclass_fields__))


@given(seeds, strengths)
def test_units(seed, strength):
    """Each latent's activation is shifted and the difference written back; one that sleeps on adds none."""
    x, layer = drawn(seed)
    scores = x.astype(np.float64) @ layer.units.read.T.astype(np.float64) + layer.units.bias
    for shifted in (scores, scores + strength * layer.units.offset.astype(np.float64)):
        if np.abs(shifted - layer.units.threshold).min() < 1e-4:
            return  # the step is where float32 may fall on either side
    term = Term("", (0,), Operation.UNITS, strength)
    order = {name: getattr(layer.units, name) for name in Units.__dataclass_fields__}
    fields = {name: tensor(value) for name, value in order.items()}
    found = ops.units(tensor(x), ops.Latents(**fields), strength)
    np.testing.assert_allclose(
        found.numpy(), np.stack(rows(lambda row: changed(term, row, layer), x)), rtol=1e-4, atol=1e-4
    )


def test_units_at_strength_zero_change_nothing():
    """No shift, no difference: not a bit moves."""
    x, layer = drawn(2)
    assert torch.equal(ops.units(tensor(x), latents(layer), 0.0), tensor(x))


@pytest.mark.parametrize("kind", GateKind)
@given(
    seeds,
    st.floats(-1, 1, width=32, allow_subnormal=False),
    st.floats(0.125, 4, width=32, allow_subnormal=False),
)
def test_gates(kind, seed, threshold, slope):
    """Each gate is what its formula says of the state and its own direction or probe."""
    x, layer = drawn(seed)
    gate = Gate(kind, "", threshold, slope)
    expected = [opened(gate, row, layer) for row in x.astype(np.float64)]
    if kind is GateKind.COSINE:
        w = layer.direction.astype(np.float64)
        cosine = x @ w / (np.linalg.norm(x, axis=-1) * np.linalg.norm(w))
        if np.abs(cosine - threshold).min() < 1e-5:
            return
        found = ops.cosine_gate(tensor(x), tensor(layer.direction)[None], threshold)
    elif kind is GateKind.PROBE:
        probe = layer.probe
        found = ops.probe_gate(tensor(x), tensor(probe.weight)[None], probe.bias, probe.slope)
    else:
        probe = layer.probe
        found = ops.ramp_gate(tensor(x), tensor(probe.weight)[None], probe.bias, slope, threshold)
    assert found.shape == (TOKENS, 1)
    np.testing.assert_allclose(found[:, 0].numpy(), expected, atol=1e-4)


@pytest.mark.parametrize("operation", [ops.add, ops.norm_preserving_add])
def test_each_token_may_have_its_own_vector_and_strength(operation):
    """Lines and strengths per token give what each token would get alone."""
    x, _ = drawn(3)
    lines, numbers = torch.randn(TOKENS, WIDTH), torch.randn(TOKENS, 1)
    together = operation(tensor(x), lines, numbers)
    for token in range(TOKENS):
        alone = operation(tensor(x)[token : token + 1], lines[token : token + 1], float(numbers[token]))
        torch.testing.assert_close(together[token : token + 1], alone)
