"""A maker of behaviours on fakes: tokens are characters, whose states eight latents read."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import torch

from server.behavior_maker import BehaviorMaker, Examples
from server.behaviors import Behaviors, Calibrated, NewBehavior
from server.errors import Conflict, NotFound
from server.residency import Residency
from server.steering import SteeredModel
from server.store import DEFAULT_ACCOUNT, Store
from server.training import Tokenizer, Trainer
from server.vectors import Vectors, require_model
from steering.sae.baseline import Baseline, Evidence, Scoring
from steering.sae.encode import Architecture
from steering.sae.sae import SparseAutoencoder
from steering.train.pairs import Pair
from steering.vector import SteeringVector

MINE = DEFAULT_ACCOUNT
LAYERS, WIDTH, LAYER = 6, 8, 4
MODEL = SteeredModel("org/model", "f" * 64, LAYERS, WIDTH, np.full(LAYERS, 4, np.float32))
NEUTRAL = ("blue moon above a mule", "the old road goes up to a farm", "grass and oats grow slow here")
# Answers of several lengths: "y" shows the behaviour, "n" does not.
PAIRS = tuple(
    Pair(f"q{number} ", "aye yey yo "[: 6 + number % 5] + "y" * 9, "nan no nu "[: 6 + number % 4] + "n" * 9)
    for number in range(12)
)


def autoencoder(layer: int = LAYER, seed: int = 0) -> SparseAutoencoder:
    """Latent i is what a state has of axis i, if that is above 0."""
    bias = torch.full((WIDTH,), 0.001 * seed)
    eye = torch.eye(WIDTH)
    return SparseAutoencoder(Architecture.STANDARD, eye, eye.clone(), bias, torch.zeros(WIDTH), layer)


def stored_sae(name: str = "small", layer: int = LAYER, seed: int = 0) -> SimpleNamespace:
    card = SimpleNamespace(
        name=name, source="trained here", layer=layer, hook=f"blocks.{layer}.hook_resid_post"
    )
    return SimpleNamespace(card=card, sae=autoencoder(layer, seed), density=None)


class Saes:
    """Those in `known`; the first one is the one that fits best."""

    def __init__(self, *known: SimpleNamespace) -> None:
        self.known = {each.card.name: each for each in known}

    async def get(self, name: str | None, field: str = "sae") -> SimpleNamespace:
        if name == "foreign":
            raise Conflict("made for another model", param=field)
        found = next(iter(self.known.values()), None) if name is None else self.known.get(name)
        if found is None:
            raise NotFound(f"no autoencoder {name!r}", param=field)
        return found


class Engine:
    """A token "y" moves its state along axis 0, "n" along axis 1; `cost` is what a relative dose costs."""

    def __init__(self) -> None:
        self.captured: list[tuple[tuple[int, ...], list[tuple[int, int]], tuple[int, ...]]] = []
        self.resident: set[str] = set()
        self.strengths: list[float] = []
        self.cost = lambda strength: 0.0
        self.begun, self.go = asyncio.Event(), asyncio.Event()
        self.go.set()

    async def capture(self, tokens, spans, layers):
        self.captured.append((tuple(tokens), list(spans), tuple(layers)))
        self.begun.set()
        await self.go.wait()
        rows = [np.mean([state(tokens[p], p) for p in range(*span)], axis=0) for span in spans]
        means = np.stack([np.stack([row] * len(layers)) for row in rows]).astype(np.float32)
        means.flags.writeable = False  # as what was received
        return SimpleNamespace(means=means)

    async def load(self, digest: str, blob: bytes) -> None:
        self.resident.add(digest)

    async def unload(self, digests) -> None:
        self.resident -= set(digests)

    async def score(self, tokens, spec):
        if spec is None:
            return [-2.0] * (len(tokens) - 1)
        (term,) = spec.terms
        assert term.vector in self.resident
        if term.strength not in self.strengths:
            self.strengths.append(term.strength)
        return [-2.0 - self.cost(term.strength)] * (len(tokens) - 1)


def state(token: int, position: int) -> np.ndarray:
    made = np.random.default_rng(1009 * token + position).normal(0, 0.3, WIDTH)
    made[{ord("y"): 0, ord("n"): 1}.get(token, 2)] += 3.0
    return made


class Kept:
    """Stored vectors with their numbers, as `Steering` finds them."""

    def __init__(self, vectors: Vectors, model: SteeredModel) -> None:
        self.vectors, self.model = vectors, model

    async def record(self, vector_id: str, account_id: str):
        found = await self.vectors.recent(account_id, vector_id)
        require_model(found, self.model)
        return found, SteeringVector.from_blob(await self.vectors.blob(vector_id))


class World:
    """What stands around a maker; `behaviors` and `vectors` are of a database."""

    def __init__(self, store: Store, *saes: SimpleNamespace, model: SteeredModel = MODEL) -> None:
        self.engine, self.model = Engine(), model
        self.behaviors, self.vectors = Behaviors(store.database), Vectors(store.database)
        self.saes = Saes(*(saes or (stored_sae(),)))
        tokenizer = Tokenizer(encode, encode, None, str)
        self.trainer = Trainer(self.engine, tokenizer, model, "folder", NEUTRAL)
        self.residency = Residency(self.engine, 64, 1.0)
        self.maker = BehaviorMaker(
            self.behaviors,
            self.vectors,
            self.saes,
            self.trainer,
            stored=Kept(self.vectors, model),
            engine=self.engine,
            residency=self.residency,
        )

    async def create(self, name: str = "agreeing", pairs=PAIRS, account: str = MINE, **more):
        return await self.maker.create(account, name, "says yes", Examples(tuple(pairs), **more))


def encode(text: str) -> list[int]:
    return [1, *map(ord, text)]


@asynccontextmanager
async def opened(folder: Path, *saes: SimpleNamespace) -> AsyncIterator[World]:
    """On an empty SQLite file; the tests of what is stored run on both kinds of database."""
    store = Store(f"sqlite:///{folder / 'steersman.db'}")
    await asyncio.to_thread(store.migrate)
    yield World(store, *saes)
    await store.close()


BASELINE = Baseline(
    sae="s" * 64,
    latents=(3, 1),
    weights=(0.5, -0.25),
    bias=0.125,
    threshold=0.75,
    differences=(2.0, -1.0),
    scoring=Scoring.STANDARDISED,
    evidence=Evidence(
        auroc=0.9,
        peak_auroc=None,
        false_positive_rate=0.05,
        true_positive_rate=0.8,
        target=0.05,
        positive=12,
        negative=12,
        neutral=5,
    ),
)


def detector(seed: int = 0) -> SteeringVector:
    """Numbers that are told apart by their digest."""
    return SteeringVector.of({LAYER: np.arange(1, WIDTH + 1, dtype=np.float32) + seed})


def calibrated(**fields: object) -> Calibrated:
    given = {
        "model_name": MODEL.name,
        "model_fingerprint": MODEL.fingerprint,
        "sae": "small",
        "sae_source": "trained here",
        "sae_digest": "s" * 64,
        "layer": LAYER,
        "hook": "blocks.4.hook_resid_post",
        "baseline": BASELINE,
        "detector": detector(),
        "steering_vector_id": "v-1",
        "strength": -0.5,
        "evidence": {"pairs": 12},
    }
    return Calibrated(**(given | fields))


def new(name: str = "agreeing", account: str = MINE, **fields: object) -> NewBehavior:
    return NewBehavior(account, name, "says yes", PAIRS, calibrated(**fields))
