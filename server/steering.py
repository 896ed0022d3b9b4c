"""From what a request says about steering to what the engine is told, and what the answer says of it."""

import asyncio
import re
import secrets
from collections import OrderedDict
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from policies.steering import Material, SteeringEntry, known_preset, term
from server.applied import Applied, AppliedVector, Engine
from server.dose import dose as dose_of
from server.dose import summed
from server.errors import Conflict, InvalidRequest, NotFound, NotSupported, SteersmanError, Unavailable
from server.metrics import STEERING_DOSE, STEERING_ERRORS
from server.monitor import Watched
from server.residency import Residency
from server.vectors import VectorRecord, Vectors, misfit, require_model
from steering.files import read_flat
from steering.sae.errors import SaeError
from steering.sae.feature import feature_vector
from steering.sae.sae import SparseAutoencoder
from steering.spec import SpecError, SteeringSpec, Term, Watch
from steering.vector import SteeringVector, VectorError

_CACHED_BYTES = 256 * 1024 * 1024


@dataclass(frozen=True, slots=True)
class SteeredModel:
    """The served model; `norms` is `[layers]`, the mean length of the states that leave each block."""

    name: str
    fingerprint: str
    layers: int
    width: int
    norms: NDArray[np.float32]

    def doses(self, vector: SteeringVector) -> dict[int, float]:
        """Relative doses by layer at strength 1."""
        return {layer: norm / float(self.norms[layer]) for layer, norm in vector.norms.items()}


class _Named(Protocol):
    @property
    def name(self) -> str: ...


class _StoredSae(Protocol):
    @property
    def card(self) -> _Named: ...
    @property
    def sae(self) -> SparseAutoencoder: ...


class Saes(Protocol):
    """Stored autoencoders: see `server.saes`."""

    async def get(self, name: str | None, field: str = ...) -> _StoredSae: ...


class Presets(Protocol):
    async def vector(self, preset: str, account_id: str) -> VectorRecord: ...


@dataclass(frozen=True, slots=True)
class _Found:
    """A vector behind an entry, with what is known of where it came from."""

    vector: SteeringVector
    id: str | None = None
    name: str | None = None


class Steering:
    """`model` None: `problem` says why this server cannot steer.

    Above `safe_dose` an answer carries a warning, above `max_dose` the request is refused.
    """

    def __init__(
        self,
        engine: Engine,
        vectors: Vectors,
        presets: Presets,
        residency: Residency,
        model: SteeredModel,
        *,
        safe_dose: float,
        max_dose: float,
        saes: Saes | None = None,
    ) -> None:
        self._engine, self._vectors, self._presets, self._saes = engine, vectors, presets, saes
        self._residency, self.model = residency, model
        self._safe_dose, self._max_dose = safe_dose, max_dose
        self._cache: OrderedDict[str, SteeringVector] = OrderedDict()
        self._cached_bytes = 0

    async def apply(
        self,
        entries: Mapping[str, SteeringEntry],
        account_id: str,
        watched: Sequence[Watched] = (),
    ) -> Applied:
        """Resolve, check and load; the caller must `release` what it gets. `entries` are by their paths in
        the request, which errors name.

        Raises InvalidRequest, NotFound, Conflict, Unavailable.
        """
        with _counting_errors():
            applied, vectors = await self._resolved(entries, account_id, watched)
            if vectors:
                applied.lease = await self._residency.hold(vectors)
        if entries:
            STEERING_DOSE.observe(applied.dose)
        return applied

    async def check(self, entries: Mapping[str, SteeringEntry], account_id: str) -> Applied:
        """As `apply`, for what it says of the dose: nothing is loaded, and nothing to be released."""
        applied, _ = await self._resolved(entries, account_id)
        return applied

    async def record(self, vector_id: str, account_id: str) -> tuple[VectorRecord, SteeringVector]:
        """Raises NotFound, and Conflict for a vector of another model."""
        record = await self._vectors.recent(account_id, vector_id)
        require_model(record, self.model)
        return record, await self._vector(record)

    async def _resolved(
        self,
        entries: Mapping[str, SteeringEntry],
        account_id: str,
        watched: Sequence[Watched] = (),
    ) -> tuple[Applied, list[SteeringVector]]:
        """With the vectors that must be in the engine."""
        found, vectors = await self._terms(entries, account_id)
        later: list[list[tuple[_Found, Term]]] = []
        for each in watched:
            terms: list[tuple[_Found, Term]] = []
            if each.correction is not None:  # which must be there before an answer is dropped for it
                terms, more = await self._terms({each.path: each.correction}, each.owner)
                vectors += more if each.acts else []
            if each.always:
                found, terms = found + terms, []
            later.append(terms)
            vectors.append(each.detector)
        field = field_of(entries) if entries or not watched else watched[0].path
        return self._dosed(found, watched, later, field), vectors

    async def _terms(
        self, entries: Mapping[str, SteeringEntry], account_id: str
    ) -> tuple[list[tuple[_Found, Term]], list[SteeringVector]]:
        found: list[tuple[_Found, Term]] = []
        vectors: list[SteeringVector] = []
        for path, entry in entries.items():
            own = await self._find(entry, account_id, path)
            tested = None
            if entry.gate is not None and entry.gate.vector_id is not None:
                tested = await self._stored(entry.gate.vector_id, account_id, f"{path}.gate.vector_id")
            try:
                made = term(entry, _material(own.vector), _material(tested.vector) if tested else None)
            except SpecError as error:
                raise InvalidRequest(str(error), param=_part(path, error.field)) from error
            if made.strength != 0:
                found.append((own, made))
                vectors += [own.vector, *([tested.vector] if tested else [])]
        return found, vectors

    async def _find(self, entry: SteeringEntry, account_id: str, path: str) -> _Found:
        if entry.vector_id is not None:
            return await self._stored(entry.vector_id, account_id, _part(path, "vector_id"))
        if entry.preset is not None:
            preset = known_preset(entry.preset)
            with _naming(_part(path, "preset")):
                record = await self._presets.vector(preset, account_id)
            return _Found(await self._vector(record), record.id, preset)
        if entry.feature is not None:
            return await self._feature(entry, entry.feature, path)
        assert entry.vector is not None
        try:
            vector = read_flat(entry.vector)
        except VectorError as error:
            raise InvalidRequest(str(error), param=_part(path, "vector")) from error
        if problem := misfit(vector, self.model):
            raise InvalidRequest(problem, param=_part(path, "vector"))
        return _Found(vector)

    async def _feature(self, entry: SteeringEntry, feature: int, path: str) -> _Found:
        if self._saes is None:
            raise NotSupported("this server has no autoencoders", param=_part(path, "feature"))
        stored = await self._saes.get(entry.sae, _part(path, "sae"))
        try:
            vector = await asyncio.to_thread(feature_vector, stored.sae, feature)
        except SaeError as error:
            raise InvalidRequest(str(error), param=_part(path, "feature")) from error
        return _Found(vector, name=f"{stored.card.name}/{feature}")

    async def _stored(self, vector_id: str, account_id: str, path: str) -> _Found:
        with _naming(path):
            record, vector = await self.record(vector_id, account_id)
        return _Found(vector, record.id, record.label or record.name)

    async def _vector(self, record: VectorRecord) -> SteeringVector:
        cached = self._cache.get(record.digest)
        if cached is None:
            cached = SteeringVector.from_blob(await self._vectors.blob(record.id))
            if record.digest not in self._cache:
                self._cached_bytes += len(cached.blob)
            self._cache[record.digest] = cached
        self._cache.move_to_end(record.digest)
        while self._cached_bytes > _CACHED_BYTES and len(self._cache) > 1:
            self._cached_bytes -= len(self._cache.popitem(last=False)[1].blob)
        return cached

    def _dosed(
        self,
        found: Sequence[tuple[_Found, Term]],
        watched: Sequence[Watched],
        later: Sequence[Sequence[tuple[_Found, Term]]],
        field: str,
    ) -> Applied:
        """The dose is that of all terms, also of those which may act `later`."""
        watches = tuple(
            Watch(
                each.detector.digest,
                each.layer,
                each.threshold,
                each.smoothing,
                tuple(made for _, made in terms) if each.acts else (),
            )
            for each, terms in zip(watched, later, strict=True)
        )
        terms = tuple(made for _, made in found)
        try:
            spec = SteeringSpec(terms, secrets.token_hex(8), watches=watches)
        except SpecError as error:
            raise InvalidRequest(str(error), param=field) from error
        norms = self.model.norms
        shifts: dict[int, NDArray[np.float32]] = {}
        vectors = []
        for own, made in [*found, *(pair for terms in later for pair in terms)]:
            doses = {layer: dose_of(made, own.vector, layer, float(norms[layer])) for layer in made.layers}
            vectors.append(AppliedVector(own.id, own.name, made, doses))
            if not made.operation.bounds:
                for layer in made.layers:
                    moved = np.float32(made.strength) * own.vector.layers[layer].direction
                    shifts[layer] = shifts[layer] + moved if layer in shifts else moved
        alone = [dose for vector in vectors for dose in vector.doses.values()]
        dose = float(max([*summed(shifts, norms), *alone], default=0.0))
        if dose > self._max_dose:
            raise InvalidRequest(
                f"the relative dose would be {dose:.2f}: the vectors are that much of the states' own length;"
                f" this server's limit is {self._max_dose:g}. Lower the strength, or name fewer layers.",
                param=field,
                code="dose_too_high",
            )
        warning = None
        if dose > self._safe_dose:
            warning = f"relative dose {dose:.2f} is above {self._safe_dose:g}: the text may degrade"
        applied = tuple(vectors[: len(found)])
        return Applied(spec, applied, dose, warning, self._engine, tuple(watched))


def _material(vector: SteeringVector) -> Material:
    layers = vector.layers.values()
    return Material(
        digest=vector.digest,
        layers=tuple(sorted(vector.layers)),
        probes=all(layer.probe for layer in layers),
        latents=all(layer.units for layer in layers),
    )


def field_of(entries: Mapping[str, SteeringEntry]) -> str:
    """The field that errors about all of `entries` name."""
    return re.sub(r"\.\d+$", "", next(iter(entries), "steering"))


def _part(path: str, part: str) -> str:
    """Where a part of the entry at `path` stands: the short fields are their vector, and have no parts."""
    return f"{path}.{part}" if "steering" in path.split(".") else path


@contextmanager
def _counting_errors() -> Iterator[None]:
    try:
        yield
    except SteersmanError as error:
        known = {NotFound: "unknown", Conflict: "model", Unavailable: "room"}
        reason = "dose" if error.reason == "dose_too_high" else known.get(type(error), "invalid")
        STEERING_ERRORS.labels(reason).inc()
        raise


@contextmanager
def _naming(path: str) -> Iterator[None]:
    """What is wrong with a vector is wrong with what the client sent at `path`."""
    try:
        yield
    except (InvalidRequest, NotFound, Conflict) as error:
        raise type(error)(error.message, param=path, code=error.reason) from error
