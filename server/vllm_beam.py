"""Beam search above the engine, with a constraint's mask on every beam.

The semantics are those of Hugging Face `generate(num_beams=…, early_stopping=False)`, with
`prefix_allowed_tokens_fn` for the mask: scores are sums of log-probabilities over the whole vocabulary,
divided by length ** length_penalty; masked tokens are left out and the others are not renormalised.

Each step asks the engine for one token after each beam, and takes its log-probabilities. vLLM lists the
most likely tokens only, of which the mask may leave too few. The others come from requests that allow a part
of the mask each and so return its most likely token (`_Chunk`). vLLM's `logprob_token_ids` would be more
direct, but its V1 sampler then replaces the log-probabilities of all other requests in the batch.
"""

import asyncio
import math
from collections.abc import AsyncGenerator, Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import msgspec
import numpy as np
from vllm import CompletionOutput, RequestOutput
from vllm.engine.protocol import EngineClient
from vllm.entrypoints.generate.beam_search.utils import BeamSearchSequence
from vllm.exceptions import VLLMValidationError
from vllm.inputs import EngineInput
from vllm.logprobs import Logprob
from vllm.lora.request import LoRARequest
from vllm.renderers import BaseRenderer
from vllm.sampling_params import BeamSearchParams, RequestOutputKind, SamplingParams
from vllm.utils import random_uuid
from vllm.v1.structured_output.backend_guidance import GuidanceGrammar
from vllm.v1.structured_output.backend_types import StructuredOutputGrammar
from vllm.v1.structured_output.backend_xgrammar import XgrammarGrammar

from server.vllm_grammar import GrammarCompiler, Refused
from server.vllm_steering import prompt_end

_LISTED = 256  # log-probabilities to ask for where the engine gives as many: they save requests
_ALLOWED = 1024  # ids that a first request names as allowed; more cost more than they tell
_CHUNKS = 8

Mask = np.ndarray[Any, np.dtype[np.bool_]]
Ids = np.ndarray[Any, np.dtype[np.int64]]


class BeamParams(BeamSearchParams):
    """`n` of the `beam_width` beams are returned. `stop` and `stop_token_ids` end a beam, as the model's
    end-of-sequence tokens do. `temperature` does not change a beam's score and is ignored.
    """

    n: int = 1
    stop: list[str] = msgspec.field(default_factory=list)
    stop_token_ids: list[int] = msgspec.field(default_factory=list)

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 1 <= self.n <= self.beam_width:
            raise VLLMValidationError(
                f"n must be between 1 and the beam width {self.beam_width}, got {self.n}.",
                parameter="n",
                value=self.n,
            )


@dataclass(frozen=True, slots=True)
class _Beam:
    """Generated tokens, their summed log-probability, and what else was likely at each position."""

    tokens: tuple[int, ...] = ()
    logprob: float = 0.0
    steps: tuple[dict[int, Logprob], ...] = ()
    grammar: StructuredOutputGrammar | None = None


@dataclass(frozen=True, slots=True)
class _Finished:
    beam: _Beam
    score: float
    text: str
    finish_reason: str
    stop_reason: int | str | None = None


@dataclass(frozen=True, slots=True, eq=False)  # each is itself: arrays have no truth value
class _Chunk:
    """Allowed tokens whose log-probabilities are unknown, but at most `bound` each."""

    ids: Ids
    bound: float


@dataclass(slots=True)
class _Frontier:
    """What may follow a beam: `known` tokens, and chunks of the others."""

    beam: _Beam
    mask: Mask
    known: dict[int, Logprob] = field(default_factory=dict)
    chunks: list[_Chunk] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.chunks = [_Chunk(np.flatnonzero(self.mask), math.inf)]

    @property
    def steps(self) -> tuple[dict[int, Logprob], ...]:
        ranked = sorted(self.known.items(), key=lambda item: -item[1].logprob)
        return (*self.beam.steps, dict(ranked))

    def absorb(self, chunk: _Chunk, answer: dict[int, Logprob], listed: int) -> None:
        """`answer` lists the most likely token of `chunk` first, then `listed` tokens, allowed or not."""
        best, *others = answer.items()
        self.known |= {token: item for token, item in answer.items() if self.mask[token]}
        bound = best[1].logprob
        if listed:
            # Where the first stands among the listed, it is not repeated.
            top = others if len(answer) > listed else [best, *others]
            bound = min(item.logprob for _, item in top)
            if chunk.ids.size <= _ALLOWED:
                bound = min(bound, best[1].logprob)
        rest = chunk.ids[~np.isin(chunk.ids, list(self.known))]
        parts = np.array_split(rest, min(_CHUNKS, rest.size)) if listed and rest.size else [rest]
        self.chunks.remove(chunk)
        self.chunks += [_Chunk(part, bound) for part in parts if part.size]


@dataclass(frozen=True, slots=True)
class _Candidate:
    logprob: float
    frontier: _Frontier
    token: int


class _EngineStopped(Exception):  # not an error of ours: the engine's finish reason
    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason


@dataclass(slots=True)
class BeamSearch:
    """Stands in for vLLM's `beam_search`: called with the same arguments, it yields one finished output."""

    engine_client: EngineClient
    renderer: BaseRenderer
    _compiler: "asyncio.Task[GrammarCompiler] | None" = None

    async def __call__(  # noqa: PLR0917  # vLLM's signature
        self,
        prompt: EngineInput,
        request_id: str,
        params: BeamParams,
        lora_request: LoRARequest | None = None,
        trace_headers: Mapping[str, str] | None = None,
        session_id: str | None = None,
    ) -> AsyncGenerator[RequestOutput, None]:
        """Raises VLLMValidationError for a constraint that does not compile, or an embedded prompt."""
        if prompt["type"] == "embeds":
            raise VLLMValidationError("Beam search needs a prompt of tokens, not of embeddings.")
        decoder = prompt if prompt["type"] != "enc_dec" else prompt["decoder_prompt"]
        options = {"lora_request": lora_request, "trace_headers": trace_headers, "session_id": session_id}
        prompt_ids = list(decoder["prompt_token_ids"])
        asker = _Asker(self.engine_client, prompt, prompt_ids, f"{request_id}-{random_uuid()}", options)
        search = _Search(asker, self.renderer.get_tokenizer(), params)
        try:
            outputs = [_completion(n, item) for n, item in enumerate(await self._run(search))]
        except _EngineStopped as stopped:
            outputs = [CompletionOutput(0, "", [], None, None, finish_reason=stopped.reason)]
        yield RequestOutput(
            request_id=request_id,
            prompt=decoder.get("prompt"),
            prompt_token_ids=prompt_ids,
            prompt_logprobs=None,
            outputs=outputs,
            finished=True,
        )

    async def _run(self, search: "_Search") -> list[_Finished]:
        outputs = search.params.structured_outputs
        if outputs is None:
            return await search.run(_Beam())
        if self._compiler is None:
            config = self.engine_client.vllm_config
            self._compiler = asyncio.create_task(asyncio.to_thread(GrammarCompiler.of, config))
        search.compiler = await asyncio.shield(self._compiler)
        try:
            kind, spec = search.compiler.admit(replace(outputs))
            grammar = await asyncio.to_thread(search.compiler.compiled, kind, spec, search.all_stops)
        except Refused as refusal:
            raise VLLMValidationError(str(refusal), parameter="structured_outputs") from refusal
        return await search.run(_Beam(grammar=grammar))


@dataclass(slots=True)
class _Asker:
    """Asks the engine what follows the prompt and some tokens."""

    engine: EngineClient
    prompt: EngineInput
    prompt_ids: list[int]
    request_id: str
    options: dict[str, Any]
    asked: int = 0

    async def ask(
        self, tokens: tuple[int, ...], listed: int, allowed: list[int] | None
    ) -> dict[int, Logprob]:
        """Log-probabilities: of the best of the `allowed` tokens, first, then of the `listed` likeliest ones.

        Raises _EngineStopped where the engine gave up the request.
        """
        params = SamplingParams(
            temperature=0.0,
            max_tokens=1,
            logprobs=listed,
            allowed_token_ids=allowed,
            detokenize=False,
            watermarking=False,
            output_kind=RequestOutputKind.FINAL_ONLY,
        )
        self.asked += 1
        ids = [*self.prompt_ids, *tokens]
        prompt = BeamSearchSequence(orig_prompt=self.prompt, tokens=ids, logprobs=[]).get_prompt()
        request_id = f"{self.request_id}-{self.asked}"
        answer: dict[int, Logprob] = {}
        end = prompt_end.set(len(self.prompt_ids))
        try:
            outputs = self.engine.generate(prompt, params, request_id, **self.options)
        finally:
            prompt_end.reset(end)
        async for output in outputs:
            (part,) = output.outputs
            if part.finish_reason in {"abort", "error"}:
                raise _EngineStopped(part.finish_reason)
            answer = part.logprobs[0]
        return answer


class _Search:
    """One request's beams."""

    def __init__(self, asker: _Asker, tokenizer: Any, params: BeamParams) -> None:
        self.asker = asker
        self.tokenizer = tokenizer
        self.params = params
        self.compiler: GrammarCompiler | None = None
        model = asker.engine.vllm_config.model_config
        self.vocab_size = int(model.get_vocab_size())
        eos = _eos_ids(tokenizer, model)
        self.all_stops = eos | set(params.stop_token_ids)  # a grammar may end with any of these
        self.stops = set(params.stop_token_ids) | (set() if params.ignore_eos else eos)
        # Even when the best of each beam ends it, `beam_width` others are left to go on with.
        self.kept = max(2, 1 + len(self.stops)) * params.beam_width
        limit = self.vocab_size if model.max_logprobs == -1 else model.max_logprobs
        self.listed = min(limit, max(self.kept, _LISTED))
        if self.listed < 1:
            raise VLLMValidationError("Beam search needs an engine that returns log-probabilities.")

    async def run(self, beam: _Beam) -> list[_Finished]:
        """The best `n` beams, best first; fewer where the constraint has no more texts."""
        width = self.params.beam_width
        beams, finished = [beam], list[_Finished]()
        for length in range(1, self.params.max_tokens + 1):
            running: list[_Candidate] = []
            frontiers = await asyncio.to_thread(self._frontiers, beams)
            finished += [self._ended(f.beam, "stop") for f in frontiers if not f.mask.any()]
            for rank, candidate in enumerate(await self._best(frontiers)):
                end = self._end(candidate, length)
                if end is None:
                    running.append(candidate)
                elif rank < width:
                    finished.append(end)
            finished = sorted(finished, key=lambda item: -item.score)[:width]
            running = running[:width]
            full = len(finished) == width
            if not running or (full and self._score(running[0].logprob, length) <= finished[-1].score):
                break
            beams = await asyncio.to_thread(lambda chosen: [_extended(item) for item in chosen], running)
        return [self._with_decoded_tokens(item) for item in finished[: self.params.n]]

    def _score(self, logprob: float, length: int) -> float:
        return float(logprob / max(length, 1) ** self.params.length_penalty)

    def _frontiers(self, beams: list[_Beam]) -> list[_Frontier]:
        return [_Frontier(beam, self._mask(beam.grammar)) for beam in beams]

    def _mask(self, grammar: StructuredOutputGrammar | None) -> Mask:
        if grammar is None:
            return np.ones(self.vocab_size, np.bool_)
        assert self.compiler is not None
        mask = self.compiler.allowed(grammar)
        mask[list(self.all_stops - self.stops)] = False  # a grammar's end is no token of the text
        return mask

    async def _best(self, frontiers: list[_Frontier]) -> list[_Candidate]:
        """The `kept` best continuations of all beams, exactly, best first."""
        frontiers = [frontier for frontier in frontiers if frontier.mask.any()]
        while True:
            ranked = sorted(_candidates(frontiers), key=lambda item: -item.logprob)[: self.kept]
            floor = ranked[-1].logprob if len(ranked) == self.kept else -math.inf
            unknown = [(f, c) for f in frontiers for c in f.chunks if f.beam.logprob + c.bound > floor]
            if not unknown:
                return ranked
            answers = await self._ask_all(unknown)
            for (frontier, chunk), answer in zip(unknown, answers, strict=True):
                frontier.absorb(chunk, answer, self._listed(chunk))

    def _listed(self, chunk: _Chunk) -> int:
        return self.listed if chunk.bound == math.inf else 0

    async def _ask_all(self, unknown: list[tuple[_Frontier, _Chunk]]) -> list[dict[int, Logprob]]:
        try:
            async with asyncio.TaskGroup() as group:
                tasks = [group.create_task(self._ask(frontier.beam, chunk)) for frontier, chunk in unknown]
        except ExceptionGroup as failures:
            raise failures.exceptions[0] from failures  # vLLM answers by the type of its own errors
        return [task.result() for task in tasks]

    async def _ask(self, beam: _Beam, chunk: _Chunk) -> dict[int, Logprob]:
        listed = self._listed(chunk)
        anything = listed > 0 and chunk.ids.size > _ALLOWED
        return await self.asker.ask(beam.tokens, listed, None if anything else chunk.ids.tolist())

    def _end(self, candidate: _Candidate, length: int) -> _Finished | None:
        """The finished beam, where `candidate` finishes it."""
        token = candidate.token
        beam = _Beam((*candidate.frontier.beam.tokens, token), candidate.logprob, candidate.frontier.steps)
        if token in self.stops:
            reason = token if token != self.tokenizer.eos_token_id else None
            shown = beam.tokens if self.params.include_stop_str_in_output else beam.tokens[:-1]
            return self._ended(beam, "stop", reason, self._text(shown))
        for stop in self.params.stop:
            # A stop string that ends in this token spans as many tokens as it has bytes, at most.
            if stop in self._text(beam.tokens[-len(stop.encode()) - 1 :]):
                text = self._text(beam.tokens)
                end = text.find(stop) + (len(stop) if self.params.include_stop_str_in_output else 0)
                return self._ended(beam, "stop", stop, text[:end])
        return self._ended(beam, "length") if length == self.params.max_tokens else None

    def _ended(
        self, beam: _Beam, finish: str, reason: int | str | None = None, text: str | None = None
    ) -> _Finished:
        text = self._text(beam.tokens) if text is None else text
        return _Finished(beam, self._score(beam.logprob, len(beam.tokens)), text, finish, reason)

    def _text(self, tokens: Iterable[int]) -> str:
        return str(self.tokenizer.decode(list(tokens), skip_special_tokens=self.params.skip_special_tokens))

    def _with_decoded_tokens(self, item: _Finished) -> _Finished:
        """vLLM writes a token's bytes only where it is decoded already."""
        steps = tuple(
            step | {token: replace(step[token], decoded_token=self.tokenizer.decode([token]))}
            for token, step in zip(item.beam.tokens, item.beam.steps, strict=True)
        )
        return replace(item, beam=replace(item.beam, steps=steps))


def _candidates(frontiers: list[_Frontier]) -> list[_Candidate]:
    return [
        _Candidate(frontier.beam.logprob + item.logprob, frontier, token)
        for frontier in frontiers
        for token, item in frontier.known.items()
        if item.logprob > -math.inf
    ]


def _extended(candidate: _Candidate) -> _Beam:
    frontier, token = candidate.frontier, candidate.token
    grammar = _forked(frontier.beam.grammar)
    if grammar is not None and not grammar.accept_tokens("beam", [token]):
        raise RuntimeError(f"the grammar refuses token {token}, which its mask allowed")
    return _Beam((*frontier.beam.tokens, token), candidate.logprob, frontier.steps, grammar)


def _forked(grammar: StructuredOutputGrammar | None) -> StructuredOutputGrammar | None:
    if isinstance(grammar, XgrammarGrammar):
        return XgrammarGrammar(grammar.vocab_size, grammar.matcher.fork(), grammar.ctx)
    if isinstance(grammar, GuidanceGrammar):
        return replace(grammar, ll_matcher=grammar.ll_matcher.deep_copy())
    assert grammar is None
    return None


def _eos_ids(tokenizer: Any, model: Any) -> set[int]:
    """The tokenizer's end of sequence and those of the model's generation config, as vLLM stops at."""
    configured = model.try_get_generation_config().get("eos_token_id")
    more = [configured] if isinstance(configured, int) else configured or []
    return {token for token in (tokenizer.eos_token_id, *more) if token is not None}


def _completion(index: int, item: _Finished) -> CompletionOutput:
    return CompletionOutput(
        index=index,
        text=item.text,
        token_ids=list(item.beam.tokens),
        cumulative_logprob=item.beam.logprob,
        logprobs=list(item.beam.steps),
        finish_reason=item.finish_reason,
        stop_reason=item.stop_reason,
    )
