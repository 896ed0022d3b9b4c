"""Steering in running engines: tiny models against Transformers, engine after engine in one process."""

import itertools
import json
import math

import numpy as np
import psutil
import pytest
import torch
from safetensors.torch import save_file

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
from steering.vector import SteeringVector
from tests.steering.architectures import measure
from tests.steering.formulas import covers
from tests.steering.models import LAYERS, VOCAB, WIDTH, save
from tests.steering.reference import logprobs, states, vector_for
from tests.steering.vllm_engine import EngineError, EngineProcess

CLOSE = 1e-4  # of log-probabilities, in float32
ROUGH = 1e-3  # how far from Transformers stock vLLM's attention is on some processors
EFFECT = 0.02  # how far steering moves at least one of them, or a test would show nothing
MADE = 8  # tokens generated

RANGES = (
    Tokens(),
    Tokens(Phase.PROMPT),
    Tokens(Phase.GENERATED),
    Tokens(start=-1),
    Tokens(start=10, end=130),
    Tokens(Phase.GENERATED, start=152, end=154),
)


def prompt(length, seed):
    return [int(token) for token in np.random.default_rng(seed).integers(3, VOCAB, length)]


PROMPT = prompt(150, 0)  # three chunks of the engine's 64 tokens


@pytest.fixture(scope="module")
def process(tmp_path_factory):
    subject = EngineProcess(tmp_path_factory.mktemp("engine"))
    yield subject
    subject.close()


class World:
    """The tiny model, as the engine and as Transformers have it, and two vectors for it."""

    def __init__(self, process, folder):
        self.process, self.folder = process, folder
        self.model = save("Llama", folder)
        made = [vector_for(self.model, PROMPT, range(LAYERS), seed=seed) for seed in range(2)]
        self.vectors = {vector.digest: vector for vector in made}
        self.first, self.second = self.vectors
        self.traces = itertools.count()
        self.close = None

    def start(self, **options):
        """The engine with these options, both vectors loaded on every rank."""
        self.process.start(self.folder, **options)
        if options.get("worker_cls") != "auto":
            for digest, vector in self.vectors.items():
                assert set(self.process.rpc("steersman_load", digest, vector.blob)) == {None}
        if self.close is None:
            (plain,) = self.process.generate([self.request(PROMPT)])
            output = plain["outputs"][0]
            found = plain["prompt_logprobs"] + output["logprobs"]
            self.close = tolerance(difference(found, self.expected(PROMPT, output, None)))
        return self

    def spec(self, *terms):
        return SteeringSpec(terms, f"trace-{next(self.traces)}")

    def term(self, operation=Operation.ADD, layers=(1,), **rest):
        bounds = {Operation.CLAMP: (-1.0, 0.5), Operation.LATENTS: (1.0, 2.0)}.get(operation)
        own = {} if bounds is None else {"low": bounds[0], "high": bounds[1]}
        return Term(self.first, layers, operation, 0.8, **(own | rest))

    def request(self, ids, spec=None, *, salted=True, **params):
        """`prompt_logprobs` keep it from reading the prefix cache."""
        request = {"prompt": ids, "params": {"max_tokens": MADE, "prompt_logprobs": 0} | params}
        if spec is not None:
            request["extra_args"] = {STEERING_KEY: spec.encode()}
            if salted:
                request["cache_salt"] = spec.cache_salt(None, len(ids))
        return request

    def uncached(self, *args, **kwargs):
        """A request in a part of the prefix cache where no other is."""
        return self.request(*args, **kwargs) | {"cache_salt": f"alone-{next(self.traces)}"}

    def expected(self, ids, output, spec, model=None):
        text = ids + output["token_ids"]
        return logprobs(model or self.model, text, spec, self.vectors, len(ids))

    def check(self, ids, spec, result, *, prompt=True, effect=EFFECT, model=None):
        """Every log-probability is what Transformers says, and steering made it another."""
        output = result["outputs"][0]
        expected = self.expected(ids, output, spec, model)
        found = (result["prompt_logprobs"] if prompt else expected[: len(ids) - 1]) + output["logprobs"]
        assert difference(found, expected) <= self.close, spec
        if spec is not None and effect:
            assert difference(self.expected(ids, output, None, model), expected) >= effect, spec

    def parity(self, *specs, ids=PROMPT, **rest):
        """Requests of one batch, one per spec: log-probabilities and evidence."""
        results = self.process.generate([self.request(ids, spec) for spec in specs])
        for spec, result in zip(specs, results, strict=True):
            self.check(ids, spec, result, **rest)
        for found in self.process.rpc("steersman_evidence", [spec.trace for spec in specs if spec]):
            assert found == {
                spec.trace: [*steered_tokens(spec, len(ids)), None, []] for spec in specs if spec
            }


def difference(one, other):
    return max(abs(a - b) for a, b in zip(one, other, strict=True))


def tolerance(plain):
    """How close steered log-probabilities must be where unsteered ones are `plain` off, mostly 4e-6."""
    assert plain <= ROUGH
    return max(CLOSE, 10 * plain)


def steered_tokens(spec, length, made=MADE):
    """How many input tokens of prompt and generated text a spec covers; the last sampled is no input."""
    covered = [
        position
        for position in range(length + made - 1)
        if any(covers(term.tokens, position, length) for term in spec.terms)
    ]
    return sum(position < length for position in covered), sum(position >= length for position in covered)


@pytest.fixture(scope="module")
def world(process, tmp_path_factory):
    return World(process, tmp_path_factory.mktemp("llama"))


@pytest.fixture
def eager(world):
    return world.start()


@pytest.mark.parametrize("operation", Operation)
def test_every_operation_over_every_range(eager, operation):
    """At first, middle and last block at once, over a prompt of three chunks and what is generated."""
    layers = (0, LAYERS // 2, LAYERS - 1)
    eager.parity(*(eager.spec(eager.term(operation, layers, tokens=tokens)) for tokens in RANGES))


@pytest.mark.parametrize(("low", "high"), [(0.0, 0.0), (2.0, 2.0), (-math.inf, -1.0)])
def test_projecting_out_replacing_and_bounding(eager, low, high):
    """A clamp to nought, to one value, and on one side."""
    whole = Term(eager.first, (0, 2), Operation.CLAMP, 1.0, low, high)
    eager.parity(*(eager.spec(whole) for _ in range(2)))


@pytest.mark.parametrize("layer", range(LAYERS))
def test_every_layer_alone(eager, layer):
    """Each block's own output, the last one before the final norm, by every operation."""
    eager.parity(*(eager.spec(eager.term(operation, (layer,))) for operation in Operation))


@pytest.mark.parametrize("inverted", [False, True])
@pytest.mark.parametrize("kind", GateKind)
def test_every_gate(eager, kind, inverted):
    """Behind each gate, each operation; the gate reads its own vector."""
    gate = Gate(kind, eager.second, 0.02, 0.4, inverted)
    eager.parity(*(eager.spec(eager.term(operation, (1, 3), gate=gate)) for operation in Operation), None)


def test_several_vectors_per_request_and_layer(eager):
    """In their order, clamps last, each over its own tokens."""
    gate = Gate(GateKind.PROBE, eager.first)
    terms = [
        eager.term(Operation.CLAMP, (1, 2)),
        eager.term(Operation.NORM_ADD, (0, 1), tokens=Tokens(Phase.GENERATED)),
        Term(eager.second, (1, 2), strength=-0.6, tokens=Tokens(start=5, end=140)),
        Term(eager.second, (1, 3), Operation.UNITS, 0.7, gate=gate),
    ]
    eager.parity(eager.spec(*terms), eager.spec(*terms[2:]), None, eager.spec(*reversed(terms)))


@pytest.mark.parametrize("length", [1, 2, 63, 64, 65, 128])
def test_prompts_that_end_where_a_chunk_does(eager, length):
    """One token, a chunk less one, a chunk, one more, and two chunks."""
    ids = prompt(length, length)
    ranges = [Tokens(), Tokens(Phase.GENERATED), Tokens(start=-1)]
    eager.parity(*(eager.spec(eager.term(tokens=tokens)) for tokens in ranges), ids=ids)


def test_the_first_generated_token_is_the_prompts(eager):
    """Steering the generated text alone leaves the first of it as it was; from -1 on it changes."""
    specs = [None, *(eager.spec(eager.term(tokens=t)) for t in (Tokens(Phase.GENERATED), Tokens(start=-1)))]
    requests = [eager.request(PROMPT, spec, logprobs=VOCAB) for spec in specs]
    plain, generated, last = (r["outputs"][0]["table"][0] for r in eager.process.generate(requests))
    assert difference(plain, generated) <= eager.close
    assert difference(plain, last) >= EFFECT


def mixed(world):
    """Sixteen requests of many lengths: every other one steered, each in another way."""
    gates = [None, Gate(GateKind.PROBE, world.second), Gate(GateKind.COSINE, world.first, 0.01)]
    asked = []
    for number in range(16):
        spec = None
        if number % 2:
            operation, gate = list(Operation)[number // 2 % 4], gates[number // 2 % 3]
            tokens = RANGES[number // 2 % 4]
            spec = world.spec(world.term(operation, (number % 4, (number + 1) % 4), gate=gate, tokens=tokens))
        asked.append((prompt(20 + 9 * number, number), spec))
    return asked


def test_each_request_as_if_alone(eager):
    """Sixteen in one batch, steered in many ways or not, each as by itself and as Transformers has it."""
    asked = mixed(eager)
    together = eager.process.generate([eager.request(ids, spec) for ids, spec in asked])
    for (ids, spec), result in zip(asked, together, strict=True):
        eager.check(ids, spec, result, effect=0)
        (alone,) = eager.process.generate([eager.request(ids, spec)])
        assert alone["outputs"][0]["token_ids"] == result["outputs"][0]["token_ids"]
        for part in ("prompt_logprobs",):
            assert difference(alone[part], result[part]) <= eager.close
        assert difference(alone["outputs"][0]["logprobs"], result["outputs"][0]["logprobs"]) <= eager.close


def test_unsteered_requests_are_bit_equal_beside_steered_ones(eager):
    """Not a bit of an unsteered request depends on whether its neighbours are steered."""
    asked = mixed(eager)
    beside = eager.process.generate([eager.request(ids, spec, logprobs=20) for ids, spec in asked])
    plain = eager.process.generate([eager.request(ids, logprobs=20) for ids, _ in asked])
    for (_, spec), one, other in zip(asked, beside, plain, strict=True):
        assert (one == other) is (spec is None)


def test_states_are_captured(eager):
    """Means over spans of a prompt of three chunks, before and after a layer's own steering."""
    term = eager.term(Operation.NORM_ADD, (1,))
    spans = ((1, 40), (60, 70), (149, 150))
    requests, wanted = [], []
    for number, after in enumerate((False, True)):
        spec = eager.spec(term)
        capture = CaptureSpec(f"capture-{number}", (3, 0, 1), spans, after)
        request = eager.request(PROMPT, spec)
        request["extra_args"][CAPTURE_KEY] = capture.encode()
        requests += [request, eager.request(prompt(77, number))]
        wanted.append((capture, states(eager.model, PROMPT, spec, eager.vectors, len(PROMPT), after=after)))
    eager.process.generate(requests)
    for capture, expected in wanted:
        check_capture(eager, capture, expected)


def check_capture(world, capture, expected):
    (found,) = world.process.rpc("steersman_captured", capture.id)
    shape, means, norms = found
    means = np.frombuffer(bytes.fromhex(means["hex"]), np.float32).reshape(shape)
    norms = np.frombuffer(bytes.fromhex(norms["hex"]), np.float32).reshape(shape[:2])
    for number, (start, end) in enumerate(capture.spans):
        rows = expected[list(capture.layers), start:end]
        lengths = np.linalg.norm(rows, axis=-1).mean(axis=1)
        np.testing.assert_allclose(means[number], rows.mean(axis=1), atol=world.close)
        np.testing.assert_allclose(norms[number], lengths, rtol=world.close)
    assert world.process.rpc("steersman_captured", capture.id) == [None]


def test_several_samples_of_one_request(eager):
    """Each of three sampled continuations is steered, and the evidence counts all of them."""
    spec = eager.spec(eager.term(Operation.NORM_ADD, (0, 3)))
    request = eager.request(PROMPT, spec, n=3, temperature=1.0)
    (result,) = eager.process.generate([request])
    assert len({tuple(output["token_ids"]) for output in result["outputs"]}) > 1
    for output in result["outputs"]:
        expected = eager.expected(PROMPT, output, spec)[len(PROMPT) - 1 :]
        assert difference(output["logprobs"], expected) <= eager.close
    evidence = eager.process.rpc("steersman_evidence", [spec.trace])[0][spec.trace]
    assert evidence == [3 * len(PROMPT), 3 * (MADE - 1), None, []]


def usage(world):
    """What is held once a step has told the worker who is gone."""
    world.process.generate([world.request(PROMPT[:3])])
    (found,) = world.process.rpc("steersman_usage")
    return found


def test_aborted_requests_leave_nothing(eager):
    """Gone in mid-prompt or mid-text, steered or captured, they hold nothing once the next step ran."""
    before = usage(eager)
    specs = [eager.spec(eager.term(tokens=tokens)) for tokens in RANGES[:3]]
    requests = [eager.request(PROMPT, spec, max_tokens=100, prompt_logprobs=None) for spec in specs]
    requests[0]["extra_args"][CAPTURE_KEY] = CaptureSpec("aborted", (0,), ((0, 5),)).encode()
    assert eager.process.ask("abort", requests=requests, steps=5) == 3
    (held,) = eager.process.rpc("steersman_usage")
    assert (held["steered"], held["captures"], held["captured"]) == (3, 1, 1)
    eager.process.rpc("steersman_evidence", [spec.trace for spec in specs])
    eager.process.rpc("steersman_captured", "aborted")
    assert usage(eager) == before


def test_a_vector_that_is_not_there(eager):
    """The request runs unsteered with evidence of it, its neighbours as ever; loading it mends that."""
    vector = vector_for(eager.model, PROMPT, (1,), seed=9)
    spec, good = eager.spec(Term(vector.digest, (1,))), eager.spec(eager.term())
    requests = [eager.request(PROMPT, spec), eager.request(PROMPT, good)]
    absent, neighbour = eager.process.generate(requests)
    eager.check(PROMPT, None, absent)
    eager.check(PROMPT, good, neighbour)
    evidence = eager.process.rpc("steersman_evidence", [spec.trace])[0][spec.trace]
    assert evidence[:2] == [0, 0]
    assert "is not resident" in evidence[2]
    assert eager.process.rpc("steersman_load", vector.digest, vector.blob) == [None]
    eager.vectors[vector.digest] = vector
    eager.parity(spec)
    eager.process.rpc("steersman_unload", [vector.digest])
    del eager.vectors[vector.digest]


def test_a_thousand_vectors_in_turn(eager):
    """Loaded, used and unloaded, each with a request of its own, they leave neither lines nor memory."""
    before, taken, rng = usage(eager), [], np.random.default_rng(0)
    for _ in range(40):
        rows = rng.standard_normal((25, WIDTH)).astype(np.float32)
        vectors = [SteeringVector.of({1: row}) for row in rows]
        specs = [eager.spec(Term(vector.digest, (1,))) for vector in vectors]
        for vector in vectors:
            assert eager.process.rpc("steersman_load", vector.digest, vector.blob) == [None]
        eager.process.generate([eager.request(PROMPT[:9], spec, max_tokens=2) for spec in specs])
        (found,) = eager.process.rpc("steersman_evidence", [spec.trace for spec in specs])
        assert {tuple(each[:3]) for each in found.values()} == {(9, 1, None)}
        eager.process.rpc("steersman_unload", [vector.digest for vector in vectors])
        taken.append(psutil.Process(eager.process.process.pid).memory_info().rss)
    assert usage(eager) == before
    assert taken[-1] - taken[8] < 16 * 1024**2


@pytest.mark.parametrize("text", ["nonsense", "{}", "[1]", 7, None, ["x"], '{"terms": [{"vector": 1}]}'])
def test_nonsense_does_not_stop_the_engine(eager, text):
    """What a client of plain vLLM writes under our keys costs it its steering, nobody else anything."""
    request = eager.request(PROMPT)
    for extra in ({STEERING_KEY: text}, {CAPTURE_KEY: text}):
        (result,) = eager.process.generate([request | {"extra_args": extra}])
        eager.check(PROMPT, None, result)
    assert not usage(eager)["steered"]


def test_bytes_that_are_no_vector(eager):
    """Each reason comes back as text, and the table is as before."""
    before = usage(eager)
    vector = vector_for(eager.model, PROMPT, (1,), seed=9)
    assert "hash to" in eager.process.rpc("steersman_load", "0" * 64, vector.blob)[0]
    assert "safetensors" in eager.process.rpc("steersman_load", "0" * 64, b"nonsense")[0]
    assert usage(eager) == before


@pytest.mark.parametrize("order", list(itertools.permutations(range(3))), ids=str)
def test_a_shared_prefix_in_every_order(eager, order):
    """Plain, steered and otherwise steered requests over one prefix of four blocks are as without cache."""
    shared = prompt(140, 1000 + 100 * order[0] + 10 * order[1] + order[2])
    specs = [None, eager.spec(eager.term()), eager.spec(eager.term(Operation.NORM_ADD))]
    params = {"prompt_logprobs": None, "logprobs": VOCAB}
    for _ in range(2):  # then once more, now from what each has left
        for number in order:
            (found,) = eager.process.generate([eager.request(shared, specs[number], **params)])
            (fresh,) = eager.process.generate([eager.uncached(shared, specs[number], **params)])
            assert found["cached"] == (128 if _ else 0)
            assert fresh["cached"] == 0
            check_tables(found, fresh, eager.close)


def check_tables(one, other, close):
    for rows in zip(one["outputs"][0]["table"], other["outputs"][0]["table"], strict=True):
        assert difference(*rows) <= close


@pytest.mark.parametrize("steered_first", [True, False])
def test_without_the_salt_a_prefix_leaks(eager, steered_first):
    """The control: requests that name no salt read each other's blocks, and the same comparison fails."""
    shared = prompt(140, 2000 + steered_first)
    params = {"prompt_logprobs": None, "logprobs": VOCAB}
    requests = [
        eager.request(shared, spec, salted=False, **params) for spec in (None, eager.spec(eager.term()))
    ]
    first, second = reversed(requests) if steered_first else requests
    eager.process.generate([first])
    (found,) = eager.process.generate([second])
    (fresh,) = eager.process.generate([second | {"cache_salt": "alone"}])
    assert found["cached"] == 128
    with pytest.raises(AssertionError):
        check_tables(found, fresh, eager.close)


def test_the_next_turn_reuses_what_was_generated(eager):
    """A prompt that holds text generated before finds its blocks only where both steer it alike."""
    shared = prompt(90, 3000)
    for tokens, alike in ((Tokens(), True), (Tokens(Phase.GENERATED), False)):
        term = eager.term(Operation.NORM_ADD, tokens=tokens)
        params = {"prompt_logprobs": None, "logprobs": VOCAB}
        (turn,) = eager.process.generate([eager.request(shared, eager.spec(term), max_tokens=40, **params)])
        following = [*shared, *turn["outputs"][0]["token_ids"], *prompt(5, 1)]
        spec = eager.spec(term)
        (found,) = eager.process.generate([eager.request(following, spec, **params)])
        (fresh,) = eager.process.generate([eager.uncached(following, spec, **params)])
        assert (found["cached"] == 128) is alike
        check_tables(found, fresh, eager.close)


@pytest.mark.parametrize("eager", [True, False], ids=["eager", "compiled"])
def test_neutral(world, eager):
    """With the feature on and vectors resident but none active, every bit is the stock worker's."""
    asked = [{"prompt": ids, "params": {"prompt_logprobs": 0, "logprobs": 20}} for ids, _ in mixed(world)]
    with_us = world.start(enforce_eager=eager).process.generate(asked)
    # also once steered requests have come and gone
    world.parity(world.spec(world.term()))
    again = world.process.generate(asked)
    stock = world.start(worker_cls="auto", enforce_eager=eager).process.generate(asked)
    with pytest.raises(EngineError):
        world.process.rpc("steersman_facts")
    assert with_us == stock
    assert again == stock


def test_preempted_requests(world):
    """Requests that lose their cache and are computed again stay steered, and are captured once."""
    world.start(num_gpu_blocks_override=20, disable_log_stats=False, enable_prefix_caching=False)
    before = usage(world)
    made, asked = 60, []
    for number in range(10):
        spec = world.spec(world.term(list(Operation)[number % 4], tokens=RANGES[number % 4]))
        asked.append((prompt(100 + 7 * number, number), None if number == 9 else spec))
    requests = [world.request(ids, spec, max_tokens=made, prompt_logprobs=None) for ids, spec in asked]
    captures = []
    for number, request in enumerate(requests):
        captures.append(CaptureSpec(f"capture-{number}", (0, 2), ((1, 30), (70, 100))))
        request.setdefault("extra_args", {})[CAPTURE_KEY] = captures[-1].encode()
    results = world.process.generate(requests)
    assert world.process.ask("metric", name="vllm:num_preemptions") > 0
    for (ids, spec), result, capture in zip(asked, results, captures, strict=True):
        world.check(ids, spec, result, prompt=False, effect=0)
        check_capture(world, capture, states(world.model, ids, spec, world.vectors, len(ids)))
    (evidence,) = world.process.rpc("steersman_evidence", [spec.trace for _, spec in asked if spec])
    for ids, spec in asked:
        if spec is not None:
            assert evidence[spec.trace] == [*steered_tokens(spec, len(ids), made), None, []]
    assert usage(world) == before


def test_speculative_decoding(world):
    """Drafts from the text itself are accepted, and change no token and no log-probability.

    Those that are rejected do not count as steered, but for the last step's.
    """
    ids = (prompt(12, 5) * 13)[:150]
    gate = Gate(GateKind.RAMP, world.second, 0.02, 0.4)
    terms = [
        world.term(Operation.NORM_ADD, (0, 2)),
        world.term(layers=(3,), gate=gate),
        world.term(Operation.CLAMP),
    ]
    terms += [world.term(tokens=Tokens(Phase.GENERATED)), world.term(tokens=Tokens(start=155, end=160))]
    specs = [None, *(world.spec(term) for term in terms)]
    made = 40
    requests = [world.request(ids, spec, max_tokens=made) for spec in specs]
    plain = world.start().process.generate(requests)
    drafts = {"method": "ngram", "num_speculative_tokens": 3, "prompt_lookup_max": 3, "prompt_lookup_min": 1}
    world.start(speculative_config=drafts, disable_log_stats=False)
    drafted = world.process.generate(requests)
    assert world.process.ask("metric", name="vllm:spec_decode_num_accepted_tokens") > 0
    for spec, one, other in zip(specs, plain, drafted, strict=True):
        assert one["outputs"][0]["token_ids"] == other["outputs"][0]["token_ids"]
        world.check(ids, spec, other)
    (evidence,) = world.process.rpc("steersman_evidence", [spec.trace for spec in specs if spec])
    for spec in specs[1:]:
        prompt_tokens, generated, *_ = evidence[spec.trace]
        expected = steered_tokens(spec, len(ids), made)
        over = 0 if spec.terms[0].tokens.end else drafts["num_speculative_tokens"]
        assert prompt_tokens == expected[0]
        assert expected[1] <= generated <= expected[1] + over


def adapter(folder, model, rank=4):
    """Save a LoRA adapter as peft does, and the model's state with it merged."""
    torch.manual_seed(0)
    merged, saved = {name: value.clone() for name, value in model.state_dict().items()}, {}
    for layer, part in itertools.product(range(LAYERS), ("self_attn.q_proj", "mlp.down_proj")):
        name = f"model.layers.{layer}.{part}"
        weight = merged[f"{name}.weight"]
        down, up = torch.randn(rank, weight.shape[1]) * 0.1, torch.randn(weight.shape[0], rank) * 0.1
        merged[f"{name}.weight"] = weight + 2 * up @ down
        saved |= {f"base_model.model.{name}.lora_{k}.weight": v for k, v in (("A", down), ("B", up))}
    folder.mkdir()
    save_file(saved, folder / "adapter_model.safetensors")
    config = {
        "peft_type": "LORA",
        "r": rank,
        "lora_alpha": 2 * rank,
        "target_modules": ["q_proj", "down_proj"],
    }
    (folder / "adapter_config.json").write_text(
        json.dumps(config | {"bias": "none", "task_type": "CAUSAL_LM"})
    )
    return merged


def test_beside_a_lora_adapter(world, tmp_path):
    """Requests with and without an adapter are steered in one batch, each on its own weights."""
    merged = adapter(tmp_path / "adapter", world.model)
    adapted = save("Llama", tmp_path / "merged")
    adapted.load_state_dict(merged)
    # a slot more than adapters: on a CPU vLLM gives who names none the last slot's
    world.start(enable_lora=True, max_lora_rank=8, max_loras=2)
    specs = [None, world.spec(world.term(Operation.NORM_ADD, (0, 3))), world.spec(world.term(layers=(1, 2)))]
    asked = [(spec, lora) for spec in specs for lora in (None, str(tmp_path / "adapter"))]
    # with an adapter, prompt_logprobs kill vLLM's CPU engine
    params = {"prompt_logprobs": None, "max_tokens": 20}
    requests = [world.request(PROMPT, spec, **params) | {"lora": lora} for spec, lora in asked]
    for (spec, lora), result in zip(asked, world.process.generate(requests), strict=True):
        world.check(PROMPT, spec, result, prompt=False, model=adapted if lora else world.model)


def test_tensor_parallel(world):
    """On two ranks each steers its copy of the state: as Transformers has it, and both hold the same."""
    world.start(tensor_parallel_size=2)
    first, second = world.process.rpc("steersman_facts")
    assert first == second
    gate = Gate(GateKind.PROBE, world.second)
    world.parity(
        *(world.spec(world.term(operation, (0, 1, 3), tokens=RANGES[4])) for operation in Operation),
        *(world.spec(world.term(operation, (2,), gate=gate)) for operation in Operation),
        None,
    )
    first, second = world.process.rpc("steersman_usage")
    assert first == second
    assert first["vectors"] == 2


def test_compiled(world):
    """With torch.compile the op is in the graph: the same for every operation, gated or not, or nothing."""
    world.start(enforce_eager=False)
    assert world.process.ask("graphs") > 0
    gate = Gate(GateKind.COSINE, world.second, 0.02)
    layers = (0, LAYERS // 2, LAYERS - 1)
    world.parity(
        *(world.spec(world.term(operation, layers, tokens=RANGES[4])) for operation in Operation),
        *(world.spec(world.term(operation, (2,), gate=gate)) for operation in Operation),
        None,
    )


@pytest.mark.parametrize("name", ["GPT-2", "Phi", "Gemma 3", "Mixtral", "StableLM", "Cohere"])
def test_other_architectures(process, tmp_path, name):
    """One tensor per block, Transformers' own model, more norms, experts, states that are whole;
    `architectures` has all."""
    plain, steered, effect = measure(process, name, tmp_path)
    assert steered <= tolerance(plain)
    assert effect >= EFFECT


def test_widths(world):
    """The model as steering sees it."""
    (facts,) = world.start().process.rpc("steersman_facts")
    assert (facts["problem"], facts["layers"], facts["width"]) == (None, LAYERS, WIDTH)
