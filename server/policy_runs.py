"""A policy over the served model: its rounds as requests, and the request it came with as their template."""

import asyncio
import functools
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from fastapi import Request

from policies.constraint import ConstraintError, from_grammar, from_json_schema, from_regex, is_guidance
from policies.enforced import Enforced, enforced
from policies.policy import RuntimePolicy, SamplingControls
from policies.run import Answer, Ask, MethodUnavailableError, Outcome, Runner, Turn
from policies.sampling import Choose, Plan, Slot
from policies.steering import SteeringEntry
from server.candidates import mean_logprob, text_of
from server.constraints import ConstraintChecker
from server.errors import InvalidRequest, NotFound, NotSupported
from server.judge import Judge
from server.observation import observed
from server.policy_counts import counted, counting_errors, told_of
from server.sandbox import Sandbox, SandboxOff
from server.streams import Streamed
from server.together import together
from server.tracing import Attributes, begun, ending_with, spanned
from server.verification import Factual, Verification
from server.vllm_errors import reported
from server.vllm_pruning import Heat, current_heat
from server.vllm_serving import Decodable, Decoded, Serving
from server.vllm_wire import ChatRequest
from server.wire import NativeSampling

_SEEDS_APART = 4096  # between rounds: more than a round has candidates
_YES_NO = ("yes", "no")
_FACT_CHARACTERS = 8000  # at most, of the question and of the answer each
_FACT_TOKENS = 128  # what stands around them
_CHARACTERS_A_TOKEN = 3
_WORD_TOKENS = 8


@dataclass(frozen=True, slots=True)
class PolicyRuns:
    """Runs policies for the routes of one API process."""

    serving: Serving
    checker: ConstraintChecker
    judge: Judge
    sandbox: Sandbox | SandboxOff

    async def run(
        self,
        policy: RuntimePolicy,
        template: Decodable,
        raw: Request,
        *,
        path: str = "policy",
    ) -> Outcome:
        """`template` is the request without what the policy decides. `path` is where the policy stands in
        the request, for errors that name a field. Raises SteersmanError.
        """
        compiles = await self._grammar_compiles(policy, path)
        call = _Call(self.serving, policy, template, raw, path)
        verify = Verification(
            policy,
            self.judge,
            self._sandbox(policy, path),
            self._factual(policy, call),
            compiles,
            owner=raw.state.principal.account_id,
        )
        with spanned("policy", told_of(policy)), counting_errors():
            outcome = counted(await _runner(call, verify, grammar_compiles=compiles).run())
        answer = outcome.winner.answer
        observed().chooses(answer.text)
        observed().tells(lambda: {"steering": answer.steering, "behaviors": answer.behaviors})
        return outcome

    async def stream(self, policy: RuntimePolicy, template: Decodable, raw: Request) -> "Direct":
        """The only candidate of a policy with nothing to judge, as it is decoded. Raises SteersmanError."""
        call = _Call(self.serving, policy, template, raw, "policy")
        verify = Verification(policy, self.judge, sandbox=None, factual=None, masked_grammar=True)
        runner = _runner(call, verify, grammar_compiles=True)
        with begun("policy", told_of(policy)) as span:
            decoded = await call.stream(runner.direct())
            if span is not None:
                assert decoded.stream is not None
                decoded = replace(decoded, stream=ending_with(decoded.stream, span))
        return Direct(decoded, runner)

    async def check(self, policy: RuntimePolicy, path: str = "policy") -> None:
        """Compile what decoding will be held to, so that what is stored can be run. Raises InvalidRequest."""
        held = policy.expanded()
        constraint = enforced(held, grammar_compiles=await self._grammar_compiles(held, path))
        limits, field = held.constraints, "required_fields"
        try:
            if constraint.json_schema is not None:
                compiled = from_json_schema(dict(constraint.json_schema))
                given = [name for name in ("json_schema", "tool_schema") if getattr(limits, name) is not None]
                field = given[0] if given else field
            elif constraint.regex_pattern is not None:
                compiled, field = from_regex(constraint.regex_pattern), "regex_pattern"
            else:
                return
        except ConstraintError as error:
            raise InvalidRequest(error.reason, param=f"{path}.constraints.{field}") from error
        await self.checker.check(compiled, f"{path}.constraints.{field}")

    async def close(self) -> None:
        if isinstance(self.sandbox, Sandbox):
            await self.sandbox.close()

    async def _grammar_compiles(self, policy: RuntimePolicy, path: str) -> bool:
        """False for guidance that is no grammar, and is checked as literals. Raises InvalidRequest."""
        grammar = policy.constraints.grammar
        if grammar is None:
            return True
        field = f"{path}.constraints.grammar"
        try:
            await self.checker.check(from_grammar(grammar), field)
        except ConstraintError as error:
            raise InvalidRequest(error.reason, param=field) from error
        except InvalidRequest:
            if not is_guidance(grammar):
                raise
            return False
        return True

    def _sandbox(self, policy: RuntimePolicy, path: str) -> Sandbox | None:
        if "unit_tests" not in policy.verifiers.enabled:
            return None
        if isinstance(self.sandbox, SandboxOff):
            raise NotSupported(
                f"unit_tests cannot run here: {self.sandbox.problem}", param=f"{path}.verifiers.enabled"
            )
        return self.sandbox

    def _factual(self, policy: RuntimePolicy, call: "_Call") -> Factual | None:
        return call.factual if "factuality" in policy.verifiers.enabled else None


@dataclass(frozen=True, slots=True)
class Direct:
    """A stream of a policy's only candidate, and what it will have come to."""

    decoded: Decoded
    runner: Runner

    def outcome(self, streamed: Streamed) -> Outcome:
        plan = self.decoded.plan
        answer = Answer(
            text=streamed.text,
            tokens=streamed.tokens,
            method_used=plan.method_used,
            finish_reason=streamed.finish_reason,
            temperature=plan.temperature,
            top_p=plan.top_p,
            steering=streamed.steersman.get("steering"),
            behaviors=streamed.steersman.get("behaviors"),
            warning=plan.warning,
        )
        return counted(self.runner.directly(answer))


# What planning calls a field → where it stands in a policy.
_NAMES = {
    **{field: f"sampling.{field}" for field in SamplingControls.model_fields},
    "sampling_method": "sampling.method",
    "n": "optimization.best_of_n",
    "best_of": "optimization.best_of_n",
}


@dataclass(frozen=True, slots=True)
class _Call:
    """One run's requests to the served model."""

    serving: Serving
    policy: RuntimePolicy
    template: Decodable
    raw: Request
    path: str

    async def generate(self, ask: Ask) -> Sequence[Answer]:
        told: Attributes = {"steersman.round": ask.number, "steersman.round.method": ask.round.method}
        try:
            # What follows an answer is a repair, a critique or a revision.
            with spanned("policy repair" if ask.turns else "policy round", told):
                return await self._answers(ask)
        except Exception as error:
            # vLLM makes an error of a cancellation; the run must not go on after it.
            task = asyncio.current_task()
            if task is not None and task.cancelling():
                raise asyncio.CancelledError from error
            raise

    async def _answers(self, ask: Ask) -> Sequence[Answer]:
        planned = self._plan(ask)
        request = self._request(ask, planned)
        heat = Heat(len(ask.round.slots), ask.checkpoints) if ask.checkpoints else None
        token = current_heat.set(heat)
        try:
            decoded = await self.serving.decode(request, self.raw, planned, steering=self._steering())
        finally:
            current_heat.reset(token)
        if ask.alone and self.template.model:  # answers carry the name that was asked for
            decoded.response.model = self.template.answers_as or self.template.model
        told = decoded.steered.told() if decoded.steered else {}
        plan = decoded.plan
        drawn = plan.slots or [Slot(plan.temperature, plan.top_p)] * len(decoded.response.choices)
        return [
            Answer(
                text=text_of(choice),
                tokens=_tokens(decoded.response, choice),
                method_used=ask.round.method if ask.round.votes else plan.method_used,
                temperature=drawn[slot].temperature,
                top_p=drawn[slot].top_p,
                finish_reason=choice.finish_reason,
                mean_logprob=mean_logprob(choice) if ask.scored or heat else None,
                pruned_at=heat.pruned.get(slot) if heat else None,
                steering=told.get("steering"),
                behaviors=told.get("behaviors"),
                warning=plan.warning,
                source=(decoded.response, choice),
            )
            for slot, choice in enumerate(decoded.response.choices)
        ]

    async def stream(self, ask: Ask) -> Decoded:
        try:
            planned = self._plan(ask)
        except MethodUnavailableError as error:
            raise error.reason from None
        changes = self.template.counted()
        if ask.max_tokens is not None:
            changes["max_tokens"] = ask.max_tokens
        request = self.template.model_copy(update=changes)
        return await self.serving.decode(request, self.raw, planned, steering=self._steering())

    def _steering(self) -> dict[str, SteeringEntry] | None:
        """The policy's, unless the request has its own."""
        entry = self.policy.steering.entry
        if entry is None or self.template.steering_entries():
            return None
        return {f"{self.path}.steering": entry}

    def _plan(self, ask: Ask) -> Plan:
        names = {name: f"{self.path}.{place}" for name, place in _NAMES.items()}
        try:
            asked = ask.round.asked
            if ask.round.varies:  # one greedy slot must not make the others so
                asked = replace(asked, temperature=max(slot.temperature or 0.0 for slot in ask.round.slots))
            planned = self.serving.plan(asked, names)
            for slot in ask.round.slots:
                if slot.model is not None:
                    self.serving.models.resolve(slot.model)
        except (NotSupported, NotFound) as error:
            raise MethodUnavailableError(error) from error
        if planned.beam_width:
            return planned
        several = ask.round.varies or ask.round.votes or ask.checkpoints
        if several and len(ask.round.slots) > 1:
            count = len(ask.round.slots)
            return replace(planned, candidates=count, choose=Choose.ALL, models=(), slots=ask.round.slots)
        return planned

    def _request(self, ask: Ask, planned: Plan) -> Decodable:
        """A copy of the template with what this call decides."""
        changes: dict[str, Any] = {
            "n": 1 if planned.candidates > 1 else ask.round.asked.n,
            "stream": False,
            "stream_options": None,
            "return_token_ids": True,
            **_after(self.template, ask.turns),
        }
        if ask.max_tokens is not None:
            changes["max_tokens"] = ask.max_tokens
        if ask.alone:
            changes["model"] = ask.alone
        if self.template.seed is not None:
            changes["seed"] = self.template.seed + ask.number * _SEEDS_APART
        if ask.scored or ask.checkpoints:
            changes |= self.template.scored()
        request = self.template.model_copy(update={**changes, **_constrained(ask.constraint)})
        if ask.constraint is not None:
            request.forbid(ask.constraint.forbidden_terms, f"{self.path}.constraints.forbidden_terms")
        return request

    async def factual(self, answer: str) -> float:
        """P(yes) of the served model, between the two words it may say; steered by nothing.

        Raises SteersmanError.
        """
        most = max(1, min(_FACT_CHARACTERS, _CHARACTERS_A_TOKEN * (self._context - _FACT_TOKENS) // 2))
        question = (
            f"Question:\n{_asked(self.template)[-most:]}\n\nAnswer:\n{answer[:most]}\n\n"
            "Is every statement of the answer factually correct? Say yes or no."
        )
        words = [functools.partial(self._likelihood, question, word) for word in _YES_NO]
        try:
            yes, no = await together(words)
        except Exception as error:  # as `Factual` promises, SteersmanError alone
            raise reported(error) from error
        return 1 / (1 + math.exp(min(700.0, no - yes)))

    @property
    def _context(self) -> int:
        return self.serving.models.max_model_len

    async def _likelihood(self, question: str, word: str) -> float:
        """Log-probability that the model says `word`, in nats, before any constraint."""
        sent = self.serving.prompted(
            question,
            self.template.model,
            _WORD_TOKENS,
            NativeSampling(),
            temperature=0.0,
            structured_outputs={"choice": [word]},
        )
        # What no estimate of characters can promise: that it fits.
        fits = {"truncate_prompt_tokens": max(1, self._context - _WORD_TOKENS), "truncation_side": "left"}
        sent = sent.model_copy(update={**sent.scored(), **fits})
        decoded = await self.serving.decode(sent, self.raw)
        choice = decoded.response.choices[0]
        return _first_logprob(choice)


def _runner(call: _Call, verify: Verification, *, grammar_compiles: bool) -> Runner:
    return Runner(
        call.policy,
        call.generate,
        verify,
        call.template.max_tokens,
        grammar_compiles=grammar_compiles,
        explicit=_explicit(call.template),
        seeded=call.template.seed is not None,
        say=lambda error: reported(error).message,
    )


def _explicit(template: Decodable) -> list[str]:
    """The truncations that a /v1 request says itself; of Axionic's routes none is in the template."""
    names = ("top_k", "top_p", "min_p", "typical_p")
    return [name for name in names if getattr(template, name) is not None]


def _constrained(constraint: Enforced | None) -> dict[str, Any]:
    """The one constraint that decoding holds to, in place of whatever the template has."""
    none = {"json_schema": None, "regex_pattern": None, "grammar": None, "response_format": None}
    if constraint is None:
        return {**none, "structured_outputs": None, "tools": None, "tool_choice": None}
    if not constraint.constrained:
        return {}
    given: dict[str, Any] = {
        "json_schema": None if constraint.json_schema is None else dict(constraint.json_schema),
        "regex_pattern": constraint.regex_pattern,
        "grammar": constraint.grammar,
    }
    if constraint.json_object:
        given["json_schema"] = {"type": "object", "additionalProperties": True}
    return {**none, **given}


def _after(template: Decodable, turns: Sequence[Turn]) -> dict[str, Any]:
    """What follows the prompt: turns of a conversation, or for a bare prompt text in its place."""
    if not turns:
        return {}
    if isinstance(template, ChatRequest):
        said = [
            message
            for turn in turns
            for message in (
                {"role": "assistant", "content": turn.answer},
                {"role": "user", "content": turn.reply},
            )
        ]
        return {"messages": [*template.messages, *said]}
    text = "".join(f"{turn.answer}\n\n{turn.reply}\n\n" for turn in turns)
    return {"prompt": f"{template.prompt}{text}"}


def _asked(template: Decodable) -> str:
    """The last thing the user said."""
    if not isinstance(template, ChatRequest):
        return str(template.prompt)
    content = next((m["content"] for m in reversed(template.messages) if m["role"] == "user"), "")
    if isinstance(content, str):
        return content
    return "\n".join(part.get("text", "") for part in content if part.get("type") == "text")


def _tokens(response: Any, choice: Any) -> int:
    ids = getattr(choice, "token_ids", None)
    if ids is not None:
        return len(ids)
    return int(response.usage.completion_tokens) // len(response.choices)


def _first_logprob(choice: Any) -> float:
    content = getattr(choice.logprobs, "content", None)
    value = choice.logprobs.token_logprobs[0] if content is None else content[0].logprob
    return float(value)
