"""Which candidates a round of a policy asks for. Pure: from policy and number to sampling fields."""

from collections.abc import Collection
from dataclasses import dataclass, replace
from typing import TypeVar

from policies.enforced import Enforced
from policies.policy import RuntimePolicy, SamplingControls
from policies.sampling import (
    ENSEMBLE_SAMPLES,
    GREEDY_TEMPERATURE,
    UNDRAWN,
    Asked,
    Method,
    Slot,
    own_fields,
    resolve,
)

_LEAST_TEMPERATURE, _LEAST_TOP_P = 0.05, 0.2
_COOLING, _NARROWING = 0.08, 0.04  # per retry, cumulative
_MOST_TEMPERATURE = 2.0

Value = TypeVar("Value")


@dataclass(frozen=True, slots=True)
class Round:
    """One batch. `asked` is what its candidates share, with the temperature of the warmest, lest all be taken
    for greedy where one is, and the top_p of the first."""

    method: str
    asked: Asked
    slots: tuple[Slot, ...]

    @property
    def varies(self) -> bool:
        return len(set(self.slots)) > 1 or any(slot.model for slot in self.slots)

    @property
    def drawn(self) -> bool:
        return resolve(self.method) not in UNDRAWN

    @property
    def votes(self) -> bool:
        return resolve(self.method) is Method.ENSEMBLE and len(self.slots) > 1

    def first(self, count: int) -> "Round":
        """With at most `count` candidates."""
        slots = self.slots[:count]
        asked = replace(self.asked, n=min(self.asked.n, count), temperature=_warmest(slots))
        models = tuple(slot.model for slot in slots if slot.model is not None)
        if self.votes and len(slots) == 1:  # nothing to vote on
            asked = replace(asked, method=None, best_of=None, ensemble_models=())
        elif self.votes and len(slots) < len(self.slots):
            asked = replace(asked, best_of=1 if models else len(slots), ensemble_models=models)
        return replace(self, asked=asked, slots=slots)


def plan_round(
    policy: RuntimePolicy,
    constraint: Enforced,
    number: int,
    method: str,
    explicit: Collection[str] = (),
) -> Round:
    """Round `number`, from 0, by `method`: each retry is a little cooler and narrower, down to a floor.

    `explicit` are truncations that apply beside whatever draws, as the request itself gave them.

    A first round below the floor is retried at the floor, lest every round be the same. Candidates that could
    not differ, at temperature 0, are one.
    """
    kind = resolve(method)
    slots = tuple(_slot(policy, kind, number, slot) for slot in range(_count(policy, kind)))
    asked = _asked(policy, constraint, method, slots, explicit)
    if kind is Method.GUIDED and not constraint.constrained and constraint.checked:
        asked = replace(asked, method=None)  # guidance that is checked on the text; nothing is guided
    drawn = kind not in UNDRAWN
    # Asked for beside a method that does not name it:
    if drawn and "top_k" in explicit:
        asked = replace(asked, top_k=policy.sampling.top_k)
    if drawn and (policy.sampling.adaptive_top_p_schedule or "top_p" in explicit):
        asked = replace(asked, top_p=slots[0].top_p)
    elif asked.top_p is None:
        slots = tuple(replace(slot, top_p=None) for slot in slots)
    planned = Round(method, asked, slots)
    alike = _warmest(slots) < GREEDY_TEMPERATURE and not any(slot.model for slot in slots)
    return planned.first(1) if alike and kind is not Method.BEAM else planned


def single(planned: Round) -> Round:
    """One candidate, sampled as the first of `planned` is: for repairs and revisions, which follow a text."""
    first = planned.first(1)
    return replace(first, slots=(replace(first.slots[0], model=None),))


def free(planned: Round) -> Round:
    """`planned` as one candidate of free text about an answer: without what needs a constraint or a beam."""
    alone = single(planned)
    asked = replace(alone.asked, constrained=False)
    if resolve(planned.method) in (Method.GUIDED, Method.BEAM):
        asked = replace(asked, method=None, beam_width=None)
    return replace(alone, asked=asked)


def _count(policy: RuntimePolicy, kind: Method) -> int:
    if kind is not Method.ENSEMBLE:
        return policy.candidates
    models = max(1, len(policy.sampling.ensemble_models))
    alone = 1 if models > 1 else ENSEMBLE_SAMPLES
    return models * (policy.candidates if policy.candidates > 1 else alone)


def _slot(policy: RuntimePolicy, kind: Method, number: int, slot: int) -> Slot:
    sampling = policy.sampling
    if kind in UNDRAWN:
        return Slot(0.0, None)
    index = number * sampling.num_candidates + slot
    cooled = number * (number + 1) / 2  # the steps 1, 2, … add up
    temperature, top_p = sampling.temperature, sampling.top_p
    if number:
        temperature = max(_LEAST_TEMPERATURE, temperature - _COOLING * cooled)
        top_p = max(_LEAST_TOP_P, top_p - _NARROWING * cooled)
    if sampling.adaptive_temperature and sampling.adaptive_temperature_schedule:
        temperature = _scheduled(sampling.adaptive_temperature_schedule, index)
    if sampling.diversity_strength > 0 and slot > 0:
        warmer = temperature + (slot % 3) * 0.1 * sampling.diversity_strength
        temperature = min(_MOST_TEMPERATURE, max(_LEAST_TEMPERATURE, warmer))
    if sampling.adaptive_top_p and sampling.adaptive_top_p_schedule:
        top_p = _scheduled(sampling.adaptive_top_p_schedule, index)
    models = sampling.ensemble_models if kind is Method.ENSEMBLE else []
    return Slot(temperature, top_p, models[slot % len(models)] if models else None)


def _warmest(slots: tuple[Slot, ...]) -> float:
    return max(slot.temperature or 0.0 for slot in slots)


def _scheduled(schedule: list[float], index: int) -> float:
    return schedule[min(index, len(schedule) - 1)]


def _hinted_steps(sampling: SamplingControls) -> int | None:
    """The steps that a policy names itself."""
    default: int = SamplingControls.model_fields["speculative_steps"].default
    return None if sampling.speculative_steps == default else sampling.speculative_steps


def _asked(
    policy: RuntimePolicy,
    constraint: Enforced,
    method: str,
    slots: tuple[Slot, ...],
    explicit: Collection[str],
) -> Asked:
    """Each method gets the fields that it names. The policy's own, where it draws, also gets truncations that
    others name; a fallback gets of those what is `explicit`."""
    sampling, kind = policy.sampling, resolve(method)
    count = len(slots)

    def of(owner: Method, value: Value | None) -> Value | None:
        return value if kind is owner else None

    def truncation(owner: Method, field: str) -> float | None:
        value: float | None = getattr(sampling, field)
        beside = kind not in UNDRAWN and (method == sampling.method or field in explicit)
        return value if beside or kind is owner else None

    return own_fields(
        Asked(
            method=method,
            temperature=_warmest(slots),
            top_p=slots[0].top_p,
            top_k=sampling.top_k,
            min_p=truncation(Method.MIN_P, "min_p"),
            typical_p=truncation(Method.TYPICAL, "typical_p"),
            ads_subset_size=of(Method.ADS, sampling.ads_subset_size),
            ads_beta=of(Method.ADS, sampling.ads_beta),
            beam_width=of(Method.BEAM, max(sampling.beam_width, count)),
            n=1 if kind is Method.ENSEMBLE else count,
            best_of=of(Method.ENSEMBLE, count // max(1, len(sampling.ensemble_models))),
            ensemble_models=tuple(sampling.ensemble_models) if kind is Method.ENSEMBLE else (),
            draft_model=of(Method.SPECULATIVE, sampling.draft_model),
            speculative_steps=of(Method.SPECULATIVE, _hinted_steps(sampling)),
            constrained=constraint.constrained,
        )
    )
