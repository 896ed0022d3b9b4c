"""RuntimePolicy: how a request is to be decoded and what its answer must satisfy.

Every field here takes effect. A field of Axionic's policy that is not served admits only its neutral value,
so that a policy that asks for it is refused by name and never runs without it.
"""

import re
from typing import Annotated, Any, Literal, Self

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, JsonValue, model_validator

from policies.constraint import from_json_schema, from_regex
from policies.sampling import known_method
from policies.steering import (
    JSON_PRESET,
    OWN_EXAMPLES,
    Flat,
    SteeringEntry,
    Strength,
    known_preset,
    known_training,
    preset_strength,
    require_tokens,
)


def _sound_schema(schema: dict[str, JsonValue]) -> dict[str, JsonValue]:
    from_json_schema(schema)
    if not isinstance(schema.get("$schema", ""), str):
        raise ValueError("`$schema` is the URI of a dialect, a string")  # noqa: TRY004  # as pydantic wants
    return schema


def _sound_pattern(pattern: str) -> str:
    from_regex(pattern)
    try:
        re.compile(pattern, re.DOTALL)  # as answers are judged, beside the engine's own dialect
    except (re.error, RecursionError, OverflowError) as error:
        raise ValueError(f"does not compile: {error}") from error
    return pattern


# "11", "layers.11", "model.layers.11", "blocks.11.hook_resid_post"
_LAYER = re.compile(
    r"(?:(?:[A-Za-z_]\w*\.)*(?:layers?|blocks|h)\.)?(\d{1,4})(?:\.hook_resid_post)?", re.ASCII
)


def _named_layer(name: str) -> str:
    if _LAYER.fullmatch(name) is None:
        raise ValueError(f"{name!r} names no layer; write 11 or layers.11")
    return name


def _layer(name: str) -> int:
    matched = _LAYER.fullmatch(name)
    assert matched is not None
    return int(matched[1])


Probability = Annotated[float, Field(gt=0, le=1, allow_inf_nan=False)]
Penalty = Annotated[float, Field(ge=-2, le=2, allow_inf_nan=False)]
Empty = Annotated[list[Any], Field(max_length=0)]


class Part(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class ModelTarget(Part):
    model: str | None = "default"
    base_url: None = None


class TaskProfile(Part):
    """Labels; they do not change decoding."""

    name: str = "general"
    category: str | None = None
    description: str | None = None


class Objective(Part):
    name: str = "quality"
    maximize: Literal[True] = True
    latency_budget_ms: None = None
    token_budget: None = None


class SamplingControls(Part):
    """Ranges that depend on the method are checked when the request is planned."""

    method: Annotated[str, AfterValidator(known_method)] = "top-k"
    temperature: Annotated[float, Field(ge=0, le=2, allow_inf_nan=False)] = 0.7
    top_p: Probability = 0.9
    top_k: Annotated[int, Field(ge=-1, le=2**31 - 1)] | None = 50
    min_p: Annotated[float, Field(ge=0, le=1, allow_inf_nan=False)] | None = None
    typical_p: Probability | None = None
    repetition_penalty: Annotated[float, Field(gt=0, le=100, allow_inf_nan=False)] | None = None
    presence_penalty: Penalty | None = None
    frequency_penalty: Penalty | None = None
    num_candidates: Annotated[int, Field(ge=1, le=128)] = 1
    diversity_strength: Literal[0] = 0
    beam_width: Annotated[int, Field(ge=1, le=16)] = 4
    speculative_steps: Annotated[int, Field(ge=1)] = 4
    draft_model: str | None = None
    ensemble_models: Annotated[list[str], Field(max_length=16)] = []
    voting: Literal["majority"] = "majority"
    ads_subset_size: Annotated[int, Field(ge=1, le=32)] | None = None
    ads_beta: Annotated[float, Field(ge=0, le=0.9, allow_inf_nan=False)] | None = None
    adaptive_temperature: Literal[False] = False
    adaptive_temperature_schedule: Empty = []
    adaptive_top_p: Literal[False] = False
    adaptive_top_p_schedule: Empty = []


class SteeringControls(Part):
    """One vector: inline, by id or as a preset; `domain_specific` goes with a vector of one's own.

    `method` says how the vector was made; it changes nothing.
    """

    enabled: bool = False
    method: Annotated[str, AfterValidator(known_training)] = "caa"
    strength: Strength = 1.0
    preset: Annotated[str, AfterValidator(known_preset)] | None = None
    vector_id: str | None = None
    vector: Flat | None = None
    file_url: None = None
    layer_scope: Annotated[list[Annotated[str, AfterValidator(_named_layer)]], Field(max_length=512)] = []
    token_start: int | None = None
    token_end: int | None = None

    @model_validator(mode="after")
    def _effective(self) -> Self:
        sources = [name for name in ("vector_id", "vector") if getattr(self, name) is not None]
        if len(sources) > 1:
            raise ValueError("vector_id has no effect beside vector; give one")
        if sources and self.preset not in {None, OWN_EXAMPLES}:
            raise ValueError(f"{sources[0]} has no effect beside the preset {self.preset}, which has its own")
        if sources and not self.enabled and self.preset is None:
            raise ValueError(f"{sources[0]} has no effect while enabled is false")
        if self.enabled and not sources and self.preset is None:
            raise ValueError("enabled, but there is nothing to steer by: give vector_id, vector or preset")
        if self.preset == JSON_PRESET or not (self.enabled or self.preset):
            for name in ("layer_scope", "token_start", "token_end"):
                if getattr(self, name) not in (None, []):
                    raise ValueError(f"{name} has no effect while no vector acts")
        require_tokens(self.token_start, self.token_end)
        preset_strength(self.preset, self.strength)
        return self

    @property
    def entry(self) -> SteeringEntry | None:
        """What is to be applied; None for nothing."""
        if self.preset == JSON_PRESET or not (self.enabled or self.preset):
            return None
        own = self.vector is not None or self.vector_id is not None
        return SteeringEntry(
            vector=self.vector,
            vector_id=self.vector_id,
            preset=None if own else self.preset,
            strength=preset_strength(self.preset, self.strength),
            layers=[_layer(name) for name in self.layer_scope] or None,
            token_start=self.token_start,
            token_end=self.token_end,
        )


class ConstraintControls(Part):
    json_mode: bool = False
    json_schema: Annotated[dict[str, JsonValue], AfterValidator(_sound_schema)] | None = None
    regex_pattern: Annotated[str, AfterValidator(_sound_pattern)] | None = None
    grammar: str | None = None
    stop_sequences: Annotated[list[Annotated[str, Field(min_length=1)]], Field(max_length=64)] = []
    required_fields: Empty = []
    forbidden_terms: Empty = []
    tool_schema: None = None


class VerifierControls(Part):
    """The three verifiers that need no judge and no sandbox."""

    enabled: list[Literal["syntax", "json_schema", "regex"]] = []
    repair_on_failure: bool = Field(
        default=True, description="nothing is repaired beyond optimization's retries"
    )
    max_retries: Literal[0, 1] = 1
    rerank: Literal[True] = True
    code_language: Literal["python"] = "python"
    code_unit_tests: Empty = []
    unit_test_timeout_ms: int = 1500


class OptimizationControls(Part):
    best_of_n: Annotated[int, Field(ge=1, le=128)] = 1
    retry_on_failure: Annotated[int, Field(ge=0, le=16)] = 1
    fallback_methods: Empty = []
    confidence_triggered_regeneration: Literal[False] = False
    confidence_threshold: float = 0.5
    self_revision_loops: Literal[0] = 0
    branch_and_prune: Literal[False] = False


class RuntimePolicy(Part):
    id: str | None = None
    name: str | None = None
    description: str | None = None
    metadata: dict[str, JsonValue] = {}
    model: ModelTarget = ModelTarget()
    task_profile: TaskProfile = TaskProfile()
    objective: Objective = Objective()
    sampling: SamplingControls = SamplingControls()
    steering: SteeringControls = SteeringControls()
    constraints: ConstraintControls = ConstraintControls()
    verifiers: VerifierControls = VerifierControls()
    optimization: OptimizationControls = OptimizationControls()

    def expanded(self) -> "RuntimePolicy":
        """With what its steering preset brings beside a vector (Axionic's table)."""
        preset, groups = self.steering.preset, dict[str, Any]()
        verifiers = list(self.verifiers.enabled)
        if preset == JSON_PRESET:
            groups["constraints"] = self.constraints.model_copy(update={"json_mode": True})
            verifiers.append("syntax")
            if self.constraints.json_schema is not None:
                verifiers.append("json_schema")
        if preset == "format_rigidity" and self.constraints.regex_pattern is not None:
            verifiers.append("regex")
        if preset == "brevity" and "concise" not in self.objective.name.lower():
            groups["objective"] = self.objective.model_copy(update={"name": "concise response quality"})
        if len(verifiers) > len(self.verifiers.enabled):
            named = list(dict.fromkeys(verifiers))
            groups["verifiers"] = self.verifiers.model_copy(update={"enabled": named})
        return self.model_copy(update=groups)
