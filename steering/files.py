"""Steering vectors as files: Axionic's JSON, safetensors, and repeng's GGUF, told apart by their content."""

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any, Final, NoReturn

import numpy as np
from safetensors.numpy import load, save

from steering import gguf
from steering.vector import Array, SteeringVector, VectorError

MAX_BYTES: Final = 64 * 2**20
MAX_VALUE: Final = 1e9  # far beyond any hidden state; larger ones overflow in float32 when squared

_METADATA_KEY: Final = "steersman"
_ARCHITECTURE: Final = "controlvector"


class Format(StrEnum):
    """JSON and GGUF hold directions alone, safetensors probes and latents too."""

    JSON = "json"
    SAFETENSORS = "safetensors"
    GGUF = "gguf"


class Point(StrEnum):
    """Where a key without a hook stands: after its block, or before it, which is after the block below."""

    RESID_POST = "resid_post"
    RESID_PRE = "resid_pre"


@dataclass(frozen=True, slots=True)
class VectorFile:
    """`metadata` is what the file says of its vector, unchecked; JSON files say nothing."""

    vector: SteeringVector
    format: Format
    metadata: Mapping[str, Any] = field(default_factory=dict)


def read_vector(data: bytes, *, limit: int = MAX_BYTES, source: Point = Point.RESID_POST) -> VectorFile:
    """Raises VectorError for anything else than a vector in one of the three formats."""
    if len(data) > limit:
        raise VectorError(f"the file has {len(data)} bytes, more than the limit of {limit}")
    match _format(data):
        case Format.GGUF:
            return _read_gguf(data)
        case Format.SAFETENSORS:
            return _read_safetensors(data)
        case Format.JSON:
            return VectorFile(read_flat(_parsed(data), source=source), Format.JSON)


def read_flat(flat: Mapping[str, Any], *, source: Point = Point.RESID_POST) -> SteeringVector:
    """From `{layer key: numbers}` as parsed from JSON. Raises VectorError, which names the key."""
    directions: dict[int, Array] = {}
    keys: dict[int, str] = {}
    for key, value in flat.items():
        layer = layer_of(key, source)
        if layer in directions:
            raise VectorError(
                f"{_quoted(keys[layer])} and {_quoted(key)} both mean the output of block {layer}"
            )
        directions[layer], keys[layer] = _row(key, value), key
    return _vector(directions, [_quoted(key) for key in keys.values()])


def layer_of(key: str, source: Point = Point.RESID_POST) -> int:
    """The block whose output `key` means. Raises VectorError for a key that means none."""
    matched = _KEY.fullmatch(key)
    if matched is None:
        raise VectorError(
            f"{_quoted(key)} names no layer: write '11', 'layers.11', 'model.layers.11' or "
            "'blocks.11.hook_resid_post'"
        )
    layer, hook = int(matched[1]), matched[2] or source.value
    if hook not in tuple(Point):
        raise VectorError(f"{_quoted(key)} is inside a block: vectors act on the output of a block")
    if hook == Point.RESID_POST:
        return layer
    if layer == 0:
        raise VectorError(
            f"{_quoted(key)} stands before the first block (resid_pre of layer 0): "
            "vectors act on the output of a block"
        )
    return layer - 1


def is_flat(value: Any) -> bool:
    """Whether this, parsed from JSON, is an object that has layers and nothing else."""
    return isinstance(value, dict) and bool(value) and all(_KEY.fullmatch(key) for key in value)


def write_vector(vector: SteeringVector, format: Format, metadata: Mapping[str, Any] | None = None) -> bytes:
    """Layers by number. `metadata` is JSON; safetensors and GGUF keep it."""
    match format:
        case Format.JSON:
            return json.dumps(write_flat(vector), separators=(",", ":")).encode()
        case Format.SAFETENSORS:
            return bytes(save(load(vector.blob), {_METADATA_KEY: json.dumps(metadata)} if metadata else None))
        case Format.GGUF:
            return _write_gguf(vector, metadata or {})


def write_flat(vector: SteeringVector) -> dict[str, list[float]]:
    """`{"11": [...]}`, as the Axionic SDK reads it."""
    return {str(layer): vector.layers[layer].direction.tolist() for layer in sorted(vector.layers)}


def omitted(vector: SteeringVector, format: Format) -> tuple[str, ...]:
    """Which parts of `vector` a file of this format cannot hold."""
    if format is Format.SAFETENSORS:
        return ()
    return tuple(
        part for part in ("probe", "units") if any(getattr(layer, part) for layer in vector.layers.values())
    )


# A number, or a module's path that ends in one, as Hugging Face and TransformerLens name blocks.
_KEY = re.compile(r"(?:(?:[A-Za-z_]\w*\.)*(?:layers?|blocks|h)\.)?(\d{1,4})(?:\.hook_(\w+))?", re.ASCII)


def _quoted(key: str) -> str:
    return repr(key if len(key) <= 80 else f"{key[:77]}...")


def _format(data: bytes) -> Format:
    if data.startswith(gguf.MAGIC):
        return Format.GGUF
    # A safetensors file begins with the length of its header, whose first character is a brace. Read as
    # such a length, the beginning of a JSON text is larger than any file.
    if data[8:9] == b"{" and int.from_bytes(data[:8], "little") <= len(data) - 8:
        return Format.SAFETENSORS
    if data.removeprefix(_BOM).lstrip()[:1] == b"{":
        return Format.JSON
    if not data.strip():
        raise VectorError("the file is empty")
    raise VectorError("neither a JSON object, nor a safetensors file, nor a GGUF file")


_BOM: Final = b"\xef\xbb\xbf"


def _parsed(data: bytes) -> dict[str, Any]:
    try:
        parsed: dict[str, Any] = json.loads(
            data.removeprefix(_BOM), object_pairs_hook=_object, parse_constant=_refuse_constant
        )
    except VectorError:
        raise
    except RecursionError as error:
        raise VectorError("the JSON nests too deep: it is {layer: [numbers]}") from error
    except ValueError as error:
        raise VectorError(f"not valid JSON: {error}") from error
    return parsed


def _object(pairs: Sequence[tuple[str, Any]]) -> dict[str, Any]:
    made: dict[str, Any] = {}
    for key, value in pairs:
        if key in made:
            raise VectorError(f"the key {_quoted(key)} occurs twice")
        made[key] = value
    return made


def _refuse_constant(name: str) -> NoReturn:
    raise VectorError(f"{name} is not a finite number")


def _row(key: str, value: Any) -> Array:
    if not isinstance(value, list) or not value:
        raise VectorError(f"{_quoted(key)} is not a list of numbers")
    if not {type(number) for number in value} <= {int, float}:
        at = next(index for index, number in enumerate(value) if type(number) not in (int, float))
        raise VectorError(f"{_quoted(key)} holds something other than a number at index {at}")
    try:
        row = np.array(value, np.float64)
    except OverflowError as error:
        raise VectorError(f"{_quoted(key)} holds a number that is too large") from error
    with np.errstate(over="ignore"):  # becomes infinite, which is refused
        return row.astype(np.float32)


def _vector(directions: Mapping[int, Array], names: Sequence[str]) -> SteeringVector:
    """`names` are those under which the file has each direction."""
    for name, row in zip(names, directions.values(), strict=True):
        first = next(iter(directions.values()))
        if row.ndim != 1:
            raise VectorError(f"{name} has {row.ndim} dimensions, not one")
        if len(row) != len(first):
            raise VectorError(f"{name} is {len(row)} numbers long, {names[0]} {len(first)}")
    return _plausible(SteeringVector.of(directions))


def _plausible(vector: SteeringVector) -> SteeringVector:
    for index, layer in vector.layers.items():
        if np.abs(layer.direction).max() > MAX_VALUE:
            raise VectorError(f"layer {index}: the direction holds a value beyond {MAX_VALUE:g}")
        if layer.probe and layer.probe.weight.ndim != 1:
            raise VectorError(
                f"layer {index}: probe.weight has {layer.probe.weight.ndim} dimensions, not one"
            )
        for name in _UNIT_DIMENSIONS if layer.units else ():
            dimensions = getattr(layer.units, name).ndim
            if dimensions != _UNIT_DIMENSIONS[name]:
                raise VectorError(f"layer {index}: units.{name} has {dimensions} dimensions")
    return vector


_UNIT_DIMENSIONS: Final = {"read": 2, "write": 2, "bias": 1, "offset": 1, "threshold": 1}


def _read_safetensors(data: bytes) -> VectorFile:
    header = _header(data)
    for name, entry in header.items():
        kind = entry.get("dtype", "F32") if isinstance(entry, dict) else "F32"
        if name != "__metadata__" and kind not in ("F32", "F16", "F64"):
            raise VectorError(f"the tensor {_quoted(name)} is {kind!r}: vectors are F32, F16 or F64")
    try:
        with np.errstate(over="ignore"):
            vector = _plausible(SteeringVector.from_blob(data))
    except (IndexError, TypeError, AttributeError) as error:  # from tensors of unforeseen shapes
        raise VectorError(f"a tensor in the file has a shape that no vector has: {error}") from error
    return VectorFile(
        vector, Format.SAFETENSORS, _metadata((header.get("__metadata__") or {}).get(_METADATA_KEY))
    )


def _header(data: bytes) -> dict[str, Any]:
    try:
        header: dict[str, Any] = json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])
    except (ValueError, RecursionError) as error:
        raise VectorError(f"not a safetensors file: its header is not JSON: {error}") from error
    return header


def _read_gguf(data: bytes) -> VectorFile:
    try:
        file = gguf.read(data)
    except gguf.GgufError as error:
        raise VectorError(f"not a GGUF file of a control vector: {error}") from error
    if file.metadata.get("general.architecture") != _ARCHITECTURE:
        raise VectorError(f"a GGUF file of something else: general.architecture is not {_ARCHITECTURE!r}")
    directions: dict[int, Array] = {}
    for name, tensor in file.tensors.items():
        matched = re.fullmatch(r"direction\.(0|[1-9]\d{0,3})", name, re.ASCII)
        if matched is None:
            raise VectorError(f"unknown tensor {_quoted(name)}: names are direction.N")
        # repeng's N is the block whose output is changed, counted from 0
        directions[int(matched[1])] = tensor
    vector = _vector(directions, [f"direction.{layer}" for layer in directions])
    return VectorFile(vector, Format.GGUF, _metadata(file.metadata.get(f"{_ARCHITECTURE}.{_METADATA_KEY}")))


def _write_gguf(vector: SteeringVector, metadata: Mapping[str, Any]) -> bytes:
    fields: dict[str, str | int] = {
        "general.architecture": _ARCHITECTURE,
        f"{_ARCHITECTURE}.model_hint": str(metadata.get("model_name") or ""),
        f"{_ARCHITECTURE}.layer_count": len(vector.layers),
    }
    if metadata:
        fields[f"{_ARCHITECTURE}.{_METADATA_KEY}"] = json.dumps(metadata)
    layers = {f"direction.{layer}": vector.layers[layer].direction for layer in sorted(vector.layers)}
    return gguf.write(fields, layers)


def _metadata(text: Any) -> dict[str, Any]:
    """Ours, as JSON text within a file that others may have written: {} unless it is an object."""
    if not isinstance(text, str):
        return {}
    try:
        parsed = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise VectorError(f"the file's {_METADATA_KEY!r} metadata is not JSON: {error}") from error
    return parsed if isinstance(parsed, dict) else {}
