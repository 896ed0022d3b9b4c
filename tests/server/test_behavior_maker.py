"""From examples to a stored behaviour: what the engine is asked, what is calibrated, what is refused."""

import asyncio
from dataclasses import replace

import numpy as np
import pytest
import torch

from server import sae_baseline
from server.behavior_maker import CATEGORY, RecomputeStatus
from server.errors import Conflict, InvalidRequest, NotFound, Unavailable
from server.readiness import BehaviorPart, readiness
from server.vectors import NewVector
from steering.drift import drift
from steering.sae.baseline import Baseline
from steering.train.pairs import Pair
from steering.vector import SteeringVector
from tests.server.behavior_world import (
    LAYER,
    MINE,
    MODEL,
    NEUTRAL,
    PAIRS,
    WIDTH,
    Saes,
    World,
    encode,
    new,
    opened,
    state,
    stored_sae,
)


@pytest.fixture
async def world(tmp_path):
    async with opened(tmp_path) as made:
        yield made


async def one_vector(world: World, **fields) -> str:
    """The id of a vector that the account has, along the behaviour's first axis."""
    vector = SteeringVector.of({2: np.eye(WIDTH, dtype=np.float32)[0]})
    made_for = {"model_name": MODEL.name, "model_fingerprint": MODEL.fingerprint, **fields}
    return await world.vectors.add(NewVector(MINE, vector, "upload", **made_for))


def peak(world: World, baseline: Baseline, prompt: str, answer: str) -> float:
    """The highest drift over an answer's own tokens."""
    tokens = encode(prompt + answer)
    first = len(encode(prompt))
    rows = np.stack([state(tokens[p], p) for p in range(first, len(tokens))]).astype(np.float32)
    latents = world.saes.known["small"].sae.encode_some(torch.from_numpy(rows), baseline.latents)
    return drift(baseline.scores(latents.numpy())).max()


async def test_a_behaviour_is_told_from_its_opposite(world):
    """By the two latents that differ, with a threshold between held-out answers of both kinds."""
    made = await world.create()
    baseline = made.baseline
    weights = dict(zip(baseline.latents, baseline.weights, strict=True))
    assert weights[0] > 0 > weights[1]
    assert (baseline.evidence.auroc, baseline.evidence.peak_auroc) == (1.0, 1.0)
    assert (baseline.evidence.positive, baseline.evidence.negative) == (12, 12)
    assert baseline.evidence.neutral == len(NEUTRAL)
    assert baseline.evidence.true_positive_rate == 1.0
    assert peak(world, baseline, "anything ", "yes yes yyyyyyyy") > baseline.threshold
    assert peak(world, baseline, "anything ", "no no nnnnnnnn") < baseline.threshold
    assert (made.sae, made.sae_source, made.layer) == ("small", "trained here", LAYER)
    assert made.sae_digest == baseline.sae == world.saes.known["small"].sae.digest
    assert (made.model_name, made.model_fingerprint) == (MODEL.name, MODEL.fingerprint)
    assert await world.behaviors.pairs(MINE, made.id) == PAIRS
    assert await world.behaviors.recent(MINE, MODEL.fingerprint, ["agreeing"]) == [made]


async def test_the_detector_scores_as_the_baseline(world):
    """At the layer of the autoencoder, with its latents."""
    made = await world.create()
    detector = (await world.behaviors.detector(made)).layers[LAYER].detector
    row = np.array([3, 0.5, -1, 0, 0, 2, 0, 0.1], np.float32)
    latents = np.maximum(row, 0)[list(made.baseline.latents)]
    act = np.maximum(detector.read @ row + detector.bias, 0)
    assert act @ detector.weight + detector.offset == pytest.approx(made.baseline.scores(latents), rel=1e-4)


async def test_states_are_those_of_the_answers_own_tokens(world):
    """One by one at the autoencoder's layer; of neutral texts all but the first."""
    await world.create()
    single = [(tokens, spans) for tokens, spans, layers in world.engine.captured if layers == (LAYER,)]
    asked = {tokens: [start for start, _ in spans] for tokens, spans in single}
    assert all(end == start + 1 for _, spans in single for start, end in spans)
    pair = PAIRS[0]
    for answer in (pair.positive, pair.negative):
        tokens = tuple(encode(pair.prompt + answer))
        assert asked[tokens] == list(range(len(encode(pair.prompt)), len(tokens)))
    for text in NEUTRAL:
        assert asked[tuple(encode(text))] == list(range(1, len(encode(text))))
    assert len(single) == 2 * len(PAIRS) + len(NEUTRAL)


async def test_its_vector_is_made_from_the_same_pairs(world):
    """Towards the behaviour, by CAA at the default layers, to be subtracted as far as neutral text bears."""
    world.engine.cost = lambda strength: 9.0 if strength < -0.5 else 0.1
    made = await world.create()
    record = await world.vectors.get(MINE, made.steering_vector_id)
    assert (record.method, record.category, record.name) == ("caa", CATEGORY, "agreeing")
    assert record.layers == (4, 5)
    vector = SteeringVector.from_blob(await world.vectors.blob(record.id))
    direction = vector.layers[4].direction
    assert direction[0] > 1
    assert direction[1] < -1
    assert -0.5 <= made.strength < 0
    assert record.scale == pytest.approx(-made.strength)
    assert record.evidence["correction"] == made.evidence["correction"]
    assert [each["cost"] for each in made.evidence["correction"]][-1] == 9.0
    assert made.evidence["pairs"] == len(PAIRS)
    assert not any(entry.holders for entry in world.residency._entries.values())


async def test_a_vector_that_is_given(world):
    """Is used and no other is made; its strength is measured all the same."""
    given = await one_vector(world)
    world.engine.strengths.clear()
    made = await world.create(steering_vector_id=given)
    assert made.steering_vector_id == given
    assert [record.id for record in await world.vectors.list(MINE)] == [given]
    assert made.strength == pytest.approx(-0.8 * 4)  # of length 1 where states are 4 long
    assert world.engine.strengths[0] == pytest.approx(-0.1 * 4)


@pytest.mark.parametrize(("given", "kind"), [("another model's", Conflict), ("nobody's", NotFound)])
async def test_a_given_vector_that_cannot_act(world, given, kind):
    """Is refused by its field, before any state is captured."""
    if kind is Conflict:
        given = await one_vector(world, model_fingerprint="e" * 64)
    with pytest.raises(kind) as refused:
        await world.create(steering_vector_id=given)
    assert refused.value.param == "steering_vector_id"
    assert world.engine.captured == []


async def test_a_behaviour_that_no_strength_corrects(world):
    """Is monitored and not corrected: partial, not refused."""
    world.engine.cost = lambda strength: float("nan")
    made = await world.create()
    assert made.strength is None
    assert (await world.vectors.get(MINE, made.steering_vector_id)).scale is None
    [found] = await readiness(MINE, [made], world.vectors, MODEL)
    assert [each.part for each in found.missing] == [BehaviorPart.STRENGTH]


async def test_the_share_of_false_alarms_is_asked_for(world):
    made = await world.create(false_positives=0.2)
    assert made.baseline.evidence.target == 0.2


async def test_without_an_autoencoder(world):
    """The refusal says what makes one; a named one that is not there is not found."""
    world.saes.known.clear()
    with pytest.raises(Conflict, match=r"steersman sae train.*make sae") as refused:
        await world.create()
    assert refused.value.reason == "no_sae"
    with pytest.raises(NotFound) as refused:
        await world.create(sae="large")
    assert refused.value.param == "sae"
    with pytest.raises(Conflict):
        await world.create(sae="foreign")
    assert world.engine.captured == []


async def test_an_autoencoder_is_chosen_by_name(tmp_path):
    async with opened(tmp_path, stored_sae(), stored_sae("early", 1, seed=1)) as world:
        made = await world.create(sae="early", layer_names=("layers.1",))
        assert (made.sae, made.layer, made.hook) == ("early", 1, "blocks.1.hook_resid_post")
        assert (LAYER,) not in {layers for *_, layers in world.engine.captured}


@pytest.mark.parametrize("name", ["4", "layers.4", "model.layers.4", "blocks.4.hook_resid_post"])
async def test_the_layer_that_the_autoencoder_reads_may_be_named(world, name):
    assert (await world.create(layer_names=(name,))).layer == LAYER


@pytest.mark.parametrize(
    ("names", "index", "said"),
    [
        (("layers.3",), 0, "reads layers.4"),
        (("layers.4", "layers.5"), 1, "reads layers.4"),
        (("blocks.4.hook_resid_pre",), 0, "reads layers.4"),
        (("blocks.4.attn",), 0, "names no layer"),
    ],
)
async def test_layers_that_no_autoencoder_reads_are_refused(world, names, index, said):
    with pytest.raises(InvalidRequest, match=said) as refused:
        await world.create(layer_names=names)
    assert refused.value.param == f"layer_names.{index}"
    assert world.engine.captured == []


async def test_examples_that_do_not_differ(world):
    same = [Pair(f"q{number} ", "yes" * 3, "yes" * 3) for number in range(6)]
    with pytest.raises(InvalidRequest, match="no latent tells") as refused:
        await world.create(pairs=same)
    assert refused.value.param == "positive_answers"
    assert await world.vectors.list(MINE) == []


async def test_examples_that_do_not_fit_into_memory(world, monkeypatch):
    """The refusal comes before any state, and says how many pairs would do."""
    monkeypatch.setattr(sae_baseline, "_MAX_BYTES", 8000)
    with pytest.raises(InvalidRequest, match=r"12 pairs do not fit into memory; about \d+ pairs") as refused:
        await world.create()
    assert refused.value.param == "positive_answers"
    assert world.engine.captured == []


async def test_an_answer_that_is_too_long_for_the_model(world):
    world.maker._trainer = replace(world.trainer, max_tokens=25)
    with pytest.raises(InvalidRequest, match="at most 25") as refused:
        await world.create(pairs=[*PAIRS[:5], Pair("long " * 9, "y", "n")])
    assert refused.value.param == "prompts.5"


async def test_a_long_answer_is_read_in_parts(world):
    """More tokens than one forward pass gives states of: the states are the same as of short ones."""
    long = [Pair(f"q{number} ", "y" * 400, "n" * 400) for number in range(4)]
    made = await world.create(pairs=long)
    assert made.baseline.evidence.auroc == 1.0
    per_text = {}
    for tokens, spans, layers in world.engine.captured:
        if layers == (LAYER,) and ord("q") in tokens:
            per_text.setdefault(tokens[:3] + tokens[-1:], []).extend(spans)
    assert {len(spans) for spans in per_text.values()} == {400}


async def test_a_name_that_is_taken_is_refused_before_the_work(world):
    await world.create()
    world.engine.captured.clear()
    with pytest.raises(Conflict, match="already"):
        await world.create()
    assert world.engine.captured == []


async def test_whoever_leaves_does_not_stop_it(world):
    """The behaviour is stored, and whoever asks for the same meanwhile waits for the same."""
    world.engine.go.clear()
    first = asyncio.create_task(world.create())
    await world.engine.begun.wait()
    again = asyncio.create_task(world.create())
    await asyncio.sleep(0)
    first.cancel()
    with pytest.raises(asyncio.CancelledError):
        await first
    with pytest.raises(Conflict, match="being made from other examples") as refused:
        await world.create(false_positives=0.5)
    assert refused.value.param == "behavior_name"
    world.engine.go.set()
    made = await again
    assert await world.behaviors.list(MINE) == [made]
    assert world.maker._making == {}


async def test_a_failed_one_can_be_made_again(world):
    capture = world.engine.capture

    async def broken(tokens, spans, layers):
        raise Unavailable("engine gone")

    world.engine.capture = broken
    with pytest.raises(Unavailable):
        await world.create()
    world.engine.capture = capture
    assert (await world.create()).name == "agreeing"


async def test_a_name_that_is_taken_meanwhile(world):
    """By another process: the one that comes late is refused, and the vector it made is gone."""
    world.engine.go.clear()
    late = asyncio.create_task(world.create())
    await world.engine.begun.wait()
    await world.behaviors.add(new())
    world.engine.go.set()
    with pytest.raises(Conflict, match="already"):
        await late
    assert await world.vectors.list(MINE) == []


async def test_one_is_made_at_a_time(world):
    """Of many that are asked for, the others hold no states meanwhile."""
    world.engine.go.clear()
    asked = [asyncio.create_task(world.create(name, PAIRS[:4])) for name in ("one", "two")]
    await world.engine.begun.wait()
    await asyncio.sleep(0.05)
    assert len({tokens for tokens, *_ in world.engine.captured}) == len(world.engine.captured)
    world.engine.go.set()
    assert {made.name for made in await asyncio.gather(*asked)} == {"one", "two"}


async def test_what_is_ready_is_not_calibrated_anew(world):
    """Unless it is named; then it comes to the same."""
    made = await world.create(false_positives=0.1)
    [skipped] = await world.maker.recompute(MINE)
    assert (skipped.record, skipped.status) == (made, RecomputeStatus.SKIPPED)
    [again] = await world.maker.recompute(MINE, [made.id])
    assert again.status is RecomputeStatus.SUCCEEDED
    assert (again.record.baseline, again.record.strength) == (made.baseline, made.strength)
    assert again.record.steering_vector_id == made.steering_vector_id
    assert again.record.updated_at > made.updated_at


async def test_a_lost_vector_is_made_anew(world):
    made = await world.create()
    await world.vectors.delete(MINE, made.steering_vector_id)
    [again] = await world.maker.recompute(MINE)
    assert again.status is RecomputeStatus.SUCCEEDED
    assert again.record.steering_vector_id != made.steering_vector_id
    [found] = await readiness(MINE, [again.record], world.vectors, MODEL)
    assert found.missing == ()


async def test_another_model_s_behaviour_moves_to_this_one(world):
    """With its id, name and pairs; its vector does not fit and stays where it is."""
    old = await one_vector(world, model_fingerprint="e" * 64)
    made = await world.behaviors.add(new(model_fingerprint="e" * 64, sae="elsewhere", steering_vector_id=old))
    [moved] = await world.maker.recompute(MINE)
    assert (moved.status, moved.record.id) == (RecomputeStatus.SUCCEEDED, made.id)
    assert (moved.record.model_fingerprint, moved.record.sae) == (MODEL.fingerprint, "small")
    assert moved.record.steering_vector_id != old
    assert {record.id for record in await world.vectors.list(MINE)} == {old, moved.record.steering_vector_id}


async def test_one_that_fails_does_not_stop_the_others(world):
    """It is told why, it stays as it was, and what was made for it is gone."""
    await world.create("kept", PAIRS[:4])
    clash = await world.behaviors.add(new("kept", model_fingerprint="e" * 64))
    moved = await world.behaviors.add(new("free", model_fingerprint="e" * 64))
    before = len(await world.vectors.list(MINE))
    found = {each.record.id: each for each in await world.maker.recompute(MINE)}
    assert found[clash.id].status is RecomputeStatus.FAILED
    assert "'kept' already" in found[clash.id].error
    assert found[moved.id].status is RecomputeStatus.SUCCEEDED
    assert await world.behaviors.get(MINE, clash.id) == clash
    assert len(await world.vectors.list(MINE)) == before + 1


async def test_an_unknown_id_is_refused_before_the_work(world):
    made = await world.create()
    world.engine.captured.clear()
    with pytest.raises(NotFound) as refused:
        await world.maker.recompute(MINE, [made.id, "nothing"])
    assert refused.value.param == "behavior_ids.1"
    assert world.engine.captured == []


async def test_no_autoencoder_fails_each(world):
    await world.behaviors.add(new(model_fingerprint="e" * 64))
    world.maker._saes = Saes()
    [failed] = await world.maker.recompute(MINE)
    assert (failed.status, "steersman sae train" in failed.error) == (RecomputeStatus.FAILED, True)
