"""The engine as steering needs it: what workers offer by RPC, and the one seam where requests get specs."""

import asyncio
import hashlib
import secrets
from collections.abc import AsyncGenerator, Callable, Coroutine, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from contextvars import ContextVar
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray
from vllm.exceptions import VLLMValidationError
from vllm.inputs import tokens_input
from vllm.outputs import RequestOutput
from vllm.platforms import current_platform
from vllm.sampling_params import SamplingParams
from vllm.v1.engine.exceptions import EngineDeadError

from server.applied import Applied, Counted
from server.auth import OPERATOR, current_principal
from server.errors import NotSupported, SteersmanError, Unavailable
from server.monitor import Scores
from steering.layout import NEVER_SEEN
from steering.spec import CAPTURE_KEY, RESERVED_KEYS, SALT_PREFIX, STEERING_KEY, CaptureSpec, SteeringSpec

Generate = Callable[..., AsyncGenerator[RequestOutput, None]]

# The spec of the requests that this context sends to the engine.
current_spec: ContextVar[SteeringSpec | None] = ContextVar("current_spec", default=None)
# Where a beam's prompt ended, before its own tokens were added.
prompt_end: ContextVar[int | None] = ContextVar("prompt_end", default=None)


def steered(generate: Generate) -> Generate:
    """`generate` with this context's spec, and the salt that keeps its prefix-cache blocks apart.

    Every route's requests pass here, vLLM's own among them: raises VLLMValidationError for those that bring a
    spec or such a salt themselves. Not a generator: the context is the one that calls, whoever iterates.
    """

    def steering(
        prompt: Any, params: SamplingParams, request_id: str, *args: Any, **kwargs: Any
    ) -> AsyncGenerator[RequestOutput, None]:
        _refuse_own(prompt, params)
        prompt = _apart(prompt)
        spec = current_spec.get()
        if spec is not None and not spec.idle:
            end = prompt_end.get()
            spec = replace(spec, prompt_tokens=end)
            if spec.acts:
                tokens = prompt["prompt_token_ids" if "prompt_token_ids" in prompt else "prompt_embeds"]
                salt = spec.cache_salt(prompt.get("cache_salt"), end or len(tokens))
                prompt = {**prompt, "cache_salt": salt}
            params = params.clone()
            params.extra_args = {**(params.extra_args or {}), STEERING_KEY: spec.encode()}
        return generate(prompt, params, request_id, *args, **kwargs)

    return steering


def _apart(prompt: Any) -> Any:
    """`prompt` with a salt of its project's, so that no other can tell by the time it takes what was asked in
    this one; the operator's prompts, which are all there are on most servers, stay as they are."""
    principal = current_principal.get(None)
    if principal is None or principal.account_id == OPERATOR or not isinstance(prompt, Mapping):
        return prompt
    parts = f"{principal.account_id}\n{prompt.get('cache_salt') or ''}"
    return {**prompt, "cache_salt": hashlib.sha256(parts.encode()).hexdigest()}


def _refuse_own(prompt: Any, params: Any) -> None:
    reserved = RESERVED_KEYS.intersection(getattr(params, "extra_args", None) or ())
    if reserved:
        raise VLLMValidationError(f"{min(reserved)} is set by the server alone", parameter="vllm_xargs")
    salt = prompt.get("cache_salt") if isinstance(prompt, Mapping) else None
    if isinstance(salt, str) and salt.startswith(SALT_PREFIX):
        raise VLLMValidationError(
            f"salts that begin with {SALT_PREFIX} are the server's own", parameter="cache_salt"
        )


@dataclass(slots=True)
class Kept:
    """`open`: a stream goes on with what was applied, and releases it."""

    open: bool = False


@contextmanager
def during(applied: Applied | None) -> Iterator[Kept]:
    """Requests made within are steered as `applied` says, which is released at the end unless kept open."""
    kept = Kept()
    token = current_spec.set(applied.spec if applied else None)
    try:
        yield kept
    finally:
        current_spec.reset(token)
        if applied is not None and not kept.open:
            applied.release()


@dataclass(frozen=True, slots=True)
class States:
    """`means` is `[spans, layers, hidden]`, `norms` `[spans, layers]`: the mean length of the states."""

    means: NDArray[np.float32]
    norms: NDArray[np.float32]


class SteeringEngine:
    """Calls into the workers, through the engine's own ordered queue: what is loaded is there for the next
    request that is sent."""

    def __init__(self, client: Any, generate: Generate) -> None:
        self._client, self._generate = client, generate
        self._owner = secrets.token_hex(8)  # of this process: others share the table
        self._evidence = _Asking(self._everywhere, "steersman_evidence", _added)
        self._watched = _Asking(self._everywhere, "steersman_watched", _joined)
        self._tasks: set[asyncio.Task[Any]] = set()

    async def facts(self) -> Mapping[str, Any]:
        """See `SteeringWorker.steersman_facts`."""
        facts: Mapping[str, Any] = (await self._all("steersman_facts"))[0]
        return facts

    async def load(self, digest: str, blob: bytes) -> None:
        """Raises SteersmanError where any rank of any engine does not take the vector; then none keeps it."""
        try:
            replies = await self._everywhere("steersman_load", digest, blob, self._owner)
        except Exception:  # whichever rank raised it, others may have taken the vector
            self._beside(self.unload([digest]))
            raise
        problems = [problem for ranks in replies for problem in ranks if problem]
        if problems:
            await self.unload([digest])
            raise SteersmanError(f"the engine did not load the vector: {problems[0]}")

    async def unload(self, digests: Sequence[str]) -> None:
        await self._all("steersman_unload", list(digests), self._owner)

    async def usage(self) -> Mapping[str, int]:
        usage: Mapping[str, int] = (await self._all("steersman_usage"))[0]
        return usage

    async def evidence(self, trace: str) -> Counted:
        """What the worker did for a request that has ended. Raises Unavailable where it did nothing.

        Requests that end while one RPC is on its way share the next.
        """
        prompt, generated, problem, watched = await self._evidence.asked_for(trace)
        if problem:
            raise Unavailable(f"the request ran unsteered: {problem}", retry_after=1)
        return Counted(prompt, generated, _scores(watched))

    async def watched(self, trace: str) -> tuple[Scores, ...]:
        """The scores of a request that still runs. Requests that ask at once share an RPC."""
        return _scores(await self._watched.asked_for(trace))

    def forget(self, trace: str) -> None:
        """Have the worker drop the evidence of a request that was aborted."""
        with suppress(RuntimeError):  # the loop has ended, and so does the engine
            self._evidence.asked_for(trace).add_done_callback(_noted)

    async def capture(
        self, tokens: Sequence[int], spans: Sequence[tuple[int, int]], layers: Sequence[int]
    ) -> States:
        """States of one ordinary, unsteered prefill; `tokens` are the whole text.

        Looks nothing up in the prefix cache, since what is found there is not computed. Raises Unavailable
        where the worker had no room for any state, SteersmanError where some are missing.
        """
        spec = CaptureSpec(secrets.token_hex(8), tuple(layers), tuple(spans))
        params = SamplingParams(
            max_tokens=1,
            temperature=0.0,
            detokenize=False,
            skip_reading_prefix_cache=True,
            extra_args={CAPTURE_KEY: spec.encode()},
        )
        prompt = tokens_input(list(tokens))
        # RPC results come from the first engine alone.
        rank = {"data_parallel_rank": 0} if self._ranks > 1 else {}
        try:
            with _engine_there():
                async for _ in self._generate(prompt, params, f"capture-{spec.id}", **rank):
                    pass
        except BaseException:
            self._beside(self._all("steersman_captured", spec.id))  # else the worker keeps what nobody wants
            raise
        found = (await self._all("steersman_captured", spec.id))[0]
        if found is None:
            raise Unavailable("the engine had no room for the states of a text", retry_after=1)
        if len(found) == 1:
            raise SteersmanError(f"a capture came back short: {found[0]} states are missing")
        shape, means, norms = found
        return States(
            np.frombuffer(means, np.float32).reshape(shape),
            np.frombuffer(norms, np.float32).reshape(shape[:2]),
        )

    async def score(self, tokens: Sequence[int], spec: SteeringSpec | None) -> list[float]:
        """Log-probability in nats of each of `tokens` but the first, steered as `spec` says.

        Raises Unavailable where the worker did not steer it, NotSupported where the engine cannot score.
        """
        if prompt_logprobs_kill(self._client.vllm_config):
            raise NotSupported("with LoRA enabled, vLLM's CPU engine dies of scoring a prompt")
        params = SamplingParams(max_tokens=1, temperature=0.0, detokenize=False, prompt_logprobs=0)
        scored = (await self._answered(tokens, spec, params)).prompt_logprobs
        return [step[t].logprob for step, t in zip(scored[1:], tokens[1:], strict=True)]

    async def likeliest(self, tokens: Sequence[int], spec: SteeringSpec | None) -> list[float]:
        """Log-probabilities in nats of the likeliest next tokens, best first, steered as `spec` says.

        Five, or as many as the engine gives.
        """
        limit = self._client.vllm_config.model_config.max_logprobs  # -1: none
        count = 5 if limit < 0 else min(5, limit)
        params = SamplingParams(max_tokens=1, temperature=0.0, detokenize=False, logprobs=count)
        output = await self._answered(tokens, spec, params)
        found = sorted((each.logprob for each in output.outputs[0].logprobs[0].values()), reverse=True)
        return found[: max(count, 1)]

    async def _answered(
        self, tokens: Sequence[int], spec: SteeringSpec | None, params: SamplingParams
    ) -> RequestOutput:
        """The last output of one request. Raises Unavailable where the worker did not steer it."""
        if spec is not None:
            spec = replace(spec, trace=secrets.token_hex(8))
        prompt: Any = tokens_input(list(tokens))
        token = current_spec.set(spec)
        try:
            outputs = steered(self._generate)(prompt, params, f"score-{secrets.token_hex(8)}")
        finally:
            current_spec.reset(token)
        try:
            with _engine_there():
                async for output in outputs:
                    last = output
        except BaseException:
            if spec is not None and not spec.idle:
                self.forget(spec.trace)
            raise
        if spec is not None and not spec.idle:
            await self.evidence(spec.trace)
        return last

    @property
    def _ranks(self) -> int:
        return int(self._client.vllm_config.parallel_config.data_parallel_size)

    async def _all(self, method: str, *args: Any) -> list[Any]:
        """The results of all ranks of the first engine; every engine runs it."""
        with _engine_there():
            return list(await self._client.collective_rpc(method, args=args))

    async def _everywhere(self, method: str, *args: Any) -> list[list[Any]]:
        """The results of all ranks of each engine."""
        core = self._client.engine_core
        if self._ranks == 1 or not hasattr(core, "call_utility_all_async"):
            return [await self._all(method, *args)]
        with _engine_there():
            return list(await core.call_utility_all_async("collective_rpc", method, None, args, None))

    def _beside(self, call: Coroutine[Any, Any, Any]) -> None:
        """Have the worker do what nobody waits for."""
        task = asyncio.create_task(call)
        self._tasks.add(task)  # the loop itself would let it be collected
        task.add_done_callback(self._tasks.discard)
        task.add_done_callback(_noted)


class _Asking:
    """One RPC for all traces that are asked about while the one before is on its way.

    Every data-parallel engine is asked, the request ran on one of them: `joined` makes one of their answers.
    """

    def __init__(
        self,
        call: Callable[..., Coroutine[Any, Any, list[list[Any]]]],
        method: str,
        joined: Callable[[Sequence[list[Any]]], list[Any]],
    ) -> None:
        self._call, self._method, self._joined = call, method, joined
        self._asked: dict[str, asyncio.Future[list[Any]]] = {}
        self._asking: asyncio.Task[None] | None = None

    def asked_for(self, trace: str) -> "asyncio.Future[list[Any]]":
        future = self._asked.setdefault(trace, asyncio.get_running_loop().create_future())
        if self._asking is None or self._asking.done():
            self._asking = asyncio.create_task(self._ask())
        return future

    async def _ask(self) -> None:
        while self._asked:
            asked, self._asked = self._asked, {}
            try:
                replies = await self._call(self._method, list(asked))
                found = {trace: self._joined([ranks[0][trace] for ranks in replies]) for trace in asked}
            except Exception as error:  # noqa: BLE001  # whoever waits raises it
                for future in asked.values():
                    if not future.done():
                        future.set_exception(error)
                continue
            for trace, future in asked.items():
                if not future.done():
                    future.set_result(found[trace])


@contextmanager
def _engine_there() -> Iterator[None]:
    """What is asked of an engine that stops can be asked again of the next one."""
    try:
        yield
    except EngineDeadError as error:
        raise Unavailable("the engine has stopped", retry_after=5) from error


def prompt_logprobs_kill(config: Any) -> bool:
    """vLLM 0.32 on a CPU with LoRA enabled: its engine does not survive a request with `prompt_logprobs`."""
    return bool(config.lora_config is not None and current_platform.is_cpu())


def _added(parts: Sequence[list[Any]]) -> list[Any]:
    """Over engines: those that never saw the request do not count; where another failed, so did the whole."""
    known = [part for part in parts if part[2] != NEVER_SEEN] or list(parts)
    problem = next((part[2] for part in known if part[2]), None)
    prompt, generated = (sum(part[column] for part in known) for column in (0, 1))
    return [prompt, generated, problem, _joined([part[3] for part in known])]


def _joined(parts: Sequence[list[Any]]) -> list[Any]:
    return [each for part in parts for each in part]


def _scores(watched: Sequence[list[Any]]) -> tuple[Scores, ...]:
    return tuple(Scores(np.frombuffer(values, np.float32), fired) for values, fired in watched)


def _noted(done: "asyncio.Future[Any]") -> None:
    """Nobody waits for it, nor for its error."""
    if not done.cancelled():
        done.exception()
