"""From entries of a request to what the engine is told, on vectors that are in a dictionary."""

import asyncio
import gc
from datetime import UTC, datetime

import numpy as np
import pytest
from prometheus_client import REGISTRY

from policies.steering import SteeringEntry
from server import steering as module
from server.errors import Conflict, InvalidRequest, NotFound, Unavailable
from server.residency import Residency
from server.steering import Counted, SteeredModel, Steering
from server.vectors import VectorRecord
from steering.spec import Gate, GateKind, Operation
from steering.vector import Layer, Probe, SteeringVector, Units

LAYERS, WIDTH = 4, 3
MODEL = SteeredModel("org/model", "f" * 64, LAYERS, WIDTH, np.array([1, 2, 4, 8], np.float32))


def directions(**rows: list[float]) -> SteeringVector:
    """`directions(l1=[…])`: layers by name."""
    return SteeringVector.of({int(name[1:]): np.array(row, np.float32) for name, row in rows.items()})


ONE = directions(l1=[1, 0, 0], l2=[0, 1, 0])
OTHER = directions(l1=[0, 0, 2])
FAR = directions(l9=[1, 0, 0])
_ROW = np.array([0, 1, 0], np.float32)
GATED = SteeringVector({1: Layer(_ROW, Probe(_ROW, 0.5, 2.0))})
_LATENTS = Units(_ROW[None], _ROW[None], *(np.ones(1, np.float32) for _ in range(3)))
LATENT = SteeringVector({1: Layer(_ROW, Probe(_ROW, 0.5, 2.0), _LATENTS)})


def record(name: str, vector: SteeringVector, fingerprint: str | None = MODEL.fingerprint) -> VectorRecord:
    """What the database says of a vector of account `me`."""
    return VectorRecord(
        id=name,
        account_id="me",
        preset=None,
        name=f"name of {name}",
        label="l" if name == "labelled" else None,
        category=None,
        method="caa",
        model_name="made/for",
        model_fingerprint=fingerprint,
        width=vector.width,
        layers=tuple(vector.layers),
        norms=vector.norms,
        doses=None,
        scale=1.0,
        dataset_digest=None,
        evidence=None,
        digest=vector.digest,
        created_at=datetime.now(UTC),
    )


class Stored:
    """Vectors and presets in one dictionary; counts how often numbers were read."""

    def __init__(self) -> None:
        self.vectors = {
            "one": ONE,
            "other": OTHER,
            "labelled": OTHER,
            "gated": GATED,
            "latent": LATENT,
            "far": FAR,
            "foreign": OTHER,
        }
        self.read = 0

    async def get(self, account_id: str, vector_id: str) -> VectorRecord:
        if account_id != "me" or vector_id not in self.vectors:
            raise NotFound(f"no {vector_id}", param="steering_vector_id")
        fingerprint = {"foreign": "g" * 64, "far": None}.get(vector_id, MODEL.fingerprint)
        return record(vector_id, self.vectors[vector_id], fingerprint)

    async def blob(self, vector_id: str) -> bytes:
        self.read += 1
        return self.vectors[vector_id].blob

    async def vector(self, preset: str, account_id: str) -> VectorRecord:
        assert preset == "brevity"
        return record("one", ONE)


class Engine:
    def __init__(self, rows: int = 4) -> None:
        self.rows, self.resident = rows, set()
        self.asked: list[str] = []
        self.forgotten: list[str] = []
        self.problem: str | None = None

    async def load(self, digest: str, blob: bytes) -> None:
        self.resident.add(digest)

    async def unload(self, digests) -> None:
        self.resident -= set(digests)

    async def evidence(self, trace: str) -> Counted:
        self.asked.append(trace)
        if self.problem:
            raise Unavailable(self.problem, retry_after=1)
        return Counted(7, 5)

    def forget(self, trace: str) -> None:
        self.forgotten.append(trace)


class World:
    """A Steering on fakes; `held` are the digests that leases keep."""

    def __init__(self, rows: int = 8, safe: float = 1.0, most: float = 2.0, wait: float = 0.0) -> None:
        self.engine, self.stored = Engine(), Stored()
        self.residency = Residency(self.engine, rows, wait)
        self.steering = Steering(
            self.engine, self.stored, self.stored, self.residency, MODEL, safe_dose=safe, max_dose=most
        )

    @property
    def held(self) -> set[str]:
        return {digest for digest, entry in self.residency._entries.items() if entry.holders}

    async def apply(self, *entries: dict[str, object], field: str = "steering"):
        return await self.steering.apply([SteeringEntry.model_validate(e) for e in entries], "me", field)

    async def refused(self, kind: type[Exception], *entries: dict[str, object], field: str = "steering"):
        """The error; a refused request holds nothing."""
        with pytest.raises(kind) as error:
            await self.apply(*entries, field=field)
        assert self.held == set()
        return error.value


async def test_one_vector_by_id():
    """A stored vector is loaded, held until it is released, and told of in full."""
    world = World()
    applied = await world.apply(
        {"vector_id": "one", "strength": 0.5, "tokens": "generated", "token_start": 3}
    )
    (term,) = applied.spec.terms
    assert (term.vector, term.layers, term.strength) == (ONE.digest, (1, 2), 0.5)
    assert world.held == world.engine.resident == {ONE.digest}
    await applied.count()
    assert applied.described() == {
        "fingerprint": applied.spec.fingerprint(),
        "vectors": [
            {
                "id": "one",
                "name": "name of one",
                "digest": ONE.digest,
                "operation": "add",
                "strength": 0.5,
                "layers": [1, 2],
                "tokens": "generated",
                "token_start": 3,
                "relative_dose": {"1": 0.25, "2": 0.125},
            }
        ],
        "dose": 0.25,
        "prompt_tokens": 7,
        "generated_tokens": 5,
    }
    assert applied.headers() == {"x-steersman-steering": applied.spec.fingerprint()}
    applied.release()
    applied.release()
    assert world.held == set()
    assert world.engine.asked == [applied.spec.trace]
    assert world.engine.forgotten == []


async def test_each_request_has_its_own_trace():
    """The same effect has the same fingerprint, but evidence of its own."""
    world = World()
    first, second = await world.apply({"vector_id": "one"}), await world.apply({"vector_id": "one"})
    assert first.spec.fingerprint() == second.spec.fingerprint()
    assert first.spec.trace != second.spec.trace


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
        ({"vector_id": "nothing"}, NotFound, "no nothing", "steering_vector_id"),
        ({"vector_id": "foreign"}, Conflict, "made for 'made/for'", "steering_vector_id"),
        ({"vector_id": "far"}, Conflict, "layers up to 9", "steering_vector_id"),
        ({"vector": {"1": [1, 2]}}, InvalidRequest, "2 wide; org/model is 3", "x.vector"),
        ({"vector": {"4": [1, 2, 3]}}, InvalidRequest, "has layers 0 to 3, not 4", "x.vector"),
        ({"vector": {"mlp": [1, 2, 3]}}, InvalidRequest, "names no layer", "x.vector"),
        ({"vector": {"1": [0, 0, 0]}}, InvalidRequest, "the direction is zero", "x.vector"),
        ({"vector": {"1": [1, 2, 3], "2": [1]}}, InvalidRequest, "long", "x.vector"),
        ({"vector": {"1": [1e39, 0, 0]}}, InvalidRequest, "not a finite number", "x.vector"),
        ({"vector": {"1": [1e10, 0, 0]}}, InvalidRequest, "beyond 1e", "x.vector"),
        ({"vector": {"1": [1, 2, 3], "layers.1": [1, 2, 3]}}, InvalidRequest, "both mean", "x.vector"),
        ({"vector_id": "one", "layers": [3]}, InvalidRequest, "no layer 3; it has 1, 2", "x.layers"),
        ({"vector_id": "one", "operation": "latents"}, InvalidRequest, "no latents", "x.operation"),
        ({"vector_id": "one", "gate": {"kind": "probe"}}, InvalidRequest, "no probe", "x.gate"),
        ({"vector_id": "one", "gate": {"vector_id": "other"}}, InvalidRequest, "no layer 2", "x.gate"),
        ({"vector_id": "one", "gate": {"vector_id": "none"}}, NotFound, "no none", "steering_vector_id"),
        ({"vector_id": "one", "gate": {"vector_id": "foreign"}}, Conflict, "made for", "steering_vector_id"),
    ],
)
async def test_what_cannot_be_applied(entry, kind, message, param):
    """Each fault has its own status and names the field; also as the last of several, where nothing stays
    held for the sound ones."""
    error = await World().refused(kind, entry, field="x")
    assert message in str(error)
    assert error.param == param
    later = await World().refused(kind, {"vector_id": "one", "strength": 0.1}, entry, field="x")
    assert later.param == param.replace("x.", "x.1.")


async def test_vectors_of_others_are_not_there():
    """Another account's vector is unknown."""
    world = World()
    with pytest.raises(NotFound):
        await world.steering.apply([SteeringEntry(vector_id="one")], "other account", "steering")


async def test_too_many_vectors():
    """More terms or token ranges than the worker takes are the client's fault, under the request's field."""
    small = {"vector_id": "other", "strength": 0.01}
    error = await World().refused(InvalidRequest, *[small] * 17, field="steering_vector_id")
    assert (error.param, "at most 16 vectors" in str(error)) == ("steering_vector_id", True)
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
    assert gated.described()["vectors"][0]["gate"] == "probe"


@pytest.mark.parametrize(
    ("entries", "dose"),
    [
        ([{"vector_id": "one"}], 0.5),  # layer 1: 1/2; layer 2: sqrt(2)/4
        ([{"vector_id": "one", "strength": -2}], 1.0),
        ([{"vector_id": "one", "layers": [2]}], 0.25),
        ([{"vector_id": "one", "operation": "norm-preserving-add"}], 0.5),
        # In one direction shifts add up, and they stay in the stream from layer to layer.
        ([{"vector": {"1": [1, 0, 0], "2": [3, 0, 0]}}], 1.0),
        ([{"vector": {"1": [0.5, 0, 0]}}, {"vector": {"1": [0.5, 0, 0]}}], 0.5),
        # Opposed ones cancel, but neither counts for less than it moves alone.
        ([{"vector": {"1": [2, 0, 0]}}, {"vector": {"1": [-2, 0, 0]}}], 1.0),
        ([{"vector_id": "one", "operation": "project-out"}], 0.0),
        ([{"vector_id": "one", "operation": "replace", "value": -3, "layers": [1]}], 1.5),
        ([{"vector_id": "one", "operation": "clamp", "low": -1, "high": 2, "strength": 0.5}], 0.5),
        ([{"vector_id": "one", "operation": "clamp", "high": 0.5}], 0.25),
    ],
)
async def test_doses(entries, dose):
    """The dose is the largest shift of the stream at any layer, against the length of the state there."""
    applied = await World().apply(*entries)
    assert applied.dose == pytest.approx(dose)


async def test_a_dose_above_the_safe_one_is_warned_of():
    """The text still comes, with a warning in header and evidence; at the safe dose there is none."""
    world = World(safe=0.5)
    assert (await world.apply({"vector_id": "one"})).warning is None
    applied = await world.apply({"vector_id": "one", "strength": 1.5})
    warning = "relative dose 0.75 is above 0.5: the text may degrade"
    assert applied.headers()["x-steersman-warning"] == warning
    assert applied.described()["warning"] == warning


async def test_a_dose_above_the_limit_is_refused():
    """Up to the limit a request runs; beyond it the error says how far, and nothing is held."""
    (await World(most=2.0).apply({"vector_id": "one", "strength": 4})).release()
    error = await World(most=2.0).refused(
        InvalidRequest, {"vector_id": "one", "strength": 4.1}, field="steering_strength"
    )
    assert (error.reason, error.param) == ("dose_too_high", "steering_strength")
    assert "would be 2.05" in str(error)
    many = [{"vector": {"0": [0.9, 0, 0]}}] * 3
    assert "would be 2.70" in str(await World().refused(InvalidRequest, *many))
    worst = {"vector": {"0": [1e9, 1e9, 1e9]}, "strength": 1000}
    await World().refused(InvalidRequest, *[worst] * 16)


async def test_a_full_table_refuses_and_loses_nothing():
    """Where no row is free the request gets Unavailable; when it is, the same request runs."""
    world = World(rows=2)
    first = await world.apply({"vector_id": "one"})
    with pytest.raises(Unavailable) as refused:
        await world.apply({"vector_id": "other", "strength": 0.1})
    assert refused.value.retry_after == 1
    first.release()
    (await world.apply({"vector_id": "other", "strength": 0.1})).release()
    assert world.held == set()


async def test_evidence_that_is_missing_is_an_error():
    """A request that the worker did not steer is Unavailable, never an answer; its lease ends too."""
    world = World()
    applied = await world.apply({"vector_id": "one"})
    world.engine.problem = "the request ran unsteered"
    with pytest.raises(Unavailable, match="unsteered"):
        await applied.count()
    applied.release()
    assert (world.held, world.engine.forgotten) == (set(), [])


async def test_an_aborted_requests_evidence_is_dropped():
    """Released without having been counted, the worker is told to forget it, once."""
    world = World()
    applied = await world.apply({"vector_id": "one"})
    applied.release()
    applied.release()
    assert world.engine.forgotten == [applied.spec.trace]


async def test_a_forgotten_request_holds_nothing():
    """What was applied to a request that nobody finished gives its vectors free when it is collected."""
    world = World()
    applied = await world.apply({"vector_id": "one"})
    del applied
    await asyncio.sleep(0)  # the loop lets go of the task's last result
    gc.collect()
    assert world.held == set()


async def test_counting_is_measured():
    """Steered tokens by phase, and vectors by operation, add up in the metrics."""

    def value(name: str, **labels: str) -> float:
        return REGISTRY.get_sample_value(name, labels) or 0.0

    before = (
        value("steersman_steered_tokens_total", phase="prompt"),
        value("steersman_steered_tokens_total", phase="generated"),
        value("steersman_steering_requests_total", operation="clamp"),
    )
    world = World()
    applied = await world.apply(
        {"vector_id": "one", "operation": "project-out"}, {"vector_id": "other", "strength": 0.1}
    )
    await applied.count()
    applied.release()
    after = (
        value("steersman_steered_tokens_total", phase="prompt"),
        value("steersman_steered_tokens_total", phase="generated"),
        value("steersman_steering_requests_total", operation="clamp"),
    )
    assert [late - early for early, late in zip(before, after, strict=True)] == [7, 5, 1]


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


async def test_a_vector_deleted_while_it_is_used():
    """A request goes on with what it began with; the next one does not find it."""
    world = World()
    applied = await world.apply({"vector_id": "one"})
    del world.stored.vectors["one"]
    await applied.count()
    assert applied.described()["vectors"][0]["id"] == "one"
    applied.release()
    await world.refused(NotFound, {"vector_id": "one"})


async def test_a_client_that_leaves_while_its_vector_loads():
    """The vector ends up free, whatever the moment."""
    world = World(wait=5)
    for steps in range(12):
        task = asyncio.create_task(world.apply({"vector_id": "one"}))
        for _ in range(steps):
            await asyncio.sleep(0)
        task.cancel()
        done = await asyncio.gather(task, return_exceptions=True)
        if not isinstance(done[0], BaseException):
            done[0].release()
        for _ in range(12):
            await asyncio.sleep(0)
        assert world.held == set()
        world.stored.vectors["one"] = directions(l1=[steps + 1, 0, 0])


async def test_a_record_with_its_vector():
    """`record` checks the model, as `apply` does."""
    world = World()
    found, vector = await world.steering.record("one", "me")
    assert (found.id, vector.digest) == ("one", ONE.digest)
    with pytest.raises(Conflict):
        await world.steering.record("foreign", "me")
