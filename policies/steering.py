"""What a request may say about steering, and the terms it comes to. Pure: of vectors it knows a few facts."""

import math
from dataclasses import dataclass
from typing import Annotated, Literal, Self

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    ValidationInfo,
    field_validator,
    model_validator,
)

from steering.spec import Gate, GateKind, Operation, Phase, SpecError, Term, Tokens

Strength = Annotated[float, Field(allow_inf_nan=False, ge=-1000, le=1000)]
Finite = Annotated[float, Field(allow_inf_nan=False)]
# In float32 the square of a state this long is still a number.
Bound = Annotated[float, Field(allow_inf_nan=False, ge=-1e9, le=1e9)]
Flat = Annotated[
    dict[str, list[Finite]], Field(min_length=1)
]  # layer → direction, as Axionic's clients save it

# A preset is never weaker than this (Axionic's table); None: it has no vector, only constraints.
PRESET_FLOORS: dict[str, float | None] = {
    "brevity": 0.35,
    "truthfulness": 0.45,
    "json_compliance": None,
    "format_rigidity": 0.50,
    "refusal_strength": 0.65,
    "safety_style": 0.55,
    "domain_specific": 0.40,
    "tone_control": 0.25,
}
TRAINING_METHODS = ("caa", "few-shot", "asas", "steering-perceptrons")
JSON_PRESET = "json_compliance"
OWN_EXAMPLES = "domain_specific"  # the preset whose pairs a user brings


def known_preset(name: str) -> str:
    """The preset's own spelling. Raises ValueError, listing what there is."""
    lowered = name.lower()
    if lowered not in PRESET_FLOORS:
        raise ValueError(f"unknown preset {name!r}; known: {', '.join(PRESET_FLOORS)}")
    return lowered


def least_strength(preset: str | None) -> float | None:
    """None where nothing is raised: without a preset, and for one that has no vector."""
    return None if preset is None else PRESET_FLOORS[known_preset(preset)]


def preset_strength(preset: str | None, strength: float) -> float:
    """`strength`, or the least one of `preset`. Raises ValueError where that would turn its sign."""
    least = least_strength(preset)
    if least is None:
        return strength
    if strength < 0:
        raise ValueError(
            f"the strength of {preset} is at least {least:g}; steer against it by its vector's id"
        )
    return max(strength, least)


def known_training(name: str) -> str:
    """Raises ValueError, listing how vectors are made."""
    if name not in TRAINING_METHODS:
        raise ValueError(f"unknown method {name!r}; known: {', '.join(TRAINING_METHODS)}")
    return name


def require_tokens(start: int | None, end: int | None, phase: str = "all") -> None:
    """Raises ValueError for a token range that is empty whatever the prompt's length."""
    if end is None:
        return
    before_generated = phase == "generated" and end <= 1  # a prompt has a token
    if end == 0 or before_generated or (start is not None and (start < 0) == (end < 0) and start >= end):
        raise ValueError(f"token_end {end} leaves no token to act on")


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class GateEntry(_Strict):
    """Let a vector act only on tokens whose state passes a test.

    `cosine`: where cos(state, vector) > threshold. `probe`: by the probability of the trained unit stored
    with the vector. The vector tested is the entry's own unless `vector_id` names another.
    """

    kind: Literal["cosine", "probe"] = "cosine"
    vector_id: str | None = None
    threshold: Annotated[float, Field(ge=-1, le=1, allow_inf_nan=False)] = 0.0
    inverted: bool = False

    @model_validator(mode="after")
    def _effective(self) -> Self:
        if self.kind == "probe" and self.threshold != 0:
            raise ValueError("threshold has no effect on a probe, which has its own")
        return self


class SteeringEntry(_Strict):
    """One vector and how it acts; exactly one of `vector_id`, `vector`, `preset` and `feature`."""

    vector_id: str | None = None
    vector: Flat | None = None
    preset: Annotated[str, AfterValidator(known_preset)] | None = None
    feature: Annotated[int, Field(ge=0, lt=2**31)] | None = Field(
        default=None, description="a latent of a sparse autoencoder, by number"
    )
    sae: Annotated[str, Field(min_length=1, max_length=64)] | None = Field(
        default=None, description="feature: the autoencoder; absent: the one that fits best"
    )
    op: Literal["add", "clamp", "ablate"] | None = Field(default=None, description="feature; absent: clamp")
    strength: Strength | None = Field(default=None, description="absent: 1")
    operation: Literal["add", "norm-preserving-add", "project-out", "clamp", "replace", "latents"] | None = (
        Field(default=None, description="absent: as the vector's method defines")
    )
    low: Bound | None = Field(default=None, description="clamp: the component's lower bound")
    high: Bound | None = Field(default=None, description="clamp: the component's upper bound")
    value: Bound | None = Field(
        default=None, description="replace, feature: what the component becomes, or what is added to it"
    )
    layers: Annotated[list[Annotated[int, Field(ge=0)]], Field(min_length=1, max_length=512)] | None = None
    tokens: Literal["all", "prompt", "generated"] = "all"
    token_start: int | None = Field(default=None, description="negative: from the end of the prompt")
    token_end: int | None = None
    gate: GateEntry | None = None

    @field_validator("strength")
    @classmethod
    def _keeps_its_sign(cls, strength: float | None, info: ValidationInfo) -> float | None:
        preset = info.data.get("preset")
        if strength is not None and preset is not None:
            preset_strength(preset, strength)
        return strength

    @model_validator(mode="after")
    def _whole(self) -> Self:
        sources = ("vector_id", "vector", "preset", "feature")
        given = [name for name in sources if getattr(self, name) is not None]
        if len(given) != 1:
            raise ValueError("give exactly one of vector_id, vector, preset and feature")
        if self.feature is not None:
            return self._whole_feature()
        self._require_bounds()
        if self.preset == JSON_PRESET:
            others = self.model_fields_set - {"preset", "strength"}
            if others:
                raise ValueError(f"{min(others)} has no effect on {JSON_PRESET}, which has no vector")
        require_tokens(self.token_start, self.token_end, self.tokens)
        return self

    def _require_bounds(self) -> None:
        for name in ("sae", "op"):
            if getattr(self, name) is not None:
                raise ValueError(f"{name} has no effect without a feature")
        wanted = {"clamp": ("low", "high"), "replace": ("value",)}.get(self.operation or "", ())
        for name in ("low", "high", "value"):
            if getattr(self, name) is not None and name not in wanted:
                raise ValueError(f"{name} has no effect on operation {self.operation or 'add'}")
        if wanted and all(getattr(self, name) is None for name in wanted):
            raise ValueError(f"operation {self.operation} needs {' or '.join(wanted)}")
        if self.low is not None and self.high is not None and self.low > self.high:
            raise ValueError("low must not exceed high")

    def _whole_feature(self) -> Self:
        for name in ("strength", "operation", "low", "high", "layers", "gate"):
            if getattr(self, name) is not None:
                raise ValueError(f"{name} has no effect on a feature; op and value say how it changes")
        if self.op == "ablate" and self.value is not None:
            raise ValueError("value has no effect on op ablate, which makes it 0")
        if self.op != "ablate" and self.value is None:
            raise ValueError(f"op {self.op or 'clamp'} needs a value")
        require_tokens(self.token_start, self.token_end, self.tokens)
        return self

    @property
    def effective_strength(self) -> float:
        return preset_strength(self.preset, 1.0 if self.strength is None else self.strength)


@dataclass(frozen=True, slots=True)
class Material:
    """What planning knows of a vector: its digest, and the layers that have each part."""

    digest: str
    layers: tuple[int, ...]
    probes: bool = False
    latents: bool = False


def term(entry: SteeringEntry, own: Material, tested: Material | None = None) -> Term:
    """What the worker is told; `tested` is the vector of the entry's gate, if it names one.

    Raises SpecError for a part that the vector does not have.
    """
    if entry.feature is not None:
        return _feature_term(entry, own)
    layers = tuple(entry.layers) if entry.layers is not None else own.layers
    missing = [layer for layer in layers if layer not in own.layers]
    if missing:
        has = ", ".join(map(str, own.layers))
        raise SpecError("layers", f"the vector has no layer {missing[0]}; it has {has}")
    if len(set(layers)) != len(layers):
        raise SpecError("layers", "names a layer twice")
    strength = entry.effective_strength
    low, high = _bounds(entry)
    return Term(
        vector=own.digest,
        layers=layers,
        operation=_operation(entry, own),
        strength=strength,
        low=low,
        high=high,
        tokens=Tokens(Phase(entry.tokens), entry.token_start, entry.token_end),
        gate=_gate(entry, own, tested, strength, layers),
    )


def _feature_term(entry: SteeringEntry, own: Material) -> Term:
    """`own` is the latent's vector: its decoder row as direction, and itself as its only latent."""
    tokens = Tokens(Phase(entry.tokens), entry.token_start, entry.token_end)
    if entry.op == "add":
        assert entry.value is not None
        return Term(own.digest, own.layers, Operation.ADD, entry.value, tokens=tokens)
    value = 0.0 if entry.op == "ablate" else entry.value
    assert value is not None
    return Term(own.digest, own.layers, Operation.LATENTS, 1.0, value, value, tokens=tokens)


def _operation(entry: SteeringEntry, own: Material) -> Operation:
    if entry.operation is None:
        return Operation.UNITS if own.latents else Operation.ADD
    if entry.operation == "latents" and not own.latents:
        raise SpecError("operation", "this vector has no latents; method asas makes such")
    return _OPERATIONS[entry.operation]


_OPERATIONS = {
    "add": Operation.ADD,
    "norm-preserving-add": Operation.NORM_ADD,
    "project-out": Operation.CLAMP,
    "clamp": Operation.CLAMP,
    "replace": Operation.CLAMP,
    "latents": Operation.UNITS,
}


def _bounds(entry: SteeringEntry) -> tuple[float, float]:
    if entry.operation == "project-out":
        return 0.0, 0.0
    if entry.operation == "replace":
        assert entry.value is not None
        return entry.value, entry.value
    low = -math.inf if entry.low is None else entry.low
    return low, math.inf if entry.high is None else entry.high


def _gate(
    entry: SteeringEntry, own: Material, tested: Material | None, strength: float, layers: tuple[int, ...]
) -> Gate | None:
    if entry.gate is None:
        if not own.probes or entry.operation is not None:
            return None
        # Add where the trait is missing, take away where it is there: both probes say how much it is.
        if own.latents:  # asas: in full on the side of the one class's mean state, not at all on the other's
            return Gate(GateKind.RAMP, own.digest, threshold=1.0, slope=0.5, inverted=strength < 0)
        return Gate(GateKind.PROBE, own.digest, inverted=strength > 0)
    read = tested or own
    missing = [layer for layer in layers if layer not in read.layers]
    if missing:
        raise SpecError("gate", f"its vector has no layer {missing[0]}, where it would be tested")
    if entry.gate.kind == "probe" and not read.probes:
        raise SpecError("gate", "this vector has no probe; method steering-perceptrons makes such")
    return Gate(GateKind(entry.gate.kind), read.digest, entry.gate.threshold, inverted=entry.gate.inverted)
