"""Batches of steered and captured requests, the same for the same seed, and what a pass makes of states."""

from dataclasses import dataclass

import numpy as np
import torch

from steering.capture import Capture
from steering.layout import Batch, Layout
from steering.spec import CaptureSpec, Gate, GateKind, Operation, Phase, SteeringSpec, Term, Tokens, Watch
from steering.table import VectorTable
from steering.vector import Detector, Layer, Probe, SteeringVector, Units

LAYERS = 3
TOKENS = (
    Tokens(),
    Tokens(Phase.PROMPT),
    Tokens(Phase.GENERATED),
    Tokens(start=-2),
    Tokens(start=1, end=4),
    Tokens(Phase.PROMPT, start=2),
)
# Every way to gate a term, `None` among them.
GATES = (None, *((kind, inverted) for kind in GateKind for inverted in (False, True)))


def random_vector(rng, width, latents=3):
    def rows(*shape):
        return (rng.standard_normal((*shape, width)) / np.sqrt(width)).astype(np.float32)

    def numbers(scale):
        return (rng.standard_normal(latents) * scale).astype(np.float32)

    return SteeringVector(
        {
            layer: Layer(
                rows() * 3,
                Probe(rows(), float(rng.standard_normal()), float(rng.uniform(0.5, 2))),
                Units(rows(latents), rows(latents), numbers(0.5), numbers(1.0), numbers(0.3)),
            )
            for layer in range(LAYERS)
        }
    )


def random_detector(rng, width, scaling, latents=4):
    """A vector that detects at every layer; its scores are about 0, and of size 1."""

    def numbers(scale=1.0):
        return (rng.standard_normal(latents) * scale).astype(np.float32)

    def rows(*shape):
        return (rng.standard_normal((*shape, width)) / np.sqrt(width)).astype(np.float32)

    return SteeringVector(
        {
            layer: Layer(
                rows(),
                detector=Detector(
                    rows(latents),
                    numbers(0.3),
                    numbers(0.3),
                    1 + numbers(0.2),
                    numbers(0.1),
                    numbers(),
                    float(rng.normal() * 0.1),
                    scaling,
                ),
            )
            for layer in range(LAYERS)
        }
    )


@dataclass
class World:
    """A bank of three vectors, and the batch whose requests use them."""

    table: VectorTable
    batch: Batch
    digests: list[str]
    captures: list[Capture]

    @classmethod
    def of(cls, width, device="cpu", seed=0, *, latching=False):
        rng = np.random.default_rng(seed)
        table = VectorTable(192, width, torch.device(device))
        vectors = [random_vector(rng, width) for _ in range(3)]
        for vector in vectors:
            table.load(vector.digest, vector.blob, LAYERS)
        return cls(table, Batch(table, latching=latching), [vector.digest for vector in vectors], [])

    @property
    def bank(self):
        return self.table.bank

    @property
    def layout(self) -> Layout:
        return self.batch.layout

    def capture(self, request, spec):
        self.batch.capture(request, spec)
        self.captures.append(self.batch._captures[request])

    def term(self, rng, operation, gate=None, tokens=None, layers=None):
        first, second = rng.choice(self.digests, 2)
        low = float(rng.normal())
        return Term(
            str(first),
            tuple(range(LAYERS)) if layers is None else layers,
            operation,
            float(rng.uniform(0.3, 1.5) * rng.choice([-1, 1])),
            low,
            low + float(rng.uniform(0, 1)),
            tokens or Tokens(),
            gate and Gate(gate[0], str(second), float(rng.normal() * 0.3), 1.3, gate[1]),
        )

    def watch(self, rng, scaling, terms=1):
        """Which drifts after some tokens, often enough."""
        vector = random_detector(rng, self.bank.shape[1], scaling)
        self.table.load(vector.digest, vector.blob, LAYERS)
        acts = tuple(self.random_term(rng) for _ in range(terms))
        layer = int(rng.integers(LAYERS))
        return Watch(vector.digest, layer, float(rng.uniform(0, 0.4)), float(rng.uniform(0.2, 0.6)), acts)

    def random_term(self, rng):
        layers = tuple(map(int, rng.permutation(LAYERS)[: rng.integers(1, LAYERS + 1)]))
        gate = GATES[rng.integers(len(GATES))]
        tokens = TOKENS[rng.integers(len(TOKENS))]
        return self.term(rng, Operation(rng.choice(list(Operation))), gate, tokens, layers)


def every_combination(width, device="cpu"):
    """One token each for every operation behind every gate, in one batch; then one that is left alone."""
    rng, world = np.random.default_rng(1), World.of(width, device)
    requests = []
    for operation in Operation:
        for gate in GATES:
            requests.append(f"{operation}-{gate}")
            world.batch.admit(requests[-1], SteeringSpec((world.term(rng, operation, gate),)), 1)
    requests.append("alone")
    ones = np.ones(len(requests), np.int32)
    world.batch.prepare(requests, ones, np.zeros(len(requests), np.int64))
    return world, len(requests)


def random_world(width, seed, device="cpu"):
    """Eight requests in mid-batch: steered by one to four terms, captured, both, or neither."""
    rng, world = np.random.default_rng(seed), World.of(width, device, seed)
    names, scheduled, computed = [], [], []
    for number in range(8):
        name, prompt = f"request-{number}", int(rng.integers(1, 12))
        names.append(name)
        computed.append(int(rng.choice([0, prompt // 2, prompt + 1])))
        scheduled.append(1 if computed[-1] > prompt else prompt - computed[-1] + int(rng.integers(0, 2)))
        if number % 4 != 0:
            terms = []
            while len({term.tokens for term in terms}) < min(number % 4, 4) or not terms:
                terms.append(world.random_term(rng))
            world.batch.admit(name, SteeringSpec(tuple(terms)), prompt)
        if number % 3 == 0:
            first, count = computed[-1], scheduled[-1]
            spans = ((first, first + 1), (first + 1, first + count)) if count > 1 else ((first, first + 1),)
            layers = (2, 0) if number % 2 else (1,)
            world.capture(name, CaptureSpec(name, layers, spans, after=bool(number % 2)))
    world.batch.prepare(names, np.array(scheduled, np.int32), np.array(computed, np.int64))
    return world, int(sum(scheduled))


def states(tokens, width, dtype, residual, *, device="cpu", seed=0):
    """What leaves a block: `hidden`, and the larger `residual` or None."""
    generator = torch.Generator().manual_seed(seed)
    hidden = torch.randn(tokens, width, generator=generator).to(device, dtype)
    if not residual:
        return hidden, None
    return hidden, (torch.randn(tokens, width, generator=generator) * 3).to(device, dtype)


def touched(layout, layer, tokens):
    """Which tokens the layout changes at a layer."""
    found = torch.zeros(tokens, dtype=torch.bool)
    for stretch in layout.stretches:
        if layer in stretch.program:
            found[stretch.start : stretch.end] = True
    return found


def run(subject, hidden, residual, layers=range(LAYERS)):
    """What a pass makes of the same states at each layer, `[layers, tokens, hidden]`."""
    results = []
    for layer in layers:
        result = hidden.clone()
        subject(result, residual, layer)
        results.append(result)
    return torch.stack(results)
