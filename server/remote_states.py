"""States that a running server captures for its command line, and the model that they are of."""

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import PurePosixPath

from pydantic import ValidationError

from server.corpus import Passage
from server.remote import RemoteError, Server
from server.sae_wire import ServedModel
from server.text_states import TextStates
from steering.sae.model import ModelFacts

TEXTS_AT_ONCE = 16


def served_model(server: Server) -> ServedModel:
    """Raises RemoteError where the server does not answer, or cannot steer."""
    try:
        return ServedModel.model_validate(server.get("/saes")["model"])
    except (ValidationError, TypeError, KeyError, ValueError) as error:
        raise RemoteError(f"{server.url} is no Steersman of this version: {error}") from error


def facts(model: ServedModel) -> ModelFacts:
    """The model by all the names that an autoencoder may call it."""
    aliases = (*model.names, PurePosixPath(model.weights).name)
    return ModelFacts(model.layers, model.width, model.name, aliases)


@dataclass(frozen=True, slots=True)
class RemoteStates:
    """What leaves block `layer`, of at most `max_tokens` of each text."""

    server: Server
    layer: int
    max_tokens: int = 256

    def of(self, passages: Sequence[Passage]) -> TextStates:
        body = {
            "texts": [passage.text for passage in passages],
            "prompts": [passage.prompt for passage in passages],
            "layer": self.layer,
            "max_tokens": self.max_tokens,
        }
        blob = self.server.post_for_bytes("/sae/states", body)
        try:
            return TextStates.read(blob)
        except ValueError as error:
            raise RemoteError(f"{self.server.url} answers with {error}") from error

    def within(self, seconds: float, passages: Sequence[Passage]) -> int:
        """How many states the server captures in that time, as it captures the first few now."""
        first = next(batches(passages))
        began = time.monotonic()
        count = len(self.of(first).tokens)
        return max(int(seconds * count / (time.monotonic() - began)), count, 1)

    def some(self, passages: Sequence[Passage], rows: int) -> TextStates:
        """As many of `passages`, from the first on, as it takes for `rows` states, or all of them."""
        found: list[TextStates] = []
        for batch in batches(passages):
            found.append(self.of(batch))
            if sum(len(part.tokens) for part in found) >= rows:
                break
        return TextStates.joined(found)


def batches(passages: Sequence[Passage]) -> Iterator[Sequence[Passage]]:
    for start in range(0, len(passages), TEXTS_AT_ONCE):
        yield passages[start : start + TEXTS_AT_ONCE]
