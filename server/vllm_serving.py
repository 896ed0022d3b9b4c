"""From a validated request to tokens: the calls into vLLM's serving objects.

Three functions lie between a route and the engine: `Serving.decode` (who asks, which model, what plan, is
the constraint sound), `policies.sampling.plan` (pure), and vLLM's own `create_chat_completion` or
`create_completion`. A request with nothing of ours in it reaches vLLM unchanged.
"""

import asyncio
import functools
import hashlib
import json
import logging
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import Any

from fastapi import Request
from vllm.entrypoints.serve.engine.protocol import ErrorResponse
from vllm.entrypoints.serve.utils.api_utils import load_aware_call, with_cancellation
from vllm.entrypoints.serve.utils.sse_keep_alive import with_sse_keep_alive

from policies.sampling import Asked, Choose, EngineFacts, Plan, PlanError, UnavailableError, plan
from policies.steering import JSON_PRESET, SteeringEntry
from processors.args import fresh_group
from server import candidates, streams
from server.addressable import Addressable
from server.applied import Applied
from server.constraints import ConstraintChecker
from server.errors import InvalidRequest, NotSupported
from server.metrics import CONSTRAINT_REQUESTS, SAMPLING_REQUESTS
from server.monitor import Mode, Monitor, Watched, WatchList, corrected, drifts
from server.observation import observed
from server.served_models import ServedModels
from server.steering import Steering, field_of
from server.tracing import note
from server.vllm_errors import placing, translated
from server.vllm_planned import Seat
from server.vllm_steering import during
from server.vllm_tools import HERMES, ToolRules
from server.vllm_wire import ChatRequest, CompletionRequest
from server.wire import NativeSampling

Decodable = ChatRequest | CompletionRequest
_LONG_KEEP_ALIVE = 15.0  # seconds
LOOK_SECONDS = 0.1  # between looks at how far an answer has drifted
_RANK = "x-data-parallel-rank"
kept_alive = with_sse_keep_alive

logger = logging.getLogger("vllm.steersman")


def guarded(handler: Callable[..., Awaitable[Any]]) -> Callable[..., Awaitable[Any]]:
    """What vLLM puts around its own generation routes: abort when the client leaves, count the load."""
    return with_cancellation(load_aware_call(handler))


@dataclass(frozen=True, slots=True)
class Decoded:
    """What a request came to: a complete response object of vLLM's, or a stream of SSE events."""

    plan: Plan
    model: str
    response: Any = None
    stream: AsyncGenerator[str, None] | None = None
    steered: Applied | None = None


@dataclass(frozen=True, slots=True)
class Serving:
    """Chat and completion requests, decoded as their plan says."""

    chat: Any
    completion: Any
    models: ServedModels
    checker: ConstraintChecker
    facts: EngineFacts
    has_chat_template: bool
    keep_alive: float  # seconds between comments in an idle stream; 0: none
    steering: Steering | None
    unsteerable: str | None = None  # why there is no `steering`
    monitor: Monitor | None = None
    unwatchable: str | None = None  # why there is no `monitor`
    prompt_logprobs_kill: bool = False
    ranks: int = 1  # data-parallel engines behind this process
    tools: ToolRules = HERMES

    @property
    def long_keep_alive(self) -> float:
        """The same for streams whose first event may take minutes, which proxies would close."""
        return self.keep_alive or _LONG_KEEP_ALIVE

    async def decode(
        self,
        request: Decodable,
        raw: Request,
        planned: Plan | None = None,
        *,
        steering: Mapping[str, SteeringEntry] | None = None,
        watched: Sequence[Watched] | None = None,
    ) -> Decoded:
        """`steering` stands for the request's own, as its client's paths name it. So does `watched`, which is
        not judged here: whoever gives it generates again.

        Raises SteersmanError; vLLM's own exceptions pass through to the handlers in `vllm_app`.
        """
        raw = self.sticky(request, raw)
        requested = request.model
        request.model = self.models.resolve(requested, raw.state.principal.selected_model)
        for part in request.placed_media():
            part.require(self.models.modalities)
        if request.logprob_token_ids:
            # vLLM 0.32's sampler would answer every request of the batch with this one's tokens.
            raise NotSupported("logprob_token_ids disturbs other requests", param="logprob_token_ids")
        if self.prompt_logprobs_kill and request.wants_prompt_logprobs:
            raise NotSupported(
                "with LoRA enabled, vLLM's CPU engine dies of prompt log-probabilities",
                param="prompt_logprobs",
            )
        if request.forbidden and not self.facts.processors:
            field = request.forbidden.field
            raise NotSupported(
                f"`{field}` needs logits processors, which a speculative engine does not run", param=field
            )
        planned = planned or self.plan(request.asked())
        await self._constrain(request)
        request.plan_as(planned)
        SAMPLING_REQUESTS.labels(planned.method_used).inc()
        note({"steersman.sampling.method": planned.method_used, "gen_ai.request.model": request.model})
        model = request.answers_as or requested or request.model
        observed().resolves(request.model)
        named = request.steering_entries() if steering is None else steering
        entries = {
            path: entry for path, entry in named.items() if (entry.preset or "").lower() != JSON_PRESET
        }
        if watched is None:
            watched = await self.watched(request.watch(), raw)
            if any(each.mode is Mode.REGENERATE for each in watched):
                return await self._judged(request, raw, Decoded(planned, model), entries, watched)
        _require_watchable(planned, watched)
        steered = await self.steer(entries, raw, watched)
        with during(steered) as kept:
            result = await self._run(request, raw, planned)
            if hasattr(result, "choices"):
                if steered is not None:
                    await steered.count()
                result.model = model
                return Decoded(planned, model, response=result, steered=steered)
            stream = result if model == self._answering(request.model) else _renamed(result, model)
            if steered is not None:
                stream = streams.with_evidence(stream, steered)
                kept.open = True
        kept_alive = with_sse_keep_alive(stream, self.keep_alive)
        return Decoded(planned, model, stream=kept_alive, steered=steered)

    async def _judged(
        self,
        request: Decodable,
        raw: Request,
        decoded: Decoded,
        entries: Mapping[str, SteeringEntry],
        watched: Sequence[Watched],
    ) -> Decoded:
        """The answer, or where it drifts another one, corrected from its start; streamed when it is known."""
        require_one_answer(request, decoded.plan)
        whole = request.model_copy(update={"stream": False, "stream_options": None})
        steered = await self.steer(entries, raw, watched)
        assert steered is not None
        with during(steered):
            response = await self._until_drift(whole.model_copy(), raw, decoded.plan, steered)
            await steered.count()
        again = corrected(steered.drifts)
        if again is not None:
            before = {each.watched.id: each for each in steered.drifts}
            steered = await self.steer(entries, raw, again)
            assert steered is not None
            steered.before = before
            with during(steered):
                response = await self._run(whole, raw, decoded.plan)
                await steered.count()
        response.model = decoded.model
        if not request.stream:
            return replace(decoded, response=response, steered=steered)
        stream = streams.as_stream(response, include_usage=request.include_usage)
        return replace(decoded, stream=streams.ending_with(stream, steered.told()), steered=steered)

    async def _until_drift(self, request: Decodable, raw: Request, planned: Plan, steered: Applied) -> Any:
        """The response; None where it drifted before its end, and the rest was not generated."""
        run = asyncio.ensure_future(self._run(request, raw, planned))
        try:
            while True:
                await asyncio.wait([run], timeout=LOOK_SECONDS)
                if run.done():
                    return run.result()
                if corrected(drifts(steered.watched, await steered.scores())) is not None:
                    return None
        finally:
            run.cancel()
            await asyncio.gather(run, return_exceptions=True)

    async def watched(self, asked: WatchList | None, raw: Request) -> Sequence[Watched]:
        """What this request names, and what the server watches everywhere. Raises NotSupported where nothing
        can be watched."""
        if self.monitor is None:
            if asked is not None:
                field = "behavior_names" if asked.names else "force_steering"
                raise NotSupported(f"behaviors are not watched here: {self.unwatchable}", param=field)
            return ()
        return await self.monitor.watched(asked, raw.state.principal.account_id)

    async def steer(
        self, entries: Mapping[str, SteeringEntry], raw: Request, watched: Sequence[Watched] = ()
    ) -> Applied | None:
        """Load what `entries` and `watched` name. Raises NotSupported where this model cannot be steered."""
        if not entries and not watched:
            return None
        if self.steering is None:
            problem = f"steering is not available here: {self.unsteerable}"
            raise NotSupported(problem, param=field_of(entries))
        applied = await self.steering.apply(entries, raw.state.principal.account_id, watched)
        observed().tells(applied.told)
        return applied

    def plan(self, asked: Asked, names: Mapping[str, str] = MappingProxyType({})) -> Plan:
        """Raises InvalidRequest and NotSupported; `names` says what the request calls a field of Asked."""
        try:
            return plan(asked, self.facts)
        except UnavailableError as error:
            raise NotSupported(str(error), param=names.get(error.field, error.field)) from error
        except PlanError as error:
            raise InvalidRequest(str(error), param=names.get(error.field, error.field)) from error

    def prompted(
        self, prompt: str, model: str | None, max_tokens: int, fields: NativeSampling, **more: Any
    ) -> Decodable:
        """An Axionic-native request: the prompt is a user's message where the model has a chat template.

        Sampling fields that planning decides about are left to the plan.
        """
        common = {
            "model": model,
            "max_tokens": max_tokens,
            "seed": fields.seed,
            "stop": fields.stop or [],
            "repetition_penalty": fields.repetition_penalty,
            "presence_penalty": fields.presence_penalty,
            "frequency_penalty": fields.frequency_penalty,
            **more,
        }
        if self.has_chat_template:
            return ChatRequest.model_validate({"messages": [{"role": "user", "content": prompt}], **common})
        return CompletionRequest.model_validate({"prompt": prompt, **common})

    async def _constrain(self, request: Decodable) -> None:
        """Compile every constraint where it can harm nothing, before the engine sees it."""
        constraints = request.take_constraints()
        if isinstance(request, ChatRequest):
            constraints += request.take_tools(self.tools, constraints)
        for constraint, field in constraints:
            outcome = "refused"
            try:
                await self.checker.check(constraint, field)
                outcome = "accepted"
            finally:
                CONSTRAINT_REQUESTS.labels(constraint.kind, outcome).inc()

    async def _run(self, request: Decodable, raw: Request, planned: Plan) -> Any:
        if planned.candidates > 1 and planned.choose is Choose.ALL:
            return await self._siblings(request, raw, planned)
        judged = planned.candidates > 1 or bool(planned.models)
        if not request.stream or not (judged or planned.beam_width):
            return await (self._chosen(request, raw, planned) if judged else self._create(request, raw))
        # What is judged first can only be streamed afterwards.
        whole = request.model_copy(update={"stream": False, "stream_options": None})
        answer = await (self._chosen(whole, raw, planned) if judged else self._create(whole, raw))
        return streams.as_stream(answer, include_usage=request.include_usage)

    async def _siblings(self, request: Decodable, raw: Request, planned: Plan) -> Any:
        """One group per prompt: its candidates sit in the same batch and know each other."""
        calls = []
        for prompt in request.prompts():
            group = fresh_group()
            pinned = self._pinned(raw, group)
            for slot in range(planned.candidates):
                own = self._own(request, planned, slot)
                one = request.candidate(Seat(group, slot, planned.candidates), **prompt, **own)
                calls.append(functools.partial(self._create, one, pinned))
        firsts = [index % planned.candidates == 0 for index in range(len(calls))]
        results = await candidates.gather(calls, firsts)
        if request.stream:
            return streams.interleave(results, firsts, include_usage=request.include_usage)
        return candidates.merge(results, firsts)

    def _own(self, request: Decodable, planned: Plan, slot: int) -> dict[str, Any]:
        """What candidate `slot` has of its own, as changes to a copy of the request."""
        if not planned.slots:
            return {}
        own = planned.slots[slot]
        model = request.model if own.model is None else self.models.resolve(own.model)
        return {"temperature": own.temperature, "top_p": own.top_p, "model": model}

    async def _chosen(self, request: Decodable, raw: Request, planned: Plan) -> Any:
        """Best-of-n and votes, for each prompt: every candidate is complete before one can be chosen."""
        answers = [await self._choose(request, raw, planned, prompt) for prompt in request.prompts()]
        answer = candidates.merge(answers, [True] * len(answers))
        if not request.wants_logprobs:
            for choice in answer.choices:
                choice.logprobs = None
        return answer

    async def _choose(self, request: Decodable, raw: Request, planned: Plan, prompt: dict[str, Any]) -> Any:
        group, count = fresh_group(), planned.candidates
        names = [self.models.resolve(name) for name in planned.models] or [request.model]
        asked = [
            request.candidate(
                Seat(group, slot, count), model=names[slot % len(names)], **prompt, **request.scored()
            )
            for slot in range(count)
        ]
        firsts = [slot == 0 for slot in range(count)]
        pinned = self._pinned(raw, group)
        responses = await candidates.gather(
            [functools.partial(self._create, one, pinned) for one in asked], firsts
        )
        if planned.choose is Choose.VOTE:
            return candidates.vote(responses)
        return candidates.best(responses, request.n)

    async def _create(self, request: Decodable, raw: Request) -> Any:
        """A response object or an SSE stream from vLLM; its error objects are raised as ours."""
        if isinstance(request, ChatRequest):
            with placing(request.placed_media()):
                result = await self.chat.create_chat_completion(request, raw)
        else:
            result = await self.completion.create_completion(request, raw)
        if isinstance(result, ErrorResponse):
            raise translated(result)
        for choice in getattr(result, "choices", ()):
            choice.model = request.model  # the one that answers, whatever name was asked for
        return result

    def sticky(self, request: Addressable, raw: Request) -> Request:
        """`raw`, sent to the data-parallel engine that has the cached prefixes of its session."""
        session = request.sticks
        if self.ranks == 1 or session is None:
            return raw
        text = f"{raw.state.principal.account_id}\n{session}"
        return self._pinned(raw, int.from_bytes(hashlib.sha256(text.encode()).digest()[:8]))

    def _pinned(self, raw: Request, group: int) -> Request:
        """`raw`, sent to one data-parallel engine with all its group: siblings elsewhere are not seen."""
        if self.ranks == 1 or _RANK in raw.headers:
            return raw
        header = (_RANK.encode(), str(group % self.ranks).encode())
        return Request({**raw.scope, "headers": [*raw.scope["headers"], header]}, raw.receive)

    def _answering(self, name: str | None) -> str:
        """The name vLLM puts into its answers: an adapter's own, else the first served one."""
        return name if name and name in self.models.serving.lora_requests else self.models.default


def _require_watchable(planned: Plan, watched: Sequence[Watched]) -> None:
    if watched and planned.beam_width:
        raise NotSupported("the behaviors of beams are not watched", param=watched[0].path)


def require_one_answer(request: Decodable, planned: Plan) -> None:
    """Raises InvalidRequest for a request of which no single answer can be generated again."""
    if planned.beam_width or planned.candidates > 1 or request.n > 1 or len(request.prompts()) > 1:
        raise InvalidRequest(
            "one answer to one prompt can be generated again; use mode online or monitor here",
            param="behavior_mode",
        )


async def _renamed(stream: AsyncIterator[str], model: str) -> AsyncGenerator[str, None]:
    """The events of `stream` with the requested model's name, which vLLM writes before any content."""
    quoted = _json_string(model)
    async for event in stream:
        start = event.find('"model":"')
        if start < 0:
            yield event
            continue
        end = event.index('"', start + 9)
        yield f"{event[: start + 8]}{quoted}{event[end + 1 :]}"


def _json_string(text: str) -> str:
    return json.dumps(text, ensure_ascii=False)
