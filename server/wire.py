"""Request and response models that need no engine: Axionic's fields on /v1, and its native routes."""

from collections.abc import Mapping
from typing import Annotated, Any, Literal, TypeVar

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, JsonValue, ValidationError

from policies.policy import RuntimePolicy
from policies.sampling import MAX_BEAM_WIDTH, MAX_CANDIDATES, Asked, known_method
from policies.steering import Flat, SteeringEntry, Strength
from processors.args import BETA, MIN_P, SUBSET_SIZE, TYPICAL_MASS
from server.completion_rows import MAX_SESSION
from server.errors import InvalidRequest
from server.interactions import MAX_LABEL_KEY, MAX_LABEL_VALUE, MAX_LABELS
from server.monitor import Mode, WatchList
from steering.spec import MAX_TERMS, MAX_WATCHES

INT32_MAX = 2**31 - 1
_T = TypeVar("_T")
Several = Annotated[list[_T], Field(min_length=1, max_length=MAX_TERMS)]
NATIVE_TEMPERATURE = 0.7  # Axionic's own routes; /v1 follows the model's generation config

MethodName = Annotated[str, AfterValidator(known_method)]
Temperature = Annotated[float, Field(ge=0, le=2, allow_inf_nan=False)]
TopP = Annotated[float, Field(gt=0, le=1, allow_inf_nan=False)]
TopK = Annotated[int, Field(ge=-1, le=INT32_MAX, description="0 and -1 mean: no limit")]
MinP = Annotated[float, Field(ge=MIN_P.low, le=MIN_P.high, allow_inf_nan=False)]
TypicalP = Annotated[float, Field(gt=TYPICAL_MASS.low, le=TYPICAL_MASS.high, allow_inf_nan=False)]
AdsSubsetSize = Annotated[int, Field(ge=int(SUBSET_SIZE.low), le=int(SUBSET_SIZE.high))]
AdsBeta = Annotated[float, Field(ge=BETA.low, le=BETA.high, allow_inf_nan=False)]
BeamWidth = Annotated[int, Field(ge=1, le=MAX_BEAM_WIDTH)]
Candidates = Annotated[int, Field(ge=1, le=MAX_CANDIDATES)]
Penalty = Annotated[float, Field(ge=-2, le=2, allow_inf_nan=False)]
RepetitionPenalty = Annotated[float, Field(gt=0, le=100, allow_inf_nan=False)]
Seed = Annotated[int, Field(ge=-(2**63), le=2**63 - 1)]
MaxTokens = Annotated[int, Field(ge=1, le=INT32_MAX)]
Models = Annotated[list[str], Field(min_length=1, max_length=16)]
LabelKey = Annotated[str, Field(min_length=1, max_length=MAX_LABEL_KEY)]
LabelValue = Annotated[str, Field(max_length=MAX_LABEL_VALUE)]
Labels = Annotated[dict[LabelKey, LabelValue], Field(max_length=MAX_LABELS)]
Stops = Annotated[list[Annotated[str, Field(min_length=1)]], Field(max_length=64)]


class Strict(BaseModel):
    model_config = ConfigDict(extra="forbid")


class SteeringFields(BaseModel):
    """How a request is steered. One vector or several, by id, inline or as a preset; `steering` says more.

    `steering_strength` is one for all of them or one for each, in the order ids, inline vectors, presets.
    """

    steering_vector_id: str | Several[str] | None = None
    steering_vector: str | Flat | Several[str | Flat] | None = Field(
        default=None, description="{layer: [floats]}, as Axionic's clients save it, or an id"
    )
    steering_preset: str | Several[str] | None = None
    steering_strength: Strength | Several[Strength] | None = Field(default=None, description="absent: 1")
    steering: SteeringEntry | Several[SteeringEntry] | None = None

    def steering_entries(self) -> dict[str, SteeringEntry]:
        """By their paths in the request. Raises InvalidRequest where the fields do not fit each other."""
        sources: list[tuple[str, str, Any]] = [
            (path, "vector_id", one) for path, one in self._listed("steering_vector_id")
        ]
        sources += [
            (path, "vector_id" if isinstance(one, str) else "vector", one)
            for path, one in self._listed("steering_vector")
        ]
        sources += [(path, "preset", one) for path, one in self._listed("steering_preset")]
        strengths = self._listed("steering_strength") or [("steering_strength", None)]
        if len(strengths) not in {1, len(sources)}:
            raise InvalidRequest(
                f"give one strength, or one for each of the {len(sources)} vectors", param="steering_strength"
            )
        if not sources and any(strength for _, strength in strengths):
            raise InvalidRequest(
                "there is nothing to steer by: give steering_vector_id, steering_vector or steering_preset",
                param="steering_strength",
            )
        each = strengths * len(sources) if len(strengths) == 1 else strengths
        pairs = zip(sources, each, strict=True)
        made = {source[0]: _entry(*source, *strength) for source, strength in pairs}
        return made | dict(self._listed("steering"))

    def steering_fields(self) -> dict[str, Any]:
        """What was given, for a request of another kind."""
        given = self.model_fields_set & SteeringFields.model_fields.keys()
        return {name: getattr(self, name) for name in given}

    def _listed(self, field: str) -> list[tuple[str, Any]]:
        """Each value of a field that takes one or several, after its path."""
        value = getattr(self, field)
        if isinstance(value, list):
            return [(f"{field}.{index}", one) for index, one in enumerate(value)]
        return [] if value is None else [(field, value)]


def _entry(path: str, name: str, source: Any, strength_path: str, strength: float | None) -> SteeringEntry:
    try:
        return SteeringEntry.model_validate({name: source, "strength": strength})
    except ValidationError as error:
        first = error.errors()[0]
        message = str(first["msg"]).removeprefix("Value error, ")
        raise InvalidRequest(message, param=strength_path if "strength" in first["loc"] else path) from error


Names = Annotated[list[Annotated[str, Field(min_length=1, max_length=200)]], Field(max_length=MAX_WATCHES)]


class WatchFields(BaseModel):
    """Which behaviours a request is watched for, by name or id, and what their drift leads to."""

    behavior_names: Names | None = None
    force_steering: Names | None = Field(default=None, description="corrected from the first token on")
    behavior_mode: Mode | None = Field(default=None, description="what drift above the threshold leads to")
    behavior_levels: bool = Field(default=False, description="true: the drift of every token is told too")

    def watch(self, mode: Mode = Mode.ONLINE) -> WatchList | None:
        """`mode` is the route's own. Raises InvalidRequest for a mode, or levels, without a behaviour."""
        if not self.behavior_names and self.behavior_mode is not None:
            raise InvalidRequest("there is no behavior to watch: give behavior_names", param="behavior_mode")
        if self.behavior_levels and not self.behavior_names and not self.force_steering:
            raise InvalidRequest(
                "there is no behavior to tell of: give behavior_names", param="behavior_levels"
            )
        if not self.behavior_names and not self.force_steering:
            return None
        return WatchList(
            tuple(self.behavior_names or ()),
            tuple(self.force_steering or ()),
            self.behavior_mode or mode,
            levels=self.behavior_levels,
        )

    def watch_fields(self) -> dict[str, Any]:
        """What was given, for a request of another kind."""
        given = self.model_fields_set & WatchFields.model_fields.keys()
        return {name: getattr(self, name) for name in given}


class AxionicFields(SteeringFields, WatchFields):
    """What Axionic's /v1 routes take beside OpenAI's and vLLM's fields."""

    sampling_method: MethodName | None = Field(
        default=None, description="one of the ten methods, or an alias"
    )
    typical_p: TypicalP | None = None
    ads_subset_size: AdsSubsetSize | None = None
    ads_beta: AdsBeta | None = None
    beam_width: BeamWidth | None = None
    best_of: Candidates | None = None
    ensemble_models: Models | None = None
    draft_model: str | None = None
    json_schema: dict[str, JsonValue] | None = None
    regex_pattern: str | None = None
    grammar: str | None = None
    policy: RuntimePolicy | None = None
    policy_id: str | None = Field(default=None, description="of a stored policy, in place of `policy`")
    include_trace: bool = Field(default=False, description="of the policy's run, in `steersman.policy`")
    metadata: Labels | None = None
    store: bool | None = Field(default=None, description="keep this chat completion to be looked up later")
    # Sent by OpenAI's clients as a matter of course; nothing here depends on them.
    service_tier: Literal["auto", "default"] | None = None
    safety_identifier: str | None = None
    prompt_cache_key: str | None = None


class StoredFields(BaseModel):
    """By what a stored chat completion may be found."""

    metadata: Labels | None = Field(default=None, description="stored with the completion")
    labels: Labels | None = Field(default=None, description="the same as `metadata`")
    session_id: Annotated[str, Field(min_length=1, max_length=MAX_SESSION)] | None = None

    @property
    def all_labels(self) -> dict[str, str]:
        """Of `metadata` and `labels`. Raises InvalidRequest where they differ or are too many."""
        metadata, labels = self.metadata or {}, self.labels or {}
        for key in metadata.keys() & labels.keys():
            if metadata[key] != labels[key]:
                raise InvalidRequest(f"`metadata` and `labels` differ in {key!r}", param=f"labels.{key}")
        both = {**metadata, **labels}
        if len(both) > MAX_LABELS:
            raise InvalidRequest(f"`metadata` and `labels` are at most {MAX_LABELS} together", param="labels")
        return both


class NativeSampling(Strict):
    """Sampling fields of /generate and of `params` on /sampling/generate."""

    temperature: Temperature | None = Field(default=None, description=f"absent: {NATIVE_TEMPERATURE}")
    top_p: TopP | None = None
    top_k: TopK | None = None
    min_p: MinP | None = None
    typical_p: TypicalP | None = None
    ads_subset_size: AdsSubsetSize | None = None
    ads_beta: AdsBeta | None = None
    beam_width: BeamWidth | None = None
    seed: Seed | None = None
    repetition_penalty: RepetitionPenalty | None = None
    presence_penalty: Penalty | None = None
    frequency_penalty: Penalty | None = None
    stop: Stops | None = None

    def asked(self, method: str, *, constrained: bool = False, **more: Any) -> Asked:
        """These fields as planning takes them; `more` are fields of Asked that stand elsewhere."""
        return Asked(
            method=method,
            temperature=NATIVE_TEMPERATURE if self.temperature is None else self.temperature,
            top_p=self.top_p,
            top_k=self.top_k,
            min_p=self.min_p,
            typical_p=self.typical_p,
            ads_subset_size=self.ads_subset_size,
            ads_beta=self.ads_beta,
            beam_width=self.beam_width,
            constrained=constrained,
            **more,
        )


class GenerateRequest(NativeSampling, SteeringFields):
    """POST /generate. mechanex always sends a `steering_strength`, 0 unless told otherwise: no effect."""

    prompt: str = Field(min_length=1)
    model: str | None = None
    max_tokens: MaxTokens = 50
    sampling_method: MethodName = "top-k"
    stream: bool | None = Field(default=None, description="true: SSE; absent: as the Accept header says")


class WatchedRequest(NativeSampling, WatchFields):
    """POST /sae/generate. Unless `behavior_mode` says otherwise, a drifting answer is generated again."""

    prompt: str = Field(min_length=1)
    model: str | None = None
    max_new_tokens: MaxTokens = 50
    sampling_method: MethodName = "top-k"
    stream: bool | None = Field(default=None, description="true: SSE; absent: as the Accept header says")


class SamplingRequest(Strict, SteeringFields):
    """POST /sampling/generate."""

    prompt: str = Field(min_length=1)
    model: str | None = None
    max_new_tokens: MaxTokens = 128
    method: MethodName | None = None
    params: NativeSampling | None = None
    json_schema: dict[str, JsonValue] | None = None
    regex_pattern: str | None = None
    grammar: str | None = None
    best_of_n: Candidates | None = None
    draft_model: str | None = None
    ensemble_models: Models | None = None
    policy: RuntimePolicy | None = None
    policy_id: str | None = None


class SamplingResponse(BaseModel):
    output: str
    method_used: str
    steering: dict[str, Any] | None = None
    behaviors: list[Mapping[str, Any]] | None = None
    policy: dict[str, Any] | None = None


class HostedModel(BaseModel):
    id: str
    name: str
    base_url: str
    created_at: str
    is_active: bool = True
    is_default: bool
    required_auth: bool = True
    description: str | None = None
    hf_model_name: str | None = None
    inference_only: bool = True
    trainable: bool = False
    sae_release_id: str | None = None
