"""The ten sampling methods: from what a request asks for to what the engine is told.

Pure: `plan` maps the sampling fields of a request and a few facts about the engine to a frozen `Plan`.
Parameters compose: every field that is given applies, a method that is asked for by name adds its own
default where its field is absent; without one, the model's own defaults stand. `own_fields` narrows a request
of the Axionic-native routes, whose client always sends `top_k` and `top_p`, to the fields that its method
names.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from enum import StrEnum
from types import MappingProxyType
from typing import TypeVar

Number = TypeVar("Number", int, float)

GREEDY_TEMPERATURE = 1e-5  # below it vLLM takes the argmax
MAX_CANDIDATES = 128
MAX_BEAM_WIDTH = 16
ENSEMBLE_SAMPLES = 5  # odd, so that two answers cannot tie; used where one model votes alone


class Method(StrEnum):
    GREEDY = "greedy"
    TOP_K = "top-k"
    TOP_P = "top-p"
    MIN_P = "min-p"
    TYPICAL = "typical"
    ADS = "ads"
    GUIDED = "guided-generation"
    BEAM = "constrained-beam-search"
    SPECULATIVE = "speculative-decoding"
    ENSEMBLE = "ensemble-sampling"
    MULTINOMIAL = "multinomial"  # no truncation but the model's own; what OpenAI's API calls nothing


UNDRAWN = (Method.GREEDY, Method.BEAM)  # they draw nothing: every run of a seedless request is the same

# With the values at which they do nothing. Beams do not apply them.
PENALTIES: Mapping[str, float] = MappingProxyType(
    {"presence_penalty": 0, "frequency_penalty": 0, "repetition_penalty": 1}
)

ALIASES = {
    "adaptive-determinantal-sampling": Method.ADS,
    "ssd": Method.SPECULATIVE,
    "beam-search": Method.BEAM,
}


class Choose(StrEnum):
    """What becomes of several candidates."""

    ALL = "all"
    BEST = "best mean log-probability"
    VOTE = "majority vote"


class PlanError(ValueError):
    """A field, or a combination of fields, that no engine could run; `field` names it."""

    def __init__(self, field: str, message: str) -> None:
        super().__init__(message)
        self.field = field


class UnavailableError(PlanError):
    """Understood, but this engine was started without what it takes."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Asked:
    """The sampling fields of one request as the client gave them; None: not given."""

    method: str | None = None
    temperature: float | None = None
    top_p: float | None = None
    top_k: int | None = None
    min_p: float | None = None
    typical_p: float | None = None
    ads_subset_size: int | None = None
    ads_beta: float | None = None
    beam_width: int | None = None
    n: int = 1
    best_of: int | None = None
    ensemble_models: tuple[str, ...] = ()
    draft_model: str | None = None
    speculative_steps: int | None = None
    constrained: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineFacts:
    """What planning must know of the engine: does it speculate, does it run our logits processors,
    and the temperature of its model's generation config (1.0 where that names none)."""

    speculative: bool = False
    processors: bool = True
    temperature: float = 1.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Ads:
    subset_size: int
    beta: float


@dataclass(frozen=True, slots=True)
class Slot:
    """What one of several candidates has of its own; `model` None: the request's."""

    temperature: float | None
    top_p: float | None
    model: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """How one request is decoded. Fields that are None keep the model's own default.

    `candidates` > 1: that many sequences run as separate engine requests and `choose` reduces them;
    1: one engine request, with vLLM's own `n`. `beam_width` > 0: beam search instead of sampling. `slots`,
    where given, are the candidates' own values, one for each.
    """

    method_used: Method
    temperature: float | None = None
    top_p: float | None = None
    top_k: int | None = None
    min_p: float | None = None
    typical_p: float = 1.0
    ads: Ads | None = None
    beam_width: int = 0
    candidates: int = 1
    choose: Choose = Choose.ALL
    models: tuple[str, ...] = ()
    slots: tuple[Slot, ...] = ()
    warning: str | None = None


_KNOWN = {method.value: method for method in Method if method is not Method.MULTINOMIAL} | ALIASES


def resolve(name: str) -> Method:
    """The method called `name`. Raises PlanError that lists the known names."""
    try:
        return _KNOWN[name.lower().replace("_", "-")]
    except KeyError:
        raise PlanError(
            "sampling_method", f"unknown sampling method '{name}'; known methods: {', '.join(_KNOWN)}"
        ) from None


def kind_of(name: str) -> Method | None:
    """The method called `name`; None where there is none."""
    try:
        return resolve(name)
    except PlanError:
        return None


def known_method(name: str) -> str:
    """`name`, for models at the edge to validate with. Raises PlanError, which is a ValueError."""
    resolve(name)
    return name


def plan(asked: Asked, engine: EngineFacts) -> Plan:
    """Raises PlanError for a combination that means nothing, UnavailableError for what is not served."""
    method = _infer(asked) if asked.method is None else resolve(asked.method)
    _refuse_strays(asked, method)
    drawn = Plan(
        method_used=method,
        temperature=asked.temperature,
        top_p=asked.top_p,
        top_k=asked.top_k,
        min_p=asked.min_p,
        typical_p=1.0 if asked.typical_p is None else asked.typical_p,
    )
    if asked.method is not None:
        drawn = METHODS[method](drawn, asked, engine)
    planned = _several(drawn, asked)
    if _temperature(planned, engine) < GREEDY_TEMPERATURE:
        return _named_by_temperature(planned)
    _refuse_unserved(planned, asked, engine)
    return planned


def own_fields(asked: Asked) -> Asked:
    """`asked` without the `top_k` and `top_p` that its method does not name."""
    method = Method.TOP_K if asked.method is None else resolve(asked.method)
    keeps_k = method not in (Method.GREEDY, Method.TOP_P, Method.MIN_P, Method.TYPICAL, Method.BEAM)
    keeps_p = method not in (Method.GREEDY, Method.TOP_K, Method.MIN_P, Method.TYPICAL, Method.BEAM)
    return replace(asked, top_k=asked.top_k if keeps_k else None, top_p=asked.top_p if keeps_p else None)


def _infer(asked: Asked) -> Method:
    temperature = asked.temperature
    signs = (
        (asked.typical_p is not None and asked.typical_p < 1, Method.TYPICAL),
        (asked.constrained, Method.GUIDED),
        (temperature is not None and temperature < GREEDY_TEMPERATURE, Method.GREEDY),
        (bool(asked.min_p), Method.MIN_P),
        (asked.top_k is not None and asked.top_k > 0, Method.TOP_K),
        (asked.top_p is not None and asked.top_p < 1, Method.TOP_P),
    )
    return next((method for given, method in signs if given), Method.MULTINOMIAL)


def _refuse_strays(asked: Asked, method: Method) -> None:
    owners = (
        ("ads_subset_size", asked.ads_subset_size, Method.ADS),
        ("ads_beta", asked.ads_beta, Method.ADS),
        ("beam_width", asked.beam_width, Method.BEAM),
        ("ensemble_models", asked.ensemble_models or None, Method.ENSEMBLE),
        ("draft_model", asked.draft_model, Method.SPECULATIVE),
    )
    for field, value, owner in owners:
        if value is not None and method is not owner:
            raise PlanError(field, f"`{field}` has no effect without sampling_method '{owner}'")


def _greedy(drawn: Plan, _asked: Asked, _engine: EngineFacts) -> Plan:
    return replace(drawn, temperature=0.0, top_k=None, top_p=None, min_p=None, typical_p=1.0)


def _top_k(drawn: Plan, _asked: Asked, _engine: EngineFacts) -> Plan:
    return replace(drawn, top_k=50 if drawn.top_k is None else drawn.top_k, top_p=_or(drawn.top_p, 1.0))


def _top_p(drawn: Plan, _asked: Asked, _engine: EngineFacts) -> Plan:
    return replace(drawn, top_p=_or(drawn.top_p, 0.9), top_k=_or(drawn.top_k, 0))


def _min_p(drawn: Plan, _asked: Asked, _engine: EngineFacts) -> Plan:
    return replace(drawn, min_p=_or(drawn.min_p, 0.1), top_k=_or(drawn.top_k, 0), top_p=_or(drawn.top_p, 1.0))


def _typical(drawn: Plan, asked: Asked, _engine: EngineFacts) -> Plan:
    return replace(
        drawn,
        typical_p=_or(asked.typical_p, 0.95),
        top_k=_or(drawn.top_k, 0),
        top_p=_or(drawn.top_p, 1.0),
    )


def _ads(drawn: Plan, asked: Asked, _engine: EngineFacts) -> Plan:
    ads = Ads(subset_size=_or(asked.ads_subset_size, 8), beta=_or(asked.ads_beta, 0.3))
    # Siblings must know each other, which vLLM's own `n` cannot tell them (sampling happens per row).
    return replace(drawn, ads=ads, candidates=asked.n)


def _guided(drawn: Plan, asked: Asked, _engine: EngineFacts) -> Plan:
    if not asked.constrained:
        raise PlanError(
            "sampling_method",
            "guided-generation needs a constraint: json_schema, regex_pattern or grammar"
            " (on /v1 also response_format or structured_outputs)",
        )
    return drawn


def _beam(drawn: Plan, asked: Asked, _engine: EngineFacts) -> Plan:
    width = max(4, asked.n) if asked.beam_width is None else asked.beam_width
    if width < asked.n:
        raise PlanError("n", f"n is {asked.n}, but a beam of width {width} has no more than {width} results")
    if width > MAX_BEAM_WIDTH:
        raise PlanError("beam_width", f"beam_width must be between 1 and {MAX_BEAM_WIDTH}")
    truncations = (("min_p", bool(asked.min_p)), ("typical_p", _or(asked.typical_p, 1.0) < 1))
    for field, given in truncations:
        if given:
            raise PlanError(field, f"beam search draws nothing, so `{field}` has no meaning with it")
    return replace(drawn, temperature=0.0, top_k=None, top_p=None, beam_width=width)


def _speculative(drawn: Plan, asked: Asked, engine: EngineFacts) -> Plan:
    if engine.speculative:
        hints = [name for name in ("draft_model", "speculative_steps") if getattr(asked, name)]
        fixed = "the draft model and its steps are fixed when the engine starts"
        told = f"{fixed}; {' and '.join(hints)} {'were' if len(hints) > 1 else 'was'} not applied"
        return replace(drawn, warning=told if hints else None)
    ordinary = _infer(replace(asked, method=None))
    return replace(
        drawn,
        method_used=ordinary,
        warning="this engine was started without a draft model; decoded without speculation",
    )


def _ensemble(drawn: Plan, asked: Asked, _engine: EngineFacts) -> Plan:
    if asked.n != 1:
        raise PlanError("n", "ensemble-sampling answers with the one text that won the vote; n must be 1")
    models = asked.ensemble_models
    each = (1 if len(models) > 1 else ENSEMBLE_SAMPLES) if asked.best_of is None else asked.best_of
    return replace(drawn, candidates=max(1, len(models)) * each, choose=Choose.VOTE, models=models)


# What a method that is asked for by name makes of the fields as they were given.
METHODS: dict[Method, Callable[[Plan, Asked, EngineFacts], Plan]] = {
    Method.GREEDY: _greedy,
    Method.TOP_K: _top_k,
    Method.TOP_P: _top_p,
    Method.MIN_P: _min_p,
    Method.TYPICAL: _typical,
    Method.ADS: _ads,
    Method.GUIDED: _guided,
    Method.BEAM: _beam,
    Method.SPECULATIVE: _speculative,
    Method.ENSEMBLE: _ensemble,
}


def _several(planned: Plan, asked: Asked) -> Plan:
    """Account for best_of, which vLLM no longer has, and bound the number of candidates."""
    best_of = asked.best_of
    if best_of is not None and planned.choose is not Choose.VOTE:
        if best_of < asked.n:
            raise PlanError("best_of", f"best_of must be at least n, which is {asked.n}")
        if best_of > asked.n:
            if planned.beam_width:
                raise PlanError("best_of", "beam search takes beam_width, not best_of")
            planned = replace(planned, candidates=best_of, choose=Choose.BEST)
    if planned.candidates > MAX_CANDIDATES:
        raise PlanError("best_of" if best_of else "n", f"at most {MAX_CANDIDATES} candidates per request")
    return planned


def _temperature(planned: Plan, engine: EngineFacts) -> float:
    return engine.temperature if planned.temperature is None else planned.temperature


def _refuse_unserved(planned: Plan, asked: Asked, engine: EngineFacts) -> None:
    """What a speculative engine would leave out without a word."""
    if (planned.ads or planned.typical_p < 1) and not engine.processors:
        name = Method.ADS if planned.ads else Method.TYPICAL
        field = "sampling_method" if planned.ads or asked.typical_p is None else "typical_p"
        raise UnavailableError(
            field, f"{name} needs logits processors, which a speculative engine does not run"
        )
    if planned.min_p and engine.speculative:
        field = "sampling_method" if asked.min_p is None else "min_p"
        raise UnavailableError(field, "a speculative engine does not apply min-p")


def _named_by_temperature(planned: Plan) -> Plan:
    """At temperature 0 every truncation is without effect, and `method_used` says so."""
    truncations = (Method.TOP_K, Method.TOP_P, Method.MIN_P, Method.TYPICAL, Method.ADS, Method.MULTINOMIAL)
    if planned.method_used not in truncations:
        return planned
    # Without ADS there are no siblings to tell apart: back to vLLM's own `n`, which refuses n > 1 here.
    candidates = 1 if planned.choose is Choose.ALL else planned.candidates
    return replace(planned, method_used=Method.GREEDY, typical_p=1.0, ads=None, candidates=candidates)


def _or(value: Number | None, default: Number) -> Number:
    return default if value is None else value
