"""Whether an autoencoder fits the model served: its place, its width, its name."""

import re
from dataclasses import dataclass

from steering.files import layer_of
from steering.sae.errors import WrongHook, WrongModel
from steering.sae.sae import SparseAutoencoder
from steering.vector import VectorError

# What hooks inside a block or before the first one are called (patterns), and what stands there.
_INSIDE = {
    "mlp": "an MLP",
    "ffn": "an MLP",
    "attn": "attention",
    "att": "attention",
    "hook_z": "attention heads",
    "hook_q": "attention heads",
    "hook_k": "attention heads",
    "hook_v": "attention heads",
    "ln1": "a norm within a block",
    "ln2": "a norm within a block",
    "resid_mid": "the middle of a block",
    "normalized": "a norm within a block",
    "embed": "the embedding",
    "embedding": "the embedding",
    "transcoders?": "an MLP",
}


def block_of(hook: str) -> int:
    """The decoder block whose output `hook` is; what enters block L is what leaves block L - 1.

    Raises WrongHook for every place but the residual stream between blocks.
    """
    try:
        return layer_of(hook.removesuffix(".output"))
    except VectorError as error:
        place = place_inside(hook)
        where = f"reads {place}" if place else f"does not name a place known here ({error})"
        raise WrongHook(
            f"the hook {hook[:80]!r} {where}: monitoring and steering act on the residual stream between "
            "blocks, so take an autoencoder of 'blocks.L.hook_resid_post' (or 'layers.L')"
        ) from error


def place_inside(hook: str) -> str | None:
    """What a hook, or a folder's name, says that it reads, if that is not the stream between blocks."""
    lowered = hook.lower()
    for name, place in _INSIDE.items():
        if re.search(rf"(?<![a-z0-9]){name}(?![a-z0-9])", lowered):
            return place
    return None


@dataclass(frozen=True, slots=True)
class ModelFacts:
    """The model served: decoder blocks, width of the residual stream, and all names it goes by."""

    layers: int
    width: int
    name: str
    aliases: tuple[str, ...] = ()

    def check(self, sae: SparseAutoencoder, *, any_name: bool = False) -> None:
        """Raises WrongModel where `sae` does not fit.

        An autoencoder that names another model is refused unless `any_name` says that this is meant, as for
        one of the base model on its instruct version; one that names no model is taken by its shape.
        """
        if sae.d_in != self.width:
            raise WrongModel(
                f"the autoencoder reads states {sae.d_in} wide, those of {self.name} are {self.width} wide"
            )
        if not 0 <= sae.layer < self.layers:
            raise WrongModel(
                f"the autoencoder is of block {sae.layer}, {self.name} has blocks 0 to {self.layers - 1}"
            )
        ours = {_plain(name) for name in (self.name, *self.aliases)}
        if sae.model and not any_name and _plain(sae.model) not in ours:
            raise WrongModel(
                f"the autoencoder was trained on {sae.model!r}, served is {self.name!r}: "
                "say that any name is meant if the two are close relatives"
            )


def _plain(name: str) -> str:
    """`EleutherAI/pythia-70m` and `pythia-70m` are the same."""
    return name.rstrip("/").rpartition("/")[2].lower()
