"""From examples to a behaviour: latents that tell it, a threshold, and a vector that steers against it."""

import asyncio
import logging
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from enum import StrEnum
from functools import partial
from typing import Any, Final, Protocol

from server.behaviors import BehaviorRecord, Behaviors, Calibrated, NewBehavior
from server.correction import correction
from server.errors import Conflict, InvalidRequest, NotFound, SteersmanError
from server.evaluation import Engine
from server.readiness import ReadinessState, readiness
from server.residency import Residency
from server.sae_baseline import BaselineReader, StoredSae
from server.training import Trainer, TrainRequest
from server.vectors import NewVector, VectorRecord, Vectors
from steering.files import layer_of
from steering.sae.baseline import Options
from steering.train.pairs import Pair
from steering.vector import SteeringVector, VectorError

logger = logging.getLogger(__name__)

CATEGORY: Final = "behavior"  # of the vectors that are made here
FALSE_POSITIVES: Final = Options().false_positives


class Saes(Protocol):
    async def get(self, name: str | None, field: str = "sae") -> StoredSae:
        """None: the one that fits best. Raises NotFound, and Conflict for another model's."""


class StoredVectors(Protocol):
    async def record(self, vector_id: str, account_id: str) -> tuple[VectorRecord, SteeringVector]:
        """Raises NotFound, and Conflict for a vector of another model."""


@dataclass(frozen=True, slots=True)
class Examples:
    """What a behaviour is made from: positive answers show it, negative ones do not.

    `steering_vector_id` names a vector that points towards the behaviour; without it one is made by CAA from
    the same pairs. `layer_names` may name the layer that the autoencoder reads and no other.
    `false_positives` is the share of texts without the behaviour that may drift.
    """

    pairs: tuple[Pair, ...]
    steering_vector_id: str | None = None
    sae: str | None = None
    layer_names: tuple[str, ...] = ()
    false_positives: float = FALSE_POSITIVES


class RecomputeStatus(StrEnum):
    SUCCEEDED = "succeeded"
    FAILED = "failed"
    SKIPPED = "skipped"


@dataclass(frozen=True, slots=True)
class Recomputed:
    """`record` as it is afterwards; `error` says why it failed."""

    record: BehaviorRecord
    status: RecomputeStatus
    error: str | None = None


@dataclass(frozen=True, slots=True)
class _Making:
    asked: tuple[str, Examples]
    task: "asyncio.Task[BehaviorRecord]"


class BehaviorMaker:
    """Makes one behaviour at a time in each process; what waits for its turn holds its examples alone."""

    def __init__(
        self,
        behaviors: Behaviors,
        vectors: Vectors,
        saes: Saes,
        trainer: Trainer,
        *,
        stored: StoredVectors,
        engine: Engine,
        residency: Residency,
    ) -> None:
        self._behaviors, self._vectors, self._saes = behaviors, vectors, saes
        self._trainer, self._reader, self._stored = trainer, BaselineReader(trainer), stored
        self._engine, self._residency = engine, residency
        self._turn = asyncio.Semaphore(1)
        self._making: dict[tuple[str, str], _Making] = {}

    async def create(
        self, account_id: str, name: str, description: str, examples: Examples
    ) -> BehaviorRecord:
        """Seconds to a minute. Whoever leaves does not stop it, and may ask again for the same meanwhile.

        Raises InvalidRequest for examples that cannot be learnt from, NotFound and Conflict for a vector or
        an autoencoder that is not there or of another model, Conflict for a name that is taken.
        """
        key, asked = (account_id, name), (description, examples)
        making = self._making.get(key)
        if making is None:
            task = asyncio.create_task(self._create(account_id, name, description, examples))
            making = self._making[key] = _Making(asked, task)
            task.add_done_callback(partial(self._made, key))
        elif making.asked != asked:
            raise Conflict(
                f"The behaviour {name!r} is being made from other examples.",
                param="behavior_name",
                code="behavior_exists",
            )
        return await asyncio.shield(making.task)

    def _made(self, key: tuple[str, str], task: "asyncio.Task[BehaviorRecord]") -> None:
        del self._making[key]
        if not task.cancelled() and (error := task.exception()):
            logger.info("The behaviour %r could not be made: %s", key[1], error)

    async def recompute(
        self, account_id: str, behavior_ids: Sequence[str] | None = None
    ) -> Sequence[Recomputed]:
        """Calibrate behaviours anew for the served model, from the pairs they were made from.

        Without ids all of the account's but those that are ready. A vector that is there and fits is kept;
        another one is made where it does not. Raises NotFound for an unknown id.
        """
        if behavior_ids is None:
            records = await self._behaviors.list(account_id)
            found = await readiness(account_id, records, self._vectors, self._trainer.model)
            ready = [each.state is ReadinessState.READY for each in found]
        else:
            records = [await self._named(account_id, *each) for each in enumerate(behavior_ids)]
            ready = [False] * len(records)
        return [
            Recomputed(record, RecomputeStatus.SKIPPED) if skip else await self._recomputed(record)
            for record, skip in zip(records, ready, strict=True)
        ]

    async def _named(self, account_id: str, index: int, behavior_id: str) -> BehaviorRecord:
        try:
            return await self._behaviors.get(account_id, behavior_id)
        except NotFound as error:
            raise NotFound(error.message, param=f"behavior_ids.{index}") from error

    async def _create(
        self, account_id: str, name: str, description: str, examples: Examples
    ) -> BehaviorRecord:
        await self._behaviors.require_free(account_id, self._trainer.model.fingerprint, name)
        stored = await self._sae(examples)
        async with self._turn:
            calibrated = await self._calibrated(account_id, name, examples, stored)
            try:
                return await self._behaviors.add(
                    NewBehavior(account_id, name, description, examples.pairs, calibrated)
                )
            except BaseException:
                await self._discard(account_id, examples, calibrated)
                raise

    async def _recomputed(self, record: BehaviorRecord) -> Recomputed:
        try:
            return Recomputed(await self._anew(record), RecomputeStatus.SUCCEEDED)
        except SteersmanError as error:
            return Recomputed(record, RecomputeStatus.FAILED, error.message)

    async def _anew(self, record: BehaviorRecord) -> BehaviorRecord:
        account_id = record.account_id
        pairs = await self._behaviors.pairs(account_id, record.id)
        target = record.baseline.evidence.target if record.baseline else FALSE_POSITIVES
        examples = Examples(pairs, await self._kept(record), false_positives=target)
        async with self._turn:
            stored = await self._same_sae(record.sae)
            calibrated = await self._calibrated(account_id, record.name, examples, stored)
            try:
                return await self._behaviors.recalibrate(account_id, record.id, calibrated)
            except BaseException:
                await self._discard(account_id, examples, calibrated)
                raise

    async def _discard(self, account_id: str, examples: Examples, calibrated: Calibrated) -> None:
        """The vector that was made for a behaviour which then was not stored."""
        if examples.steering_vector_id is None:
            await self._vectors.delete_many(account_id, [calibrated.steering_vector_id])

    async def _kept(self, record: BehaviorRecord) -> str | None:
        """The behaviour's own vector, if it can act in this model."""
        try:
            found, _ = await self._stored.record(record.steering_vector_id, record.account_id)
        except (NotFound, Conflict):
            return None
        return found.id

    async def _same_sae(self, name: str) -> StoredSae:
        """The one of that name, or the one that fits best where it is gone or of another model."""
        try:
            return await self._saes.get(name)
        except (NotFound, Conflict):
            return await self._any_sae()

    async def _sae(self, examples: Examples) -> StoredSae:
        """Raises InvalidRequest for layers that it does not read."""
        stored = await (self._any_sae() if examples.sae is None else self._saes.get(examples.sae))
        for index, name in enumerate(examples.layer_names):
            try:
                layer = layer_of(name)
            except VectorError as error:
                raise InvalidRequest(str(error), param=f"layer_names.{index}") from error
            if layer != stored.card.layer:
                raise InvalidRequest(
                    f"the autoencoder {stored.card.name!r} reads layers.{stored.card.layer} and nothing else,"
                    f" not {name!r}: name that, leave layer_names out, or name another autoencoder in sae",
                    param=f"layer_names.{index}",
                )
        return stored

    async def _any_sae(self) -> StoredSae:
        try:
            return await self._saes.get(None)
        except NotFound as error:
            raise Conflict(
                f"There is no sparse autoencoder for {self._trainer.model.name!r}, in whose latents"
                " behaviours are told: `steersman sae train` makes one (`make sae` for the embedded model).",
                param="sae",
                code="no_sae",
            ) from error

    async def _calibrated(
        self, account_id: str, name: str, examples: Examples, stored: StoredSae
    ) -> Calibrated:
        request, model = _request(name, examples.pairs), self._trainer.model
        vector_id = examples.steering_vector_id
        vector: SteeringVector | None = None
        new: NewVector | None = None
        if vector_id is None:
            self._trainer.layers(request)  # what it refuses would else be refused after the work
        else:
            _, vector = await self._stored.record(vector_id, account_id)
        options = Options(false_positives=examples.false_positives)
        texts = await self._trainer.encoded(request)
        baseline, detector = await self._reader.read(texts, stored, options)
        if vector is None:
            new = await self._trainer.train(request, account_id, _quiet)
            vector = new.vector
        neutral = self._reader.neutral()
        strength, tried = await correction(self._engine, self._residency, model, vector, neutral)
        measured = [asdict(each) for each in tried]
        if new is not None:
            scale = None if strength is None else -strength
            evidence = {**(new.evidence or {}), "correction": measured}
            vector_id = await self._vectors.add(replace(new, scale=scale, evidence=evidence))
        assert vector_id is not None
        return Calibrated(
            model_name=model.name,
            model_fingerprint=model.fingerprint,
            sae=stored.card.name,
            sae_source=stored.card.source,
            sae_digest=baseline.sae,
            layer=stored.card.layer,
            hook=stored.card.hook,
            baseline=baseline,
            detector=detector,
            steering_vector_id=vector_id,
            strength=strength,
            evidence={"correction": measured, "pairs": len(examples.pairs)},
        )


def _request(name: str, pairs: Sequence[Pair]) -> TrainRequest:
    return TrainRequest(
        prompts=[pair.prompt for pair in pairs],
        positive_answers=[pair.positive for pair in pairs],
        negative_answers=[pair.negative or "" for pair in pairs],
        method="caa",
        name=name,
        category=CATEGORY,
    )


async def _quiet(_: Mapping[str, Any]) -> None:
    pass
