"""Gemma Scope: `layer_L/width_W/average_l0_N/params.npz`. What it is of stands in the path alone."""

import re
from pathlib import Path
from typing import Final

from steering.sae.encode import Architecture
from steering.sae.errors import CorruptSae, WrongHook
from steering.sae.model import block_of, place_inside
from steering.sae.sae import SparseAutoencoder
from steering.sae.told import Told
from steering.sae.weights import MAX_BYTES, read_npz

WEIGHTS: Final = "params.npz"

_TENSORS = ("W_enc", "W_dec", "b_enc", "b_dec", "threshold")
_REPOSITORY = re.compile(r"gemma-scope-(\d+b)-(pt|it)(?:-[a-z]+)?")
_DEPTH = 4  # how far up a folder's name is its own: layer, width, l0, file


def read(folder: Path, told: Told, limit: int = MAX_BYTES) -> SparseAutoencoder:
    parts = folder.absolute().parts
    # The older ones were published with keys in lower case.
    names = [*_TENSORS, *(name.replace("W_", "w_") for name in _TENSORS)]
    hook = told.hook or _hook(parts)
    layer = block_of(hook)
    arrays = read_npz(folder / WEIGHTS, names, limit)
    tensors = {name.replace("w_", "W_"): array for name, array in arrays.items()}
    missing = [name for name in _TENSORS if name not in tensors]
    if missing:
        raise CorruptSae(f"{WEIGHTS} has no {', '.join(missing)}")
    return SparseAutoencoder(
        architecture=Architecture.JUMPRELU,
        W_enc=tensors["W_enc"],
        W_dec=tensors["W_dec"],
        b_enc=tensors["b_enc"],
        b_dec=tensors["b_dec"],
        threshold=tensors["threshold"],
        layer=layer,
        hook=hook,
        model=told.model or _model(parts),
    )


def _hook(parts: tuple[str, ...]) -> str:
    for part in (*parts[-_DEPTH:], *(part for part in parts if _REPOSITORY.search(part))):
        place = place_inside(part)
        if place:
            raise WrongHook(
                f"{part!r} says that it reads {place}: take one of the residual stream (gemma-scope-…-res)"
            )
    for part in reversed(parts):
        layer = re.fullmatch(r"layer_(\d{1,4})", part)
        if layer:
            return f"blocks.{layer[1]}.hook_resid_post"
    raise WrongHook(
        f"{WEIGHTS} does not lie under a folder layer_L that says where it reads: keep the folders "
        "layer_L/width_W/average_l0_N, or tell its hook, as 'blocks.L.hook_resid_post'"
    )


def _model(parts: tuple[str, ...]) -> str:
    """gemma-scope-2b-pt-res is of google/gemma-2-2b; "" where no folder says."""
    found = [match for part in reversed(parts) if (match := _REPOSITORY.search(part))]
    if not found:
        return ""
    return f"google/gemma-2-{found[0][1]}{'-it' if found[0][2] == 'it' else ''}"
