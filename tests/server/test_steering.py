"""From entries of a request to what the engine is told, on vectors that are in a dictionary."""

from dataclasses import replace

import numpy as np
import pytest
from prometheus_client import REGISTRY

from policies.steering import SteeringEntry
from server import steering as module
from server.errors import Conflict, InvalidRequest, NotFound
from server.metrics import STEERING_REASONS
from server.wire import SteeringFields
from steering.spec import Gate, GateKind, Operation
from tests.server.steering_world import GATED, LAYERS, MODEL, ONE, OTHER, WIDTH, World, listed


async def test_several_vectors_of_every_source():
    """Ids, inline vectors and presets act together, in order, each under the name a client knows it by."""
    world = World()
    applied = await world.apply(
        {"vector_id": "labelled", "strength": 0.1},
        {"vector": {"layers.0": [0, 0.1, 0]}},
        {"preset": "Brevity", "strength": 0.1},
    )
    told = applied.described()["vectors"]
    assert [(each.get("id"), each.get("name")) for each in told] == [
        ("labelled", "l"),
        (None, None),
        ("one", "brevity"),
    ]
    assert [each["strength"] for each in told] == [0.1, 1.0, 0.35]
    assert [each["layers"] for each in told] == [[1], [0], [1, 2]]
    assert len(world.held) == 3
    applied.release()


@pytest.mark.parametrize(
    ("entry", "kind", "message", "param"),
    [
        ({"vector_id": "nothing"}, NotFound, "no nothing", "steering.vector_id"),
        ({"vector_id": "foreign"}, Conflict, "made for 'made/for'", "steering.vector_id"),
        ({"vector_id": "far"}, Conflict, "layers up to 9", "steering.vector_id"),
        (
            {"vector": {"1": [1, 2]}},
            InvalidRequest,
            "2 wide, the hidden states of org/model are 3",
            "steering.vector",
        ),
        ({"vector": {"4": [1, 2, 3]}}, InvalidRequest, "has layers 0 to 3, not 4", "steering.vector"),
        ({"vector": {"mlp": [1, 2, 3]}}, InvalidRequest, "names no layer", "steering.vector"),
        ({"vector": {"1": [0, 0, 0]}}, InvalidRequest, "the direction is zero", "steering.vector"),
        ({"vector": {"1": [1, 2, 3], "2": [1]}}, InvalidRequest, "long", "steering.vector"),
        ({"vector": {"1": [1e39, 0, 0]}}, InvalidRequest, "not a finite number", "steering.vector"),
        ({"vector": {"1": [1e10, 0, 0]}}, InvalidRequest, "beyond 1e", "steering.vector"),
        ({"vector": {"1": [1, 2, 3], "layers.1": [1, 2, 3]}}, InvalidRequest, "both mean", "steering.vector"),
        ({"vector_id": "one", "layers": [3]}, InvalidRequest, "no layer 3; it has 1, 2", "steering.layers"),
        ({"vector_id": "one", "operation": "latents"}, InvalidRequest, "no latents", "steering.operation"),
        ({"vector_id": "one", "gate": {"kind": "probe"}}, InvalidRequest, "no probe", "steering.gate"),
        ({"vector_id": "one", "gate": {"vector_id": "other"}}, InvalidRequest, "no layer 2", "steering.gate"),
        ({"vector_id": "one", "gate": {"vector_id": "none"}}, NotFound, "no none", "steering.gate.vector_id"),
        (
            {"vector_id": "one", "gate": {"vector_id": "foreign"}},
            Conflict,
            "made for",
            "steering.gate.vector_id",
        ),
    ],
)
async def test_what_cannot_be_applied(entry, kind, message, param):
    """Each fault has its own status and names the field; also as the last of several, where nothing stays
    held for the sound ones."""
    error = await World().refused(kind, entry)
    assert message in str(error)
    assert error.param == param
    later = await World().refused(kind, {"vector_id": "one", "strength": 0.1}, entry)
    assert later.param == param.replace("steering.", "steering.1.")


WIDE = {"1": [1, 2]}


@pytest.mark.parametrize(
    ("sent", "param"),
    [
        ({"steering_vector": WIDE}, "steering_vector"),
        ({"steering_vector": ["one", WIDE], "steering_strength": 0.1}, "steering_vector.1"),
        ({"steering_vector": "nothing"}, "steering_vector"),
        ({"steering_vector_id": "nothing"}, "steering_vector_id"),
        ({"steering_vector_id": ["one", "foreign"], "steering_strength": 0.1}, "steering_vector_id.1"),
        ({"steering_preset": "tone_control"}, "steering_preset"),
        ({"steering_preset": ["brevity", "tone_control"]}, "steering_preset.1"),
        ({"steering_vector_id": "one", "steering": {"vector": WIDE}}, "steering.vector"),
        ({"steering_vector_id": "one", "steering": [{"vector": WIDE}]}, "steering.0.vector"),
        ({"steering": [{"vector_id": "one"}, {"preset": "tone_control"}]}, "steering.1.preset"),
        ({"steering": {"vector_id": "one", "layers": [3]}}, "steering.layers"),
        ({"steering_vector_id": "one", "steering_strength": 9}, "steering_vector_id"),
        ({"steering_vector_id": ["one", "one"], "steering_strength": 9}, "steering_vector_id"),
        ({"steering_preset": "brevity", "steering": {"vector_id": "one", "strength": 9}}, "steering_preset"),
        ({"steering": [{"vector_id": "one", "strength": 9}]}, "steering"),
    ],
)
async def test_errors_name_what_was_sent(sent, param):
    """Whichever field a vector came by, an error names that field, its place in a list, and a part only of
    an entry that has parts; too high a dose is of all of them."""
    with pytest.raises((InvalidRequest, NotFound, Conflict)) as error:
        await World().steering.apply(SteeringFields.model_validate(sent).steering_entries(), "me")
    assert error.value.param == param


@pytest.mark.parametrize(
    ("entry", "reason"),
    [
        ({"vector_id": "nothing"}, "unknown"),
        ({"vector_id": "foreign"}, "model"),
        ({"vector_id": "one", "strength": 9}, "dose"),
        ({"vector": WIDE}, "invalid"),
    ],
)
async def test_refusals_are_counted_by_their_reason(entry, reason):
    """Each once, under a word that has been declared."""

    def count():
        return REGISTRY.get_sample_value("steersman_steering_errors_total", {"reason": reason}) or 0

    before = count()
    with pytest.raises((InvalidRequest, NotFound, Conflict)):
        await World().steering.apply({"steering": SteeringEntry.model_validate(entry)}, "me")
    assert count() == before + 1
    assert reason in STEERING_REASONS


async def test_errors_in_a_policy_name_its_part():
    """A policy has its own path."""
    for entry, part in ({"vector": WIDE}, ".vector"), ({"vector_id": "one", "strength": 9}, ""):
        with pytest.raises(InvalidRequest) as error:
            await World().steering.apply({"policy.steering": SteeringEntry.model_validate(entry)}, "me")
        assert error.value.param == f"policy.steering{part}"


async def test_vectors_of_others_are_not_there():
    """Another account's vector is unknown."""
    world = World()
    with pytest.raises(NotFound):
        await world.steering.apply(listed({"vector_id": "one"}), "other account")


async def test_too_many_vectors():
    """More terms or token ranges than the worker takes are the client's fault, under the request's field."""
    small = {"vector_id": "other", "strength": 0.01}
    error = await World().refused(InvalidRequest, *[small] * 17)
    assert (error.param, "at most 16 vectors" in str(error)) == ("steering", True)
    ranges = [{**small, "token_start": start} for start in range(5)]
    assert "token ranges" in str(await World().refused(InvalidRequest, *ranges))


async def test_strength_zero_does_nothing():
    """It is looked up and checked, but neither loaded nor told to the engine; the evidence says nothing."""
    world = World(rows=1)
    applied = await world.apply({"vector_id": "one", "strength": 0, "gate": {"vector_id": "one"}})
    assert (applied.spec.terms, applied.lease, world.engine.resident) == ((), None, set())
    await applied.count()
    applied.release()
    assert world.engine.asked == world.engine.forgotten == []
    assert applied.described()["vectors"] == []
    assert applied.described()["dose"] == 0
    await world.refused(NotFound, {"vector_id": "nothing", "strength": 0})


async def test_only_what_acts_is_held():
    """Beside others too, a vector of strength 0 and the vector of its gate take no room."""
    world = World(rows=2)
    idle = {"vector_id": "one", "strength": 0, "layers": [1], "gate": {"vector_id": "other"}}
    applied = await world.apply(idle, {"vector_id": "gated", "strength": 0.1})
    assert world.held == {GATED.digest}
    applied.release()


async def test_a_gates_vector_is_held_too():
    """A vector that is only tested must be in the engine as well."""
    world = World()
    applied = await world.apply(
        {"vector_id": "one", "layers": [1], "gate": {"vector_id": "other", "threshold": 0.3}}
    )
    assert applied.spec.terms[0].gate == Gate(GateKind.COSINE, OTHER.digest, 0.3)
    assert world.held == {ONE.digest, OTHER.digest} == set(applied.spec.vectors)
    applied.release()
    assert world.held == set()


async def test_what_a_vector_knows_decides_how_it_acts():
    """Probes and latents of the stored vector reach planning."""
    world = World()
    gated, latent = await world.apply({"vector_id": "gated"}), await world.apply({"vector_id": "latent"})
    assert gated.spec.terms[0].gate == Gate(GateKind.PROBE, GATED.digest, inverted=True)
    assert latent.spec.terms[0].operation is Operation.UNITS
    gate = gated.described()["vectors"][0]["gate"]
    assert (gate["kind"], gate["inverted"], gate["digest"]) == (
        "probe",
        True,
        gated.vectors[0].term.gate.vector,
    )


async def test_numbers_are_read_once(monkeypatch):
    """A vector used often is read from the database once, and long unused ones make room."""
    world = World()
    for _ in range(3):
        (await world.apply({"vector_id": "one"})).release()
    assert world.stored.read == 1
    monkeypatch.setattr(module, "_CACHED_BYTES", len(ONE.blob))
    for _ in range(2):
        for name in ("one", "other"):
            (await world.apply({"vector_id": name, "strength": 0.1})).release()
    assert world.stored.read == 4
    assert len(world.steering._cache) == 1


async def test_a_record_with_its_vector():
    """`record` checks the model, as `apply` does."""
    world = World()
    found, vector = await world.steering.record("one", "me")
    assert (found.id, vector.digest) == ("one", ONE.digest)
    with pytest.raises(Conflict):
        await world.steering.record("foreign", "me")


async def test_doses_add_up_over_layers():
    """The dose is the largest of the residual stream's shifts at any layer, what was added below included."""
    sent = [{"vector_id": "one", "strength": 1.5}, {"vector_id": "other", "strength": -0.25}]
    applied = await World(most=9.0).apply(*sent)
    shift = np.zeros((LAYERS, WIDTH))
    for vector, entry in zip((ONE, OTHER), sent, strict=True):
        for layer, part in vector.layers.items():
            shift[layer] += entry["strength"] * part.direction
    expected = np.linalg.norm(shift.cumsum(axis=0), axis=1) / MODEL.norms
    assert applied.dose == pytest.approx(expected.max())
    shrinking = replace(MODEL, norms=MODEL.norms[::-1].copy())  # the largest is where nothing is added
    world = World(most=9.0)
    world.steering.model = shrinking
    applied = await world.apply(*sent)
    expected = np.linalg.norm(shift.cumsum(axis=0), axis=1) / shrinking.norms
    assert applied.dose == pytest.approx(expected.max())
    assert expected.argmax() == LAYERS - 1


async def test_a_check_loads_nothing():
    """Where only the dose is asked for, a table that is too small is no obstacle, and nothing is held."""
    world = World(rows=1)
    checked = await world.steering.check(listed({"vector_id": "one"}), "me")
    assert (checked.dose, checked.lease, world.engine.resident) == (0.5, None, set())
    with pytest.raises(InvalidRequest, match="relative dose"):
        await world.steering.check(listed({"vector_id": "one", "strength": 9}), "me")
