"""What of a policy could have no effect beside its other fields, or is unknown, each in one sentence."""

from collections.abc import Iterator
from typing import TYPE_CHECKING

from policies.constraint import is_guidance
from policies.sampling import (
    MAX_BEAM_WIDTH,
    MAX_CANDIDATES,
    PENALTIES,
    UNDRAWN,
    Method,
    kind_of,
    known_method,
    resolve,
)
from policies.steering import JSON_PRESET, TRAINING_METHODS

if TYPE_CHECKING:
    from policies.policy import ConstraintControls, RuntimePolicy, SamplingControls


def faults(policy: "RuntimePolicy") -> Iterator[str]:
    """What of one group has no effect for what another one says, or is unknown."""
    method = policy.sampling.method
    if kind_of(method) is None and not policy.optimization.fallback_methods:
        if method in TRAINING_METHODS:
            yield f"sampling.method: '{method}' is how a vector is made: steering.method"
        try:
            known_method(method)
        except ValueError as error:
            yield f"sampling.method: {error}"
        return
    yield from _unread(policy)
    yield from _undrawn(policy)
    yield from _beyond_beams(policy)
    yield from _idle(policy)
    constraints = policy.constraints
    for name in _homeless(constraints):
        yield f"constraints.required_fields: json_schema allows no property '{name}'"
    needed = {
        "syntax": (
            constraints.json_mode or policy.steering.preset == JSON_PRESET,
            "json_mode",
        ),
        "json_schema": (constraints.json_schema is not None, "json_schema"),
        "regex": (constraints.regex_pattern is not None, "regex_pattern"),
    }
    for name in policy.verifiers.enabled:
        given, by = needed.get(name, (True, ""))
        if not given:
            yield f"verifiers.enabled: {name} has no effect without constraints.{by}"
    if constraints.grammar is not None and policy.masks_json and not is_guidance(constraints.grammar):
        yield (
            "constraints.grammar and JSON are two forms of one answer; beside JSON a grammar is literals in"
            " quotes, and a pattern is regex_pattern"
        )


def _unread(policy: "RuntimePolicy") -> Iterator[str]:
    """Fields that none of the policy's methods reads, and methods that lack what they need."""
    sampling, kinds = policy.sampling, policy.kinds
    owned = (
        ("ads_subset_size", sampling.ads_subset_size is not None, Method.ADS),
        ("ads_beta", sampling.ads_beta is not None, Method.ADS),
        ("beam_width", _changed(sampling, "beam_width"), Method.BEAM),
        ("draft_model", sampling.draft_model is not None, Method.SPECULATIVE),
        ("speculative_steps", _changed(sampling, "speculative_steps"), Method.SPECULATIVE),
        ("ensemble_models", bool(sampling.ensemble_models), Method.ENSEMBLE),
    )
    for field, given, owner in owned:
        if given and owner not in kinds:
            yield f"sampling.{field} has no effect without sampling.method '{owner}'"
    truncations = (
        ("min_p", sampling.min_p or None, Method.MIN_P),
        ("typical_p", sampling.typical_p, Method.TYPICAL),
    )
    own = kind_of(sampling.method)
    for field, value, owner in truncations:
        if value is not None and owner not in kinds and (own is None or own in UNDRAWN):
            yield f"sampling.{field} has no effect with {sampling.method}, which draws nothing"
    for method in policy.optimization.fallback_methods:
        if resolve(method) is Method.GUIDED and not (policy.constraints.masks or policy.masks_json):
            yield f"optimization.fallback_methods: {method} needs a constraint"
    models = max(1, len(sampling.ensemble_models))
    most = {Method.BEAM: MAX_BEAM_WIDTH, Method.ENSEMBLE: MAX_CANDIDATES // models}
    for kind in kinds:
        if policy.candidates > most.get(kind, MAX_CANDIDATES):
            yield f"{_counted(policy)}: {kind} has at most {most[kind]} candidates here"


def _undrawn(policy: "RuntimePolicy") -> Iterator[str]:
    """What needs candidates that differ."""
    sampling, method = policy.sampling, policy.sampling.method
    drawn = any(kind not in UNDRAWN for kind in policy.kinds)
    for field in ("diversity_strength", "adaptive_temperature", "adaptive_top_p"):
        if getattr(sampling, field) and not drawn:
            yield f"sampling.{field} has no effect with {method}, which draws nothing"
    if policy.candidates > 1 and {*policy.kinds} == {Method.GREEDY}:
        yield f"{_counted(policy)} has no effect with {method}, whose candidates are all the same"
    several = policy.candidates > 1 or Method.ENSEMBLE in policy.kinds
    if sampling.diversity_strength and not several:
        yield "sampling.diversity_strength has no effect on one candidate; raise num_candidates or best_of_n"
    if policy.optimization.branch_and_prune and not (several and drawn):
        yield "optimization.branch_and_prune has no effect without several candidates that are drawn"


def _beyond_beams(policy: "RuntimePolicy") -> Iterator[str]:
    """What a beam would leave out without a word, of a fallback too."""
    if Method.BEAM not in policy.kinds:
        return
    for field, neutral in PENALTIES.items():
        if getattr(policy.sampling, field) not in (None, neutral):
            yield f"sampling.{field} has no effect with {Method.BEAM}"
    if policy.constraints.forbidden_terms:
        yield f"constraints.forbidden_terms cannot be kept out with {Method.BEAM}"


def _idle(policy: "RuntimePolicy") -> Iterator[str]:
    """What matters only where an answer can be rejected, or chosen among others. What says less than the
    default, as no retries, is admitted: there are none."""
    held, optimization = policy.expanded(), policy.optimization
    rejects = bool(held.constraints.masks or held.constraints.forbidden_terms or held.verifiers.enabled)
    unsure = optimization.confidence_triggered_regeneration
    method = policy.kinds[0]
    if optimization.retry_on_failure > 1 and not (rejects or unsure):
        yield "optimization.retry_on_failure has no effect where nothing can be rejected"
    elif optimization.retry_on_failure > 1 and {*policy.kinds} == {method} and method in UNDRAWN:
        yield f"optimization.retry_on_failure has no effect with {method}, whose rounds are all the same"
    if policy.verifiers.max_retries > 1 and not rejects:
        yield "verifiers.max_retries has no effect where nothing can be rejected"
    several = policy.candidates > 1 or Method.ENSEMBLE in policy.kinds
    if not policy.verifiers.rerank and not (several or unsure):
        yield "verifiers.rerank has no effect on one candidate"
    if not policy.objective.maximize and not rejects:
        yield "objective.maximize has no effect where all answers score alike"


def _homeless(constraints: "ConstraintControls") -> list[str]:
    """Required fields that the schema has no place for."""
    schema = constraints.json_schema or {}
    properties = schema.get("properties", {})
    if schema.get("additionalProperties") is not False or "patternProperties" in schema:
        return []
    known = properties if isinstance(properties, dict) else {}
    return [name for name in constraints.required_fields if name not in known]


def _counted(policy: "RuntimePolicy") -> str:
    """The field that says how many candidates there are."""
    own = policy.sampling.num_candidates > policy.optimization.best_of_n
    return "sampling.num_candidates" if own else "optimization.best_of_n"


def _changed(sampling: "SamplingControls", field: str) -> bool:
    return bool(getattr(sampling, field) != type(sampling).model_fields[field].default)
