"""A layout carried out: every operation behind every gate, batched as it comes, against the formulas."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from steering.apply import TorchPass
from steering.spec import Operation, SteeringSpec
from tests.steering import random_layouts
from tests.steering.formulas import steered
from tests.steering.random_layouts import GATES, LAYERS, World, states

WIDTH = 24
seeds = st.integers(0, 2**32 - 1)


def vectors_of(world, seed):
    """The three vectors of the world with this seed, by digest."""
    rng = np.random.default_rng(seed)
    made = [random_layouts.random_vector(rng, WIDTH) for _ in range(3)]
    assert [vector.digest for vector in made] == world.digests
    return {vector.digest: vector for vector in made}


class Scene:
    """Requests of one step: what each asks for, and the positions of its tokens."""

    def __init__(self, seed, requests):
        self.world = World.of(WIDTH, seed=seed)
        self.vectors = vectors_of(self.world, seed)
        self.requests = requests(self.world)
        for name, (spec, prompt, _, _) in self.requests.items():
            if spec is not None:
                self.world.batch.admit(name, spec, prompt)
        counts = np.array([count for _, _, _, count in self.requests.values()], np.int32)
        computed = np.array([first for _, _, first, _ in self.requests.values()], np.int32)
        self.world.batch.prepare(list(self.requests), counts, computed)
        self.tokens = int(counts.sum())

    def run(self, hidden, residual):
        passing = TorchPass(self.world.bank, hidden.dtype)
        passing.take(self.world.layout)
        return random_layouts.run(passing, hidden, residual)

    def expected(self, hidden, residual):
        """By formula, in float64, token by token; None where no term acts."""
        x = hidden.double().numpy() + (0 if residual is None else residual.double().numpy())
        for layer in range(LAYERS):
            token = 0
            for spec, prompt, first, count in self.requests.values():
                for position in range(first, first + count):
                    if spec is not None:
                        at = {"layer": layer, "position": position, "prompt_tokens": prompt}
                        y = steered(spec, self.vectors, x[token], **at)
                        untouched = y is x[token] or np.array_equal(y, x[token])
                        yield layer, token, None if untouched else y
                    else:
                        yield layer, token, None
                    token += 1

    def check(self, dtype=torch.float32, *, residual, tolerance=1e-4):
        hidden, second = states(self.tokens, WIDTH, dtype, residual)
        found = self.run(hidden, second)
        addend = 0 if second is None else second.double().numpy()
        for layer, token, y in self.expected(hidden, second):
            mine = found[layer, token]
            if y is None:
                assert torch.equal(mine, hidden[token]), (layer, token)
            else:
                whole = mine.double().numpy() + (addend if second is None else addend[token])
                np.testing.assert_allclose(whole, y, rtol=tolerance, atol=tolerance * 10)


@pytest.mark.parametrize("residual", [False, True])
@pytest.mark.parametrize("gate", GATES, ids=str)
@pytest.mark.parametrize("operation", Operation)
@pytest.mark.parametrize("count", [1, 3, 20])
def test_every_operation_behind_every_gate(operation, gate, residual, count):
    """Short stretches that share a batch and long ones that do not, beside tokens that are left alone."""

    def requests(world):
        rng = np.random.default_rng(7)
        asked = {f"r{n}": (SteeringSpec((world.term(rng, operation, gate),)), 4, 2, count) for n in range(3)}
        asked.update({"between": (None, 4, 0, 2), "last": (asked["r0"][0], 4, 2, count)})
        return asked

    Scene(7, requests).check(residual=residual)


def random_requests(seed):
    def requests(world):
        rng, asked = np.random.default_rng(seed), {}
        for number in range(rng.integers(1, 9)):
            prompt = int(rng.integers(1, 12))
            first = int(rng.choice([0, prompt // 2, prompt + 1]))
            count = 1 if first > prompt else prompt - first + int(rng.integers(0, 2))
            terms = []
            for _ in range(rng.integers(0, 5)):
                terms.append(world.random_term(rng))
                if len({term.tokens for term in terms}) > 4:
                    terms.pop()
            asked[f"r{number}"] = (SteeringSpec(tuple(terms)) if terms else None, prompt, first, count)
        return asked

    return requests


@settings(max_examples=150)
@given(seeds, st.booleans())
def test_random_batches(seed, residual):
    """Several terms per request and layer, gated or not, over any ranges, agree with the formulas."""
    Scene(seed, random_requests(seed)).check(residual=residual)


@pytest.mark.parametrize("residual", [False, True])
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.bfloat16, 2**-7), (torch.float16, 2**-9)])
def test_narrow_types(dtype, tolerance, residual):
    """In bfloat16 and float16 only the last rounding is lost, and untouched tokens keep every bit."""
    for seed in range(20):
        Scene(seed, random_requests(seed)).check(dtype, residual=residual, tolerance=tolerance)


def test_states_of_another_type_than_the_models():
    """A block may leave its state in float32 though the model is in bfloat16: what is added follows it."""

    def requests(world):
        spec = SteeringSpec((world.term(np.random.default_rng(7), Operation.ADD, None),))
        return {"first": (spec, 4, 2, 3), "between": (None, 4, 0, 2), "last": (spec, 4, 2, 3)}

    scene = Scene(7, requests)
    hidden, _ = states(scene.tokens, WIDTH, torch.float32, False)
    passing = TorchPass(scene.world.bank, torch.bfloat16)
    passing.take(scene.world.layout)
    found = random_layouts.run(passing, hidden, None)
    torch.testing.assert_close(found, scene.run(hidden, None), rtol=2**-6, atol=2**-4)


@settings(max_examples=60)
@given(seeds)
def test_neighbours_do_not_matter(seed):
    """A request comes out of a batch as it comes out alone."""
    scene = Scene(seed, random_requests(seed))
    hidden, residual = states(scene.tokens, WIDTH, torch.float32, True)
    together, offset = scene.run(hidden, residual), 0
    for name, request in scene.requests.items():
        rows = slice(offset, offset + request[3])
        alone = Scene(seed, lambda _, name=name, request=request: {name: request})
        found = alone.run(hidden[rows], residual[rows])
        torch.testing.assert_close(together[:, rows], found, rtol=1e-5, atol=1e-5)
        if request[0] is None:
            assert torch.equal(found, hidden[rows].expand(LAYERS, -1, -1))
        offset = rows.stop


def test_nothing_to_do_is_nothing_done():
    """Layers without a live stretch are not touched, and an empty layout takes everything back."""
    scene = Scene(0, random_requests(3))
    passing = TorchPass(scene.world.bank, torch.float32)
    hidden, residual = states(scene.tokens, WIDTH, torch.float32, True)
    assert torch.equal(random_layouts.run(passing, hidden, residual), hidden.expand(LAYERS, -1, -1))
    passing.take(scene.world.layout)
    assert passing.live
    assert passing.live <= set(range(LAYERS))
    scene.world.batch.clear()
    passing.take(scene.world.layout)
    assert not passing.live
    assert torch.equal(random_layouts.run(passing, hidden, residual), hidden.expand(LAYERS, -1, -1))


def test_the_residual_is_never_written():
    """Only the addend `hidden` carries the change: vLLM's fused norms keep the other."""
    scene = Scene(1, random_requests(1))
    hidden, residual = states(scene.tokens, WIDTH, torch.float32, True)
    kept = residual.clone()
    scene.run(hidden, residual)
    assert torch.equal(residual, kept)
