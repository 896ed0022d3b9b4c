"""Trying steering vectors: how well they part texts, what they do to answers; and pairs to make them from."""

import asyncio
import math
import secrets
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from types import MappingProxyType
from typing import Any

from fastapi import APIRouter, Request
from fastapi.responses import JSONResponse, Response

from policies.steering import SteeringEntry
from server.applied import Applied
from server.calibration import NEUTRAL_TOKENS
from server.candidates import text_of
from server.errors import InvalidRequest, Unavailable
from server.evaluation import effect
from server.pair_writer import MAX_TOKENS, SAMPLING, SCHEMA, Persona, ScoredPair, write_pairs
from server.routes.body import JsonRoute
from server.routes.dependencies import Caller, Open, State
from server.served_models import ServedModels
from server.studio import Studio
from server.training import Tokenizer
from server.trial_wire import VENDOR_JUDGE, Evaluate, GeneratePairs, Margins
from server.trials import JUDGE_SCHEMA, Jury, cosine_metrics, criterion, judge_prompt, mean_states, tokenised
from server.vllm_serving import Serving, guarded
from server.wire import NativeSampling
from steering.train.pairs import EncodedPair, Pair, encoded

WRITING_SECONDS = 55.0  # mechanex waits for 60
MAX_SCORED = 4096  # pairs times strengths of one request
_ANSWER_TOKENS, _JUDGE_TOKENS = 128, 192

router = APIRouter(route_class=JsonRoute, tags=["steering"])


@router.post("/steering/evaluate")
@guarded
async def evaluate(
    request: Evaluate, raw_request: Request, principal: Caller, state: State, studio: Open
) -> Response:
    """Cosines of the texts' mean states with the vector; with `test_prompts` also a judge on answers."""
    judge = _judge(request.judge_model, state.models, principal.selected_model)
    _, vector = await studio.steering.record(request.steering_vector_id, principal.account_id)
    entry = SteeringEntry(vector_id=request.steering_vector_id, strength=request.multiplier)
    checked = await studio.steering.check({"multiplier": entry}, principal.account_id)
    tokenizer, limit = studio.trainer.tokenizer, state.models.max_model_len
    positive, negative = [
        await asyncio.to_thread(tokenised, getattr(request, field), field, tokenizer.encode, limit)
        for field in ("positive_texts", "negative_texts")
    ]
    trial = _JudgeTrial(request, entry, _Voice(state.serving, raw_request), tokenizer, judge, limit)
    if request.test_prompts:
        await asyncio.to_thread(trial.check)
    layers = sorted(vector.layers)
    states = await mean_states(studio.engine, [*positive, *negative], layers)
    overall, by_layer = await asyncio.to_thread(
        cosine_metrics, vector, layers, states[: len(positive)], states[len(positive) :]
    )
    doses = {layer: dose * abs(request.multiplier) for layer, dose in studio.model.doses(vector).items()}
    body = {
        "steering_vector_id": request.steering_vector_id,
        "multiplier": request.multiplier,
        "cosine_metrics": {
            **asdict(overall),
            "relative_dose": checked.dose,
            "positive_texts": len(positive),
            "negative_texts": len(negative),
            "layers": {
                str(layer): {**asdict(parted), "relative_dose": doses[layer]}
                for layer, parted in by_layer.items()
            },
        },
        "judge_evaluation": await trial.judged() if request.test_prompts else None,
        **({"warning": checked.warning} if checked.warning else {}),
    }
    return JSONResponse(body, headers=checked.headers())


def _judge(name: str | None, models: ServedModels, bound: str | None) -> str:
    """Raises NotFound for a model that is not served."""
    if name == VENDOR_JUDGE and name not in models.names:
        name = None
    return models.resolve(name, bound)


@dataclass(frozen=True, slots=True)
class _Voice:
    """The base model, whose states and scores what it says is compared with; for one HTTP request."""

    serving: Serving
    raw: Request

    async def said(
        self,
        prompt: str,
        tokens: int,
        *,
        model: str | None = None,
        steering: Mapping[str, SteeringEntry] = MappingProxyType({}),
        temperature: float = 0.0,
        **more: Any,
    ) -> str:
        asked = {"temperature": temperature, **more}
        named = model or self.serving.models.default
        sent = self.serving.prompted(prompt, named, tokens, NativeSampling(), **asked)
        decoded = await self.serving.decode(sent, self.raw, steering=steering)
        return text_of(decoded.response.choices[0])


@dataclass(frozen=True, slots=True)
class _JudgeTrial:
    """The part of /steering/evaluate that generates text; `limit` is the model's length."""

    request: Evaluate
    entry: SteeringEntry
    voice: _Voice
    tokenizer: Tokenizer
    judge: str
    limit: int

    @property
    def _looked_for(self) -> str:
        request = self.request
        return criterion(request.persona_description, request.positive_texts, request.negative_texts)

    @property
    def _lengths(self) -> tuple[int, int]:
        """Of an answer and of the judge's words, in tokens; less where the model takes little."""
        quarter = max(1, self.limit // 4)
        return min(_ANSWER_TOKENS, quarter), min(_JUDGE_TOKENS, quarter)

    def check(self) -> None:
        """Raises InvalidRequest naming the prompt that leaves no room for its answer and the judge."""
        room = self.limit - sum(self._lengths)
        for index, prompt in enumerate(self.request.test_prompts or ()):
            tokens = _length(self.tokenizer, judge_prompt(self._looked_for, prompt, ""))
            if tokens > room:
                raise InvalidRequest(
                    f"with what the judge looks for this comes to {tokens} tokens; there is room for {room}",
                    param=f"test_prompts.{index}",
                )

    async def judged(self) -> dict[str, Any]:
        answer, rating = self._lengths
        jury = Jury(
            plain=partial(self.voice.said, tokens=answer),
            steered=partial(self.voice.said, tokens=answer, steering={"multiplier": self.entry}),
            judge=partial(self.voice.said, tokens=rating, model=self.judge, json_schema=JUDGE_SCHEMA),
            looked_for=self._looked_for,
        )
        return {"judge_model": self.judge, **await jury.evaluate(self.request.test_prompts or ())}


def _length(tokenizer: Tokenizer, prompt: str) -> int:
    if tokenizer.render is None:
        return len(tokenizer.encode(prompt))
    return len(tokenizer.encode_raw(tokenizer.render(prompt)))


@router.post("/steering/generate-pairs")
@guarded
async def generate_pairs(
    request: GeneratePairs, raw_request: Request, state: State, studio: Open
) -> Response:
    """Pairs written by the served model, as many as there are in time; it scores them too."""
    persona = Persona(request.persona_name, request.persona_description, request.negative_description)
    length = _length(studio.trainer.tokenizer, persona.instruction("a topic of a few words"))
    room = state.models.max_model_len - MAX_TOKENS - 16
    if length > room:
        raise InvalidRequest(
            f"the descriptions come to {length} tokens; there is room for {room}", param="persona_description"
        )
    voice = _Voice(state.serving, raw_request)

    async def write(instruction: str, seed: int) -> str:
        return await voice.said(instruction, MAX_TOKENS, seed=seed, json_schema=SCHEMA, **SAMPLING)

    async def score(pair: Pair) -> float | None:
        return await _likelier(studio, Pair(persona.asking(pair.prompt), pair.positive, pair.negative))

    pairs = await write_pairs(
        persona,
        write,
        score,
        wanted=request.num_pairs,
        at_once=request.batch_size,
        seconds=WRITING_SECONDS,
        first_seed=secrets.randbits(31) if request.seed is None else request.seed,
    )
    if not pairs:
        raise Unavailable(
            "the served model wrote no usable pair: its texts were too slow, cut off, or gave equal answers."
            " A larger model or a plainer description may do better."
        )
    return JSONResponse(
        {
            "persona": request.persona_name,
            "persona_description": request.persona_description,
            "total_pairs": len(pairs),
            "pairs": [_written(pair) for pair in pairs],
            "avg_final_score": sum(pair.score for pair in pairs) / len(pairs),
        }
    )


def _written(scored: ScoredPair) -> dict[str, Any]:
    pair = scored.pair
    return {
        "prompt": pair.prompt,
        "positive_answer": pair.positive,
        "negative_answer": pair.negative,
        "score": scored.score,
    }


async def _likelier(studio: Studio, pair: Pair) -> float | None:
    """Sigmoid of the margin in nats per token: above 0.5 where the model prefers the positive answer."""
    tokenizer = studio.trainer.tokenizer
    encode = tokenizer.encode_raw if tokenizer.render else tokenizer.encode
    prompt = tokenizer.render(pair.prompt) if tokenizer.render else pair.prompt
    try:
        texts = encoded(encode, [Pair(prompt, pair.positive, pair.negative)])
    except ValueError:
        return None
    margin = (await effect(studio.engine, texts, [], None)).margin
    return 1 / (1 + math.exp(-margin))


@router.post("/steering/evaluate/margins")
@guarded
async def evaluate_margins(
    request: Margins,
    raw_request: Request,  # noqa: ARG001  # `guarded` listens on it
    principal: Caller,
    state: State,
    studio: Open,
) -> Response:
    """How each strength shifts the margin of each pair, in nats per token, and what it costs neutral text."""
    if len(request.pairs) * len(request.strengths) > MAX_SCORED:
        raise InvalidRequest(
            f"pairs times strengths are at most {MAX_SCORED}; send the strengths one by one",
            param="strengths",
        )
    texts = await asyncio.to_thread(_encoded, request, studio, state.models.max_model_len)
    background = studio.trainer.background if request.neutral else ()
    neutral = [studio.trainer.tokenizer.encode(text)[:NEUTRAL_TOKENS] for text in background]
    entry = SteeringEntry(vector_id=request.steering_vector_id, vector=request.vector, layers=request.layers)
    results = []
    for index, strength in enumerate(request.strengths):
        asked = entry.model_copy(update={"strength": strength})
        applied = await _applied(studio, asked, principal.account_id, f"strengths.{index}")
        try:
            measured = await effect(studio.engine, texts, neutral, applied.spec)
        finally:
            applied.release()
        results.append(
            {
                "strength": strength,
                "margins": measured.margins.tolist(),
                "mean": measured.margin,
                "neutral": measured.neutral if neutral else None,
                "relative_dose": applied.dose,
                "warning": applied.warning,
            }
        )
    return JSONResponse({"steering_vector_id": request.steering_vector_id, "results": results})


async def _applied(studio: Studio, entry: SteeringEntry, account_id: str, field: str) -> Applied:
    """Raises InvalidRequest naming the part of `entry` that is wrong, or `field` for a dose too high."""
    try:
        return await studio.steering.apply({"steering": entry}, account_id)
    except InvalidRequest as error:
        part = (error.param or "").partition(".")[2]
        raise InvalidRequest(error.message, param=part or field, code=error.reason) from error


def _encoded(request: Margins, studio: Studio, limit: int) -> Sequence[EncodedPair]:
    """Raises InvalidRequest naming the pair that cannot be scored."""
    pairs, encode = studio.trainer.prompted(request.training)
    found = []
    for index, pair in enumerate(pairs):
        try:
            [texts] = encoded(encode, [pair])
        except ValueError as error:
            message = str(error).partition(", ")[2]  # after the pair's number, which is wrong here
            raise InvalidRequest(message, param=f"pairs.{index}") from error
        longest = max(len(answer.tokens) for answer in (texts.positive, texts.negative) if answer)
        if longest >= limit:
            raise InvalidRequest(
                f"prompt and answer have {longest} tokens; the model takes {limit - 1}",
                param=f"pairs.{index}",
            )
        found.append(texts)
    return found
