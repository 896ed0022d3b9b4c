"""Watching in a running engine: scores against the states of Transformers, and what drift sets off."""

import numpy as np
import pytest

from steering.drift import drift
from steering.spec import Operation, SteeringSpec, Term, Tokens, Watch
from steering.vector import Detector, Layer, Scaling, SteeringVector
from tests.steering.models import LAYERS, WIDTH
from tests.steering.reference import logprobs, states
from tests.steering.test_vllm_engines import PROMPT, World, difference, prompt
from tests.steering.vllm_engine import EngineProcess

AT = LAYERS - 2  # the block that is watched
MADE, SMOOTHING = 16, 0.25
CLOSE = 1e-4


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    process = EngineProcess(tmp_path_factory.mktemp("engine"))
    made = World(process, tmp_path_factory.mktemp("model"))
    yield made
    process.close()


@pytest.fixture(scope="module", params=["eager", "compiled"])
def engine(world, request):
    world.start(enforce_eager=request.param == "eager")
    return world


def detector(world, seed=0, scaling=Scaling.NONE):
    """Some latents active here and there, in no particular direction; scores about 0, about 1 wide."""
    rng = np.random.default_rng(seed)
    found = scaled(states(world.model, PROMPT)[AT], scaling)
    read = rng.standard_normal((5, WIDTH)).astype(np.float32)
    a = found @ read.T
    bias = -np.median(a, axis=0)
    part = Detector(
        read=read,
        bias=bias.astype(np.float32),
        threshold=np.array([0.0, 0.1, 0.0, 0.2, 0.0], np.float32),
        gain=np.array([1.0, 1.0, 2.0, 0.5, 1.0], np.float32),
        shift=np.array([0.0, 0.0, 0.3, -0.1, 0.0], np.float32),
        weight=(rng.standard_normal(5) / a.std(axis=0)).astype(np.float32),
        offset=0.1,
        scaling=scaling,
    )
    return SteeringVector({AT: Layer(read[0], detector=part)})


def scaled(x, scaling):
    """What is done to states before they are read, written down again."""
    x = np.asarray(x, np.float64)
    if scaling is Scaling.CONSTANT_NORM:
        return x * np.sqrt(x.shape[-1]) / np.linalg.norm(x, axis=-1, keepdims=True)
    if scaling is Scaling.LAYER_NORM:
        centred = x - x.mean(axis=-1, keepdims=True)
        return centred / (x.std(axis=-1, ddof=1, keepdims=True) + 1e-5)
    return x


def scored(vector, found):
    """The formula in float64."""
    part = vector.layers[AT].detector
    a = scaled(found, part.scaling) @ part.read.T.astype(np.float64) + part.bias
    latents = np.where(a > part.threshold, np.maximum(part.gain * a + part.shift, 0), 0)
    return latents @ part.weight + part.offset


def load(world, *vectors):
    for vector in vectors:
        assert set(world.process.rpc("steersman_load", vector.digest, vector.blob)) == {None}


def watch(vector, threshold=1e9, terms=()):
    return Watch(vector.digest, AT, threshold, SMOOTHING, tuple(terms))


def spec_of(world, *watches, terms=()):
    return SteeringSpec(tuple(terms), f"trace-{next(world.traces)}", watches=watches)


def told(world, spec, method="steersman_evidence"):
    """Scores and the token after which terms act, per watch, as the first rank tells them."""
    answer = world.process.rpc(method, [spec.trace])[0][spec.trace]
    watched = answer[3] if method == "steersman_evidence" else answer
    return [(np.frombuffer(_bytes(values), np.float32), fired) for values, fired in watched]


def _bytes(value):
    return bytes.fromhex(value["hex"]) if isinstance(value, dict) else value


def generate(world, *specs, ids=PROMPT, **params):
    requests = [
        world.request(ids, spec, salted=spec is None or spec.acts, max_tokens=MADE, **params)
        for spec in specs
    ]
    return [result["outputs"][0] for result in world.process.generate(requests)]


def crossing(world, text):
    """A detector whose drift over `text` has a peak in its middle, a threshold below that peak alone, and
    after how many tokens it is crossed.
    """
    found = states(world.model, PROMPT + text)[AT][len(PROMPT) : -1]
    for seed in range(50):
        vector = detector(world, seed)
        levels = drift(scored(vector, found), SMOOTHING)
        for n in range(3, len(levels) - 4):
            if levels[n] > levels[:n].max() + 0.1:
                return vector, (levels[n] + levels[:n].max()) / 2, n + 1, levels
    raise AssertionError("no detector drifts there")


@pytest.mark.parametrize("scaling", Scaling)
def test_every_generated_token_that_is_fed_back_gets_the_formulas_score(engine, scaling):
    vector = detector(engine, scaling=scaling)
    load(engine, vector)
    spec = spec_of(engine, watch(vector))
    (output,) = generate(engine, spec)
    text = PROMPT + output["token_ids"]
    expected = scored(vector, states(engine.model, text)[AT][len(PROMPT) : len(text) - 1])
    ((found, fired),) = told(engine, spec)
    assert len(found) == MADE - 1
    np.testing.assert_allclose(found, expected, atol=1e-3)
    assert fired is None


def test_terms_act_from_the_token_after_the_one_that_drifted(engine):
    (plain,) = generate(engine, None)
    vector, threshold, after, levels = crossing(engine, plain["token_ids"])
    load(engine, vector)
    terms = [Term(engine.first, (0, AT), strength=0.8), Term(engine.second, (1,), Operation.NORM_ADD)]
    spec = spec_of(engine, watch(vector, threshold, terms))
    (output,) = generate(engine, spec)
    ((found, fired),) = told(engine, spec)
    assert fired == after
    np.testing.assert_allclose(drift(found[:after], SMOOTHING), levels[:after], atol=1e-3)
    since = Tokens(start=len(PROMPT) + after)
    steered = SteeringSpec(
        tuple(Term(t.vector, t.layers, t.operation, t.strength, tokens=since) for t in terms)
    )
    text = PROMPT + output["token_ids"]
    expected = logprobs(engine.model, text, steered, engine.vectors, len(PROMPT))
    assert difference(output["logprobs"], expected[len(PROMPT) - 1 :]) <= engine.close
    unsteered = logprobs(engine.model, text)[len(PROMPT) - 1 :]
    assert difference(output["logprobs"][: after + 1], unsteered[: after + 1]) <= engine.close
    assert difference(output["logprobs"], unsteered) > 0.02
    assert engine.process.rpc("steersman_evidence", [spec.trace])[0][spec.trace][2]  # asked for once alone


def test_scores_are_of_states_before_the_layers_own_steering(engine):
    vector = detector(engine)
    load(engine, vector)
    at, below = Term(engine.first, (AT,), strength=0.8), Term(engine.second, (0,), strength=0.8)
    spec = spec_of(engine, watch(vector), terms=[at, below])
    (output,) = generate(engine, spec)
    text = PROMPT + output["token_ids"]
    found = states(engine.model, text, SteeringSpec((at, below)), engine.vectors, len(PROMPT))
    ((scores, _),) = told(engine, spec)
    np.testing.assert_allclose(scores, scored(vector, found[AT][len(PROMPT) : -1]), atol=1e-3)


def test_a_watched_request_answers_as_one_that_is_not(engine):
    vector, other = detector(engine), detector(engine, seed=1)
    load(engine, vector, other)
    plain, watched, both = generate(
        engine, None, spec_of(engine, watch(vector)), spec_of(engine, watch(vector), watch(other))
    )
    assert plain["token_ids"] == watched["token_ids"] == both["token_ids"]
    assert difference(plain["logprobs"], watched["logprobs"]) <= CLOSE


def test_neighbours_of_a_watched_request_are_bit_equal(engine):
    vector = detector(engine)
    load(engine, vector)
    others = [prompt(40, seed) for seed in (1, 2, 3)]

    def neighbours(spec):
        requests = [engine.uncached(ids, max_tokens=MADE) for ids in others]
        watched = engine.uncached(PROMPT, spec, max_tokens=MADE)
        return [
            result["outputs"][0]["logprobs"] for result in engine.process.generate([*requests, watched])[:3]
        ]

    terms = [Term(engine.first, (0, 1), strength=0.8)]
    with_ = neighbours(spec_of(engine, watch(vector, -1e9, terms)))
    assert with_ == neighbours(spec_of(engine, watch(vector)))
    if not engine.process.running["enforce_eager"]:
        return
    assert with_ == neighbours(None)


def test_each_of_several_requests_drifts_for_itself(engine):
    vector = detector(engine)
    load(engine, vector)
    texts = [prompt(30 + seed, seed) for seed in range(6)]
    plain = [generate(engine, None, ids=ids)[0] for ids in texts]
    terms = (Term(engine.first, (0,), strength=0.8),)
    specs = [spec_of(engine, watch(vector, 0.2, terms)) for _ in texts]
    requests = [engine.request(ids, spec, max_tokens=MADE) for ids, spec in zip(texts, specs, strict=True)]
    results = [result["outputs"][0] for result in engine.process.generate(requests)]
    fired = []
    for ids, spec, before, output in zip(texts, specs, plain, results, strict=True):
        ((scores, since),) = told(engine, spec)
        assert len(scores) == MADE - 1
        unsteered = scored(vector, states(engine.model, ids + before["token_ids"])[AT][len(ids) : -1])
        levels = drift(unsteered, SMOOTHING)
        above = np.flatnonzero(levels > 0.2)
        assert since == (int(above[0]) + 1 if len(above) else None)
        until = since or MADE
        assert output["token_ids"][: until + 1] == before["token_ids"][: until + 1]
        fired.append(since)
    assert None in fired or len(set(fired)) > 1, "a test in which all drift alike shows little"


def test_a_missing_detector_is_told_and_harms_nothing(engine):
    spec = spec_of(engine, Watch("0" * 64, AT, 0.0, SMOOTHING))
    (output,) = generate(engine, spec)
    assert len(output["token_ids"]) == MADE
    assert "not resident" in engine.process.rpc("steersman_evidence", [spec.trace])[0][spec.trace][2]


def test_drift_can_be_followed_while_a_request_runs(engine):
    vector = detector(engine)
    load(engine, vector)
    spec = spec_of(engine, watch(vector))
    generate(engine, spec)
    ((before, _),) = told(engine, spec, "steersman_watched")
    ((after, _),) = told(engine, spec)
    np.testing.assert_array_equal(before, after)
    assert told(engine, spec, "steersman_watched") == []


def test_preempted_requests_keep_their_scores_and_what_they_set_off(world):
    """Blocks for some requests alone: others are computed anew, and come to the same."""
    world.start(num_gpu_blocks_override=14, max_model_len=256, disable_log_stats=False)
    vector = detector(world)
    load(world, vector)
    texts = [prompt(60 + seed, seed) for seed in range(6)]
    terms = (Term(world.first, (0,), strength=0.8),)

    def run(at_once):
        specs = [spec_of(world, watch(vector, 0.2, terms)) for _ in texts]
        requests = [
            world.request(ids, spec, max_tokens=40, prompt_logprobs=None)
            for ids, spec in zip(texts, specs, strict=True)
        ]
        groups = [requests] if at_once else [[request] for request in requests]
        outputs = [result["outputs"][0] for group in groups for result in world.process.generate(group)]
        return outputs, [told(world, spec)[0] for spec in specs]

    alone, alone_told = run(at_once=False)
    crowded, crowded_told = run(at_once=True)
    for one, other, (scores, since), (again, since_again) in zip(
        alone, crowded, alone_told, crowded_told, strict=True
    ):
        assert one["token_ids"] == other["token_ids"]
        assert since == since_again
        np.testing.assert_allclose(scores, again, atol=1e-3)
    assert world.process.ask("metric", name="vllm:num_preemptions") > 0
