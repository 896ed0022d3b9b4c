"""GGUF files of plain floats, read without trust and written: the container of repeng's control vectors.

The `gguf` package believes a file's own counts and makes an object for every element of an array: 400 kB
take it five seconds and 350 MB, and a false count never ends. A control vector needs little of the format.
"""

import math
import struct
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final

import numpy as np

from steering.vector import Array

MAGIC: Final = b"GGUF"
_VERSION: Final = 3
_READABLE: Final = (2, 3)
_ALIGNMENT: Final = 32
_MAX_ENTRIES: Final = 4096  # metadata keys, and tensors
_MAX_DIMENSIONS: Final = 4

_SCALARS: Final = {
    0: "B",
    1: "b",
    2: "H",
    3: "h",
    4: "I",
    5: "i",
    6: "f",
    7: "?",
    10: "Q",
    11: "q",
    12: "d",
}
_UINT32: Final = 4
_STRING: Final = 8
_ARRAY: Final = 9
_FLOATS: Final = {0: "<f4", 1: "<f2", 28: "<f8"}


class GgufError(ValueError):
    """Bytes that are no GGUF file of floats; the message says why."""


@dataclass(frozen=True, slots=True)
class GgufFile:
    """`metadata` has the scalars and texts; arrays in it are passed over."""

    metadata: Mapping[str, Any]
    tensors: Mapping[str, Array]


def read(data: bytes) -> GgufFile:
    """Raises GgufError. Time and memory are bounded by the size of `data`, whatever it says of itself."""
    cursor = _Cursor(data)
    if cursor.take(len(MAGIC)) != MAGIC:
        raise GgufError("not a GGUF file")
    version = cursor.number("I")
    if version not in _READABLE:
        raise GgufError(f"GGUF version {version} in this byte order is not known here")
    tensors, keys = cursor.count(), cursor.count()
    metadata: dict[str, Any] = {}
    for _ in range(keys):
        name = cursor.text()
        if name in metadata:
            raise GgufError(f"the key {name!r} occurs twice")
        metadata[name] = cursor.value(cursor.number("I"))
    headers = [_tensor(cursor) for _ in range(tensors)]
    return GgufFile(metadata, _load(data, cursor.at, _alignment(metadata), headers))


def write(metadata: Mapping[str, str | int], tensors: Mapping[str, Array]) -> bytes:
    """Texts and unsigned 32-bit numbers as metadata, and tensors in float32."""
    parts = [MAGIC, struct.pack("<IQQ", _VERSION, len(tensors), len(metadata))]
    for key, value in metadata.items():
        kind = _STRING if isinstance(value, str) else _UINT32
        packed = _packed(value) if isinstance(value, str) else struct.pack("<I", value)
        parts += [_packed(key), struct.pack("<I", kind), packed]
    blobs: list[bytes] = []
    offset = 0
    for name, tensor in tensors.items():
        blob = np.ascontiguousarray(tensor, "<f4").tobytes()
        shape = tensor.shape[::-1]  # GGUF counts dimensions from the innermost
        parts += [_packed(name), struct.pack(f"<I{len(shape)}Q", len(shape), *shape)]
        parts.append(struct.pack("<IQ", 0, offset))
        blobs.append(blob + bytes(-len(blob) % _ALIGNMENT))
        offset += len(blobs[-1])
    head = b"".join(parts)
    return b"".join([head, bytes(-len(head) % _ALIGNMENT), *blobs])


def _packed(text: str) -> bytes:
    encoded = text.encode()
    return struct.pack("<Q", len(encoded)) + encoded


@dataclass(slots=True)
class _Cursor:
    """Reads onwards from `at`; whatever goes past the end raises GgufError."""

    data: bytes
    at: int = field(default=0, init=False)

    def take(self, size: int) -> bytes:
        start = self.at
        self.skip(size)
        return self.data[start : self.at]

    def skip(self, size: int) -> None:
        if size > len(self.data) - self.at:
            raise GgufError("the file ends too early")
        self.at += size

    def number(self, code: str) -> Any:
        packing = struct.Struct(f"<{code}")
        return packing.unpack(self.take(packing.size))[0]

    def count(self) -> int:
        count: int = self.number("Q")
        if count > _MAX_ENTRIES:
            raise GgufError(f"more than {_MAX_ENTRIES} keys or tensors")
        return count

    def text(self) -> str:
        try:
            return self.take(self.number("Q")).decode()
        except UnicodeDecodeError as error:
            raise GgufError("a text in it is not UTF-8") from error

    def value(self, kind: int) -> Any:
        if kind in _SCALARS:
            return self.number(_SCALARS[kind])
        if kind == _STRING:
            return self.text()
        if kind == _ARRAY:
            return self._pass_array()
        raise GgufError(f"unknown kind of value {kind}")

    def _pass_array(self) -> None:
        kind, count = self.number("I"), self.number("Q")
        if kind in _SCALARS:
            self.skip(count * struct.calcsize(f"<{_SCALARS[kind]}"))
        elif kind == _STRING:
            for _ in range(count):  # ends with the file at the latest: each takes eight bytes
                self.skip(self.number("Q"))
        else:
            raise GgufError(f"an array of values of kind {kind}")


@dataclass(frozen=True, slots=True)
class _Tensor:
    name: str
    shape: tuple[int, ...]
    type: np.dtype[Any]
    offset: int

    @property
    def size(self) -> int:
        return math.prod(self.shape) * self.type.itemsize


def _tensor(cursor: _Cursor) -> _Tensor:
    name = cursor.text()
    dimensions = cursor.number("I")
    if dimensions > _MAX_DIMENSIONS:
        raise GgufError(f"the tensor {name!r} has {dimensions} dimensions")
    shape = tuple(cursor.number("Q") for _ in range(dimensions))[::-1]
    if max(shape, default=0) > len(cursor.data):  # beside a nought it would add nothing to the size
        raise GgufError(f"the tensor {name!r} is larger than the file")
    kind, offset = cursor.number("I"), cursor.number("Q")
    if kind not in _FLOATS:
        raise GgufError(f"the tensor {name!r} is quantized: only F32, F16 and F64 are read")
    return _Tensor(name, shape, np.dtype(_FLOATS[kind]), offset)


def _alignment(metadata: Mapping[str, Any]) -> int:
    alignment = metadata.get("general.alignment", _ALIGNMENT)
    if not isinstance(alignment, int) or not 1 <= alignment <= 2**16:
        raise GgufError(f"general.alignment is {alignment!r}")
    return alignment


def _load(data: bytes, end: int, alignment: int, headers: list[_Tensor]) -> dict[str, Array]:
    start = end + -end % alignment
    tensors: dict[str, Array] = {}
    # Tensors may not share bytes, or a small file could stand for a huge one.
    if sum(header.size for header in headers) > len(data):
        raise GgufError("its tensors are larger than the file")
    for header in headers:
        if header.name in tensors:
            raise GgufError(f"the tensor {header.name!r} occurs twice")
        if start + header.offset + header.size > len(data):
            raise GgufError(f"the tensor {header.name!r} reaches beyond the end of the file")
        count = math.prod(header.shape)
        flat = np.frombuffer(data, header.type, count, start + header.offset) if count else np.empty(0)
        with np.errstate(over="ignore"):  # what is too large becomes infinite, which its reader refuses
            tensors[header.name] = flat.reshape(header.shape).astype(np.float32)
    return tensors
