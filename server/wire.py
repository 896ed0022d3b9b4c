"""Request and response models that need no engine: Axionic's fields on /v1, and its native routes."""

from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, JsonValue

from policies.sampling import MAX_BEAM_WIDTH, MAX_CANDIDATES, Asked, known_method
from processors.args import BETA, MIN_P, SUBSET_SIZE, TYPICAL_MASS

INT32_MAX = 2**31 - 1
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
Stops = Annotated[list[Annotated[str, Field(min_length=1)]], Field(max_length=64)]


class Strict(BaseModel):
    model_config = ConfigDict(extra="forbid")


class AxionicFields(BaseModel):
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
    # Sent by OpenAI's clients as a matter of course; nothing here depends on them.
    metadata: dict[str, str] | None = None
    store: bool | None = None
    service_tier: Literal["auto", "default"] | None = None
    safety_identifier: str | None = None
    prompt_cache_key: str | None = None


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


class GenerateRequest(NativeSampling):
    """POST /generate. `steering_*` are accepted at their neutral values, which mechanex always sends."""

    prompt: str = Field(min_length=1)
    model: str | None = None
    max_tokens: MaxTokens = 50
    sampling_method: MethodName = "top-k"
    steering_vector_id: str | None = None
    steering_strength: Annotated[float, Field(allow_inf_nan=False)] = 0.0
    stream: bool | None = Field(default=None, description="true: SSE; absent: as the Accept header says")


class SamplingRequest(Strict):
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
    policy: None = Field(default=None, description="policies run on /policies/run")
    policy_id: None = Field(default=None, description="policies run on /policies/run")


class SamplingResponse(BaseModel):
    output: str
    method_used: str


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
