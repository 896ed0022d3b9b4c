"""Sparse autoencoders: which there are, the states that they learn from, the latents of a text."""

import asyncio
from collections.abc import Callable
from typing import Annotated

from fastapi import APIRouter, Query, Request
from fastapi.responses import Response

from server.errors import InvalidRequest
from server.routes.body import JsonRoute
from server.routes.dependencies import Open, State
from server.sae_features import features, strongest
from server.sae_wire import MAX_FEATURE_TEXT, FeatureList, SaeList, StatesRequest
from server.studio import Studio
from server.text_states import text_states
from server.token_states import token_states
from server.training import Trainer
from server.vllm_serving import guarded

MAX_STATES = 256 * 2**20  # bytes of states in one answer
_DEFAULT_LIMIT = 20

router = APIRouter(route_class=JsonRoute, tags=["autoencoders"])


@router.get("/saes")
async def list_saes(state: State, studio: Open) -> SaeList:
    """The served model, and the autoencoders on this server's disk, those of other models too."""
    return await asyncio.to_thread(SaeList.of, studio.saes, state.models.bases, str(studio.trainer.weights))


@router.post("/sae/states", responses={200: {"content": {"application/octet-stream": {}}}})
@guarded
async def states(
    request: StatesRequest,
    raw_request: Request,  # noqa: ARG001  # `guarded` listens on it
    studio: Open,
) -> Response:
    """A safetensors file: `states` [n, hidden] in float32 of each text's tokens but the first, which is an
    attention sink; `tokens` [n] their ids, `text` [n] the number of the text, `first` [texts] the ids left
    out (-1: the text has no token)."""
    if request.layer >= studio.model.layers:
        raise InvalidRequest(
            f"{studio.model.name} has layers 0 to {studio.model.layers - 1}, not {request.layer}",
            param="layer",
        )
    texts = await asyncio.to_thread(_tokenised, request, studio.trainer)
    count, most = sum(map(len, texts)), MAX_STATES // (4 * studio.model.width)
    if count > most:
        raise InvalidRequest(
            f"the texts have {count} tokens, and one answer holds the states of {most}: send fewer texts, or "
            "give max_tokens",
            param="texts",
        )
    trainer = studio.trainer
    found = await text_states(trainer.engine, texts, request.layer, studio.model.width, trainer.at_once)
    return Response(await asyncio.to_thread(lambda: found.blob), media_type="application/octet-stream")


def _tokenised(request: StatesRequest, trainer: Trainer) -> list[list[int]]:
    """Raises InvalidRequest naming the text that is longer than the model's context."""
    tokenizer, found = trainer.tokenizer, []
    prompts = request.prompts or [None] * len(request.texts)
    encode = tokenizer.encode if request.add_special_tokens else tokenizer.encode_raw
    for index, (text, prompt) in enumerate(zip(request.texts, prompts, strict=True)):
        tokens = encode(text) if prompt is None else _answered(trainer, prompt, text)
        tokens = tokens[: request.max_tokens]
        if len(tokens) > trainer.max_tokens:
            raise InvalidRequest(
                f"the text has {len(tokens)} tokens; this model takes at most {trainer.max_tokens}: give "
                "max_tokens",
                param=f"texts.{index}",
            )
        found.append(tokens)
    return found


def _answered(trainer: Trainer, prompt: str, answer: str) -> list[int]:
    """As training reads a pair: without a chat template, the answer follows its prompt."""
    render = trainer.tokenizer.render
    encode: Callable[[str], list[int]] = trainer.tokenizer.encode_raw if render else trainer.tokenizer.encode
    return encode((render(prompt) if render else prompt) + answer)


FeatureText = Annotated[str, Query(min_length=1, max_length=MAX_FEATURE_TEXT)]
Latents = Annotated[list[int] | None, Query(max_length=256, description="these latents, and no others")]


@router.get("/sae/features")
@guarded
async def list_features(
    raw_request: Request,  # noqa: ARG001  # likewise
    studio: Open,
    *,
    text: FeatureText,
    sae: str | None = None,
    limit: Annotated[int | None, Query(ge=1, le=1000, description=f"absent: {_DEFAULT_LIMIT}")] = None,
    latents: Latents = None,
) -> FeatureList:
    """The latents that are most active somewhere in a text, strongest first, with the tokens where they are.

    Latents with a high `density` are active nearly everywhere, and say little about this text.
    """
    if latents is not None and limit is not None:
        raise InvalidRequest("limit has no effect beside latents", param="limit")
    stored = await studio.saes.get(sae)
    wrong = [latent for latent in latents or () if not 0 <= latent < stored.card.d_sae]
    if wrong:
        raise InvalidRequest(
            f"{stored.card.name!r} has latents 0 to {stored.card.d_sae - 1}, not {wrong[0]}", param="latents"
        )
    ids = await asyncio.to_thread(_text_tokens, studio, text)
    rows = await token_states(studio.trainer.engine, ids, range(1, len(ids)), stored.card.layer)
    found = await asyncio.to_thread(
        lambda: (
            strongest(stored, rows, limit or _DEFAULT_LIMIT)
            if latents is None
            else features(stored, rows, latents)
        )
    )
    return FeatureList.of(stored, [studio.trainer.tokenizer.decode([token]) for token in ids], found)


def _text_tokens(studio: Studio, text: str) -> list[int]:
    tokens = studio.trainer.tokenizer.encode(text)
    if not 1 < len(tokens) <= studio.trainer.max_tokens:
        raise InvalidRequest(
            f"the text has {len(tokens)} tokens; features are read from texts of 2 to "
            f"{studio.trainer.max_tokens}: the first one's state is left out",
            param="text",
        )
    return tokens
