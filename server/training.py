"""From pairs of answers to a stored vector: states from the engine, a method's own arithmetic, a record."""

import asyncio
import threading
from collections.abc import Callable, Coroutine, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import count
from typing import Annotated, Any, Protocol, Self

import numpy as np
from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, model_validator

from server.errors import InvalidRequest
from server.steering import SteeredModel
from server.together import together
from server.vectors import NewVector
from steering.spec import CAPTURE_LINES, SpecError, checked_layers, default_layers
from steering.train import few_shot, perceptron, sparse
from steering.train.caa import caa
from steering.train.method import METHODS, States, checked
from steering.train.optimised import Options, Step
from steering.train.pairs import Answer, EncodedPair, Pair, digest, encoded
from steering.train.result import Trained
from steering.train.states import TokenStates
from steering.vector import Array

_CONCURRENT = 16  # texts in the engine at once, beside whatever is being served
_MAX_PAIRS = 5000
_TOKENS_PER_TEXT = 24  # states kept of each answer by the methods that learn from single tokens
_BACKGROUND_TOKENS = 128
_STATES = {States.NONE: 0, States.MEAN: 1, States.TOKENS: _TOKENS_PER_TEXT}  # of each answer, at most
_MAX_STATES = 2 * 2**30  # bytes of them that one job may gather; arranging them takes as much again

Text = Annotated[str, Field(min_length=1, max_length=32_768)]
Label = Annotated[str, Field(max_length=200)]
Answers = Annotated[list[Text], Field(min_length=1, max_length=_MAX_PAIRS)]
Progress = Callable[[Mapping[str, Any]], Coroutine[Any, Any, None]]
OnLayer = Callable[[int], None]


def _known_method(name: str) -> str:
    lowered = name.strip().lower()
    if lowered not in METHODS:
        raise ValueError(f"method must be one of {', '.join(METHODS)}, not {name!r}")
    return lowered


def _none_for_none(answers: Any) -> Any:
    return None if answers == [] else answers  # which Axionic's client sends for positives alone


class TrainRequest(BaseModel):
    """POST /steering/generate. Lists of equal length; negatives may be missing where the method allows it."""

    model_config = ConfigDict(extra="forbid")

    prompts: Annotated[
        list[Annotated[str, Field(max_length=32_768)]], Field(min_length=1, max_length=_MAX_PAIRS)
    ]
    positive_answers: Answers
    negative_answers: Annotated[Answers | None, BeforeValidator(_none_for_none)] = None
    method: Annotated[str, AfterValidator(_known_method)] = "caa"
    layer_idxs: Annotated[list[int], Field(min_length=1, max_length=512)] | None = None
    name: Label | None = None
    label: Label | None = None
    category: Label | None = None
    fewshot_iterations: Annotated[int, Field(ge=1, le=1000)] | None = None
    fewshot_lr: Annotated[float, Field(gt=0, le=10, allow_inf_nan=False)] | None = None
    refine_lr: Annotated[float, Field(gt=0, le=10, allow_inf_nan=False)] | None = None
    refine_steps: Annotated[int, Field(ge=0, le=1000)] | None = None
    sparsity_threshold: Annotated[float, Field(gt=0, le=1, allow_inf_nan=False)] | None = None
    chat_template: bool = Field(
        default=True, description="prompts are a user's messages, where the model has a chat template"
    )

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        lengths = {len(self.prompts), len(self.positive_answers), len(self.negative_answers or self.prompts)}
        if len(lengths) > 1:
            raise ValueError("prompts, positive_answers and negative_answers must be lists of equal length")
        for names, method in _METHOD_FIELDS.items():
            given = [name for name in names if getattr(self, name) is not None]
            if given and self.method != method:
                raise ValueError(f"{given[0]} has no effect on method {self.method}, only on {method}")
        if self.refine_lr is not None and not self.refine_steps:
            raise ValueError("refine_lr has no effect without refine_steps")
        checked(self.method, self.pairs)
        return self

    @property
    def pairs(self) -> tuple[Pair, ...]:
        negatives: Sequence[str | None] = self.negative_answers or [None] * len(self.prompts)
        return tuple(
            Pair(*texts) for texts in zip(self.prompts, self.positive_answers, negatives, strict=True)
        )


_METHOD_FIELDS = {
    ("fewshot_iterations", "fewshot_lr"): "few-shot",
    ("refine_lr", "refine_steps", "sparsity_threshold"): "asas",
}


class CapturedStates(Protocol):
    @property
    def means(self) -> Array: ...


class Engine(Protocol):
    async def capture(
        self, tokens: Sequence[int], spans: Sequence[tuple[int, int]], layers: Sequence[int]
    ) -> CapturedStates: ...


@dataclass(frozen=True, slots=True)
class Tokenizer:
    """`encode` is with special tokens, `encode_raw` without; `render` puts a user's message into the chat
    template, `decode` shows single tokens."""

    encode: Callable[[str], list[int]]
    encode_raw: Callable[[str], list[int]]
    render: Callable[[str], str] | None
    decode: Callable[[Sequence[int]], str]


@dataclass(frozen=True, slots=True)
class Trainer:
    """`weights` is the folder or Hub name of the model, for the one method that needs gradients."""

    engine: Engine
    tokenizer: Tokenizer
    model: SteeredModel
    weights: str
    background: Sequence[str]
    max_tokens: int = 2**31 - 1  # of one text: the model's context
    processes: int = 1  # API servers that train beside each other on one engine

    def layers(self, request: TrainRequest) -> tuple[int, ...]:
        """Raises InvalidRequest for layers that the model has not, and for more states than memory holds."""
        try:
            layers = (
                default_layers(self.model.layers)
                if request.layer_idxs is None
                else checked_layers(request.layer_idxs, self.model.layers)
            )
        except SpecError as error:
            raise InvalidRequest(str(error), param="layer_idxs") from error
        answers = 1 if request.negative_answers is None else 2
        states = answers * _STATES[METHODS[request.method].states] * len(layers)
        if len(request.prompts) * states * self.model.width * 4 > _MAX_STATES:
            raise InvalidRequest(
                f"the states of {len(request.prompts)} pairs at {len(layers)} layers do not fit into memory; "
                f"{_MAX_STATES // (states * self.model.width * 4)} pairs do, or more at fewer layers",
                param="prompts",
            )
        return layers

    async def train(self, request: TrainRequest, account_id: str | None, progress: Progress) -> NewVector:
        """Raises InvalidRequest for pairs that cannot be learnt from."""
        layers = self.layers(request)
        try:
            trained = await self._trained(request, layers, progress)
        except ValueError as error:
            raise InvalidRequest(str(error), param="prompts") from error
        return NewVector(
            account_id=account_id,
            vector=trained.vector,
            method=request.method,
            model_name=self.model.name,
            model_fingerprint=self.model.fingerprint,
            name=request.name,
            label=request.label,
            category=request.category,
            doses=self.model.doses(trained.vector),
            scale=None,
            dataset_digest=digest(request.pairs),
            evidence={str(layer): evidence.known() for layer, evidence in trained.evidence.items()},
        )

    def prompted(self, request: TrainRequest) -> tuple[tuple[Pair, ...], Callable[[str], list[int]]]:
        """The pairs as the model reads them, and the encoding that fits."""
        render = self.tokenizer.render if request.chat_template else None
        if render is None:
            return request.pairs, self.tokenizer.encode
        pairs = tuple(Pair(render(pair.prompt), pair.positive, pair.negative) for pair in request.pairs)
        return pairs, self.tokenizer.encode_raw

    async def encoded(self, request: TrainRequest) -> tuple[EncodedPair, ...]:
        """The pairs in tokens. Raises InvalidRequest for answers without any, and above `max_tokens`."""
        pairs, encode = self.prompted(request)
        try:
            texts = await asyncio.to_thread(encoded, encode, pairs)
        except ValueError as error:
            raise InvalidRequest(str(error), param="prompts") from error
        lengths = [max(len(answer.tokens) for _, answer in _answers(pair)) for pair in texts]
        if (longest := max(lengths)) > self.max_tokens:
            raise InvalidRequest(
                f"a prompt with its answer has {longest} tokens; this model takes at most {self.max_tokens}",
                param=f"prompts.{lengths.index(longest)}",
            )
        return texts

    async def _trained(self, request: TrainRequest, layers: tuple[int, ...], progress: Progress) -> Trained:
        texts = await self.encoded(request)
        if METHODS[request.method].states is States.NONE:
            return await self._optimised(request, layers, progress)
        _require_states(texts)
        norms = [float(self.model.norms[layer]) for layer in layers]
        if METHODS[request.method].states is States.MEAN:
            positive, negative = await self._means(texts, layers, progress)
            return await asyncio.to_thread(caa, positive, negative, layers, norms)
        above, below = await self._tokens(texts, layers, progress)
        learn = _sparse if request.method == "asas" else _perceptron
        return await _learnt(partial(learn, request, above, below), len(layers), progress)

    async def _means(
        self, texts: Sequence[EncodedPair], layers: tuple[int, ...], progress: Progress
    ) -> tuple[Array, Array]:
        answers = [pair.positive for pair in texts]
        answers += [pair.negative for pair in texts if pair.negative is not None]
        spans = [[(_positions(answer).start, answer.end)] for answer in answers]
        states = await self._captured(answers, spans, layers, progress)
        means = await asyncio.to_thread(np.concatenate, states)
        return means[: len(texts)], means[len(texts) :]

    async def _tokens(
        self, texts: Sequence[EncodedPair], layers: tuple[int, ...], progress: Progress
    ) -> tuple[dict[int, TokenStates], dict[int, TokenStates]]:
        """States of single positions by class and layer; background texts stand in for missing negatives."""
        positives = [pair.positive for pair in texts]
        negatives = [pair.negative for pair in texts if pair.negative is not None]
        if not negatives:
            longest = min(self.max_tokens, _BACKGROUND_TOKENS)
            tokens = [self.tokenizer.encode(text)[:longest] for text in self.background]
            negatives = [Answer(tuple(ids), 1, len(ids)) for ids in tokens]
        answers = [*positives, *negatives]
        states = await self._captured(answers, [_single(answer) for answer in answers], layers, progress)
        above, below = states[: len(positives)], states[len(positives) :]
        return await asyncio.to_thread(lambda: (_by_layer(above, layers), _by_layer(below, layers)))

    async def _captured(
        self,
        answers: Sequence[Answer],
        spans: Sequence[Sequence[tuple[int, int]]],
        layers: tuple[int, ...],
        progress: Progress,
    ) -> list[Array]:
        """`[spans, layers, hidden]` of each text, from ordinary prefills among the requests being served."""
        done = 0

        async def one(answer: Answer, wanted: Sequence[tuple[int, int]]) -> Array:
            nonlocal done
            states = await self.engine.capture(answer.tokens, wanted, layers)
            done += 1
            await progress({"stage": "states", "done": done, "total": len(answers)})
            return states.means

        calls = [partial(one, *each) for each in zip(answers, spans, strict=True)]
        return await together(calls, self.at_once(max(map(len, spans)) * len(layers)))

    def at_once(self, lines: int) -> int:
        """Texts in the engine at once, of which each takes so many of its capture lines.

        GPUs have CAPTURE_LINES of them per layer (`GraphPass`), and those of a text that has ended are free a
        step later: half of them are counted on.
        """
        mine = CAPTURE_LINES * self.model.layers // (2 * self.processes)
        return max(1, min(_CONCURRENT, mine // lines))

    async def _optimised(self, request: TrainRequest, layers: tuple[int, ...], progress: Progress) -> Trained:
        options = Options()
        options = Options(
            iterations=request.fewshot_iterations or options.iterations,
            lr=request.fewshot_lr or options.lr,
        )
        tell = _teller(progress)

        def report(step: Step) -> None:
            told = {"stage": "optimising", "layers": list(step.layers), "iteration": step.iteration}
            tell({**told, "loss": step.loss, "done": step.done, "total": step.total})

        return await few_shot.run(
            few_shot.Request(
                model=self.weights,
                pairs=self.prompted(request)[0],
                layers=layers,
                max_norms={layer: float(self.model.norms[layer]) for layer in layers},
                options=options,
                add_special_tokens=not (request.chat_template and self.tokenizer.render),
            ),
            report,
        )


class _Stopped(Exception):
    """In a thread: nobody waits for what it learns."""


async def _learnt(learn: Callable[[OnLayer], Trained], layers: int, progress: Progress) -> Trained:
    """What `learn` makes in a thread, which ends after the layer at hand when this is cancelled."""
    stopped, done, tell = threading.Event(), count(1), _teller(progress)

    def on_layer(layer: int) -> None:
        if stopped.is_set():
            raise _Stopped
        tell({"stage": "learning", "layer": layer, "done": next(done), "total": layers})

    await progress({"stage": "learning", "done": 0, "total": layers})
    try:
        return await asyncio.to_thread(learn, on_layer)
    finally:
        stopped.set()


def _teller(progress: Progress) -> Callable[[Mapping[str, Any]], None]:
    """`progress` for those who cannot wait, in any thread."""
    loop = asyncio.get_running_loop()

    def tell(what: Mapping[str, Any]) -> None:
        asyncio.run_coroutine_threadsafe(progress(what), loop)

    return tell


def _sparse(
    request: TrainRequest,
    above: dict[int, TokenStates],
    below: dict[int, TokenStates],
    on_layer: OnLayer,
) -> Trained:
    options = sparse.Options()
    return sparse.asas(
        above,
        below,
        replace(
            options,
            sparsity_threshold=request.sparsity_threshold or options.sparsity_threshold,
            refine_steps=request.refine_steps or options.refine_steps,
            refine_lr=request.refine_lr or options.refine_lr,
        ),
        on_layer=on_layer,
    )


def _perceptron(
    _: TrainRequest,
    above: dict[int, TokenStates],
    below: dict[int, TokenStates],
    on_layer: OnLayer,
) -> Trained:
    return perceptron.perceptrons(above, below, on_layer=on_layer)


def _answers(pair: EncodedPair) -> list[tuple[str, Answer]]:
    """By the request's name for them."""
    given = (("positive_answers", pair.positive), ("negative_answers", pair.negative))
    return [(field, answer) for field, answer in given if answer is not None]


def _require_states(texts: Sequence[EncodedPair]) -> None:
    """Raises InvalidRequest naming an answer of which no state is left."""
    for index, pair in enumerate(texts):
        for field, answer in _answers(pair):
            if not _positions(answer):
                raise InvalidRequest(
                    "only the text's first token comes before the last one of this answer, and its state "
                    "tells nothing; write a longer prompt",
                    param=f"{field}.{index}",
                )


def _positions(answer: Answer) -> range:
    """Those that predict the answer, but never the first of a text: an attention sink."""
    return range(max(1, answer.start), answer.end)


def _single(answer: Answer) -> list[tuple[int, int]]:
    """Spans of one position each, spread over the answer."""
    positions = _positions(answer)
    kept = min(len(positions), _TOKENS_PER_TEXT)
    chosen = np.linspace(0, len(positions) - 1, kept).round().astype(int).tolist()
    return [(positions[index], positions[index] + 1) for index in chosen]


def _by_layer(states: Sequence[Array], layers: tuple[int, ...]) -> dict[int, TokenStates]:
    return {layer: TokenStates.of([rows[:, axis] for rows in states]) for axis, layer in enumerate(layers)}
