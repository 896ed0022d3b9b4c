"""What only a GPU can show of steering: the compiled kernel, graphs that see each step's layout, no waits."""

from functools import partial

import numpy as np
import pytest
import torch

from steering.apply import TorchPass
from steering.capture import Capture
from steering.kernel import GraphPass
from steering.layout import Layout, Reading, Stretch
from steering.spec import (
    CAPTURE_KEY,
    STEERING_KEY,
    CaptureSpec,
    Gate,
    GateKind,
    Operation,
    Phase,
    SteeringSpec,
    Term,
    Tokens,
)
from tests.steering import models, reference
from tests.steering.random_layouts import LAYERS, World, every_combination, random_world, run, states
from tests.steering.vllm_engine import EngineProcess
from tests.steering.watched_lives import TOKENS, agree, watched_life

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an NVIDIA GPU and its driver"),
]

WIDTH, PADDING = 576, 5


def graph_pass(bank, **options):
    return GraphPass(bank, **{"layers": LAYERS, "max_tokens": 256, "max_requests": 32, **options})


def close(result, expected, tolerance=3e-5):
    return torch.allclose(result, expected, rtol=tolerance, atol=tolerance * float(expected.abs().max()))


def expected_of(world, hidden, residual):
    """What torch makes of the same states, in float32."""
    subject = TorchPass(world.bank, torch.float32)
    subject.take(world.layout)
    return run(subject, hidden.float(), None if residual is None else residual.float())


class Recorded:
    """A graph of one pass over all layers, captured with an empty layout, as vLLM captures."""

    def __init__(self, subject, hidden, residual):
        self.results = hidden.new_zeros(LAYERS, *hidden.shape)
        self._step(subject, hidden, residual)  # compiles
        self._graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(self._graph):
            self._step(subject, hidden, residual)

    def _step(self, subject, hidden, residual):
        for layer in range(LAYERS):
            self.results[layer].copy_(hidden)
            subject(self.results[layer], residual, layer)

    def replay(self):
        self._graph.replay()
        return self.results.clone()


@pytest.mark.parametrize("width", [64, 576, 4096, 16_384])
@pytest.mark.parametrize("residual", [True, False], ids=["with residual", "alone"])
def test_the_kernel_agrees_with_torch(width, residual):
    """Every operation behind every gate, at widths of real models, within float32 rounding."""
    world, tokens = every_combination(width, "cuda")
    hidden, second = states(tokens + PADDING, width, torch.float32, residual, device="cuda")
    subject = graph_pass(world.bank)
    subject.take(world.layout)
    result = run(subject, hidden, second)
    assert close(result, expected_of(world, hidden, second))
    assert torch.equal(result[:, tokens - 1 :], hidden[tokens - 1 :].expand(LAYERS, -1, -1))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("seed", range(4))
def test_random_batches_agree_in_half_precision(seed, dtype):
    """One rounding of the model's type apart; what is captured is counted whole."""
    world, tokens = random_world(WIDTH, seed, "cuda")
    hidden, residual = states(tokens + PADDING, WIDTH, dtype, residual=True, device="cuda")
    subject = graph_pass(world.bank)
    subject.take(world.layout)
    result = run(subject, hidden, residual)
    subject.collect()
    assert [capture.missing for capture in world.captures] == [0, 0, 0]
    means = [capture.means() for capture in world.captures]
    other, _ = random_world(WIDTH, seed, "cuda")
    exact = expected_of(other, hidden, residual).to(dtype).float()
    assert torch.allclose(result.float(), exact, rtol=2**-7, atol=2e-3)
    for mine, theirs in zip(means, other.captures, strict=True):
        assert np.allclose(mine, theirs.means(), rtol=2**-7, atol=2**-7 * np.abs(theirs.means()).max())


def test_a_replay_sees_the_layout_of_its_step():
    """One graph serves layout after layout, longer and shorter; replayed idle it changes no bit."""
    tokens = 64
    hidden, residual = states(tokens, WIDTH, torch.bfloat16, residual=True, device="cuda")
    worlds = [random_world(WIDTH, seed, "cuda") for seed in range(3)]
    bank = worlds[0][0].bank
    subject = graph_pass(bank)
    graph = Recorded(subject, hidden, residual)
    idle = hidden.expand(LAYERS, -1, -1)
    assert torch.equal(graph.replay(), idle)
    for world, used in (*worlds, worlds[0]):
        bank.copy_(world.bank)  # a vector that is loaded later stands in the same table
        subject.take(Layout(world.layout.stretches))
        result, direct = graph.replay(), run(subject, hidden, residual)
        assert torch.equal(result, direct)
        assert not torch.equal(result, idle)
        assert torch.equal(result[:, used:], idle[:, used:])
        subject.take(Layout())
        assert torch.equal(graph.replay(), idle)


def test_layouts_may_follow_each_other_faster_than_the_gpu_works():
    """The host runs ahead; each replay still sees its own step's layout, whose buffers were written anew."""
    hidden, residual = states(64, WIDTH, torch.float32, residual=True, device="cuda")
    worlds = [random_world(WIDTH, seed, "cuda") for seed in range(3)]
    layouts = [Layout(world.layout.stretches) for world, _ in worlds]
    subject = graph_pass(worlds[0][0].bank)
    graph = Recorded(subject, hidden, residual)
    expected = []
    for layout in layouts:
        subject.take(layout)
        expected.append(graph.replay())
    torch.cuda.synchronize()
    for _ in range(20):
        results = []
        for layout in layouts:
            torch.cuda._sleep(2_000_000)  # about a millisecond, before the copies
            subject.take(layout)
            results.append(graph.replay())
        assert all(map(torch.equal, results, expected))


def test_replays_capture():
    """Sums, lengths and counts grow by one step with each replay, before and after steering."""
    world = World.of(WIDTH, "cuda")
    rng = np.random.default_rng(0)
    world.batch.admit("r", SteeringSpec((world.term(rng, Operation.ADD),)), 32)
    world.batch.prepare(["r"], np.array([32], np.int32), np.zeros(1, np.int64))
    (stretch,) = world.layout.stretches
    captures = [
        Capture(CaptureSpec(name, (0, 2), ((0, 32),), name == "after")) for name in ("before", "after")
    ]
    hidden, residual = states(32, WIDTH, torch.float32, residual=True, device="cuda")
    subject = graph_pass(world.bank)
    graph = Recorded(subject, hidden, residual)
    x = (hidden + residual).cpu()
    for capture in captures:
        subject.take(Layout((Stretch(0, 32, stretch.program),), (Reading(0, 32, capture, 0),)))
        for _ in range(3):
            result = graph.replay()
        subject.take(Layout())
        graph.replay()
    subject.collect()
    moved = (result[2] + residual).cpu()
    for capture, expected in zip(captures, (x, moved), strict=True):
        assert capture._counts.tolist() == [[96, 96]]
        assert np.allclose(capture.means()[0, 1], expected.mean(0), rtol=1e-4, atol=1e-4)
        assert np.allclose(capture.norms()[0, 1], expected.norm(dim=1).mean(), rtol=1e-4)


@pytest.mark.parametrize("late", [False, True], ids=["scores at once", "scores late"])
def test_watches_in_a_replayed_graph_are_those_of_torch(late):
    """Scores, latches and what they set off, though the host may hear of neither before the end."""
    world, reference = World.of(WIDTH, "cuda", latching=True), World.of(WIDTH, "cuda")
    subject, other = graph_pass(world.bank), TorchPass(reference.bank, torch.float32)
    hidden, residual = states(TOKENS, WIDTH, torch.float32, residual=True, device="cuda")
    inputs = hidden.clone(), residual.clone()
    graph = Recorded(subject, *inputs)

    def replay(*given):
        for buffer, values in zip(inputs, given, strict=True):
            buffer.copy_(values)
        return graph.replay()

    found, told = watched_life(world, subject, WIDTH, replay, late=late)
    expected, known = watched_life(reference, other, WIDTH, partial(run, other))
    assert agree(told, known, tolerance=1e-4)
    for mine, theirs in zip(found, expected, strict=True):
        assert close(mine, theirs)


def test_a_step_never_waits_for_the_gpu():
    """With synchronisation made an error, layouts with new programs, latents and captures run."""
    hidden, residual = states(64, WIDTH, torch.bfloat16, residual=True, device="cuda")
    worlds = [random_world(WIDTH, seed, "cuda")[0] for seed in range(4)]
    subject = graph_pass(worlds[0].bank, capture_lines=512)
    run(subject, hidden, residual)  # compiles
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        for world in worlds:
            subject.take(world.layout)
            run(subject, hidden, residual)
            subject.take(Layout())
    finally:
        torch.cuda.set_sync_debug_mode("default")


PROMPT = [int(token) for token in np.random.default_rng(3).integers(3, models.VOCAB, 40)]


def requests_of(digest):
    """A plain request, and one for each way of steering that acts in the prompt, in the answer, or both."""
    gate = Gate(GateKind.PROBE, digest, inverted=True)
    terms = {
        "plain": (),
        "everywhere": (Term(digest, (1, 2)),),
        "answer": (Term(digest, (0, 3), strength=-1.0, tokens=Tokens(Phase.GENERATED)),),
        "last": (Term(digest, (2,), Operation.NORM_ADD, tokens=Tokens(start=-1)),),
        "gated": (Term(digest, (1, 3), Operation.UNITS, gate=gate), Term(digest, (2,), strength=0.5)),
        "bounded": (Term(digest, (0, 2), Operation.CLAMP, 1.0, 0.0, 0.1),),
    }
    return {name: SteeringSpec(found, name) for name, found in terms.items()}


def answers_of(engine, vector):
    """Results by name of one mixed batch, the worker's evidence, and a capture from beside it."""
    assert engine.rpc("steersman_load", vector.digest, vector.blob) == [None]
    specs = requests_of(vector.digest)
    capture = CaptureSpec("states", tuple(range(models.LAYERS)), ((1, 40),))
    requests = [
        {
            "prompt": PROMPT,
            "params": {"prompt_logprobs": 0, "max_tokens": 12},
            "extra_args": {STEERING_KEY: spec.encode()} if spec.terms else None,
            "cache_salt": spec.cache_salt(None, len(PROMPT)) if spec.terms else None,
        }
        for spec in specs.values()
    ]
    reading = {
        "prompt": PROMPT,
        "params": {"max_tokens": 1, "skip_reading_prefix_cache": True},
        "extra_args": {CAPTURE_KEY: capture.encode()},
    }
    results = dict(zip(specs, engine.generate([*requests, reading]), strict=False))
    evidence = engine.rpc("steersman_evidence", list(specs)[1:])[0]
    shape, means, _ = engine.rpc("steersman_captured", "states")[0]
    return results, evidence, np.frombuffer(bytes.fromhex(means["hex"]), np.float32).reshape(shape)


def difference(left, right):
    """The largest between log-probabilities of the prompt, and of the answer as far as its tokens agree."""
    first, second = left["outputs"][0], right["outputs"][0]
    same = [a == b for a, b in zip(first["token_ids"], second["token_ids"], strict=True)]
    agree = [*same, False].index(False)
    pairs = [
        *zip(left["prompt_logprobs"], right["prompt_logprobs"], strict=True),
        *zip(first["logprobs"][:agree], second["logprobs"][:agree], strict=True),
    ]
    return max(abs(a - b) for a, b in pairs)


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    """A tiny Llama on disk, the same in transformers, and a vector for its middle."""
    folder = tmp_path_factory.mktemp("tiny")
    model = models.save("Llama", folder)
    return folder, model, reference.vector_for(model, PROMPT, range(models.LAYERS))


def served(tmp_path, tiny, name, **options):
    folder, _, vector = tiny
    engine = EngineProcess(tmp_path / f"{name}.log")
    try:
        engine.start(folder, **options)
        return answers_of(engine, vector)
    finally:
        engine.close()


@pytest.mark.timeout(1200)  # compiles
def test_graphs_steer_as_eager_does(tmp_path, tiny, monkeypatch):
    """Compiled and replayed, its cache cold or warm, an engine gives the eager log-probabilities.

    Those are close to Transformers' own; plain requests in the same batch are as if alone; and steering moved
    what it should, or the comparison would prove nothing.
    """
    monkeypatch.setenv("VLLM_CACHE_ROOT", str(tmp_path / "cache"))
    eager, evidence, means = served(tmp_path, tiny, "eager", enforce_eager=True)
    _, model, vector = tiny
    specs, vectors = requests_of(vector.digest), {vector.digest: vector}
    for name, spec in specs.items():
        given = eager[name]
        text = [*PROMPT, *given["outputs"][0]["token_ids"]]
        expected = reference.logprobs(model, text, spec, vectors, len(PROMPT))
        got = [*given["prompt_logprobs"], *given["outputs"][0]["logprobs"]]
        assert max(abs(a - b) for a, b in zip(got, expected, strict=True)) < 5e-3, name
        if name != "plain":
            plain = reference.logprobs(model, text)
            assert max(abs(a - b) for a, b in zip(plain, expected, strict=True)) > 0.05, name
    assert evidence["everywhere"] == [40, 11, None, []]  # the last token is sampled, and never an input
    assert evidence["answer"] == [0, 11, None, []]
    assert evidence["last"] == [1, 11, None, []]
    for name in ("cold", "warm"):
        results, counted, captured = served(tmp_path, tiny, name, enforce_eager=False)
        for request, result in results.items():
            assert difference(result, eager[request]) < 1e-3, (name, request)
        assert counted == evidence
        assert np.allclose(captured, means, rtol=1e-3, atol=1e-3 * np.abs(means).max())


@pytest.mark.timeout(1200)
def test_the_next_engine_does_not_see_the_graphs_of_a_plain_one(tmp_path, tiny, monkeypatch):
    """A compile cache filled by vLLM's own worker is not taken for one that steers."""
    monkeypatch.setenv("VLLM_CACHE_ROOT", str(tmp_path / "cache"))
    folder, *_ = tiny
    engine = EngineProcess(tmp_path / "plain.log")
    try:
        engine.start(folder, enforce_eager=False, worker_cls="auto", additional_config={})
        request = {"prompt": PROMPT, "params": {"prompt_logprobs": 0, "max_tokens": 12}}
        (plain,) = engine.generate([request])
    finally:
        engine.close()
    results, *_ = served(tmp_path, tiny, "steering", enforce_eager=False)
    assert difference(results["plain"], plain) < 1e-3
    assert difference(results["everywhere"], plain) > 0.05
