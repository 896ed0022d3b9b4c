"""States of all tokens of several texts at one layer, in memory and as a file between server and client."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.numpy import load, save

from server.together import together
from server.token_states import MOST, Engine, token_states
from steering.vector import Array

Numbers = NDArray[np.int32]


@dataclass(frozen=True, eq=False, slots=True)
class TextStates:
    """`states` `[n, hidden]` of all tokens but each text's first, which is an attention sink.

    `tokens` `[n]` are their ids, `text` `[n]` the number of the text each is of. `first` `[texts]` are the
    ids of the first tokens, -1 where a text has none.
    """

    states: Array
    tokens: Numbers
    text: Numbers
    first: Numbers

    @property
    def blob(self) -> bytes:
        """As a safetensors file."""
        parts = {"states": self.states, "tokens": self.tokens, "text": self.text, "first": self.first}
        return bytes(save({name: np.ascontiguousarray(part) for name, part in parts.items()}))

    @classmethod
    def read(cls, blob: bytes) -> Self:
        """Raises ValueError for what `blob` does not write."""
        try:
            parts: dict[str, NDArray[Any]] = load(blob)
            made = cls(
                np.asarray(parts["states"], np.float32),
                *(np.asarray(parts[name], np.int32) for name in ("tokens", "text", "first")),
            )
        except (SafetensorError, KeyError, ValueError, TypeError) as error:
            raise ValueError(f"no states of texts: {error}") from error
        if made.states.ndim != 2 or {made.tokens.shape, made.text.shape} != {made.states.shape[:1]}:
            raise ValueError("no states of texts: their parts do not belong together")
        return made

    @property
    def ids(self) -> list[list[int]]:
        """Each text's tokens, its first one too."""
        found = [[int(token)] if token >= 0 else [] for token in self.first]
        for text, token in zip(self.text, self.tokens, strict=True):
            found[text].append(int(token))
        return found

    @classmethod
    def joined(cls, parts: "Sequence[TextStates]") -> "TextStates":
        """Of the texts of all `parts`, numbered on."""
        before = np.cumsum([0, *(len(part.first) for part in parts[:-1])])
        return TextStates(
            np.concatenate([part.states for part in parts]),
            np.concatenate([part.tokens for part in parts]),
            np.concatenate([part.text + start for part, start in zip(parts, before, strict=True)]),
            np.concatenate([part.first for part in parts]),
        )


async def text_states(
    engine: Engine,
    texts: Sequence[Sequence[int]],
    layer: int,
    width: int,
    at_once: Callable[[int], int],
) -> TextStates:
    """What leaves block `layer`, `width` wide, for texts of these tokens.

    `at_once` says how many texts may be in the engine of which each takes so many capture lines.
    """
    longest = max(map(len, texts))
    calls = [partial(token_states, engine, ids, range(1, len(ids)), layer) for ids in texts if len(ids) > 1]
    found = await together(calls, at_once(min(max(longest, 1), MOST)))
    return TextStates(
        np.concatenate([np.zeros((0, width), np.float32), *found]),
        np.array([token for ids in texts for token in ids[1:]], np.int32),
        np.repeat(np.arange(len(texts)), [max(len(ids) - 1, 0) for ids in texts]).astype(np.int32),
        np.array([ids[0] if ids else -1 for ids in texts], np.int32),
    )
