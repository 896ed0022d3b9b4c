"""From pairs of answers to a behaviour's baseline: their tokens' states, read by an autoencoder."""

import asyncio
from collections.abc import Callable, Coroutine, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Protocol

import numpy as np
import torch

from server.calibration import NEUTRAL_TOKENS
from server.errors import InvalidRequest
from server.together import together
from server.token_states import MOST, token_states
from server.training import Trainer
from steering.sae.baseline import Baseline, BaselineError, Options, calibrate
from steering.sae.detector import detector_of
from steering.sae.sae import SparseAutoencoder
from steering.train.pairs import Answer, EncodedPair
from steering.vector import Array, SteeringVector

_MAX_BYTES = 2 * 2**30  # of states and mean latents that one behaviour may gather
_CHUNK = 1024  # states encoded at once


class Card(Protocol):
    @property
    def name(self) -> str: ...
    @property
    def source(self) -> str: ...
    @property
    def layer(self) -> int: ...
    @property
    def hook(self) -> str: ...


class StoredSae(Protocol):
    """`density` is `[d_sae]`: the share of neutral states in which each latent is active, where known."""

    @property
    def card(self) -> Card: ...
    @property
    def sae(self) -> SparseAutoencoder: ...
    @property
    def density(self) -> Array | None: ...


@dataclass(frozen=True, slots=True)
class BaselineReader:
    trainer: Trainer

    async def read(
        self, pairs: Sequence[EncodedPair], stored: StoredSae, options: Options
    ) -> tuple[Baseline, SteeringVector]:
        """The baseline, and the detector that scores states by it.

        The states are those of the answers' own tokens, as a monitor sees them, and of neutral texts without
        their first. Raises InvalidRequest for texts that make no baseline, or do not fit into memory.
        """
        answers = [pair.positive for pair in pairs]
        answers += [pair.negative for pair in pairs if pair.negative is not None]
        texts = [*answers, *(Answer(tuple(ids), 0, len(ids) - 1) for ids in self.neutral())]
        positions = [range(answer.start + 1, answer.end + 1) for answer in texts]
        _require_memory(positions, stored.sae, len(pairs))
        states = await self._states(texts, positions, stored.card.layer)
        try:
            return await asyncio.to_thread(_told, stored, states, len(pairs), options)
        except BaselineError as error:
            raise InvalidRequest(str(error), param="positive_answers") from error

    def neutral(self) -> list[list[int]]:
        """Tokens of ordinary prose."""
        longest = min(NEUTRAL_TOKENS, self.trainer.max_tokens)
        texts = [self.trainer.tokenizer.encode(text)[:longest] for text in self.trainer.background]
        return [tokens for tokens in texts if len(tokens) > 1]

    async def _states(
        self, texts: Sequence[Answer], positions: Sequence[range], layer: int
    ) -> Sequence[Array]:
        engine = self.trainer.engine
        calls: list[Callable[[], Coroutine[Any, Any, Array]]] = [
            partial(token_states, engine, text.tokens, wanted, layer)
            for text, wanted in zip(texts, positions, strict=True)
        ]
        longest = max(map(len, positions))
        return await together(calls, self.trainer.at_once(min(longest, MOST)))


def _require_memory(positions: Sequence[range], sae: SparseAutoencoder, pairs: int) -> None:
    states = 4 * sae.d_in * sum(map(len, positions))
    means = 3 * 8 * sae.d_sae * len(positions)  # once as read, once in double precision, once for a fold
    if states + means > _MAX_BYTES:
        raise InvalidRequest(
            f"the states of {pairs} pairs do not fit into memory; about"
            f" {pairs * _MAX_BYTES // (states + means)} pairs of this length do",
            param="positive_answers",
        )


def _told(
    stored: StoredSae, states: Sequence[Array], pairs: int, options: Options
) -> tuple[Baseline, SteeringVector]:
    """`states` are `[tokens, hidden]` of positive, negative and neutral texts."""
    sae = stored.sae
    means = np.stack([_mean_latents(sae, rows) for rows in states])
    positive, negative, neutral = np.split(means, [pairs, 2 * pairs])

    def tokens(latents: Sequence[int]) -> list[Array]:
        return [sae.encode_some(torch.tensor(rows), latents).numpy() for rows in states]

    baseline = calibrate(
        positive,
        negative,
        sae.digest,
        options,
        tokens=tokens,
        neutral=neutral,
        density=stored.density,
    )
    return baseline, detector_of(sae, baseline)


def _mean_latents(sae: SparseAutoencoder, rows: Array) -> Array:
    """`[d_sae]`."""
    total = torch.zeros(sae.d_sae, dtype=torch.float64)
    for start in range(0, len(rows), _CHUNK):
        total += sae.encode(torch.tensor(rows[start : start + _CHUNK])).sum(dim=0, dtype=torch.float64)
    means: Array = (total / len(rows)).float().numpy()
    return means
