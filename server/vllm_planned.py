"""What vLLM's chat and completion requests share: Axionic's fields, and the plan they are carried out by.

What a plan changes enters through `to_sampling_params`, where vLLM merges its own defaults.
"""

from collections.abc import AsyncGenerator, Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Annotated, Any, Self

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    ModelWrapValidatorHandler,
    PrivateAttr,
    TypeAdapter,
    ValidationError,
    model_validator,
)
from vllm.entrypoints.generate.base.protocol import StreamOptions
from vllm.exceptions import VLLMValidationError
from vllm.sampling_params import SamplingParams, StructuredOutputsParams

import processors.args
import steering.spec
from policies.constraint import (
    Constraint,
    ConstraintError,
    from_choice,
    from_grammar,
    from_json_schema,
    from_regex,
    from_structural_tag,
    json_object,
)
from policies.sampling import GREEDY_TEMPERATURE, PENALTIES, Asked, Plan
from policies.steering import JSON_PRESET
from processors.args import MAX_SIBLINGS, AdsArgs, ArgumentError, ProcessorArgs, TypicalArgs, fresh_group
from server.addressable import Addressable
from server.conversation import sent_back
from server.errors import InvalidRequest
from server.media_parts import PlacedPart
from server.vllm_beam import BeamParams
from server.vllm_grammar import structured_outputs
from server.wire import (
    INT32_MAX,
    AxionicFields,
    Candidates,
    MaxTokens,
    MinP,
    Penalty,
    RepetitionPenalty,
    Temperature,
    TopK,
    TopP,
)

_ENGINE_FIELDS = ("logit_bias", "bad_words", "allowed_token_ids", "min_tokens")  # beams apply none
_RESERVED_KEYS = processors.args.RESERVED_KEYS | steering.spec.RESERVED_KEYS
TokenId = Annotated[int, Field(ge=0, le=INT32_MAX)]


@dataclass(frozen=True, slots=True)
class Seat:
    """One candidate's place among the `siblings` of its prompt."""

    group: int
    slot: int
    siblings: int


@dataclass(frozen=True, slots=True)
class Forbidden:
    """Terms to keep out of what is generated, and what the client calls them."""

    terms: tuple[str, ...]
    field: str


# To mypy vLLM's classes are Any, so the mixin may use the fields that they bring.
if TYPE_CHECKING:
    from vllm.entrypoints.openai.chat_completion.protocol import ChatCompletionRequest as _VllmFields
else:
    _VllmFields = object


class Planned(Addressable, AxionicFields, _VllmFields):
    """What both request kinds share. Mixed in before vLLM's class."""

    model_config = ConfigDict(extra="forbid")

    temperature: Temperature | None = None
    top_p: TopP | None = None
    top_k: TopK | None = None
    min_p: MinP | None = None
    n: Candidates = 1
    presence_penalty: Penalty | None = None
    frequency_penalty: Penalty | None = None
    repetition_penalty: RepetitionPenalty | None = None
    max_tokens: MaxTokens | None = None
    min_tokens: Annotated[int, Field(ge=0, le=INT32_MAX)] = 0
    length_penalty: Annotated[float, Field(ge=-10, le=10, allow_inf_nan=False)] = 1.0
    stop_token_ids: list[TokenId] | None = Field(default_factory=list)
    logit_bias: dict[str, Annotated[float, Field(ge=-100, le=100, allow_inf_nan=False)]] | None = None

    _plan: Plan | None = PrivateAttr(None)
    _seat: Seat | None = PrivateAttr(None)
    _forbidden: Forbidden | None = PrivateAttr(None)

    @model_validator(mode="before")
    @classmethod
    def _before(cls, data: Any) -> Any:
        if not isinstance(data, dict):
            return data
        if data.get("stream_options") is not None and not data.get("stream"):
            data = {name: value for name, value in data.items() if name != "stream_options"}
        if "messages" in data:
            data = {**data, "messages": sent_back(data["messages"])}
        if data.get("n", 1) is None:
            data = {**data, "n": 1}
        if _wants_json(data):
            data = {**data, "response_format": {"type": "json_object"}}
        reserved = _RESERVED_KEYS.intersection(data.get("vllm_xargs") or ())
        if reserved:
            names = ", ".join(sorted(reserved))
            raise ValueError(
                f"vllm_xargs: {names} are set by the server; use sampling_method, steering and their fields"
            )
        return data

    @model_validator(mode="wrap")
    @classmethod
    def _typed(cls, data: Any, handler: ModelWrapValidatorHandler[Self]) -> Self:
        """vLLM's own checks come before pydantic's of the types, and trip over values of others."""
        try:
            return handler(data)
        except (AttributeError, KeyError, IndexError, TypeError) as error:
            field = next((name for name in data if not _fits(cls, name, data[name])), None)
            raise VLLMValidationError(f"`{field}` has a value of another type", parameter=field) from error

    def asked(self) -> Asked:
        beam = "constrained-beam-search" if self.use_beam_search else None
        return Asked(
            method=self.sampling_method or beam,
            temperature=self.temperature,
            top_p=self.top_p,
            top_k=self.top_k,
            min_p=self.min_p,
            typical_p=self.typical_p,
            ads_subset_size=self.ads_subset_size,
            ads_beta=self.ads_beta,
            beam_width=self.beam_width or (self.n if self.use_beam_search else None),
            n=self.n,
            best_of=self.best_of,
            ensemble_models=tuple(self.ensemble_models or ()),
            draft_model=self.draft_model,
            constrained=self.constrained,
        )

    @property
    def constrained(self) -> bool:
        own = (self.json_schema, self.regex_pattern, self.grammar, self.structured_outputs)
        text = self.response_format is None or self.response_format.type == "text"
        return not text or any(value is not None for value in own)

    def take_constraints(self) -> list[tuple[Constraint, str]]:
        """The constraint of this request and the field it came from; our fields move to vLLM's own.

        Raises InvalidRequest where two fields set one, and for one that cannot mean anything.
        """
        given = [field for field in _BUILDERS if getattr(self, field) is not None]
        outputs = self.extract_structured_outputs()
        if len(given) + (outputs is not None) > 1:
            raise InvalidRequest(f"`{given[0]}` stands beside another constraint; give one", param=given[0])
        if given:
            field = given[0]
            constraint = _built(_BUILDERS[field], getattr(self, field), field)
            self.structured_outputs = structured_outputs(constraint)
            return [(constraint, field)]
        if outputs is None:
            return []
        field = "structured_outputs" if self.structured_outputs is not None else "response_format"
        return [(_built(_constraint, outputs, field), field)]

    def plan_as(self, plan: Plan) -> Self:
        """Take `plan` over into this request's own fields; the rest waits for `to_sampling_params`.

        Raises InvalidRequest for a field, or forbidden terms, that beam search would drop.
        """
        if plan.beam_width:
            self._refuse_beyond_beams()
        self._plan = plan
        self.temperature = plan.temperature
        self.top_p = plan.top_p
        self.top_k = plan.top_k
        self.min_p = plan.min_p
        self.use_beam_search = plan.beam_width > 0
        return self

    def _refuse_beyond_beams(self) -> None:
        for field in (*PENALTIES, *_ENGINE_FIELDS):
            if getattr(self, field) not in (None, 0, [], {}, False, PENALTIES.get(field)):
                raise InvalidRequest(f"beam search does not apply `{field}`", param=field)
        if self._forbidden:
            field = self._forbidden.field
            raise InvalidRequest(f"beam search does not apply `{field}`", param=field)

    def forbid(self, terms: Sequence[str], field: str = "constraints.forbidden_terms") -> Self:
        """Keep `terms` out of what is generated, in any case. No field does this: it is for our own routes.

        To be called before `plan_as`. Raises InvalidRequest, which names `field`, for terms out of bounds.
        """
        try:
            ProcessorArgs(forbidden_terms=tuple(terms))
        except ArgumentError as error:
            raise InvalidRequest(str(error).replace(error.field, field, 1), param=field) from error
        self._forbidden = Forbidden(tuple(terms), field) if terms else None
        return self

    @property
    def forbidden(self) -> Forbidden | None:
        return self._forbidden

    @property
    def tools_given(self) -> bool:
        return bool(getattr(self, "tools", None)) and getattr(self, "tool_choice", None) != "none"

    def placed_media(self) -> Iterator[PlacedPart]:
        """The parts of its messages that are not text."""
        return iter(())

    @property
    def wants_prompt_logprobs(self) -> bool:
        echoed = getattr(self, "echo", False) and self.wants_logprobs
        return self.prompt_logprobs is not None or bool(echoed)

    @property
    def include_usage(self) -> bool:
        return bool(self.stream_options and self.stream_options.include_usage)

    def counted(self) -> dict[str, Any]:
        """The changes that make a stream end with its usage."""
        return {} if self.include_usage else {"stream_options": StreamOptions(include_usage=True)}

    def as_body(self, response: Any) -> dict[str, Any]:
        """vLLM's response as clients of this request's dialect read it."""
        body: dict[str, Any] = response.model_dump()
        return body

    def as_events(self, stream: AsyncGenerator[str, None]) -> AsyncGenerator[str, None]:
        """The same of a stream of SSE events."""
        return stream

    @property
    def group(self) -> int:
        """The siblings this request belongs to, if any."""
        return self._seat.group if self._seat else 0

    def candidate(self, seat: Seat, **changes: Any) -> Self:
        """This request as one of `seat.siblings` engine requests, seeded as vLLM seeds its own `n`.

        A stream always ends with its usage, which the merged stream needs.
        """
        seed = None if self.seed is None else self.seed + seat.slot
        usage = StreamOptions(include_usage=True) if self.stream else None
        one = self.model_copy(update={"n": 1, "seed": seed, "stream_options": usage, **changes})
        one._seat = seat  # noqa: SLF001  # of our own copy
        return one

    def to_sampling_params(self, max_tokens: int, default_sampling_params: dict[str, Any]) -> SamplingParams:
        params = super().to_sampling_params(max_tokens, default_sampling_params)
        plan, args = self._plan, ProcessorArgs()
        drawn = params.temperature >= GREEDY_TEMPERATURE
        if plan is not None and drawn and (plan.ads is not None or plan.typical_p < 1):
            args = _processor_args(plan, params, self._seat or Seat(fresh_group(), 0, 1))
        if self._forbidden:
            args = replace(args, forbidden_terms=self._forbidden.terms)
        if extra := args.to_extra_args():
            params.extra_args = {**(params.extra_args or {}), **extra}
        return params

    def to_beam_search_params(self, max_tokens: int, _defaults: dict[str, Any]) -> BeamParams:
        stop = [self.stop] if isinstance(self.stop, str) else list(self.stop or ())
        return BeamParams(
            beam_width=self._plan.beam_width if self._plan else self.n,
            n=self.n,
            max_tokens=max_tokens,
            ignore_eos=self.ignore_eos,
            temperature=0.0,
            length_penalty=self.length_penalty,
            include_stop_str_in_output=self.include_stop_str_in_output,
            skip_special_tokens=self.skip_special_tokens,
            structured_outputs=self.extract_structured_outputs(),
            stop=stop,
            stop_token_ids=list(self.stop_token_ids or ()),
            watermarking=self.watermarking,
        )


def _wants_json(data: dict[str, Any]) -> bool:
    """Whether the preset that is a constraint alone is the only one to set one."""
    named = [*_listed(data.get("steering_preset")), *map(_preset, _listed(data.get("steering")))]
    own = ("response_format", "structured_outputs", *_BUILDERS)
    return any(isinstance(name, str) and name.lower() == JSON_PRESET for name in named) and not any(
        data.get(field) is not None for field in own
    )


def _listed(value: Any) -> list[Any]:
    return value if isinstance(value, list) else [value]


def _preset(entry: Any) -> Any:
    return entry.get("preset") if isinstance(entry, dict) else getattr(entry, "preset", None)


def _fits(model: type[BaseModel], name: str, value: Any) -> bool:
    field = model.model_fields.get(name)
    annotation: Any = Any if field is None else field.annotation
    try:
        TypeAdapter(annotation).validate_python(value)
    except ValidationError:
        return False
    return True


_BUILDERS: dict[str, Callable[[Any], Constraint]] = {
    "json_schema": from_json_schema,
    "regex_pattern": from_regex,
    "grammar": from_grammar,
}


def _built(build: Callable[[Any], Constraint], value: Any, field: str) -> Constraint:
    try:
        return build(value)
    except ConstraintError as error:
        raise InvalidRequest(str(error), param=field, code="invalid_constraint") from error


def _constraint(outputs: StructuredOutputsParams) -> Constraint:
    """vLLM's own field as ours, for the compiler to see first."""
    if outputs.json is not None:
        return from_json_schema(outputs.json)
    if outputs.regex is not None:
        return from_regex(outputs.regex)
    if outputs.grammar is not None:
        return from_grammar(outputs.grammar)
    if outputs.choice is not None:
        return from_choice(outputs.choice)
    if outputs.structural_tag is not None:
        return from_structural_tag(outputs.structural_tag)
    return json_object()


def _processor_args(plan: Plan, params: SamplingParams, seat: Seat) -> ProcessorArgs:
    """Arguments for the worker; truncations that must follow ours move over and are off in vLLM.

    vLLM would apply its own min-p before typical, and its top-k and top-p after ADS, to the wrong
    distribution.
    """
    if plan.ads is None:
        typical = TypicalArgs(plan.typical_p, params.min_p)
        params.min_p = 0.0
        return ProcessorArgs(typical=typical)
    ads = AdsArgs(
        subset_size=plan.ads.subset_size,
        beta=plan.ads.beta,
        group=(seat.group + seat.slot // MAX_SIBLINGS) & (2**63 - 1),
        slot=seat.slot % MAX_SIBLINGS,
        siblings=min(MAX_SIBLINGS, seat.siblings),
        top_k=max(0, params.top_k),
        top_p=params.top_p,
        min_p=params.min_p,
    )
    params.top_k, params.top_p, params.min_p = 0, 1.0, 0.0
    return ProcessorArgs(typical=TypicalArgs(plan.typical_p) if plan.typical_p < 1 else None, ads=ads)
