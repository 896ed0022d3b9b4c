"""Vectors on the device: what is refused, and that nothing leaks."""

import gc

import numpy as np
import psutil
import pytest
import torch

from steering.table import TableFull, VectorTable
from steering.vector import Layer, Probe, SteeringVector, Units, VectorError

WIDTH = 16
CPU = torch.device("cpu")


def plain(seed, layers=(0, 1), width=WIDTH):
    rng = np.random.default_rng(seed)
    return SteeringVector.of({layer: rng.standard_normal(width) for layer in layers})


def rich(seed, count=3):
    rng = np.random.default_rng(seed)

    def rows(*shape):
        return rng.standard_normal((*shape, WIDTH)).astype(np.float32)

    units = Units(rows(count), rows(count), *rng.standard_normal((3, count)).astype(np.float32))
    return SteeringVector({0: Layer(rows(), Probe(rows(), 0.5, 2.0), units), 3: Layer(rows(), None, units)})


def load(table, vector, layers=4):
    table.load(vector.digest, vector.blob, layers)


def test_a_loaded_vector_stands_in_the_bank():
    """Every direction, probe and latent is found at the line that the table says."""
    table, vector = VectorTable(64, WIDTH, CPU), rich(0)
    load(table, vector)
    resident = table.find(vector.digest)
    for index, layer in vector.layers.items():
        placed = resident.layers[index]
        assert np.array_equal(table.bank[placed.direction].numpy(), layer.direction)
        assert placed.norm == pytest.approx(np.linalg.norm(layer.direction.astype(np.float64)), rel=1e-12)
        for name in ("read", "write"):
            assert np.array_equal(table.bank[getattr(placed.units, name)].numpy(), getattr(layer.units, name))
        for name in ("bias", "offset", "threshold"):
            assert np.array_equal(getattr(placed.units, name).numpy(), getattr(layer.units, name))
    probe = resident.layers[0].probe
    assert np.array_equal(table.bank[probe.line].numpy(), vector.layers[0].probe.weight)
    assert (probe.bias, probe.slope) == (0.5, 2.0)
    assert len(set(resident.lines)) == vector.rows
    assert not table.bank[0].any()


def test_loading_again_takes_no_room():
    """The same digest twice is one vector."""
    table, vector = VectorTable(8, WIDTH, CPU), plain(0)
    load(table, vector)
    load(table, vector)
    assert (len(table), table.free_lines) == (1, 6)


def test_a_thousand_vectors_in_turn_leave_nothing():
    """Loaded and unloaded in turn, vectors of many shapes return every line, and memory stays."""
    table, kept = VectorTable(64, WIDTH, CPU), rich(999)
    load(table, kept)
    free, address = table.free_lines, table.bank.data_ptr()
    lines = table.bank[list(table.find(kept.digest).lines)].clone()

    def turn(first):
        for seed in range(first, first + 1000, 2):
            made = [rich(seed, count=1 + seed % 7), plain(seed + 1)]
            for vector in made:
                load(table, vector)
            for vector in made if seed % 4 else reversed(made):
                table.unload(vector.digest)

    turn(0)
    gc.collect()
    before = psutil.Process().memory_info().rss
    turn(1000)
    gc.collect()
    assert psutil.Process().memory_info().rss - before < 8 << 20
    assert (table.free_lines, len(table)) == (free, 1)
    assert table.bank.data_ptr() == address
    assert torch.equal(table.bank[list(table.find(kept.digest).lines)], lines)
    assert not table.bank[0].any()


def test_full():
    """A vector that does not fit is refused and takes no line; after an unload it fits."""
    table = VectorTable(5, WIDTH, CPU)
    first, second, third = plain(0), plain(1), plain(2)
    load(table, first)
    load(table, second)
    with pytest.raises(TableFull, match="2 lines wanted, 1 free"):
        load(table, third)
    assert (len(table), table.free_lines, table.find(third.digest)) == (2, 1, None)
    table.unload(first.digest)
    load(table, third)
    for vector in (second, third):
        placed = table.find(vector.digest).layers
        for index, layer in vector.layers.items():
            assert np.array_equal(table.bank[placed[index].direction].numpy(), layer.direction)


def test_a_vector_that_cannot_be_placed(monkeypatch):
    """Should the device fail in the middle, the lines are free again."""
    table, vector = VectorTable(5, WIDTH, CPU), plain(0)

    def fails(*_):
        raise RuntimeError("out of memory")

    with monkeypatch.context() as patched:
        patched.setattr(torch, "from_numpy", fails)
        with pytest.raises(RuntimeError):
            load(table, vector)
    assert (len(table), table.free_lines) == (0, 5)
    load(table, vector)
    assert (table.free_lines, table.lines) == (3, 5)


def test_the_digest_is_checked():
    """Bytes that hash to something else than their name are refused."""
    table = VectorTable(8, WIDTH, CPU)
    with pytest.raises(VectorError, match="the bytes received hash to"):
        table.load(plain(1).digest, plain(0).blob, 4)
    assert (len(table), table.free_lines) == (0, 8)


@pytest.mark.parametrize(
    ("vector", "message"),
    [(plain(0, width=WIDTH + 1), "17 wide, the model 16"), (plain(0, layers=(0, 4)), "layers 0 to 3")],
)
def test_a_vector_of_another_model_is_refused(vector, message):
    """Another width, or a layer that the model does not have."""
    table = VectorTable(8, WIDTH, CPU)
    with pytest.raises(VectorError, match=message):
        load(table, vector)
    assert table.free_lines == 8


def test_unloading_what_is_not_there_is_no_error():
    """Nothing happens, twice neither."""
    table, vector = VectorTable(8, WIDTH, CPU), plain(0)
    load(table, vector)
    for _ in range(2):
        table.unload(vector.digest)
    table.unload("unknown")
    assert (len(table), table.free_lines) == (0, 8)


def test_a_vector_stays_until_all_its_owners_unload_it():
    """API processes share the table: what one of them evicts, another may hold."""
    table, vector = VectorTable(2, WIDTH, CPU), plain(0)
    for owner in ("a", "b"):
        table.load(vector.digest, vector.blob, 4, owner)
    table.unload(vector.digest, "a")
    assert table.find(vector.digest) is not None
    table.unload(vector.digest, "b")
    assert (len(table), table.free_lines) == (0, 2)


def test_lines_in_use_are_not_given_away():
    """A request that was aborted may run one more step: its lines are free only when it is gone."""
    table, vector = VectorTable(2, WIDTH, CPU), plain(0)
    load(table, vector)
    table.unload(vector.digest, in_use={vector.digest})
    assert table.free_lines == 0
    table.sweep()
    assert table.free_lines == 2
