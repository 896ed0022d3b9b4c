"""SAELens' own layout, from version 6 and from before: `cfg.json` and `sae_weights.safetensors`."""

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

import torch
from safetensors.torch import save
from torch import Tensor

from steering.sae.encode import Architecture, Normalisation
from steering.sae.errors import CorruptSae, SaeError, UnsupportedSae, WrongHook
from steering.sae.model import block_of
from steering.sae.sae import Gate, SparseAutoencoder
from steering.sae.told import Told
from steering.sae.weights import MAX_BYTES, read_json, read_safetensors

CONFIG: Final = "cfg.json"
WEIGHTS: Final = "sae_weights.safetensors"

_WRITTEN_AS = "6.0.0"  # the version of SAELens whose layout is written
_DIGEST = "steersman_digest"

# Before version 6 some keys had other names, and those of `metadata` stood beside the others.
_OLDER = {"hook_name": "hook_point", "activation_fn": "activation_fn_str"}
_ARCHITECTURES = {kind.value: kind for kind in Architecture} | {
    "matryoshka_batchtopk": Architecture.BATCHTOPK,
}


def read(folder: Path, told: Told, limit: int = MAX_BYTES) -> SparseAutoencoder:
    config = read_json(folder / CONFIG)
    flat = _flat(config)
    architecture = _architecture(flat)
    hook = told.hook or _hook(flat)
    layer = block_of(hook)
    if flat.get("reshape_activations") not in (None, "none"):
        raise WrongHook(f"it reshapes what it reads ({flat['reshape_activations']}): no residual stream does")
    normalisation = _normalisation(flat)
    tensors = read_safetensors(folder / WEIGHTS, limit)
    _check_config(flat, tensors)
    rescaled = bool(flat.get("rescale_acts_by_decoder_norm"))
    if architecture is Architecture.BATCHTOPK:
        tensors = _as_jumprelu(tensors, fold=rescaled)
    folds = normalisation is Normalisation.EXPECTED_AVERAGE
    gated = architecture is Architecture.GATED
    sae = SparseAutoencoder(
        architecture=architecture,
        W_enc=_need(tensors, "W_enc"),
        W_dec=_finetuned(flat, tensors),
        b_enc=None if gated else _need(tensors, "b_enc"),
        b_dec=_need(tensors, "b_dec"),
        layer=layer,
        hook=hook,
        model=told.model or _text(flat, "model_name"),
        k=_count(flat),
        threshold=_threshold(architecture, tensors),
        gate=Gate(*(_need(tensors, name) for name in ("b_gate", "b_mag", "r_mag"))) if gated else None,
        apply_b_dec_to_input=bool(flat.get("apply_b_dec_to_input", True)),
        normalisation=Normalisation.NONE if folds else normalisation,
        rescale_acts_by_decoder_norm=rescaled and architecture is Architecture.TOPK,
    )
    if folds:
        sae = sae.folded(_factor(flat, told))
    digest = flat.get(_DIGEST)
    # What a caller says of the place is part of the digest, so it is compared only as written.
    if digest is not None and told.hook is None and digest != sae.digest:
        raise CorruptSae(f"{WEIGHTS} is not what {CONFIG} was written for: its digest differs")
    return sae


def write(sae: SparseAutoencoder, folder: Path) -> None:
    """Each file at once or not at all; a folder with files of two autoencoders is refused when read."""
    folder.mkdir(parents=True, exist_ok=True)
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in sae.tensors.items()}
    replace_file(folder / WEIGHTS, save(tensors))
    replace_file(folder / CONFIG, json.dumps(_config(sae), indent=2).encode())


def replace_file(path: Path, data: bytes) -> None:
    """Readers see the old content or the new, also after a crash."""
    beside = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        with beside.open("wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        beside.replace(path)
    finally:
        beside.unlink(missing_ok=True)


def _config(sae: SparseAutoencoder) -> dict[str, Any]:
    config: dict[str, Any] = {
        "architecture": sae.saved_as.value,
        "d_in": sae.d_in,
        "d_sae": sae.d_sae,
        "dtype": "float32",
        "device": "cpu",
        "apply_b_dec_to_input": sae.apply_b_dec_to_input,
        "normalize_activations": sae.normalisation.value,
        "reshape_activations": "none",
        "metadata": {
            "sae_lens_version": _WRITTEN_AS,
            "model_name": sae.model,
            "hook_name": sae.hook or f"blocks.{sae.layer}.hook_resid_post",
            _DIGEST: sae.digest,
        },
    }
    if sae.architecture is Architecture.TOPK:
        config |= {"k": sae.k, "rescale_acts_by_decoder_norm": sae.rescale_acts_by_decoder_norm}
    return config


def _flat(config: Mapping[str, Any]) -> dict[str, Any]:
    metadata = config.get("metadata")
    flat = {**(metadata if isinstance(metadata, dict) else {}), **config}
    for name, older in _OLDER.items():
        if flat.get(name) is None and older in flat:
            flat[name] = flat[older]
    return flat


def _architecture(flat: Mapping[str, Any]) -> Architecture:
    name = flat.get("architecture") or "standard"
    if name not in _ARCHITECTURES:
        raise UnsupportedSae(f"the architecture {name!r} is not one of {', '.join(sorted(_ARCHITECTURES))}")
    function = flat.get("activation_fn") or "relu"
    if function == "topk" and name == "standard":
        return Architecture.TOPK
    if function not in {"relu", "topk"}:
        raise UnsupportedSae(f"the activation function {function!r} is not relu or topk")
    return _ARCHITECTURES[name]


def _hook(flat: Mapping[str, Any]) -> str:
    hook = _text(flat, "hook_name")
    if not hook:
        raise WrongHook(f"{CONFIG} does not say where it reads: tell its hook, as 'blocks.L.hook_resid_post'")
    return hook


def _normalisation(flat: Mapping[str, Any]) -> Normalisation:
    value = flat.get("normalize_activations")
    if isinstance(value, bool):  # as it was at first
        return Normalisation.EXPECTED_AVERAGE if value else Normalisation.NONE
    try:
        return Normalisation(value or "none")
    except ValueError as error:
        known = ", ".join(Normalisation)
        raise UnsupportedSae(f"normalize_activations is {value!r}, not one of {known}") from error


def _factor(flat: Mapping[str, Any], told: Told) -> float:
    value = told.norm_factor if told.norm_factor is not None else flat.get("norm_scaling_factor")
    if isinstance(value, int | float) and not isinstance(value, bool):
        return float(value)
    raise UnsupportedSae(
        "it was trained on states multiplied by a factor (expected_average_only_in) that its files do not "
        "tell: give norm_factor, which is sqrt(d_in) over the mean length of states, or 1 if the weights "
        "hold it already"
    )


def _count(flat: Mapping[str, Any]) -> int | None:
    arguments = flat.get("activation_fn_kwargs")
    k = flat.get("k")
    if k is None and isinstance(arguments, dict):
        k = arguments.get("k")
    if k is None:
        return None
    if isinstance(k, bool) or not isinstance(k, int | float):
        raise CorruptSae(f"k is {k!r}, not a number")
    return int(k)


def _threshold(architecture: Architecture, tensors: Mapping[str, Tensor]) -> Tensor | None:
    if architecture not in {Architecture.JUMPRELU, Architecture.BATCHTOPK}:
        return None
    threshold = _need(tensors, "threshold")
    return threshold.expand(_need(tensors, "W_enc").shape[-1]).clone() if threshold.ndim == 0 else threshold


def _as_jumprelu(tensors: Mapping[str, Tensor], *, fold: bool) -> dict[str, Tensor]:
    """As it is saved for use: training leaves one threshold, and decoder rows of any length."""
    made = dict(tensors)
    if "topk_threshold" in made:
        made["threshold"] = made.pop("topk_threshold").reshape(())
    if not fold:
        return made
    norms = _need(made, "W_dec").norm(dim=-1).clamp(min=1e-8)
    made["W_enc"] = _need(made, "W_enc") * norms
    made["b_enc"] = _need(made, "b_enc") * norms
    made["W_dec"] = _need(made, "W_dec") / norms.unsqueeze(-1)
    return made


def _finetuned(flat: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> Tensor:
    """Decoder rows, times what finetuning before version 6 multiplied latents by to decode them."""
    write = _need(tensors, "W_dec")
    scale = tensors.get("finetuning_scaling_factor", tensors.get("scaling_factor"))
    if scale is None or torch.equal(scale, torch.ones_like(scale)):
        return write
    if not flat.get("finetuning_scaling_factor"):
        raise CorruptSae("it holds a scaling_factor, and its configuration says that it was not finetuned")
    if scale.shape != write.shape[:1]:
        raise CorruptSae(f"scaling_factor is {list(scale.shape)}, it should be {list(write.shape[:1])}")
    return write * scale.unsqueeze(-1)


def _check_config(flat: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> None:
    shape = list(_need(tensors, "W_enc").shape)
    for axis, name in enumerate(("d_in", "d_sae")):
        told = flat.get(name)
        if told is not None and shape[axis : axis + 1] != [told]:
            raise CorruptSae(f"{CONFIG} says that {name} is {told}, W_enc is {shape}")


def _need(tensors: Mapping[str, Tensor], name: str) -> Tensor:
    if name not in tensors:
        raise CorruptSae(f"{WEIGHTS} has no tensor {name}; it has {', '.join(sorted(tensors)) or 'none'}")
    return tensors[name]


def _text(flat: Mapping[str, Any], name: str) -> str:
    value = flat.get(name)
    if value is not None and not isinstance(value, str):
        raise SaeError(f"{name} in {CONFIG} is not a text")
    return value or ""
