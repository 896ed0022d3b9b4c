"""What a server finds out about its model at start: how long the states are, and that steering works."""

import asyncio
from collections.abc import Callable, Sequence
from importlib.resources import files
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from server.errors import SteersmanError
from steering.spec import SteeringSpec, Term
from steering.vector import SteeringVector

NEUTRAL_TOKENS = 96  # of each paragraph: enough that the first token's sink does not matter
_TEST_TOKENS = 8
_DIFFERS = 1e-3  # nats: a random vector as long as the state itself moves far more

Encode = Callable[[str], list[int]]


class States(Protocol):
    @property
    def norms(self) -> NDArray[np.float32]: ...


class Engine(Protocol):
    async def capture(
        self, tokens: Sequence[int], spans: Sequence[tuple[int, int]], layers: Sequence[int]
    ) -> States: ...
    async def likeliest(self, tokens: Sequence[int], spec: SteeringSpec | None) -> list[float]: ...
    async def load(self, digest: str, blob: bytes) -> None: ...
    async def unload(self, digests: Sequence[str]) -> None: ...


class SelfTestFailed(Exception):
    """Steering has no effect here, or a broken one; the message says at which layer."""


def neutral_texts() -> list[str]:
    """Paragraphs of ordinary prose, for whatever must not depend on a subject."""
    text = (files("steering") / "presets" / "neutral.txt").read_text(encoding="utf-8")
    return [line for line in text.splitlines() if line]


async def state_norms(engine: Engine, encode: Encode, layers: int) -> NDArray[np.float32]:
    """Mean length of the states that leave each block, `[layers]`.

    Without the first position, whose state is many times longer in most models (an attention sink).
    """
    texts = [encode(text)[:NEUTRAL_TOKENS] for text in neutral_texts()]
    captured = await asyncio.gather(
        *(engine.capture(tokens, [(1, len(tokens))], range(layers)) for tokens in texts)
    )
    weights = [len(tokens) - 1 for tokens in texts]
    rows = np.stack([states.norms[0] for states in captured])
    return np.asarray(np.average(rows, axis=0, weights=weights), np.float32)


async def self_test(engine: Engine, encode: Encode, norms: NDArray[np.float32], width: int) -> None:
    """Steer a dummy request at every layer, one at a time, and see the effect. Raises SelfTestFailed."""
    for layer, norm in enumerate(norms):
        if not 0 < norm < np.inf:
            raise SelfTestFailed(f"the states at layer {layer} have length {norm}")
    tokens = encode(neutral_texts()[0])[:_TEST_TOKENS]
    noise = np.random.default_rng(0).standard_normal((len(norms), width)).astype(np.float32)
    noise *= (norms / np.linalg.norm(noise, axis=1))[:, None]
    vectors = [SteeringVector.of({layer: row}) for layer, row in enumerate(noise)]
    specs = [SteeringSpec((Term(vector.digest, (layer,)),)) for layer, vector in enumerate(vectors)]
    try:
        for vector in vectors:
            await engine.load(vector.digest, vector.blob)
        # One unsteered among them and one by itself: as far apart as those two, batches alone move a request.
        plain, *steered = await asyncio.gather(*(engine.likeliest(tokens, spec) for spec in [None, *specs]))
        again = await engine.likeliest(tokens, None)
    except SteersmanError as error:
        raise SelfTestFailed(error.message) from error
    finally:
        await engine.unload([vector.digest for vector in vectors])
    least = max(_DIFFERS, 2 * _apart(plain, again))
    for layer, scores in enumerate(steered):
        if not np.isfinite(scores).all():
            raise SelfTestFailed(f"steering at layer {layer} gives log-probabilities that are not numbers")
        if min(_apart(scores, plain), _apart(scores, again)) < least:
            raise SelfTestFailed(f"steering at layer {layer} changes nothing")


def _apart(one: Sequence[float], other: Sequence[float]) -> float:
    return float(np.abs(np.subtract(one, other)).max())
