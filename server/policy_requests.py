"""From a request that carries a policy to the policy that holds for it and the template of its rounds.

A sampling or steering field given explicitly in the request wins over the policy's; constraints add up, and
two different ones of a kind are an error that names the request's.
"""

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from types import MappingProxyType
from typing import Any

from pydantic import ValidationError

from policies.enforced import enforced
from policies.policy import RuntimePolicy
from policies.rounds import plan_round
from policies.run import affordable
from policies.sampling import PENALTIES, Method, kind_of, resolve
from server.errors import InvalidRequest
from server.vllm_serving import Decodable, Serving
from server.vllm_wire import ChatRequest
from server.wire import NativeSampling

# Fields of a /v1 request → where a policy has them.
_SAMPLING = {
    "sampling_method": "method",
    **{
        name: name
        for name in (
            "temperature",
            "top_p",
            "top_k",
            "min_p",
            "typical_p",
            "repetition_penalty",
            "presence_penalty",
            "frequency_penalty",
            "ads_subset_size",
            "ads_beta",
            "beam_width",
            "ensemble_models",
            "draft_model",
        )
    },
}
CONSTRAINTS = ("json_schema", "regex_pattern", "grammar")


def native_template(
    serving: Serving,
    prompt: str,
    policy: RuntimePolicy,
    *,
    model: str | None,
    max_tokens: int,
    seed: int | None,
    steering: Mapping[str, Any] = MappingProxyType({}),
) -> Decodable:
    """Of Axionic's policy routes: a prompt, and nothing beside the policy."""
    named = _named(model, policy)
    sent = serving.prompted(prompt, named, max_tokens, NativeSampling(seed=seed), **steering)
    return _settled(sent, policy)


def merged(request: Decodable, policy: RuntimePolicy) -> tuple[RuntimePolicy, Decodable]:
    """What holds for a /v1 request that carries `policy`. Raises InvalidRequest naming the field."""
    given = {name for name in request.model_fields_set if getattr(request, name) not in (None, [], {})}
    if request.best_of not in (None, 1):
        raise InvalidRequest(
            "with a policy optimization.best_of_n says how many candidates there are", param="best_of"
        )
    if not isinstance(request, ChatRequest) and len(request.prompts()) > 1:
        raise InvalidRequest("with a policy there is one prompt", param="prompt")
    if not isinstance(request, ChatRequest) and not isinstance(request.prompt, str):
        raise InvalidRequest("with a policy the prompt is text", param="prompt")
    own = [*_sampling(request, policy, given), *_constraints(request, given)]
    stops = [request.stop] if isinstance(request.stop, str) else list(request.stop or ())
    holds = overridden(policy, own, stops)
    _refuse_clashes(request, holds)
    bare: dict[str, Any] = dict.fromkeys(
        [*CONSTRAINTS, "sampling_method", "best_of", "beam_width", "draft_model"]
    )
    changes: dict[str, Any] = {
        **bare,
        "n": 1,  # each round says how many
        "ensemble_models": None,
        "response_format": None,
        "policy": None,
        "policy_id": None,
    }
    model = _named(request.model, policy)
    longest = getattr(request, "max_completion_tokens", None)
    if longest is not None:  # one name for it, or the budgets would set the other
        changes |= {"max_tokens": longest, "max_completion_tokens": None}
    return holds, _settled(request.model_copy(update={**changes, "model": model}), holds)


def _refuse_clashes(request: Decodable, holds: RuntimePolicy) -> None:
    """What of the request and its policy cannot both hold."""
    if request.n > 1 and (problem := _too_few(request, holds)):
        raise InvalidRequest(problem, param="n")
    if request.tools_given and (problem := _needs_text(holds)):
        raise InvalidRequest(f"a call of `tools` is no text: {problem}", param="tools")
    if request.structured_outputs is not None and holds.constraints.masks:
        raise InvalidRequest(
            "`structured_outputs` stands beside the policy's constraints", param="structured_outputs"
        )


def _needs_text(policy: RuntimePolicy) -> str | None:
    """What of a policy is about text, if anything is."""
    needs = (
        (policy.constraints.masks, "the policy's constraints are another form of the answer"),
        (policy.constraints.forbidden_terms, "constraints.forbidden_terms are kept out of text alone"),
        (policy.verifiers.enabled, "it is text that the policy's verifiers judge"),
        (policy.optimization.self_revision_loops, "it is text that optimization.self_revision_loops revise"),
        (Method.ENSEMBLE in policy.kinds, f"it is text that {Method.ENSEMBLE} votes on"),
    )
    return next((reason for given, reason in needs if given), None)


def _named(model: str | None, policy: RuntimePolicy) -> str | None:
    """The model that the request names, or else the policy; "default" is what neither means to change."""
    own = policy.model.model
    return own if model in (None, "default") and own != "default" else model


def _longest(request: Decodable) -> int | None:
    return getattr(request, "max_completion_tokens", None) or request.max_tokens


def _too_few(request: Decodable, policy: RuntimePolicy) -> str | None:
    """Why a policy cannot give the `n` best answers, if it cannot."""
    wanted, optimization = request.n, policy.optimization
    if optimization.self_revision_loops:
        return "self_revision_loops revises one answer; n is 1"
    if optimization.branch_and_prune:
        return "branch_and_prune leaves one of the candidates; n is 1"
    budget = policy.objective.token_budget
    if budget is not None and affordable(budget, _longest(request)) < wanted:
        return f"token_budget is not enough for {wanted} answers"
    constraint = enforced(policy)
    for method in policy.methods:
        if kind_of(method) is Method.ENSEMBLE:
            return f"{method} answers with the one text that won the vote; n is 1"
        if kind_of(method) and len(plan_round(policy, constraint, 0, method).slots) < wanted:
            return f"{method} at temperature 0 gives one answer alone; n is 1"
    return None


def _beams(request: Decodable) -> str:
    """The method that `use_beam_search` is another name of."""
    method = request.sampling_method
    if method is not None and resolve(method) is not Method.BEAM:
        raise InvalidRequest(f"use_beam_search has no effect beside {method}", param="use_beam_search")
    return Method.BEAM.value


@dataclass(frozen=True, slots=True)
class Own:
    """What a request says itself: its field, the value, and where a policy has it."""

    field: str
    value: Any
    place: str


def overridden(policy: RuntimePolicy, own: Sequence[Own], stops: Sequence[str] = ()) -> RuntimePolicy:
    """`policy` with a request's own fields. Raises InvalidRequest, which names the request's."""
    if not (own or stops):
        return policy
    plain = _overridden(policy, own)
    limits = plain.setdefault("constraints", {})
    limits["stop_sequences"] = list(dict.fromkeys([*limits.get("stop_sequences", ()), *stops]))
    try:
        return RuntimePolicy.model_validate(plain)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"]))
        message = str(first["msg"]).removeprefix("Value error, ")
        told = f"{where}: {message}" if where else message
        raise InvalidRequest(told, param=_culprit(policy, own, told)) from error


def _overridden(policy: RuntimePolicy, own: Sequence[Own]) -> dict[str, Any]:
    plain = policy.model_dump(exclude_unset=True)
    for each in own:
        group, name = each.place.split(".")
        controls: dict[str, Any] = plain.setdefault(group, {})
        if group == "constraints" and controls.get(name) not in (None, False, each.value):
            raise InvalidRequest(
                f"`{each.field}` and the policy's {each.place} are different", param=each.field
            )
        controls[name] = each.value
        if name in ("temperature", "top_p"):  # given explicitly, it is not to change with the candidate
            controls |= {f"adaptive_{name}": False, f"adaptive_{name}_schedule": []}
    return plain


def _culprit(policy: RuntimePolicy, own: Sequence[Own], message: str) -> str:
    """The request's field by which a policy that was sound is not: one that the message is about, or that
    alone makes it so."""
    named = (each.field for each in own if re.search(rf"\b{re.escape(each.place)}\b", message))
    alone = (each.field for each in own if not _sound(_overridden(policy, [each])))
    return next(chain(named, alone), "policy")


def _sound(plain: Mapping[str, Any]) -> bool:
    try:
        RuntimePolicy.model_validate(plain)
    except ValidationError:
        return False
    return True


def _sampling(request: Decodable, policy: RuntimePolicy, given: set[str]) -> Iterator[Own]:
    for name, place in _SAMPLING.items():
        if name in given:
            yield Own(name, getattr(request, name), f"sampling.{place}")
    if request.use_beam_search:
        yield Own("use_beam_search", _beams(request), "sampling.method")
    if request.n > policy.candidates:
        yield Own("n", request.n, "optimization.best_of_n")


def _constraints(request: Decodable, given: set[str]) -> list[Own]:
    found = [
        Own(name, getattr(request, name), f"constraints.{name}") for name in CONSTRAINTS if name in given
    ]
    wanted = request.response_format
    if wanted is not None and wanted.type == "json_object":
        found.append(Own("response_format", True, "constraints.json_mode"))
    elif wanted is not None and wanted.type == "json_schema":
        schema = wanted.json_schema and wanted.json_schema.json_schema
        if schema is None:
            raise InvalidRequest("json_schema has no schema", param="response_format")
        found.append(Own("response_format", schema, "constraints.json_schema"))
    elif wanted is not None and wanted.type != "text":
        raise InvalidRequest(f"with a policy response_format is not {wanted.type}", param="response_format")
    return found


def _settled(template: Decodable, policy: RuntimePolicy) -> Decodable:
    """With what of the policy is the same in every round."""
    sampling = policy.sampling
    changes: dict[str, Any] = {
        name: getattr(sampling, name) for name in PENALTIES if getattr(sampling, name) is not None
    }
    if policy.constraints.stop_sequences:
        changes["stop"] = list(policy.constraints.stop_sequences)
    return template.model_copy(update=changes)
