"""How good an autoencoder is on texts it has not learned from: measured, shown, and kept on its card."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import psutil
import torch

from server.columns import columns
from server.text_states import TextStates
from steering.sae.cross_entropy import CrossEntropies, cross_entropies
from steering.sae.errors import SaeError
from steering.sae.quality import Quality, measure
from steering.sae.sae import SparseAutoencoder
from steering.sae.train import longest_ordinary, with_threshold
from steering.vector import Array

PREDICTED: Final = 4096  # tokens, at most, that cross-entropies are measured on


class NoWeights(Exception):
    """The model cannot be run here, so cross-entropies are not known; the message says why."""


@dataclass(frozen=True, slots=True)
class Measures:
    """`unknown` says why there is no `loss`."""

    quality: Quality
    loss: CrossEntropies | None
    unknown: str

    @property
    def figures(self) -> Mapping[str, float]:
        """As the card keeps them."""
        quality = self.quality
        kept = {"explained": quality.explained, "l0": quality.l0, "dead": quality.dead}
        kept["tokens"] = float(quality.rows)
        if self.loss is not None:
            kept |= {
                "cross_entropy_recovered": self.loss.recovered,
                "cross_entropy": self.loss.clean,
                "cross_entropy_reconstructed": self.loss.reconstructed,
                "cross_entropy_ablated": self.loss.ablated,
                "cross_entropy_tokens": float(self.loss.tokens),
            }
        return {name: float(value) for name, value in kept.items()}

    def table(self) -> str:
        quality, loss = self.quality, self.loss
        rows = [
            ("variance explained", f"{quality.explained:.1%}", f"of {quality.rows} held-out states"),
            ("L0", f"{quality.l0:.1f}", f"of {len(quality.density)} latents active at a time, on average"),
            ("dead", f"{quality.dead:.1%}", "of the latents, active at none of these states"),
            ("passed over", str(quality.passed_over), "attention sinks, ten times as long as other states"),
        ]
        if loss is None:
            rows.append(("cross-entropy recovered", "-", self.unknown))
        else:
            told = f"{loss.clean:.3f} nats, {loss.reconstructed:.3f} with reconstructions, "
            told += f"{loss.ablated:.3f} with the mean state; {loss.tokens} tokens"
            rows.append(("cross-entropy recovered", f"{loss.recovered:.1%}", told))
        return columns(rows)


def servable(sae: SparseAutoencoder, rows: Array) -> SparseAutoencoder:
    """`sae`, or where it ranks its latents, the same with a threshold that `rows` `[n, d_in]` calibrate."""
    return sae if sae.subset_is_exact else with_threshold(sae.unscaled(), rows)


def measures(sae: SparseAutoencoder, held_out: TextStates, weights: str) -> Measures:
    """Over states that `sae` has not seen; `weights` is the model's folder or id. Raises SaeError."""
    longest = longest_ordinary(held_out.states)
    quality = measure(sae, [held_out.states], longest)
    ordinary = held_out.states[_lengths(held_out.states) <= longest]
    try:
        loss = cross_entropies(load_model(weights), sae, _some(held_out), ordinary.mean(axis=0), longest)
        loss.recovered  # noqa: B018  # raises where there is no scale
    except (NoWeights, SaeError) as error:
        return Measures(quality, None, str(error))
    return Measures(quality, loss, "")


def _lengths(states: Array) -> Array:
    lengths: Array = torch.from_numpy(states).norm(dim=1).numpy()
    return lengths


def _some(states: TextStates) -> list[list[int]]:
    found: list[list[int]] = []
    for ids in states.ids:
        if sum(map(len, found)) >= PREDICTED:
            break
        found.append(ids)
    return found


def load_model(weights: str) -> Any:
    """The model in float32, from this machine's disk alone. Raises NoWeights."""
    from huggingface_hub import snapshot_download  # noqa: PLC0415  # seconds to import
    from huggingface_hub.errors import HFValidationError, LocalEntryNotFoundError  # noqa: PLC0415
    from transformers import AutoModelForCausalLM  # noqa: PLC0415
    from transformers.utils import logging  # noqa: PLC0415

    logging.disable_progress_bar()  # it would stand between the figures
    try:
        folder = Path(weights)
        if not folder.is_dir():
            folder = Path(snapshot_download(weights, local_files_only=True))
    except (LocalEntryNotFoundError, HFValidationError, OSError) as error:
        raise NoWeights(f"not measured: the model's weights ({weights}) are not on this machine") from error
    # Weights are mostly of two bytes, and four in memory; states and logits beside them.
    needed = 3 * sum(file.stat().st_size for file in folder.glob("*.safetensors"))
    if not needed:
        raise NoWeights(f"not measured: {folder} holds no safetensors")
    if needed > (free := psutil.virtual_memory().available):
        raise NoWeights(
            f"not measured: the model takes some {needed / 2**30:.0f} GiB in float32, and "
            f"{free / 2**30:.0f} are free"
        )
    try:
        return AutoModelForCausalLM.from_pretrained(
            folder, dtype=torch.float32, local_files_only=True, use_safetensors=True
        )
    except (OSError, ValueError, ImportError, RuntimeError) as error:
        raise NoWeights(f"not measured: transformers does not load {folder}: {error}") from error
