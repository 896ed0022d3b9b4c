"""Which candidates a round of a policy asks for. Pure: from policy and number to sampling fields."""

from dataclasses import dataclass, replace
from typing import TypeVar

from policies.enforced import Enforced
from policies.policy import RuntimePolicy
from policies.sampling import ENSEMBLE_SAMPLES, Asked, Method, Slot, own_fields, resolve

_LEAST_TEMPERATURE, _LEAST_TOP_P = 0.05, 0.2
_COOLING, _NARROWING = 0.08, 0.04  # per retry, cumulative
_MOST_TEMPERATURE = 2.0

Value = TypeVar("Value", float, int)


@dataclass(frozen=True, slots=True)
class Round:
    """One batch. `asked` is what its candidates share, with the temperature and top_p of the first."""

    method: str
    asked: Asked
    slots: tuple[Slot, ...]

    @property
    def varies(self) -> bool:
        return len(set(self.slots)) > 1 or any(slot.model for slot in self.slots)

    @property
    def votes(self) -> bool:
        return resolve(self.method) is Method.ENSEMBLE

    def first(self, count: int) -> "Round":
        """With at most `count` candidates."""
        asked = self.asked if self.votes else replace(self.asked, n=min(self.asked.n, count))
        return replace(self, asked=asked, slots=self.slots[:count])


def plan_round(policy: RuntimePolicy, constraint: Enforced, number: int, method: str) -> Round:
    """Round `number`, from 0, by `method`: each retry is a little cooler and narrower, down to a floor.

    A first round below the floor is retried at the floor, lest every round be the same.
    """
    kind = resolve(method)
    slots = tuple(_slot(policy, kind, number, slot) for slot in range(_count(policy, kind)))
    asked = _asked(policy, constraint, kind, method, slots)
    if policy.sampling.adaptive_top_p:  # asked for beside a method that does not name it
        asked = replace(asked, top_p=slots[0].top_p)
    elif asked.top_p is None:
        slots = tuple(replace(slot, top_p=None) for slot in slots)
    return Round(method, asked, slots)


def single(planned: Round) -> Round:
    """One candidate, sampled as the first of `planned` is: for repairs and revisions, which follow a text."""
    kind = resolve(planned.method)
    asked = replace(planned.asked, n=1, best_of=None, ensemble_models=())
    if kind is Method.ENSEMBLE:
        asked = replace(asked, method=None)
    return replace(
        planned, method=planned.method, asked=asked, slots=(replace(planned.slots[0], model=None),)
    )


def _count(policy: RuntimePolicy, kind: Method) -> int:
    if kind is not Method.ENSEMBLE:
        return policy.candidates
    models = max(1, len(policy.sampling.ensemble_models))
    alone = 1 if models > 1 else ENSEMBLE_SAMPLES
    return models * (policy.candidates if policy.candidates > 1 else alone)


def _slot(policy: RuntimePolicy, kind: Method, number: int, slot: int) -> Slot:
    sampling = policy.sampling
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


def _scheduled(schedule: list[float], index: int) -> float:
    return schedule[min(index, len(schedule) - 1)]


def _asked(
    policy: RuntimePolicy, constraint: Enforced, kind: Method, method: str, slots: tuple[Slot, ...]
) -> Asked:
    """Fields that another method names go only with the policy's own: a fallback must not trip over them."""
    sampling = policy.sampling
    own = method == sampling.method
    count = len(slots)

    def named(value: Value | None, *methods: Method) -> Value | None:
        return value if own or kind in methods else None

    return own_fields(
        Asked(
            method=method,
            temperature=slots[0].temperature,
            top_p=slots[0].top_p,
            top_k=sampling.top_k,
            min_p=named(sampling.min_p, Method.MIN_P),
            typical_p=named(sampling.typical_p, Method.TYPICAL),
            ads_subset_size=named(sampling.ads_subset_size, Method.ADS),
            ads_beta=named(sampling.ads_beta, Method.ADS),
            beam_width=max(sampling.beam_width, count) if kind is Method.BEAM else None,
            n=1 if kind is Method.ENSEMBLE else count,
            best_of=count // max(1, len(sampling.ensemble_models)) if kind is Method.ENSEMBLE else None,
            ensemble_models=tuple(sampling.ensemble_models) if own or kind is Method.ENSEMBLE else (),
            draft_model=sampling.draft_model if own or kind is Method.SPECULATIVE else None,
            constrained=constraint.constrained,
        )
    )
