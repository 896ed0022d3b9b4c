"""What whoever adds an autoencoder knows, and its files do not say or say wrongly."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Told:
    """`hook` and `model` win over the files. `norm_factor` is what training multiplied states by.

    It is asked for only where the files say expected_average_only_in and do not tell the factor; where it has
    been folded into the weights already, it is 1.
    """

    hook: str | None = None
    model: str | None = None
    norm_factor: float | None = None
