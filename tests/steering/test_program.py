"""A spec as the worker runs it."""

import math

import numpy as np
import pytest
import torch

from steering.program import NotResident, segments, spans
from steering.spec import Gate, GateKind, Operation, Phase, SteeringSpec, Term, Tokens
from steering.table import VectorTable
from steering.vector import Layer, Probe, SteeringVector, Units

WIDTH = 4


def row(seed):
    return np.random.default_rng(seed).standard_normal(WIDTH).astype(np.float32)


PLAIN = SteeringVector.of({0: row(0), 1: row(1)})
RICH = SteeringVector(
    {
        0: Layer(row(2), Probe(row(3), 0.25, 3.0)),
        1: Layer(row(4), None, Units(*np.ones((2, 2, WIDTH), np.float32), *np.ones((3, 2), np.float32))),
    }
)


@pytest.fixture
def table():
    found = VectorTable(32, WIDTH, torch.device("cpu"))
    for vector in (PLAIN, RICH):
        found.load(vector.digest, vector.blob, 2)
    return found


def compiled(table, *terms, prompt_tokens=10):
    return segments(spans(SteeringSpec(terms), prompt_tokens), table)


ALL = Tokens()


def add(tokens=ALL, layers=(0,), **rest):
    return Term(PLAIN.digest, layers, tokens=tokens, **rest)


def test_one_range_is_one_segment(table):
    """From its first to its last position; nothing where it is empty."""
    assert [(s.low, s.high) for s in compiled(table, add())] == [(0, math.inf)]
    assert [(s.low, s.high) for s in compiled(table, add(Tokens(Phase.PROMPT, start=-3)))] == [(7, 10)]
    assert compiled(table, add(Tokens(start=5, end=5))) == ()
    assert compiled(table, add(Tokens(Phase.GENERATED, end=-1))) == ()


def test_ranges_are_cut_where_they_begin_and_end(table):
    """Each segment runs the terms that cover it; stretches that none covers are left out."""
    found = compiled(
        table,
        add(Tokens(start=2, end=6), strength=1.0),
        add(Tokens(start=4, end=8), strength=2.0),
        add(Tokens(start=20), strength=3.0),
    )
    strengths = [(s.low, s.high, [c.strength for c in s.program[0]]) for s in found]
    assert strengths == [(2, 4, [1.0]), (4, 6, [1.0, 2.0]), (6, 8, [2.0]), (20, math.inf, [3.0])]


def test_clamps_come_last(table):
    """Bounds hold on what leaves a layer; the others keep their order."""
    terms = [
        add(operation=Operation.CLAMP, strength=1.0, low=0.0, high=0.0),
        add(operation=Operation.NORM_ADD, strength=2.0),
        add(operation=Operation.CLAMP, strength=3.0),
        add(strength=4.0),
    ]
    (segment,) = compiled(table, *terms)
    assert [change.strength for change in segment.program[0]] == [2.0, 4.0, 1.0, 3.0]


def test_changes_name_lines_and_lengths(table):
    """Each layer's own direction, its length, the gate's probe and the latents."""
    gated = add(layers=(0, 1), gate=Gate(GateKind.COSINE, PLAIN.digest, 0.5, inverted=True))
    (segment,) = compiled(table, gated)
    for layer, (change,) in segment.program.items():
        assert np.array_equal(table.bank[change.line].numpy(), PLAIN.layers[layer].direction)
        assert change.norm == pytest.approx(float(np.linalg.norm(PLAIN.layers[layer].direction)))
        assert (change.gate.line, change.gate.threshold, change.gate.inverted) == (change.line, 0.5, True)
    probe = compiled(table, add(gate=Gate(GateKind.PROBE, RICH.digest, slope=9.0)))[0].program[0][0].gate
    assert (probe.bias, probe.slope) == (0.25, 3.0)
    assert np.array_equal(table.bank[probe.line].numpy(), RICH.layers[0].probe.weight)
    ramp = compiled(table, add(gate=Gate(GateKind.RAMP, RICH.digest, 0.75, 9.0)))[0].program[0][0].gate
    assert (ramp.bias, ramp.slope, ramp.threshold) == (0.25, 9.0, 0.75)
    units = compiled(table, Term(RICH.digest, (1,), Operation.UNITS))[0].program[1][0].units
    assert units is table.find(RICH.digest).layers[1].units


@pytest.mark.parametrize(
    ("term", "message"),
    [
        (Term("0" * 64, (0,)), "is not resident"),
        (Term(PLAIN.digest, (0, 2)), "has no layer 2"),
        (Term(PLAIN.digest, (0,), Operation.UNITS), "has no latents at layer 0"),
        (add(gate=Gate(GateKind.COSINE, "0" * 64)), "is not resident"),
        (add(gate=Gate(GateKind.PROBE, PLAIN.digest)), "has no probe at layer 0"),
        (add(layers=(1,), gate=Gate(GateKind.RAMP, RICH.digest)), "has no probe at layer 1"),
    ],
)
def test_what_is_missing_is_named(table, term, message):
    """A vector, layer, probe or latents that the table does not hold."""
    with pytest.raises(NotResident, match=message):
        compiled(table, term)
