"""Embeddings as OpenAI's and Adaptive's clients ask for and read them, and as an embedding server answers."""

import base64
import binascii
import json
from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Annotated, Any, Literal
from uuid import UUID

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from server.wire import INT32_MAX, Strict

MAX_INPUTS = 2048
Text = Annotated[str, Field(min_length=1)]
Token = Annotated[int, Field(ge=0, le=INT32_MAX)]
Tokens = Annotated[list[Token], Field(min_length=1)]
Dimensions = Annotated[int, Field(ge=1, le=INT32_MAX)]


class Encoding(StrEnum):
    FLOAT = "float"
    BASE64 = "base64"


@dataclass(frozen=True, slots=True)
class Asked:
    """What is to be embedded: texts, or texts that are tokens already."""

    inputs: Sequence[str] | Sequence[Sequence[int]]
    model: str
    encoding: Encoding
    dimensions: int | None = None
    user: str | None = None

    def as_body(self) -> dict[str, Any]:
        """The request of OpenAI's API for it, without what was not asked."""
        given = {"dimensions": self.dimensions, "user": self.user}
        body = {"model": self.model, "input": self.inputs, "encoding_format": self.encoding.value}
        return body | {name: value for name, value in given.items() if value is not None}


class EmbeddingsRequest(Strict):
    """OpenAI's."""

    input: (
        Text
        | Annotated[list[Text], Field(min_length=1, max_length=MAX_INPUTS)]
        | Annotated[list[Token], Field(min_length=1)]
        | Annotated[list[Tokens], Field(min_length=1, max_length=MAX_INPUTS)]
    )
    model: str | None = Field(default=None, description="absent: the first that the embedding server lists")
    encoding_format: Encoding | None = Field(default=None, description="absent: float")
    dimensions: Dimensions | None = None
    user: str | None = None

    def asked(self, model: str) -> Asked:
        given: Any = self.input
        one = isinstance(given, str) or isinstance(given[0], int)
        encoding = self.encoding_format or Encoding.FLOAT
        return Asked([given] if one else given, model, encoding, self.dimensions, self.user)


class AdaptiveEmbeddingsRequest(Strict):
    """Adaptive's: one text, and a model within a project."""

    input: Text
    model: Annotated[str, Field(min_length=1, description="{project}/{model}, or {project}")]
    encoding_format: Literal["Float", "Base64"] | None = Field(default=None, description="absent: Float")
    dimensions: Dimensions | None = None
    user: UUID | None = None
    session_id: UUID | None = Field(default=None, description="nothing here depends on it")

    @property
    def project(self) -> str:
        return self.model.partition("/")[0]

    @property
    def named(self) -> str | None:
        """The model's own name, which may have slashes too."""
        return self.model.partition("/")[2] or None

    def asked(self, model: str) -> Asked:
        encoding = Encoding((self.encoding_format or "Float").lower())
        return Asked([self.input], model, encoding, self.dimensions, str(self.user) if self.user else None)


class BadAnswer(Exception):
    """What the embedding server answered is not what was asked; the message says why."""


class WrongWidth(BadAnswer):
    """Vectors of another length than `dimensions` asked for."""


class _Item(BaseModel):
    model_config = ConfigDict(strict=True)

    index: int
    embedding: str | list[float]


class _Usage(BaseModel):
    prompt_tokens: Annotated[int, Field(ge=0)] = 0


class _Answer(BaseModel):
    data: list[_Item]
    usage: _Usage | None = None


@dataclass(frozen=True, slots=True)
class Embedded:
    """One vector for each input, in their order, in the encoding that was asked for."""

    model: str
    vectors: Sequence[str | Sequence[float]]
    prompt_tokens: int

    def as_openai(self) -> bytes:
        data = [
            {"object": "embedding", "index": index, "embedding": vector}
            for index, vector in enumerate(self.vectors)
        ]
        usage = {"prompt_tokens": self.prompt_tokens, "total_tokens": self.prompt_tokens}
        return json.dumps({"object": "list", "data": data, "model": self.model, "usage": usage}).encode()

    def as_adaptive(self) -> bytes:
        data = [{"index": index, "embedding": vector} for index, vector in enumerate(self.vectors)]
        total = self.prompt_tokens
        usage = {"completion_tokens": 0, "prompt_tokens": total, "total_tokens": total}
        return json.dumps({"data": data, "usage": usage}).encode()


def read(body: bytes, asked: Asked) -> Embedded:
    """The server's answer to `asked`, whichever encoding it has. Raises BadAnswer."""
    try:
        answer = _Answer.model_validate_json(body)
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(map(str, first["loc"]))
        raise BadAnswer(f"{place}: {first['msg']}" if place else str(first["msg"])) from error
    items = sorted(answer.data, key=lambda item: item.index)
    if [item.index for item in items] != list(range(len(asked.inputs))):
        raise BadAnswer(f"{len(asked.inputs)} inputs were sent, and {len(items)} vectors came for them")
    vectors = [_encoded(item.embedding, asked) for item in items]
    return Embedded(asked.model, vectors, answer.usage.prompt_tokens if answer.usage else 0)


def _encoded(vector: str | list[float], asked: Asked) -> str | Sequence[float]:
    """Little-endian float32 where it is base64. What has the encoding asked for stays as it came."""
    values = _decoded(vector) if isinstance(vector, str) else np.asarray(vector, "<f4")
    if not len(values) or not np.isfinite(values).all():
        raise BadAnswer("a vector is empty, or holds what is no finite number")
    if asked.dimensions is not None and len(values) != asked.dimensions:
        raise WrongWidth(f"the model's vectors have {len(values)} dimensions, not {asked.dimensions}")
    if asked.encoding is Encoding.BASE64:
        return vector if isinstance(vector, str) else base64.b64encode(values.tobytes()).decode()
    return vector if isinstance(vector, list) else [float(value) for value in values]


def _decoded(text: str) -> "np.ndarray[Any, np.dtype[np.float32]]":
    try:
        return np.frombuffer(base64.b64decode(text, validate=True), "<f4")
    except (binascii.Error, ValueError) as error:
        raise BadAnswer(f"a vector is not float32 in base64: {error}") from error
