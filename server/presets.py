"""Presets: vectors for named traits, made for the served model when first asked for, or ahead.

A preset's vector is scaled so that strength 1 is the safe strength: as far as neutral text can bear it.
"""

import asyncio
import logging
import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import cache
from importlib.resources import files
from typing import Any

import numpy as np

from policies.steering import OWN_EXAMPLES, PRESET_FLOORS
from server.errors import InvalidRequest, SteersmanError
from server.evaluation import Effect, Engine, effect
from server.residency import Residency
from server.training import Trainer, TrainRequest
from server.vectors import VectorRecord, Vectors
from steering.spec import SteeringSpec, Term
from steering.train.pairs import EncodedPair, Pair, digest, read_jsonl
from steering.vector import SteeringVector

logger = logging.getLogger(__name__)

LEAST_PAIRS = 4
SAFE_COST = 0.25  # nats per token that neutral text may lose at strength 1, against no steering
_FIRST_DOSE = 0.1  # relative, at every candidate
_HIGHER = (0.15, 0.2, 0.3, 0.4, 0.6, 0.8)  # then at the best, up to the last that neutral text bears
_LOWER = (0.05, 0.025)  # or down to the first
_DEPTHS = (0.35, 0.45, 0.55, 0.65)  # of the model: where single layers steer most for what they cost
_HELD_OUT = 32  # of the pairs, at most
_CALIBRATION_PAIRS = 16  # of those held out, at most
_NEUTRAL_TOKENS = 96


@cache
def shipped(preset: str) -> tuple[Pair, ...]:
    """The pairs that come with this package."""
    return read_jsonl((files("steering") / "presets" / f"{preset}.jsonl").read_text(encoding="utf-8"))


class Presets:
    def __init__(self, vectors: Vectors, trainer: Trainer, engine: Engine, residency: Residency) -> None:
        self._vectors, self._trainer = vectors, trainer
        self._engine, self._residency = engine, residency
        self._making: dict[str, asyncio.Task[VectorRecord]] = {}

    async def vector(self, preset: str, account_id: str) -> VectorRecord:
        """The preset's vector for the served model, made now if need be, which takes seconds.

        Raises InvalidRequest for the preset that needs a user's examples and has none, and for the one that
        has no vector at all.
        """
        _require_vector(preset)
        if preset == OWN_EXAMPLES:
            return await self._own(preset, account_id)
        making = self._making.get(preset)
        if making is None:
            making = self._making[preset] = asyncio.create_task(self._shared(preset))
            making.add_done_callback(lambda done: self._made(preset, done))
        # It takes longer than some clients wait: whoever leaves must not begin anew next time.
        return await asyncio.shield(making)

    def _made(self, preset: str, making: "asyncio.Task[VectorRecord]") -> None:
        del self._making[preset]
        if not making.cancelled() and (error := making.exception()):
            logger.warning("The preset %s could not be made: %s", preset, error)

    async def _shared(self, preset: str) -> VectorRecord:
        pairs = shipped(preset)
        known = await self._vectors.preset(preset, self._trainer.model.fingerprint, None)
        if known is not None and known.dataset_digest == digest(pairs):
            return known
        return await self.build(preset, pairs, None)

    async def _own(self, preset: str, account_id: str) -> VectorRecord:
        known = await self._vectors.preset(preset, self._trainer.model.fingerprint, account_id)
        if known is None:
            raise InvalidRequest(
                f"{preset} is made from your own examples: send them to POST /steering/presets/{preset}",
                param="steering_preset",
            )
        return known

    async def build(self, preset: str, pairs: Sequence[Pair], account_id: str | None) -> VectorRecord:
        """Train on the first pairs, choose layer and strength by the others, store.

        Raises InvalidRequest for pairs that cannot be learnt from, SteersmanError where no strength is safe.
        """
        _require_vector(preset)
        if len(pairs) < LEAST_PAIRS:
            raise InvalidRequest(
                f"at least {LEAST_PAIRS} pairs are needed: some to learn from, others to measure the effect",
                param="prompts",
            )
        held = max(2, min(_HELD_OUT, len(pairs) // 3))
        texts = await self._trainer.encoded(_request(preset, pairs, None))
        made = await self._trainer.train(
            _request(preset, pairs[:-held], self._candidates()), account_id, _quiet
        )
        best, effects = await self._calibrated(preset, made.vector, texts[-held:][:_CALIBRATION_PAIRS])
        (layer,) = best.layers
        return await self._vectors.put_preset(
            replace(
                made,
                vector=best,
                name=preset,
                category="preset",
                doses=self._trainer.model.doses(best),
                scale=1.0,
                dataset_digest=digest(pairs),
                evidence={str(layer): (made.evidence or {})[str(layer)], "calibration": effects},
                preset=preset,
            )
        )

    def _candidates(self) -> tuple[int, ...]:
        count = self._trainer.model.layers
        return tuple(dict.fromkeys(min(count - 1, round(count * depth)) for depth in _DEPTHS))

    async def _calibrated(
        self, preset: str, vector: SteeringVector, held_out: Sequence[EncodedPair]
    ) -> tuple[SteeringVector, list[dict[str, float | None]]]:
        """The layer that moves the margin most at one dose, scaled to what neutral text can bear.

        Raises SteersmanError where it can bear nothing.
        """
        tokenizer = self._trainer.tokenizer
        neutral = [tokenizer.encode(text)[:_NEUTRAL_TOKENS] for text in self._trainer.background]
        measured: list[dict[str, float | None]] = []

        async def at(layer: int, dose: float) -> Effect:
            strength = dose * float(self._trainer.model.norms[layer]) / vector.norms[layer]
            spec = SteeringSpec((Term(vector.digest, (layer,), strength=strength),))
            found = await effect(self._engine, held_out, neutral, spec)
            measured.append({"layer": layer, "dose": dose, **_numbers(found)})
            return found

        def bearable(found: Effect) -> bool:
            return found.neutral - plain.neutral <= SAFE_COST  # it is not where one is NaN

        lease = await self._residency.hold([vector])
        try:
            plain = await effect(self._engine, held_out, neutral, None)
            measured.append({"dose": 0.0, **_numbers(plain)})
            tried = {layer: await at(layer, _FIRST_DOSE) for layer in sorted(vector.layers)}
            layer = max(tried, key=lambda layer: np.nan_to_num(tried[layer].margin, nan=-np.inf))
            rising = bearable(tried[layer])
            safe = _FIRST_DOSE if rising else 0.0
            for dose in _HIGHER if rising else _LOWER:
                borne = bearable(await at(layer, dose))
                safe = dose if borne else safe
                if borne is not rising:
                    break
        finally:
            lease.release()
        if not safe:
            raise SteersmanError(
                f"{preset} has no safe strength on this model: even at a relative dose of {_LOWER[-1]:g} "
                f"neutral text loses more than {SAFE_COST:g} nats per token"
            )
        factor = safe * float(self._trainer.model.norms[layer]) / vector.norms[layer]
        return SteeringVector.of({layer: vector.layers[layer].direction * np.float32(factor)}), measured


def _numbers(found: Effect) -> dict[str, float | None]:
    """As JSON can say them."""
    numbers = {"margin": found.margin, "neutral": found.neutral}
    return {name: number if math.isfinite(number) else None for name, number in numbers.items()}


def _require_vector(preset: str) -> None:
    if PRESET_FLOORS.get(preset) is None:
        raise InvalidRequest(f"{preset} has no vector: it constrains the text", param="steering_preset")


def _request(preset: str, pairs: Sequence[Pair], layers: Sequence[int] | None) -> TrainRequest:
    return TrainRequest(
        prompts=[pair.prompt for pair in pairs],
        positive_answers=[pair.positive for pair in pairs],
        negative_answers=[pair.negative or "" for pair in pairs],
        method="caa",
        name=preset,
        layer_idxs=list(layers) if layers else None,
    )


async def _quiet(_: Mapping[str, Any]) -> None:
    pass
