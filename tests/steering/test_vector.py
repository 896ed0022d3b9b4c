"""A steering vector: what is refused, and the bytes that name it."""

import math

import numpy as np
import pytest
from safetensors.numpy import save

from steering.vector import Layer, Probe, SteeringVector, Units, VectorError

WIDTH = 8


def row(seed=0, width=WIDTH):
    return np.random.default_rng(seed).standard_normal(width).astype(np.float32)


def latents(count=3, width=WIDTH, **parts):
    rng = np.random.default_rng(1)
    scalars = {
        name: rng.standard_normal(count).astype(np.float32) for name in ("bias", "offset", "threshold")
    }
    matrices = {name: rng.standard_normal((count, width)).astype(np.float32) for name in ("read", "write")}
    return Units(**{**matrices, **scalars, **parts})


def full():
    return SteeringVector(
        {
            7: Layer(row(1), Probe(row(2), 0.5, -1.25), latents()),
            10: Layer(row(3), None, latents(2)),
            2: Layer(row(4), Probe(row(5), 0.0, 1.0)),
        }
    )


def same(one, other):
    return one.layers.keys() == other.layers.keys() and one.blob == other.blob


def test_a_blob_holds_everything():
    """Directions, probes and latents of each layer come back bit-equal, and so does the digest."""
    vector = full()
    again = SteeringVector.from_blob(vector.blob)
    assert same(again, vector)
    assert again.digest == vector.digest
    assert again.layers[7].probe.slope == -1.25
    assert again.layers[2].units is None
    for name in Units.__dataclass_fields__:
        assert np.array_equal(getattr(again.layers[10].units, name), getattr(vector.layers[10].units, name))


def test_the_digest_is_of_the_content():
    """The order in which layers were given, a copy, and the number type of equal values do not matter."""
    directions = {index: np.round(row(index), 2) for index in (5, 1, 11)}
    vector = SteeringVector.of(directions)
    backwards = SteeringVector.of(dict(reversed(directions.items())))
    wide = SteeringVector.of({index: value.astype(np.float64) for index, value in directions.items()})
    strided = SteeringVector.of({i: np.repeat(value, 2)[::2] for i, value in directions.items()})
    assert len({made.digest for made in (vector, backwards, wide, strided)}) == 1


def test_the_digest_stays_between_releases():
    """Stored vectors keep their names: the digest of this one never changes."""
    vector = SteeringVector.of({0: np.arange(1, 5, dtype=np.float32)})
    assert vector.digest == "b9cd8098ea4dbbc02da7f409f998ced31b0bd265019c2d83266935ca4652cd32"


@pytest.mark.parametrize("place", ["direction", "probe", "read", "bias"])
@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_values_are_finite(place, value):
    """NaN or infinity anywhere is refused, its layer and part named."""
    spoilt = row(1)
    spoilt[3] = value
    layer = {
        "direction": lambda: Layer(spoilt),
        "probe": lambda: Layer(row(), Probe(spoilt, 0.0, 1.0)),
        "read": lambda: Layer(row(), None, latents(read=np.stack([row(), spoilt, row()]))),
        "bias": lambda: Layer(row(), None, latents(bias=spoilt[1:4])),
    }[place]
    with pytest.raises(VectorError, match=rf"layer 4: .*{place}.* not a finite number"):
        SteeringVector({4: layer()})


@pytest.mark.parametrize("probe", [Probe(row(), math.nan, 1.0), Probe(row(), 0.0, math.inf)])
def test_a_probes_numbers_are_finite(probe):
    """Bias and slope too."""
    with pytest.raises(VectorError, match="not a finite number"):
        SteeringVector({0: Layer(row(), probe)})


def test_a_direction_is_not_zero():
    """It would have no unit vector; one of tiny numbers has."""
    with pytest.raises(VectorError, match="layer 1: the direction is zero"):
        SteeringVector.of({0: row(), 1: np.zeros(WIDTH)})
    for value in (1e-30, 1e30):
        assert SteeringVector.of({0: np.full(WIDTH, value)}).norms[0] == pytest.approx(value * WIDTH**0.5)


@pytest.mark.parametrize(
    "layers",
    [
        {},
        {0: Layer(row()), 1: Layer(row(width=WIDTH + 1))},
        {0: Layer(row().reshape(2, 4))},
        {0: Layer(np.float32(3))},
        {0: Layer(np.zeros(0, np.float32))},
        {0: Layer(row(), Probe(row(width=4), 0.0, 1.0))},
        {0: Layer(row(), None, latents(width=4))},
        {0: Layer(row(), None, latents(bias=np.zeros(2, np.float32)))},
        {0: Layer(row(), None, latents(write=np.zeros((2, WIDTH), np.float32)))},
    ],
    ids=["none", "widths", "matrix", "number", "empty", "probe", "units", "bias", "write"],
)
def test_shapes_fit(layers):
    """No layers, other widths, other shapes and unequal numbers of latents are refused."""
    with pytest.raises(VectorError):
        SteeringVector(layers)


@pytest.mark.parametrize(
    "tensors",
    [
        {"layers.0.direction": row(), "more": row()},
        {"layers.x.direction": row()},
        {"layers.7.direction": row(), "layers.07.direction": row()},
        {"layers.٧.direction": row()},
        pytest.param({f"layers.{'9' * 5000}.direction": row()}, id="beyond"),
        {"layers.0.other": row()},
        {"layers.0.probe.weight": row()},
        {"layers.0.direction": row(), "layers.0.probe.weight": row()},
        {"layers.0.direction": row(), "layers.0.units.read": row()},
        {
            "layers.0.direction": row(),
            "layers.0.probe.weight": row(),
            "layers.0.probe.bias": row(),
            "layers.0.probe.slope": row(),
        },
    ],
    ids=max,
)
def test_other_tensors_are_refused(tensors):
    """A file with unknown names, without a direction or with half a probe is no vector."""
    with pytest.raises(VectorError):
        SteeringVector.from_blob(save(tensors))


@pytest.mark.parametrize("blob", [b"", b"nonsense", b"\xff" * 100, full().blob[:-4], full().blob[8:]])
def test_bytes_that_are_no_blob(blob):
    """Damaged bytes raise VectorError, never another error."""
    with pytest.raises(VectorError):
        SteeringVector.from_blob(blob)


def test_rows_are_lines_of_the_table():
    """One per direction and probe, two per latent."""
    assert full().rows == (1 + 1 + 6) + (1 + 4) + (1 + 1)
    assert full().width == WIDTH
