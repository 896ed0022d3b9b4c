"""A steering vector: what training makes, files hold and the worker applies."""

import hashlib
import re
from collections.abc import Mapping
from dataclasses import dataclass
from enum import IntEnum
from functools import cached_property

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.numpy import load, save

Array = NDArray[np.float32]


class VectorError(ValueError):
    """A vector that cannot be applied; the message says why."""


@dataclass(frozen=True)
class Probe:
    """A logistic unit on the residual stream: sigmoid(slope (weight·x + bias)); weight is `[hidden]`."""

    weight: Array
    bias: float
    slope: float


@dataclass(frozen=True)
class Units:
    """Sparse latents: `read` and `write` are `[latents, hidden]`, the others `[latents]`.

    A latent is act(a) = a where a > threshold, else 0, for a = x·read + bias; steering adds `offset` to a.
    """

    read: Array
    write: Array
    bias: Array
    offset: Array
    threshold: Array


class Scaling(IntEnum):
    """What is done to a state before it is read, as `steering.sae.encode.Normalisation` says it."""

    NONE = 0
    CONSTANT_NORM = 1
    LAYER_NORM = 2


@dataclass(frozen=True)
class Detector:
    """A score of a state: Σ weight act(a) + offset, with a = scaled(x)·read + bias; `read` is
    `[latents, hidden]`, the arrays after it `[latents]`.

    act(a) = max(gain a + shift, 0) where a > threshold, else 0.
    """

    read: Array
    bias: Array
    threshold: Array
    gain: Array
    shift: Array
    weight: Array
    offset: float
    scaling: Scaling = Scaling.NONE


@dataclass(frozen=True)
class Layer:
    """What a vector holds for one decoder block; `direction` is `[hidden]`."""

    direction: Array
    probe: Probe | None = None
    units: Units | None = None
    detector: Detector | None = None


@dataclass(frozen=True)
class SteeringVector:
    """`layers` maps decoder blocks to what acts on their output. Raises VectorError for unusable values."""

    layers: Mapping[int, Layer]

    def __post_init__(self) -> None:
        if not self.layers:
            raise VectorError("a vector has at least one layer")
        widths = {layer.direction.shape for layer in self.layers.values()}
        if len(widths) != 1 or len(next(iter(widths))) != 1:
            raise VectorError("all layers of a vector are lists of one length")
        for index, layer in self.layers.items():
            _check(index, layer)

    @classmethod
    def of(cls, directions: Mapping[int, Array]) -> "SteeringVector":
        return cls({index: Layer(np.asarray(row, np.float32)) for index, row in directions.items()})

    @property
    def width(self) -> int:
        return len(next(iter(self.layers.values())).direction)

    @cached_property
    def norms(self) -> dict[int, float]:
        # in float32 the squares of large numbers are infinite, and of small ones nought
        wide = {index: layer.direction.astype(np.float64) for index, layer in self.layers.items()}
        return {index: float(np.linalg.norm(direction)) for index, direction in wide.items()}

    @property
    def rows(self) -> int:
        """How many table lines of `[hidden]` it takes in the worker."""
        return sum(len(tensors(layer)) for layer in self.layers.values())

    @cached_property
    def blob(self) -> bytes:
        """Safetensors, float32, in an order that depends on the content alone."""
        flat: dict[str, Array] = {}
        for index in sorted(self.layers):
            flat |= {f"layers.{index}.{name}": value for name, value in _flat(self.layers[index]).items()}
        return bytes(save({name: np.ascontiguousarray(value, np.float32) for name, value in flat.items()}))

    @cached_property
    def digest(self) -> str:
        """SHA-256 of `blob`: the name under which the worker knows it."""
        return hashlib.sha256(self.blob).hexdigest()

    @classmethod
    def from_blob(cls, blob: bytes) -> "SteeringVector":
        """Raises VectorError for bytes that `blob` would not write."""
        try:
            flat = load(blob)
        except (SafetensorError, KeyError, ValueError, TypeError) as error:
            raise VectorError(f"not a safetensors file of numbers: {error}") from error
        parts: dict[int, dict[str, Array]] = {}
        for name, value in flat.items():
            head, _, rest = name.partition(".")
            index, _, part = rest.partition(".")
            if head != "layers" or not _INDEX.fullmatch(index) or part not in _PARTS:
                raise VectorError(f"unknown tensor {name!r}: names are layers.N.direction and the like")
            parts.setdefault(int(index), {})[part] = np.asarray(value, np.float32)
        return cls({index: _layer(index, named) for index, named in parts.items()})


_INDEX = re.compile("0|[1-9][0-9]{0,3}")  # one spelling each, or two tensors would be one
_GROUPS = {
    name: tuple(kind.__dataclass_fields__)
    for name, kind in (("probe", Probe), ("units", Units), ("detector", Detector))
}
_SCALARS = {"probe.bias", "probe.slope", "detector.offset", "detector.scaling"}
_PARTS = {"direction", *(f"{group}.{name}" for group, names in _GROUPS.items() for name in names)}
_PER_LATENT = ("bias", "threshold", "gain", "shift", "weight")
# As wide as the residual stream.
_WIDE = {"probe.weight", "units.read", "units.write", "detector.read"}


def _flat(layer: Layer) -> dict[str, Array]:
    flat = {"direction": layer.direction}
    for group, names in _GROUPS.items():
        part = getattr(layer, group)
        if part is not None:
            flat |= {f"{group}.{name}": np.atleast_1d(np.float32(getattr(part, name))) for name in names}
    return flat


def tensors(layer: Layer) -> list[Array]:
    """The lines of `[hidden]` of one layer."""
    lines = [layer.direction]
    if layer.probe:
        lines.append(layer.probe.weight)
    if layer.units:
        lines += [*layer.units.read, *layer.units.write]
    if layer.detector:
        lines += [*layer.detector.read]
    return lines


def _layer(index: int, parts: dict[str, Array]) -> Layer:
    if "direction" not in parts:
        raise VectorError(f"layer {index} has no direction")
    found: dict[str, dict[str, Array]] = {}
    for group, names in _GROUPS.items():
        given = [name for name in names if f"{group}.{name}" in parts]
        if given and len(given) != len(names):
            raise VectorError(f"layer {index}: {group} is incomplete")
        if given:
            found[group] = {name: parts[f"{group}.{name}"] for name in names}
    for name in _SCALARS & parts.keys():
        if parts[name].size != 1:
            raise VectorError(f"layer {index}: {name} is a single number")
    return Layer(
        parts["direction"],
        _probe(**found["probe"]) if "probe" in found else None,
        Units(**found["units"]) if "units" in found else None,
        _detector(index, **found["detector"]) if "detector" in found else None,
    )


def _probe(weight: Array, bias: Array, slope: Array) -> Probe:
    return Probe(weight, _number(bias), _number(slope))


def _detector(index: int, offset: Array, scaling: Array, **arrays: Array) -> Detector:
    known = {float(kind): kind for kind in Scaling}
    if _number(scaling) not in known:
        raise VectorError(f"layer {index}: detector.scaling is one of {', '.join(map(str, known))}")
    return Detector(**arrays, offset=_number(offset), scaling=known[_number(scaling)])


def _number(array: Array) -> float:
    return float(array.reshape(-1)[0])


def _check(index: int, layer: Layer) -> None:
    width = layer.direction.shape[0]
    for name, value in _flat(layer).items():
        if not np.isfinite(value).all():
            raise VectorError(f"layer {index}: {name} holds a value that is not a finite number")
        if value.shape[-1] != width and name in _WIDE:
            raise VectorError(f"layer {index}: {name} is {value.shape[-1]} wide, the direction {width}")
    if not np.linalg.norm(layer.direction.astype(np.float64)) > 0:
        raise VectorError(f"layer {index}: the direction is zero")
    if layer.units:
        count = layer.units.read.shape[0]
        if any(len(getattr(layer.units, name)) != count for name in Units.__dataclass_fields__):
            raise VectorError(f"layer {index}: units differ in number")
    if layer.detector:
        shapes = {getattr(layer.detector, name).shape for name in _PER_LATENT}
        if layer.detector.read.ndim != 2 or shapes != {layer.detector.read.shape[:1]}:
            raise VectorError(f"layer {index}: the latents of detector differ in number")
