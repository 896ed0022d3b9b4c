"""A Steering on fakes: a small model, vectors in a dictionary, an engine that notes what it is asked."""

from datetime import UTC, datetime

import numpy as np
import pytest

from policies.steering import SteeringEntry
from server.applied import Counted
from server.errors import InvalidRequest, NotFound, Unavailable
from server.residency import Residency
from server.steering import SteeredModel, Steering
from server.vectors import VectorRecord
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

    async def recent(self, account_id: str, vector_id: str) -> VectorRecord:
        if account_id != "me" or vector_id not in self.vectors:
            raise NotFound(f"no {vector_id}", param="steering_vector_id")
        fingerprint = {"foreign": "g" * 64, "far": None}.get(vector_id, MODEL.fingerprint)
        return record(vector_id, self.vectors[vector_id], fingerprint)

    async def blob(self, vector_id: str) -> bytes:
        self.read += 1
        return self.vectors[vector_id].blob

    async def vector(self, preset: str, account_id: str) -> VectorRecord:
        if preset != "brevity":
            raise InvalidRequest(f"no examples of {preset}", param="steering_preset")
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

    async def apply(self, *entries: dict[str, object]):
        return await self.steering.apply(listed(*entries), "me")

    async def refused(self, kind: type[Exception], *entries: dict[str, object]):
        """The error; a refused request holds nothing."""
        with pytest.raises(kind) as error:
            await self.apply(*entries)
        assert self.held == set()
        return error.value


def listed(*entries: dict[str, object]) -> dict[str, SteeringEntry]:
    """As a request has them in the field `steering`, where one needs no list."""
    made = [SteeringEntry.model_validate(entry) for entry in entries]
    if len(made) == 1:
        return {"steering": made[0]}
    return {f"steering.{index}": entry for index, entry in enumerate(made)}
