"""Numbers out of files that others wrote: bounded, float32, and never a pickle."""

import json
import math
import zipfile
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from steering.sae.errors import CorruptSae, UnsafeSae

MAX_BYTES: Final = 8 * 2**30  # of weights; most have less than 1 GiB
MAX_CONFIG_BYTES: Final = 2**20
PICKLES: Final = frozenset({".pt", ".pth", ".bin", ".pkl", ".pickle", ".ckpt"})

_FLOATS = (torch.float32, torch.float16, torch.bfloat16, torch.float64)
_MAX_TENSORS = 64
_format: Any = np.lib.format  # untyped


def refuse_pickle(path: Path) -> None:
    if path.suffix.lower() in PICKLES:
        raise UnsafeSae(
            f"{path.name} is a pickle, which can run code when it is read: convert it offline to "
            "cfg.json and sae_weights.safetensors (tensors W_enc, W_dec, b_enc, b_dec), as SAELens' "
            "save_model writes them"
        )


def read_json(path: Path) -> dict[str, Any]:
    _bounded(path, MAX_CONFIG_BYTES)
    try:
        parsed = json.loads(path.read_bytes())
    except (ValueError, RecursionError) as error:
        raise CorruptSae(f"{path.name} is not valid JSON: {error}") from error
    if not isinstance(parsed, dict):
        raise CorruptSae(f"{path.name} is not a JSON object")
    return parsed


def read_safetensors(path: Path, limit: int = MAX_BYTES) -> dict[str, Tensor]:
    """All tensors of the file in float32."""
    _bounded(path, limit)
    try:
        with safe_open(path, framework="pt") as file:
            names = list(file.keys())
            if len(names) > _MAX_TENSORS:
                raise CorruptSae(f"{path.name} has {len(names)} tensors, no autoencoder has that many")
            # cloned: what safetensors returns may be the file itself, and change with it
            return {name: _float32(path, name, file.get_tensor(name)) for name in names}
    except (SafetensorError, OSError) as error:
        raise CorruptSae(f"{path.name} is not a sound safetensors file: {error}") from error


def read_npz(path: Path, names: Iterable[str], limit: int = MAX_BYTES) -> dict[str, Tensor]:
    """Those of the arrays `names` that the file has, in float32; its other arrays are not read."""
    _bounded(path, limit)
    try:
        with zipfile.ZipFile(path) as archive:
            entries = {entry.filename.removesuffix(".npy"): entry for entry in archive.infolist()}
            wanted = {name: entries[name] for name in names if name in entries}
            if sum(entry.file_size for entry in wanted.values()) > limit:
                raise CorruptSae(f"{path.name} unpacks to more than {limit} bytes")
            return {name: _array(path, archive, entry) for name, entry in wanted.items()}
    except (zipfile.BadZipFile, EOFError, OSError, NotImplementedError, RuntimeError) as error:
        raise CorruptSae(f"{path.name} is not a sound npz file: {error}") from error


def _array(path: Path, archive: zipfile.ZipFile, entry: zipfile.ZipInfo) -> Tensor:
    name = entry.filename
    try:
        with archive.open(entry) as file:
            shape, dtype = _header(file)
        if dtype.hasobject:
            raise UnsafeSae(f"{name} in {path.name} holds pickled objects, not numbers")
        if dtype.kind != "f":
            raise CorruptSae(f"{name} in {path.name} holds {dtype}, not floating-point numbers")
        # Numpy makes room for what the header promises before it reads.
        if math.prod(shape) * dtype.itemsize > entry.file_size:
            raise CorruptSae(f"{name} in {path.name} is cut short")
        with archive.open(entry) as file:
            array = _format.read_array(file, allow_pickle=False)
    except (ValueError, EOFError) as error:
        if isinstance(error, CorruptSae | UnsafeSae):
            raise
        raise CorruptSae(f"{name} in {path.name} is not a sound array: {error}") from error
    with np.errstate(over="ignore"):  # becomes infinite, which is refused
        return torch.from_numpy(np.ascontiguousarray(array, np.float32))


def _header(file: Any) -> tuple[tuple[int, ...], np.dtype[Any]]:
    version = _format.read_magic(file)
    if version == (1, 0):
        shape, _, dtype = _format.read_array_header_1_0(file)
    elif version == (2, 0):
        shape, _, dtype = _format.read_array_header_2_0(file)
    else:
        raise ValueError(f"version {version} of the format is not known here")
    return shape, dtype


def _float32(path: Path, name: str, tensor: Tensor) -> Tensor:
    if tensor.dtype not in _FLOATS:
        raise CorruptSae(f"{name} in {path.name} holds {tensor.dtype}, not floating-point numbers")
    return tensor.to(torch.float32, copy=True).contiguous()


def _bounded(path: Path, limit: int) -> None:
    try:
        size = path.stat().st_size
    except OSError as error:
        raise CorruptSae(f"{path.name} cannot be read: {error.strerror}") from error
    if not path.is_file():
        raise CorruptSae(f"{path.name} is not a file")
    if size > limit:
        raise CorruptSae(f"{path.name} has {size} bytes, more than the limit of {limit}")
