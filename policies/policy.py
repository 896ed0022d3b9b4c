"""RuntimePolicy: how a request is to be decoded and what its answer must satisfy.

Every field here takes effect, or the policy is refused by that field's name: also where a field is sound by
itself and another one leaves it without effect. `base_url` and `file_url` admit only None: nothing outside is
reached.
"""

import re
from typing import Annotated, Any, Literal, Self

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, JsonValue, model_validator

from policies.constraint import from_json_schema, from_regex
from policies.faults import faults
from policies.sampling import MAX_BEAM_WIDTH, MAX_CANDIDATES, Method, kind_of, known_method
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
from processors.args import MAX_TERM_CHARACTERS, MAX_TERMS, MAX_TERMS_CHARACTERS


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


def _distinct(names: list[Any]) -> list[Any]:
    """Each once, in order: a verifier named again would only be run again."""
    return list(dict.fromkeys(names))


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
Temperature = Annotated[float, Field(ge=0, le=2, allow_inf_nan=False)]
Schedule = Annotated[list[Temperature], Field(max_length=1024)]
TopPSchedule = Annotated[list[Probability], Field(max_length=1024)]
Term = Annotated[str, Field(min_length=1, max_length=MAX_TERM_CHARACTERS)]
VerifierName = Literal[
    "syntax", "json_schema", "regex", "code_compile", "unit_tests", "tool_args", "factuality"
]
_MAX_NAMED = 32  # verifiers, named twice included
_TEST_TIMEOUT_MS = 1500
_CONFIDENCE = 0.5


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
    """`maximize` false prefers the lower score among answers that are accepted alike."""

    name: str = "quality"
    maximize: bool = True
    latency_budget_ms: Annotated[int, Field(ge=1)] | None = Field(
        default=None, description="no round, repair or revision begins after it"
    )
    token_budget: Annotated[int, Field(ge=1)] | None = Field(
        default=None, description="generated tokens of all candidates together"
    )


class SamplingControls(Part):
    """Ranges that depend on the method are checked when the request is planned."""

    method: str = "top-k"
    temperature: Temperature = 0.7
    top_p: Probability = 0.9
    top_k: Annotated[int, Field(ge=-1, le=2**31 - 1)] | None = 50
    min_p: Annotated[float, Field(ge=0, le=1, allow_inf_nan=False)] | None = None
    typical_p: Probability | None = None
    repetition_penalty: Annotated[float, Field(gt=0, le=100, allow_inf_nan=False)] | None = None
    presence_penalty: Penalty | None = None
    frequency_penalty: Penalty | None = None
    num_candidates: Annotated[int, Field(ge=1, le=MAX_CANDIDATES)] = 1
    diversity_strength: Annotated[float, Field(ge=0, le=20, allow_inf_nan=False)] = Field(
        default=0.0, description="candidates 1, 2, 4, 5, … are warmer by 0.1 or 0.2 times this"
    )
    beam_width: Annotated[int, Field(ge=1, le=MAX_BEAM_WIDTH)] = 4
    speculative_steps: Annotated[int, Field(ge=1)] = Field(
        default=4, description="a hint; an engine's own are fixed when it starts, which a warning says"
    )
    draft_model: str | None = None
    ensemble_models: Annotated[list[str], Field(max_length=16)] = []
    voting: Literal["majority"] = "majority"
    ads_subset_size: Annotated[int, Field(ge=1, le=32)] | None = None
    ads_beta: Annotated[float, Field(ge=0, le=0.9, allow_inf_nan=False)] | None = None
    adaptive_temperature: bool = False
    adaptive_temperature_schedule: Schedule = Field(
        default=[], description="by round * num_candidates + slot; the last value goes on"
    )
    adaptive_top_p: bool = False
    adaptive_top_p_schedule: TopPSchedule = []

    @model_validator(mode="after")
    def _effective(self) -> Self:
        for name in ("adaptive_temperature", "adaptive_top_p"):
            if getattr(self, f"{name}_schedule") and not getattr(self, name):
                raise ValueError(f"{name}_schedule has no effect while {name} is false")
        return self


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
    required_fields: Annotated[
        list[Annotated[str, Field(min_length=1, max_length=256)]], Field(max_length=256)
    ] = []
    forbidden_terms: Annotated[list[Term], Field(max_length=MAX_TERMS)] = []
    tool_schema: Annotated[dict[str, JsonValue], AfterValidator(_sound_schema)] | None = Field(
        default=None, description="of `arguments` in {tool_name, arguments}"
    )

    @model_validator(mode="after")
    def _compatible(self) -> Self:
        if self.tool_schema is not None and self.json_schema is not None:
            raise ValueError("tool_schema and json_schema are two schemas of one answer; give one")
        if sum(map(len, self.forbidden_terms)) > MAX_TERMS_CHARACTERS:
            raise ValueError(f"forbidden_terms have at most {MAX_TERMS_CHARACTERS} characters together")
        return self

    @property
    def masks(self) -> bool:
        """Whether decoding is held to a form."""
        forms = (self.tool_schema, self.regex_pattern, self.grammar)
        return self.wants_json or any(form is not None for form in forms)

    @property
    def wants_json(self) -> bool:
        return self.json_mode or self.json_schema is not None or bool(self.required_fields)


class VerifierControls(Part):
    enabled: Annotated[list[VerifierName], Field(max_length=_MAX_NAMED), AfterValidator(_distinct)] = []
    repair_on_failure: bool = Field(
        default=True, description="a rejected winner is written again, told what was wrong with it"
    )
    max_retries: Annotated[int, Field(ge=0, le=16)] = Field(default=1, description="repairs of one run")
    rerank: bool = Field(default=True, description="false: the first accepted candidate wins")
    code_language: str = Field(default="python", description="any other fails: unsupported language")
    code_unit_tests: Annotated[list[Annotated[str, Field(max_length=65536)]], Field(max_length=64)] = []
    unit_test_timeout_ms: Annotated[int, Field(ge=100, le=30_000)] = _TEST_TIMEOUT_MS

    @model_validator(mode="after")
    def _effective(self) -> Self:
        if ("unit_tests" in self.enabled) != bool(self.code_unit_tests):
            raise ValueError("the verifier unit_tests and code_unit_tests have no effect without each other")
        if self.max_retries > 1 and not self.repair_on_failure:
            raise ValueError("max_retries has no effect while repair_on_failure is false")
        if self.unit_test_timeout_ms != _TEST_TIMEOUT_MS and not self.code_unit_tests:
            raise ValueError("unit_test_timeout_ms has no effect without the verifier unit_tests")
        if self.code_language != "python" and not {"code_compile", "unit_tests"} & {*self.enabled}:
            raise ValueError("code_language has no effect without the verifiers code_compile or unit_tests")
        return self


class OptimizationControls(Part):
    best_of_n: Annotated[int, Field(ge=1, le=MAX_CANDIDATES)] = 1
    retry_on_failure: Annotated[int, Field(ge=0, le=16)] = 1
    fallback_methods: Annotated[list[Annotated[str, AfterValidator(known_method)]], Field(max_length=16)] = []
    confidence_triggered_regeneration: bool = False
    confidence_threshold: Annotated[float, Field(ge=0, le=1, allow_inf_nan=False)] = _CONFIDENCE
    self_revision_loops: Annotated[int, Field(ge=0, le=8)] = 0
    branch_and_prune: bool = False

    @model_validator(mode="after")
    def _effective(self) -> Self:
        if self.confidence_threshold != _CONFIDENCE and not self.confidence_triggered_regeneration:
            raise ValueError(
                "confidence_threshold has no effect while confidence_triggered_regeneration is false"
            )
        return self


def _shared(group: type[Part]) -> Any:
    """One default for all policies: it is frozen, and pydantic would copy or make one for each."""
    default = group()
    return Field(default_factory=lambda: default)


class RuntimePolicy(Part):
    id: str | None = None
    name: str | None = None
    description: str | None = None
    metadata: dict[str, JsonValue] = {}
    model: ModelTarget = _shared(ModelTarget)
    task_profile: TaskProfile = _shared(TaskProfile)
    objective: Objective = _shared(Objective)
    sampling: SamplingControls = _shared(SamplingControls)
    steering: SteeringControls = _shared(SteeringControls)
    constraints: ConstraintControls = _shared(ConstraintControls)
    verifiers: VerifierControls = _shared(VerifierControls)
    optimization: OptimizationControls = _shared(OptimizationControls)

    @model_validator(mode="after")
    def _effective(self) -> Self:
        for fault in faults(self):
            raise ValueError(fault)
        return self

    @property
    def candidates(self) -> int:
        """Candidates of one round, votes of an ensemble excepted."""
        return max(self.optimization.best_of_n, self.sampling.num_candidates)

    @property
    def judged(self) -> bool:
        """Whether an answer can be rejected, or chosen among others: it is complete before it is told."""
        constraints, optimization = self.constraints, self.optimization
        return bool(
            constraints.masks
            or constraints.forbidden_terms
            or self.verifiers.enabled
            or self.candidates > 1
            or optimization.fallback_methods
            or self.kinds[0] in (Method.ENSEMBLE, Method.BEAM)
            or optimization.confidence_triggered_regeneration
            or optimization.self_revision_loops
        )

    @property
    def methods(self) -> tuple[str, ...]:
        """The sampling method and those that follow it, in order."""
        return (self.sampling.method, *self.optimization.fallback_methods)

    @property
    def masks_json(self) -> bool:
        """Whether the answer is JSON, as far as decoding can see to it."""
        constraints = self.constraints
        calls = constraints.tool_schema is not None or "tool_args" in self.verifiers.enabled
        return constraints.wants_json or calls or self.steering.preset == JSON_PRESET

    @property
    def kinds(self) -> tuple[Method, ...]:
        """What `methods` are, without a first one that is unknown."""
        return tuple(kind for kind in map(kind_of, self.methods) if kind is not None)

    def expanded(self) -> "RuntimePolicy":
        """With what its steering preset brings beside a vector (Axionic's table)."""
        preset, groups = self.steering.preset, dict[str, Any]()
        verifiers: list[str] = list(self.verifiers.enabled)
        if preset == JSON_PRESET:
            groups["constraints"] = self.constraints.model_copy(update={"json_mode": True})
            verifiers.append("syntax")
            if self.constraints.json_schema is not None:
                verifiers.append("json_schema")
        if preset in ("truthfulness", "safety_style"):
            verifiers.append("factuality")
        if preset == "format_rigidity" and self.constraints.regex_pattern is not None:
            verifiers.append("regex")
        if preset == "brevity" and "concise" not in self.objective.name.lower():
            groups["objective"] = self.objective.model_copy(update={"name": "concise response quality"})
        if len(verifiers) > len(self.verifiers.enabled):
            named = list(dict.fromkeys(verifiers))
            groups["verifiers"] = self.verifiers.model_copy(update={"enabled": named})
        return self.model_copy(update=groups)
