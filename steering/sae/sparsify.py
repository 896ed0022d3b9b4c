"""EleutherAI's sparsify: a folder named as its module, with `cfg.json` and `sae.safetensors`."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

import torch
from torch import Tensor

from steering.sae.encode import Architecture
from steering.sae.errors import CorruptSae, UnsupportedSae
from steering.sae.model import block_of
from steering.sae.sae import SparseAutoencoder
from steering.sae.told import Told
from steering.sae.weights import MAX_BYTES, read_json, read_safetensors

CONFIG: Final = "cfg.json"
WEIGHTS: Final = "sae.safetensors"


def read(folder: Path, told: Told, limit: int = MAX_BYTES) -> SparseAutoencoder:
    config = read_json(folder / CONFIG)
    _check(config)
    hook = told.hook or folder.absolute().name
    layer = block_of(hook)
    width, latents, k = _sizes(config)
    tensors = read_safetensors(folder / WEIGHTS, limit)
    read_rows = _tensor(tensors, "encoder.weight", "W_enc")
    write_rows = _tensor(tensors, "W_dec", "decoder.weight")
    return SparseAutoencoder(
        architecture=Architecture.TOPK,
        W_enc=_lying(read_rows, (width, latents), rows_first=False),
        W_dec=_lying(write_rows, (latents, width), rows_first=True),
        b_enc=tensors.get("encoder.bias", tensors.get("b_enc", torch.zeros(latents))),
        b_dec=tensors.get("b_dec", tensors.get("decoder.bias", torch.zeros(width))),
        k=k,
        layer=layer,
        hook=hook,
        model=told.model or _model(folder),
        apply_b_dec_to_input=True,
    )


def _check(config: Mapping[str, Any]) -> None:
    if config.get("transcode"):
        raise UnsupportedSae("it is a transcoder, which predicts another place than it reads")
    if config.get("signed"):
        raise UnsupportedSae("its latents may be negative (signed): only those above 0 are served")
    if config.get("skip_connection"):
        raise UnsupportedSae("it has a skip connection beside its latents")
    if config.get("activation", "topk") != "topk":
        raise UnsupportedSae(f"its activation is {config['activation']!r}, not topk")


def _sizes(config: Mapping[str, Any]) -> tuple[int, int, int]:
    """Width, latents and k; newer configurations tell the number of latents, or 0."""
    width, k = config.get("d_in"), config.get("k")
    latents = config.get("num_latents") or 0
    factor = config.get("expansion_factor") or 0
    if not all(isinstance(number, int) and number >= 0 for number in (width, k, latents, factor)):
        raise CorruptSae(f"{CONFIG} needs d_in, k, and num_latents or expansion_factor, as whole numbers")
    assert width is not None
    assert k is not None
    return width, latents or width * factor, k


def _lying(tensor: Tensor, shape: tuple[int, int], *, rows_first: bool) -> Tensor:
    """In this shape, however it lies in the file; sparsify writes one row per latent in both matrices.

    `rows_first` says that `shape` has latents first; it decides only where a square leaves both ways open.
    """
    found = tuple(tensor.shape)
    square = shape[0] == shape[1]
    if found == shape and (rows_first or not square):
        return tensor
    if found == shape[::-1]:
        return tensor.T.contiguous()
    raise CorruptSae(f"{WEIGHTS} holds a matrix {list(found)}, {CONFIG} says {list(shape)}")


def _tensor(tensors: Mapping[str, Tensor], *names: str) -> Tensor:
    for name in names:
        if name in tensors:
            return tensors[name]
    raise CorruptSae(f"{WEIGHTS} has no {names[0]}; it has {', '.join(sorted(tensors)) or 'nothing'}")


def _model(folder: Path) -> str:
    """From the `config.json` of the run, one folder up."""
    run = folder.absolute().parent / "config.json"
    if not run.is_file():
        return ""
    model = read_json(run).get("model")
    return model if isinstance(model, str) else ""
