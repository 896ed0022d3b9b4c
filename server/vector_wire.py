"""Request and response models of steering vectors and of the jobs that make them."""

from datetime import datetime
from typing import Annotated, Any, Literal

from pydantic import BaseModel, Field, ValidationError

from server.jobs import JobRecord, Status
from server.vectors import NewVector, VectorRecord
from server.wire import Strict
from steering.files import Point, VectorFile
from steering.vector import SteeringVector, VectorError

Text = Annotated[str, Field(max_length=200)]
Method = Annotated[str, Field(min_length=1, max_length=40)]
ModelName = Annotated[str, Field(max_length=500)]
Digest = Annotated[str, Field(min_length=1, max_length=64)]
Finite = Annotated[float, Field(allow_inf_nan=False)]


class VectorLabels(Strict):
    """PATCH: what is given is changed, null clears it."""

    name: Text | None = None
    label: Text | None = None
    category: Text | None = None


class Described(VectorLabels):
    """What a client says of a vector that it uploads. `source` says what keys without a hook mean."""

    model_name: ModelName | None = None
    source: Point = Point.RESID_POST


class Upload(Described):
    """POST /steering/vectors as JSON."""

    vector: dict[str, Any] = Field(description="numbers by layer: {'11': [0.1, …]}")


class VectorLabel(Strict):
    label: Text | None = None


class VectorIds(Strict):
    vector_ids: Annotated[list[str], Field(max_length=1000)]


class FileMetadata(BaseModel):
    """What our files say of their vector; later versions may say more, and other programs say nothing."""

    name: Text | None = None
    label: Text | None = None
    category: Text | None = None
    method: Method = "upload"
    model_name: ModelName = ""
    model_fingerprint: Digest | None = None
    doses: dict[int, Finite] | None = None
    scale: Finite | None = None
    dataset_digest: Digest | None = None

    @classmethod
    def read(cls, file: VectorFile) -> "FileMetadata":
        """Raises VectorError."""
        try:
            return cls.model_validate(file.metadata)
        except ValidationError as error:
            first = error.errors()[0]
            path = ".".join(map(str, first["loc"]))
            raise VectorError(f"the file's metadata, {path}: {first['msg']}") from error

    @classmethod
    def of(cls, record: VectorRecord) -> "FileMetadata":
        return cls(**{name: getattr(record, name) for name in cls.model_fields})

    @property
    def plain(self) -> dict[str, Any]:
        return self.model_dump(mode="json", exclude_none=True)

    def new_vector(self, account_id: str, vector: SteeringVector) -> NewVector:
        return NewVector(account_id, vector, **dict(self))


class VectorItem(Strict):
    """`doses` are relative doses by layer at strength 1; `preset` is set for vectors that a preset made."""

    id: str
    name: str | None
    label: str | None
    category: str | None
    method: str
    model_name: str
    model_fingerprint: str | None
    width: int
    layers: tuple[int, ...]
    norms: dict[int, float]
    doses: dict[int, float] | None
    scale: float | None
    dataset_digest: str | None
    digest: str
    preset: str | None
    created_at: datetime

    @classmethod
    def of(cls, record: VectorRecord) -> "VectorItem":
        return cls(**{name: getattr(record, name) for name in cls.model_fields})


class VectorDetail(VectorItem):
    """`evidence` are the statistics of its training."""

    evidence: dict[str, Any] | None

    @classmethod
    def of(cls, record: VectorRecord) -> "VectorDetail":
        return cls(**{name: getattr(record, name) for name in cls.model_fields})


class SteeringVectorItem(Strict):
    """Axionic's view of a vector. Its file is not public: `storage_path` is the route that serves it."""

    id: str
    name: str | None
    label: str | None
    category: str | None
    method: str
    model_name: str
    nodes: list[str]
    storage_path: str
    public_url: None = None
    api_key_id: None = None
    created_at: datetime

    @classmethod
    def of(cls, record: VectorRecord) -> "SteeringVectorItem":
        return cls(
            id=record.id,
            name=record.name,
            label=record.label,
            category=record.category,
            method=record.method,
            model_name=record.model_name,
            nodes=[f"layers.{layer}" for layer in record.layers],
            storage_path=f"/steering/vectors/{record.id}/download",
            created_at=record.created_at,
        )


class DeletedVector(Strict):
    id: str
    deleted: Literal[True] = True


class DeletedVectors(Strict):
    """The ids that were deleted, and how many."""

    vector_ids: list[str]
    deleted: int


class JobItem(Strict):
    id: str
    kind: str
    status: Status
    progress: dict[str, Any] | None
    result: dict[str, Any] | None
    error: str | None
    created_at: datetime
    finished_at: datetime | None

    @classmethod
    def of(cls, record: JobRecord) -> "JobItem":
        return cls(**{name: getattr(record, name) for name in cls.model_fields})
