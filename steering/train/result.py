"""What a training method returns."""

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass

from steering.vector import SteeringVector


@dataclass(frozen=True, slots=True)
class Evidence:
    """What is known of one layer of a vector; None where the method does not measure it."""

    norm: float  # ‖direction‖
    relative_dose: float | None = None  # norm over the mean ‖h‖ of that layer: the dose at strength 1
    pairs: int | None = None
    cosine: float | None = None  # mean pairwise cosine of the single differences
    auroc: float | None = None  # positives over negatives, on texts held out
    log_loss: float | None = None  # nats per token, on texts held out
    loss_before: float | None = None  # of the completions, unsteered
    loss: float | None = None  # of the completions, steered at strength 1
    iterations: int | None = None
    latents: int | None = None  # sparse latents kept
    explained: float | None = None  # share of the states' variance that the autoencoder explains
    active: float | None = None  # latents active per token

    def known(self) -> dict[str, float]:
        """Numbers alone: JSON has no others."""
        known = {name: value for name, value in asdict(self).items() if value is not None}
        return {name: value for name, value in known.items() if math.isfinite(value)}


@dataclass(frozen=True)
class Trained:
    vector: SteeringVector
    evidence: Mapping[int, Evidence]
