"""Requests as our own routes prepare them: terms that the engine must not write."""

import json
from types import SimpleNamespace

import pytest
from pydantic import ValidationError

from policies.sampling import Ads, EngineFacts, Method, Plan
from processors.args import ProcessorArgs
from server.errors import InvalidRequest, NotSupported
from server.vllm_planned import Seat
from server.vllm_serving import Serving
from server.vllm_wire import ChatRequest, CompletionRequest

TERMS = ("kill", "Straße", '"quoted"')
GREEDY = Plan(method_used=Method.GREEDY, temperature=0.0)
PLAIN = Plan(method_used=Method.MULTINOMIAL)


def chat(**more):
    return ChatRequest.model_validate({"messages": [{"role": "user", "content": "Hi"}], **more})


def completion(**more):
    return CompletionRequest.model_validate({"prompt": "Hi", **more})


def arguments(request):
    """What the worker reads."""
    extra = request.to_sampling_params(8, {}).extra_args or {}
    assert {type(value) for value in extra.values()} <= {str, int, float}
    return ProcessorArgs.from_extra_args(extra)


@pytest.mark.parametrize("make", [chat, completion])
@pytest.mark.parametrize("plan", [GREEDY, PLAIN, Plan(method_used=Method.MULTINOMIAL, candidates=3)])
def test_every_candidate_carries_the_terms(make, plan):
    """However a request is drawn, greedy too, each of its engine requests forbids the same terms."""
    request = make().forbid(TERMS).plan_as(plan)
    for slot in range(3):
        for one in (request, request.candidate(Seat(7, slot, 3)), request.model_copy()):
            assert arguments(one) == ProcessorArgs(forbidden_terms=TERMS)


def test_terms_stand_beside_a_method_and_own_arguments():
    """ADS keeps its arguments, and the client's vllm_xargs are left as they are."""
    plan = Plan(method_used=Method.ADS, ads=Ads(subset_size=5, beta=0.2), candidates=2)
    request = chat(vllm_xargs={"own": 1}).forbid(TERMS).plan_as(plan).candidate(Seat(7, 1, 2))
    args = arguments(request)
    assert args.forbidden_terms == TERMS
    assert (args.ads.subset_size, args.ads.slot, args.ads.siblings) == (5, 1, 2)
    assert request.to_sampling_params(8, {}).extra_args["own"] == 1


def test_a_request_that_forbids_nothing_is_unchanged():
    """No terms, no arguments."""
    for request in (chat(), chat().forbid([]), chat().forbid(TERMS).forbid(())):
        assert request.forbidden is None
        assert request.plan_as(PLAIN).to_sampling_params(8, {}).extra_args is None


@pytest.mark.parametrize("terms", [["x"] * 65, [""], ["x" * 201], ["\ud800"]])
def test_terms_out_of_bounds_name_the_field(terms):
    """The refusal speaks of the field that the client sent."""
    with pytest.raises(InvalidRequest, match=r"^policy\.constraints\.forbidden_terms must be") as refused:
        chat().forbid(terms, "policy.constraints.forbidden_terms")
    assert refused.value.param == "policy.constraints.forbidden_terms"


def test_no_client_sets_them():
    """Neither as a field nor through vLLM's own side channel."""
    with pytest.raises(ValidationError, match="forbidden_terms"):
        chat(forbidden_terms=["kill"])
    with pytest.raises(ValidationError, match="forbidden_terms are set by the server"):
        chat(vllm_xargs={"forbidden_terms": json.dumps(["kill"])})


def test_beams_are_refused():
    """Beam search asks the engine for log-probabilities, which no ban touches."""
    plan = Plan(method_used=Method.BEAM, beam_width=4)
    chat().plan_as(plan)
    with pytest.raises(InvalidRequest, match="beam search does not apply") as refused:
        chat().forbid(TERMS, "policy.constraints.forbidden_terms").plan_as(plan)
    assert refused.value.param == "policy.constraints.forbidden_terms"


async def test_a_speculative_engine_refuses_them():
    """vLLM runs no logits processors beside speculation, so that the terms would silently come through."""
    models = SimpleNamespace(resolve=lambda name, bound: "model")
    raw = SimpleNamespace(state=SimpleNamespace(principal=SimpleNamespace(selected_model=None)))
    serving = Serving(
        chat=None,
        completion=None,
        models=models,
        checker=None,
        facts=EngineFacts(speculative=True, processors=False),
        has_chat_template=True,
        keep_alive=0.0,
        steering=None,
    )
    with pytest.raises(NotSupported, match="logits processors") as refused:
        await serving.decode(chat().forbid(TERMS), raw)
    assert refused.value.param == "constraints.forbidden_terms"
