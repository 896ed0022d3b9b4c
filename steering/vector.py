"""A steering vector: what training makes, files hold and the worker applies."""

import hashlib
import re
from collections.abc import Mapping
from dataclasses import dataclass
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


@dataclass(frozen=True)
class Layer:
    """What a vector holds for one decoder block; `direction` is `[hidden]`."""

    direction: Array
    probe: Probe | None = None
    units: Units | None = None


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
_PARTS = {
    "direction",
    *(f"probe.{name}" for name in ("weight", "bias", "slope")),
    *(f"units.{name}" for name in ("read", "write", "bias", "offset", "threshold")),
}


def _flat(layer: Layer) -> dict[str, Array]:
    flat = {"direction": layer.direction}
    if layer.probe:
        flat["probe.weight"] = layer.probe.weight
        flat["probe.bias"] = np.array([layer.probe.bias], np.float32)
        flat["probe.slope"] = np.array([layer.probe.slope], np.float32)
    if layer.units:
        flat |= {f"units.{name}": getattr(layer.units, name) for name in Units.__dataclass_fields__}
    return flat


def tensors(layer: Layer) -> list[Array]:
    """The lines of `[hidden]` of one layer."""
    lines = [layer.direction]
    if layer.probe:
        lines.append(layer.probe.weight)
    if layer.units:
        lines += [*layer.units.read, *layer.units.write]
    return lines


def _layer(index: int, parts: dict[str, Array]) -> Layer:
    if "direction" not in parts:
        raise VectorError(f"layer {index} has no direction")
    names = {"probe": ("weight", "bias", "slope"), "units": tuple(Units.__dataclass_fields__)}
    for group, wanted in names.items():
        given = [name for name in wanted if f"{group}.{name}" in parts]
        if given and len(given) != len(wanted):
            raise VectorError(f"layer {index}: {group} is incomplete")
    probe = units = None
    if "probe.weight" in parts:
        bias, slope = parts["probe.bias"], parts["probe.slope"]
        if bias.size != 1 or slope.size != 1:
            raise VectorError(f"layer {index}: probe.bias and probe.slope are single numbers")
        probe = Probe(parts["probe.weight"], float(bias.reshape(-1)[0]), float(slope.reshape(-1)[0]))
    if "units.read" in parts:
        units = Units(**{name: parts[f"units.{name}"] for name in Units.__dataclass_fields__})
    return Layer(parts["direction"], probe, units)


def _check(index: int, layer: Layer) -> None:
    width = layer.direction.shape[0]
    for name, value in _flat(layer).items():
        if not np.isfinite(value).all():
            raise VectorError(f"layer {index}: {name} holds a value that is not a finite number")
        if value.shape[-1] != width and name in {"probe.weight", "units.read", "units.write"}:
            raise VectorError(f"layer {index}: {name} is {value.shape[-1]} wide, the direction {width}")
    if not np.linalg.norm(layer.direction.astype(np.float64)) > 0:
        raise VectorError(f"layer {index}: the direction is zero")
    if layer.units:
        count = layer.units.read.shape[0]
        if any(len(getattr(layer.units, name)) != count for name in Units.__dataclass_fields__):
            raise VectorError(f"layer {index}: units differ in number")
