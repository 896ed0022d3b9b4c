"""Whether behaviours can be monitored and corrected here, or what is missing."""

from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum

from server.behaviors import BehaviorRecord
from server.errors import Conflict
from server.vectors import SteeredModel, VectorRecord, Vectors, require_model

_ANEW = "POST /behaviors/recompute-baselines makes it anew"


class ReadinessState(StrEnum):
    READY = "ready"
    PARTIAL = "partial"


class BehaviorPart(StrEnum):
    MODEL = "model"
    BASELINE = "sae_baseline"
    VECTOR = "steering_vector"
    STRENGTH = "steering_strength"


@dataclass(frozen=True, slots=True)
class Missing:
    part: BehaviorPart
    message: str


@dataclass(frozen=True, slots=True)
class Readiness:
    """`missing` is empty where the behaviour can be monitored and corrected.

    The autoencoder itself is not among the parts: a behaviour holds what it needs of it.
    """

    missing: tuple[Missing, ...]

    @property
    def state(self) -> ReadinessState:
        return ReadinessState.PARTIAL if self.missing else ReadinessState.READY

    @property
    def monitored(self) -> bool:
        return not {BehaviorPart.MODEL, BehaviorPart.BASELINE} & {each.part for each in self.missing}

    @property
    def corrected(self) -> bool:
        """A correction alone, without monitoring, is `force_steering`."""
        return not {BehaviorPart.MODEL, BehaviorPart.VECTOR, BehaviorPart.STRENGTH} & {
            each.part for each in self.missing
        }


async def readiness(
    account_id: str, records: Sequence[BehaviorRecord], vectors: Vectors, model: SteeredModel | None
) -> Sequence[Readiness]:
    """Of each of `records`. `model` None: this server cannot steer."""
    known = await vectors.those(account_id, {record.steering_vector_id for record in records})
    return [_readiness(record, known.get(record.steering_vector_id), model) for record in records]


def _readiness(record: BehaviorRecord, vector: VectorRecord | None, model: SteeredModel | None) -> Readiness:
    if model is None:
        return Readiness((Missing(BehaviorPart.MODEL, "this server cannot steer the model that it serves"),))
    if record.model_fingerprint != model.fingerprint:
        return Readiness(
            (
                Missing(
                    BehaviorPart.MODEL,
                    f"it was made for {record.model_name!r}, this server serves {model.name!r}; {_ANEW}",
                ),
            )
        )
    missing = []
    if record.baseline is None:
        missing.append(
            Missing(BehaviorPart.BASELINE, f"another version of the server calibrated it; {_ANEW}")
        )
    if vector is None:
        lost = f"the steering vector {record.steering_vector_id!r} was deleted"
        missing.append(Missing(BehaviorPart.VECTOR, f"{lost}; {_ANEW}"))
    else:
        try:
            require_model(vector, model)
        except Conflict as error:
            missing.append(Missing(BehaviorPart.VECTOR, f"{error.message} {_ANEW}"))
    if record.strength is None:
        missing.append(
            Missing(
                BehaviorPart.STRENGTH,
                "neutral text bears no strength of its steering vector; make the behaviour from more"
                " examples, or give it another vector",
            )
        )
    return Readiness(tuple(missing))
