"""Which tokens of a step are steered: the layout against a look at each token, over whole lives."""

from dataclasses import dataclass, field

import numpy as np
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from steering.apply import TorchPass
from steering.layout import NEVER_SEEN, Batch, Evidence
from steering.spec import CaptureSpec, Phase, SteeringSpec, Term, Tokens
from steering.table import VectorTable
from steering.vector import SteeringVector
from tests.steering.formulas import covers

WIDTH, LAYERS, VECTORS = 4, 2, 3
seeds = st.integers(0, 2**32 - 1)
# exact in float32, and no two sums of them are equal
VECTOR = [
    SteeringVector.of({layer: np.eye(WIDTH)[n] * 2.0**n for layer in range(LAYERS)}) for n in range(VECTORS)
]


@dataclass
class Request:
    name: str
    spec: SteeringSpec | None
    prompt: int
    total: int
    computed: int = 0
    known: int = 0  # tokens of prompt and text so far
    steered: set[int] = field(default_factory=set)  # positions

    @property
    def counted(self):
        prompt = sum(position < self.prompt for position in self.steered)
        return Evidence(prompt, len(self.steered) - prompt)

    def terms(self, layer, position):
        terms = self.spec.terms if self.spec else ()
        return [t for t in terms if layer in t.layers and covers(t.tokens, position, self.prompt)]


def random_spec(rng, trace):
    ranges = []
    for _ in range(rng.integers(1, 4)):
        start, end = (None if rng.random() < 0.5 else int(rng.integers(-6, 14)) for _ in range(2))
        ranges.append(Tokens(rng.choice(list(Phase)), start, end))
    terms = [
        Term(
            VECTOR[rng.integers(VECTORS)].digest,
            tuple(map(int, rng.permutation(LAYERS)[: rng.integers(1, LAYERS + 1)])),
            strength=float(rng.integers(1, 4)),
            tokens=ranges[rng.integers(len(ranges))],
        )
        for _ in range(rng.integers(1, 5))
    ]
    return SteeringSpec(tuple(terms), trace)


class Engine:
    """What vLLM's scheduler and runner do to a batch, as far as the layout sees it."""

    def __init__(self, rng):
        self.rng, self.live, self.ended, self.started = rng, [], [], 0
        table = VectorTable(LAYERS * VECTORS, WIDTH, torch.device("cpu"))
        for vector in VECTOR:
            table.load(vector.digest, vector.blob, LAYERS)
        self.batch, self.passing = Batch(table), TorchPass(table.bank, torch.float32)
        self.reused = 0

    def arrive(self):
        name = f"request-{self.started}"
        self.started += 1
        spec = random_spec(self.rng, name) if self.rng.random() < 0.7 else None
        prompt = int(self.rng.integers(1, 10))
        request = Request(name, spec, prompt, prompt + int(self.rng.integers(1, 14)), known=prompt)
        self.live.append(request)
        if spec is not None:
            self.batch.admit(name, spec, prompt)

    def end(self, request):
        self.live.remove(request)
        self.ended.append(request)
        self.batch.retire(request.name)

    def events(self):
        """Arrivals, ends, aborts, preemptions, rows that move."""
        rng = self.rng
        if not self.live or (len(self.live) < 5 and rng.random() < 0.15):
            self.arrive()
        for request in list(self.live):
            if request.computed >= request.total or rng.random() < 0.01:
                self.end(request)
            elif rng.random() < 0.03:
                request.computed = 0  # preempted: all of it comes again, prompt and text alike
        if rng.random() < 0.1:
            rng.shuffle(self.live)

    def step(self):
        self.events()
        scheduled = []
        for request in self.live:
            if self.rng.random() < 0.05:
                continue
            left = request.known - request.computed
            # chunks of any length; now and then a draft of several tokens, as in speculative decoding
            count = int(self.rng.integers(1, left + 1)) if left > 1 and self.rng.random() < 0.7 else left
            if left == 1 and self.rng.random() < 0.05:
                count = int(self.rng.integers(1, 4))
            scheduled.append((request, count))
        if not scheduled:
            return
        names = [request.name for request, _ in scheduled]
        counts = np.array([count for _, count in scheduled], np.int32)
        computed = np.array([request.computed for request, _ in scheduled], np.int32)
        if self.batch.prepare(names, counts, computed):
            self.passing.take(self.batch.layout)
        elif self.batch.layout:
            self.reused += 1
        self.check(scheduled)
        for request, count in scheduled:
            request.computed += count
            if request.computed >= request.known:
                request.computed = request.known  # drafts are not accepted
                request.known += 1

    def check(self, scheduled):
        """Each token moved by exactly the vectors of the terms that cover its position, others by no bit."""
        total = sum(count for _, count in scheduled)
        for layer in range(LAYERS):
            hidden = torch.from_numpy(self.rng.integers(-8, 8, (total, WIDTH)).astype(np.float32))
            before, token = hidden.clone(), 0
            self.passing(hidden, None, layer)
            for request, count in scheduled:
                for position in range(request.computed, request.computed + count):
                    expected = before[token].numpy().copy()
                    for term in request.terms(layer, position):
                        vector = next(v for v in VECTOR if v.digest == term.vector)
                        expected += np.float32(term.strength) * vector.layers[layer].direction
                    assert np.array_equal(hidden[token].numpy(), expected), (request, position, layer)
                    token += 1
        for request, count in scheduled:
            for position in range(request.computed, request.computed + count):
                if any(request.terms(layer, position) for layer in range(LAYERS)):
                    request.steered.add(position)


@settings(max_examples=150)
@given(seeds)
def test_exactly_the_tokens_that_the_positions_say(seed):
    """Over chunks, preemptions, drafts, moves, arrivals and ends; the evidence counts what was steered."""
    engine = Engine(np.random.default_rng(seed))
    for _ in range(60):
        engine.step()
    requests = [*engine.live, *engine.ended]
    found = engine.batch.evidence([request.name for request in requests if request.spec])
    assert found == {request.name: request.counted for request in requests if request.spec}
    for request in list(engine.live):
        engine.end(request)
    assert not any(engine.batch.held().values())


def world(*specs, prompt=4):
    engine = Engine(np.random.default_rng(0))
    for number, spec in enumerate(specs):
        if spec is not None:
            engine.batch.admit(f"request-{number}", spec, prompt)
    return engine.batch


def prepare(batch, computed, scheduled=None, names=None):
    names = names or [f"request-{number}" for number in range(len(computed))]
    scheduled = scheduled or [1] * len(names)
    return batch.prepare(names, np.array(scheduled, np.int32), np.array(computed, np.int32))


ALL = Tokens()


def of(tokens=ALL, trace="trace"):
    return SteeringSpec((Term(VECTOR[0].digest, (0,), tokens=tokens),), trace)


def test_a_steady_decode_keeps_its_layout():
    """While only positions move on, one layout serves all steps, and each step is counted."""
    batch = world(of(), None)
    assert prepare(batch, [0, 0], [4, 4])
    changed = [prepare(batch, [4 + step, 4 + step]) for step in range(20)]
    assert changed == [True] + [False] * 19
    assert batch.evidence(["trace"])["trace"] == Evidence(4, 20)


def test_counting_goes_on_after_it_was_asked():
    """Evidence asked for in mid-flight neither loses steps nor counts them twice; each asker gets its own."""
    batch = world(of(trace="first"), of(trace="second"))
    for step in range(10):
        prepare(batch, [4 + step, 4 + step])
    assert batch.evidence(["first"])["first"] == Evidence(0, 10)
    for step in range(10, 15):
        prepare(batch, [4 + step, 4 + step])
    assert batch.evidence(["second"])["second"] == Evidence(0, 15)


def test_a_position_counts_once():
    """Not again for the drafts that every step rejects, nor for a request computed again from its start."""
    batch = world(of())
    prepare(batch, [0], [4])
    for computed in range(4, 100):
        prepare(batch, [computed], [6])
    prepare(batch, [0], [60])
    prepare(batch, [60], [40])
    prepare(batch, [100], [1])
    assert batch.evidence(["trace"])["trace"] == Evidence(4, 101 - 4 + 4), (
        "the last step drafted four in vain"
    )


def test_a_steady_batch_that_starts_anew():
    """A request that loses its cache and comes back between two like steps is not counted less."""
    batch = world(of(Tokens(end=8)), prompt=8)
    for computed in (0, 4, 0, 4):
        prepare(batch, [computed], [4])
    assert batch.evidence(["trace"])["trace"] == Evidence(8, 0)


def test_what_the_prefix_cache_holds_is_not_counted():
    """Neither at the start nor after a preemption, from which other requests' blocks may save the more."""
    batch = world(of(), prompt=40)
    prepare(batch, [10], [5])
    prepare(batch, [20], [20])
    assert batch.evidence(["trace"])["trace"] == Evidence(25, 0)


def test_a_range_ends_within_a_steady_decode():
    """The step that reaches a bound gets a layout of its own."""
    batch = world(of(Tokens(end=8)))
    prepare(batch, [4])
    assert [prepare(batch, [computed]) for computed in range(5, 11)] == [False] * 3 + [True] + [False] * 2
    assert not batch.layout.stretches
    assert batch.evidence(["trace"])["trace"] == Evidence(0, 4)


def test_unsteered_batches_cost_nothing():
    """Without steered or captured requests the layout stays empty; after the last it is emptied."""
    batch = world(None, None)
    assert not prepare(batch, [0, 0])
    batch.admit("request-0", of(), 1)
    assert prepare(batch, [0, 0])
    batch.retire("request-0")
    assert prepare(batch, [1, 1])
    assert not batch.layout
    assert not prepare(batch, [2, 2])


def test_a_dummy_run_is_never_steered():
    """Clearing empties the layout, and the next step makes it anew."""
    batch = world(of())
    prepare(batch, [4])
    assert batch.clear()
    assert not batch.layout
    assert not batch.clear()
    assert prepare(batch, [5])
    assert batch.layout
    assert batch.evidence(["trace"])["trace"] == Evidence(0, 2)


def test_a_missing_vector_is_evidence():
    """A request whose vector is not resident runs on, unsteered, and its evidence says why."""
    absent = SteeringSpec((Term("0" * 64, (0,)),), "trace")
    batch = world(absent)
    assert not prepare(batch, [0], [4])
    evidence = batch.evidence(["trace", "another"])
    assert "is not resident" in evidence["trace"].problem
    assert evidence["another"].problem == NEVER_SEEN


def test_one_trace_over_several_requests():
    """Evidence adds up over the samples of one request, and one that failed shows in the whole."""
    batch = world(of(), of())
    prepare(batch, [0, 0], [4, 3])
    assert batch.evidence(["trace"])["trace"] == Evidence(7, 0)
    batch.admit("request-2", SteeringSpec((Term("0" * 64, (0,)),), "other"), 4)
    batch.admit("request-3", of(trace="other"), 4)
    assert "is not resident" in batch.evidence(["other"])["other"].problem


def test_who_names_no_trace_leaves_none():
    """Requests of plain vLLM, for whose evidence nobody asks, leave nothing behind."""
    batch = world(*(of(trace="") for _ in range(20)))
    prepare(batch, [0] * 20)
    for number in range(20):
        batch.retire(f"request-{number}")
    assert not any(batch.held().values())


def test_a_name_used_again_is_another_request():
    """A request that ends as one of its name begins at the same place gets its own layout."""
    batch = world(of())
    prepare(batch, [4])
    prepare(batch, [5])
    batch.retire("request-0")
    batch.admit("request-0", SteeringSpec((Term(VECTOR[1].digest, (1,)),), "trace"), 4)
    assert prepare(batch, [6])
    assert list(batch.layout.stretches[0].program) == [1]


def test_positions_beyond_all_numbers():
    """A bound that no integer of the host's arrays holds is far, not an error."""
    batch = world(of(Tokens(start=10**30)), of(Tokens(end=10**30)))
    assert prepare(batch, [0, 0], [4, 4])
    assert [stretch.start for stretch in batch.layout.stretches] == [4]
    assert prepare(batch, [4, 4])
    assert not prepare(batch, [5, 5])


def test_a_captured_step_is_never_used_again():
    """Each step's states are read once, where they are."""
    batch = world(None)
    batch.capture("request-0", CaptureSpec("id", (0,), ((4, 8),)))
    for position in range(4, 10):
        assert prepare(batch, [position])
        assert len(batch.layout.readings) == (position < 8)
