"""Presets: vectors for named traits, made for the served model when first asked for, or ahead.

A preset's vector is scaled so that strength 1 is the safe strength: as far as neutral text can bear it.
"""

import asyncio
import logging
from collections import defaultdict
from collections.abc import Mapping, Sequence
from importlib.resources import files
from typing import Any

import numpy as np

from policies.steering import OWN_EXAMPLES, PRESET_FLOORS
from server.errors import InvalidRequest
from server.evaluation import Effect, Engine, effect
from server.residency import Residency
from server.training import Trainer, TrainRequest
from server.vectors import NewVector, VectorRecord, Vectors
from steering.spec import SteeringSpec, Term
from steering.train.pairs import Pair, encoded, read_jsonl
from steering.vector import SteeringVector

logger = logging.getLogger(__name__)

TRAINING_PAIRS = 64  # the others of a shipped set are held out
SAFE_COST = 0.15  # nats per token that neutral text may lose at strength 1
_DOSES = (0.05, 0.1, 0.15, 0.2, 0.3, 0.4, 0.55, 0.75, 1.0)  # relative doses tried, largest of all layers
_CALIBRATION_PAIRS = 16
_NEUTRAL_TOKENS = 96


def shipped(preset: str) -> tuple[Pair, ...]:
    """The pairs that come with this package."""
    return read_jsonl((files("steering") / "presets" / f"{preset}.jsonl").read_text(encoding="utf-8"))


class Presets:
    def __init__(self, vectors: Vectors, trainer: Trainer, engine: Engine, residency: Residency) -> None:
        self._vectors, self._trainer = vectors, trainer
        self._engine, self._residency = engine, residency
        self._building: defaultdict[str, asyncio.Lock] = defaultdict(asyncio.Lock)

    async def vector(self, preset: str, account_id: str) -> VectorRecord:
        """The preset's vector for the served model, made now if need be, which takes seconds.

        Raises InvalidRequest for the preset that needs a user's examples and has none.
        """
        owner = account_id if preset == OWN_EXAMPLES else None
        async with self._building[preset]:
            known = await self._vectors.preset(preset, self._trainer.model.fingerprint, owner)
            if known is not None:
                return known
            if owner is not None:
                raise InvalidRequest(
                    f"{preset} is made from your own examples: send them to POST /steering/presets/{preset}",
                    param="steering_preset",
                )
            return await self.build(preset, shipped(preset), None)

    async def build(self, preset: str, pairs: Sequence[Pair], account_id: str | None) -> VectorRecord:
        """Train on the first pairs, calibrate on the rest, store. Raises InvalidRequest."""
        if PRESET_FLOORS.get(preset) is None:
            raise InvalidRequest(f"{preset} has no vector", param="steering_preset")
        held = pairs[TRAINING_PAIRS:] or pairs[-max(2, len(pairs) // 4) :]
        request = _request(preset, pairs[:TRAINING_PAIRS])
        made = await self._trainer.train(request, account_id, _quiet)
        safe, effects = await self.calibrate(made.vector, _request(preset, held))
        logger.info("Preset %s: safe strength %.3g of the raw vector", preset, safe)
        vector = made.vector.scaled(safe)
        return await self._vectors.put_preset(
            NewVector(
                account_id=account_id,
                vector=vector,
                method=made.method,
                model_name=made.model_name,
                model_fingerprint=made.model_fingerprint,
                name=preset,
                category="preset",
                doses={layer: dose * safe for layer, dose in (made.doses or {}).items()},
                scale=1.0,
                dataset_digest=made.dataset_digest,
                evidence={**(made.evidence or {}), "calibration": [_plain(each) for each in effects]},
                preset=preset,
            )
        )

    async def calibrate(self, vector: SteeringVector, held_out: TrainRequest) -> tuple[float, list[Effect]]:
        """The largest strength that costs neutral text at most SAFE_COST, and what was measured."""
        pairs, encode = self._trainer.prompted(held_out)
        texts = encoded(encode, pairs[:_CALIBRATION_PAIRS])
        neutral = [
            self._trainer.tokenizer.encode(text)[:_NEUTRAL_TOKENS] for text in self._trainer.background
        ]
        layers = tuple(sorted(vector.layers))
        norms = self._trainer.model.norms
        summed = np.cumsum([vector.layers[layer].direction for layer in layers], axis=0)
        unit = max(
            np.linalg.norm(row) / float(norms[layer]) for layer, row in zip(layers, summed, strict=True)
        )
        plain = await effect(self._engine, texts, neutral, None, 0.0)
        found, safe = [plain], 0.0
        lease = await self._residency.hold([vector])
        try:
            for dose in _DOSES:
                strength = float(dose / unit)
                spec = SteeringSpec((Term(vector.digest, layers, strength=strength),))
                found.append(await effect(self._engine, texts, neutral, spec, strength))
                if found[-1].neutral - plain.neutral > SAFE_COST:
                    break
                safe = strength
        finally:
            lease.release()
        return safe or float(_DOSES[0] / unit), found


def _request(preset: str, pairs: Sequence[Pair]) -> TrainRequest:
    return TrainRequest(
        prompts=[pair.prompt for pair in pairs],
        positive_answers=[pair.positive for pair in pairs],
        negative_answers=[pair.negative or "" for pair in pairs],
        method="caa",
        name=preset,
    )


def _plain(measured: Effect) -> dict[str, float]:
    return {"strength": measured.strength, "margin": measured.margin, "neutral": measured.neutral}


async def _quiet(_: Mapping[str, Any]) -> None:
    pass
