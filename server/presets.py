"""Presets: vectors for named traits, made for the served model when first asked for, or ahead.

A preset's vector is scaled so that strength 1 is the safe strength: as far as neutral text can bear it.
"""

import asyncio
import logging
from collections.abc import Mapping, Sequence
from dataclasses import replace
from importlib.resources import files
from typing import Any

import numpy as np

from policies.steering import OWN_EXAMPLES, PRESET_FLOORS
from server.errors import InvalidRequest
from server.evaluation import Effect, Engine, effect
from server.residency import Residency
from server.training import Trainer, TrainRequest
from server.vectors import VectorRecord, Vectors
from steering.spec import SteeringSpec, Term
from steering.train.pairs import Pair, encoded, read_jsonl
from steering.vector import SteeringVector

logger = logging.getLogger(__name__)

TRAINING_PAIRS = 64  # the others of a shipped set are held out
SAFE_COST = 0.25  # nats per token that neutral text may lose at strength 1
_DOSES = (0.1, 0.15, 0.2, 0.3, 0.4, 0.6, 0.8)  # relative doses, the first of them at every candidate
_DEPTHS = (0.35, 0.45, 0.55, 0.65)  # of the model: where single layers steer most for what they cost
_CALIBRATION_PAIRS = 16
_NEUTRAL_TOKENS = 96


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
        known = await self._vectors.preset(preset, self._trainer.model.fingerprint, None)
        return known or await self.build(preset, shipped(preset), None)

    async def _own(self, preset: str, account_id: str) -> VectorRecord:
        known = await self._vectors.preset(preset, self._trainer.model.fingerprint, account_id)
        if known is None:
            raise InvalidRequest(
                f"{preset} is made from your own examples: send them to POST /steering/presets/{preset}",
                param="steering_preset",
            )
        return known

    async def build(self, preset: str, pairs: Sequence[Pair], account_id: str | None) -> VectorRecord:
        """Train on the first pairs, choose layer and strength by the others, store. Raises InvalidRequest."""
        _require_vector(preset)
        made = await self._trainer.train(
            _request(preset, pairs[:TRAINING_PAIRS], self._candidates()), account_id, _quiet
        )
        held = pairs[TRAINING_PAIRS:] or pairs[-max(2, len(pairs) // 4) :]
        best, effects = await self._calibrated(made.vector, _request(preset, held, None))
        (layer,) = best.layers
        return await self._vectors.put_preset(
            replace(
                made,
                vector=best,
                name=preset,
                category="preset",
                doses=self._trainer.doses(best),
                scale=1.0,
                evidence={str(layer): (made.evidence or {})[str(layer)], "calibration": effects},
                preset=preset,
            )
        )

    def _candidates(self) -> tuple[int, ...]:
        count = self._trainer.model.layers
        return tuple(dict.fromkeys(min(count - 1, round(count * depth)) for depth in _DEPTHS))

    async def _calibrated(
        self, vector: SteeringVector, held_out: TrainRequest
    ) -> tuple[SteeringVector, list[dict[str, float]]]:
        """The layer that moves the margin most at one dose, scaled to what neutral text can bear."""
        pairs, encode = self._trainer.prompted(held_out)
        texts = encoded(encode, pairs[:_CALIBRATION_PAIRS])
        tokenizer = self._trainer.tokenizer
        neutral = [tokenizer.encode(text)[:_NEUTRAL_TOKENS] for text in self._trainer.background]
        measured: list[dict[str, float]] = []

        async def at(layer: int, dose: float) -> Effect:
            strength = dose * float(self._trainer.model.norms[layer]) / vector.norms[layer]
            spec = SteeringSpec((Term(vector.digest, (layer,), strength=strength),))
            found = await effect(self._engine, texts, neutral, spec, dose)
            measured.append({"layer": layer, "dose": dose, "margin": found.margin, "neutral": found.neutral})
            return found

        lease = await self._residency.hold([vector])
        try:
            plain = await effect(self._engine, texts, neutral, None, 0.0)
            measured.append({"dose": 0.0, "margin": plain.margin, "neutral": plain.neutral})
            tried = {layer: await at(layer, _DOSES[0]) for layer in sorted(vector.layers)}
            layer = max(tried, key=lambda layer: tried[layer].margin)
            safe = _DOSES[0]
            for dose in _DOSES[1:]:
                cost = (await at(layer, dose)).neutral - plain.neutral
                if not cost <= SAFE_COST:  # nor where it is NaN
                    break
                safe = dose
        finally:
            lease.release()
        factor = safe * float(self._trainer.model.norms[layer]) / vector.norms[layer]
        return SteeringVector.of({layer: vector.layers[layer].direction * np.float32(factor)}), measured


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
