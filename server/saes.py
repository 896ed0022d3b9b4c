"""Sparse autoencoders on disk: one folder each under STEERSMAN_HOME/saes, in SAELens' form with a card."""

import asyncio
import json
import re
import shutil
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Final, Protocol

import torch
from pydantic import TypeAdapter, ValidationError
from safetensors.torch import save

from server.errors import Conflict, InvalidRequest, NotFound
from server.steering import SteeredModel
from steering.sae import saelens
from steering.sae.errors import CorruptSae, SaeError
from steering.sae.load import load
from steering.sae.sae import SparseAutoencoder
from steering.sae.weights import read_json, read_safetensors
from steering.vector import Array

CARD: Final = "card.json"
DENSITY: Final = "density.safetensors"
MAKES_ONE: Final = "`steersman sae train` makes one (`make sae` for the embedded model)"

_NAME = re.compile(r"[a-z0-9_-][a-z0-9._-]{0,63}")  # a leading dot is of what is being made
_CACHED_BYTES = 4 * 2**30
_FORMAT = 1  # of cards


class Served(Protocol):
    """The model that an autoencoder has to fit."""

    @property
    def fingerprint(self) -> str: ...
    @property
    def layers(self) -> int: ...
    @property
    def width(self) -> int: ...


@dataclass(frozen=True, slots=True)
class SaeCard:
    """What is known of an autoencoder without its weights.

    It reads what leaves block `layer`; `hook` is that place in its maker's words. `architecture` is the one
    it was made in, `approximated` says that a threshold stands in for its ranking. `quality` holds what was
    measured on held-out texts: `explained`, `l0`, `dead`, `tokens` and, where the model's weights were at
    hand, `cross_entropy_recovered` with the three cross-entropies that it comes from, in nats.
    """

    name: str
    source: str
    architecture: str
    layer: int
    hook: str
    d_in: int
    d_sae: int
    digest: str
    model_name: str
    model_fingerprint: str
    quality: Mapping[str, float]
    approximated: bool
    created_at: str

    def fits(self, model: Served) -> bool:
        same = self.model_fingerprint == model.fingerprint
        return same and self.d_in == model.width and self.layer < model.layers


@dataclass(frozen=True, slots=True)
class BrokenSae:
    """A folder that holds no sound autoencoder."""

    name: str
    problem: str


@dataclass(frozen=True, slots=True)
class StoredSae:
    """`density` is `[d_sae]`: the share of neutral states in which each latent is active, where known.

    Some latents of `sae` are had exactly without the others (`subset_is_exact`).
    """

    card: SaeCard
    sae: SparseAutoencoder
    density: Array | None

    @property
    def bytes(self) -> int:
        return sum(tensor.nbytes for tensor in self.sae.tensors.values())


def checked_name(name: str, field: str = "sae") -> str:
    """Raises InvalidRequest for what is no name of an autoencoder."""
    if not _NAME.fullmatch(name):
        raise InvalidRequest(
            "the name of an autoencoder is 1 to 64 of a-z, 0-9, '.', '_' and '-', and begins with no dot; "
            f"not {name[:80]!r}",
            param=field,
        )
    return name


def shelved(folder: Path) -> tuple[list[SaeCard], list[BrokenSae]]:
    """What lies in `folder`, by name: sound cards, and folders without one. Weights are not read."""
    cards, broken = [], []
    found = sorted(folder.iterdir()) if folder.is_dir() else []
    for path in found:
        if path.name.startswith(".") or not path.is_dir():
            continue
        try:
            cards.append(read_card(path))
        except SaeError as error:
            broken.append(BrokenSae(path.name, str(error)))
    return cards, broken


def read_card(folder: Path) -> SaeCard:
    """Raises CorruptSae where the folder holds no sound card, or not the files that belong to it."""
    if not _NAME.fullmatch(folder.name):
        raise CorruptSae("the folder's name is none of an autoencoder: a-z, 0-9, '.', '_' and '-'")
    if not (folder / CARD).is_file():
        raise CorruptSae(f"it has no {CARD}: `steersman sae add {folder}` checks it and stores it with one")
    data = read_json(folder / CARD)
    if data.pop("format", None) != _FORMAT:
        raise CorruptSae(f"{CARD} is of another version of Steersman: add or train the autoencoder again")
    try:
        card = _CARDS.validate_python(data)
    except ValidationError as error:
        first = error.errors()[0]
        raise CorruptSae(f"{CARD}: {'.'.join(map(str, first['loc']))}: {first['msg']}") from error
    missing = [name for name in (saelens.CONFIG, saelens.WEIGHTS) if not (folder / name).is_file()]
    if missing:
        raise CorruptSae(f"{' and '.join(missing)} are missing")
    if card.name != folder.name:
        raise CorruptSae(f"{CARD} is of {card.name!r}: the folder was renamed or copied")
    return card


_CARDS = TypeAdapter(SaeCard)


def read(folder: Path) -> StoredSae:
    """Raises a kind of SaeError for files that are damaged, or contradict the card."""
    card = read_card(folder)
    sae = load(folder)
    told, found = (card.layer, card.d_in, card.d_sae), (sae.layer, sae.d_in, sae.d_sae)
    if told != found or card.digest != sae.digest:
        raise CorruptSae(f"its weights are not those that {CARD} was written for")
    if not sae.subset_is_exact:
        raise CorruptSae("it ranks all its latents: `steersman sae add` puts a threshold in place of that")
    return StoredSae(card, sae, _density(folder, sae.d_sae))


def _density(folder: Path, latents: int) -> Array | None:
    if not (folder / DENSITY).is_file():
        return None
    density = read_safetensors(folder / DENSITY).get("density")
    if density is None or density.shape != (latents,) or not torch.isfinite(density).all():
        raise CorruptSae(f"{DENSITY} does not hold one finite number for each of {latents} latents")
    found: Array = density.numpy()
    return found


def write(folder: Path, stored: StoredSae, *, replace: bool = False) -> Path:
    """The whole folder at once or not at all. Raises Conflict where one of that name is there already."""
    target = folder / checked_name(stored.card.name, "name")
    folder.mkdir(parents=True, exist_ok=True)
    with TemporaryDirectory(prefix=".new-", dir=folder) as work:
        made = Path(work, "made")
        saelens.write(stored.sae, made)
        if stored.density is not None:
            density = {"density": torch.from_numpy(stored.density).contiguous()}
            saelens.replace_file(made / DENSITY, save(density))
        card = {"format": _FORMAT, **asdict(stored.card)}
        saelens.replace_file(made / CARD, json.dumps(card, indent=2).encode())
        if replace and target.exists():
            target.rename(Path(work, "old"))
        try:
            made.rename(target)
        except OSError as error:
            if target.exists():
                raise already_there(stored.card.name) from error
            raise
    return target


def already_there(name: str) -> Conflict:
    return Conflict(f"there is an autoencoder {name!r} already: replace it, or give another name")


def remove(folder: Path, name: str) -> None:
    """Raises NotFound. Behaviours made with it go on: they hold what they need of it."""
    target = folder / checked_name(name, "name")
    if not target.is_dir():
        raise NotFound(f"there is no autoencoder {name!r} in {folder}")
    with TemporaryDirectory(prefix=".old-", dir=folder) as work:
        target.rename(Path(work, "old"))


def clear(folder: Path) -> None:
    """Remove what an interrupted `write` or a training left behind, if it is there."""
    shutil.rmtree(folder, ignore_errors=True)


_Stamp = tuple[tuple[int, int], ...]


class Saes:
    """Those of one server, whose process reads each of them once and again only when it changed."""

    def __init__(self, folder: Path, model: SteeredModel) -> None:
        self.folder, self.model = folder, model
        self._read: OrderedDict[str, tuple[_Stamp, StoredSae]] = OrderedDict()
        self._reading = asyncio.Lock()  # one at a time: they are large

    def list(self) -> Sequence[SaeCard]:
        """Those on disk, also of other models, by name. Reads cards alone, but reads them from disk."""
        return shelved(self.folder)[0]

    def broken(self) -> Sequence[BrokenSae]:
        return shelved(self.folder)[1]

    async def get(self, name: str | None, field: str = "sae") -> StoredSae:
        """`name` None: of those that fit the model, the one nearest to two thirds of its depth.

        Raises NotFound where there is none, Conflict for one of another model and for damaged files,
        InvalidRequest for what is no name; each names `field`.
        """
        if name is None:
            name = self._default(await asyncio.to_thread(self.list), field)
        async with self._reading:
            return await asyncio.to_thread(self._get, checked_name(name, field), field)

    def _default(self, cards: Sequence[SaeCard], field: str) -> str:
        fitting = [card for card in cards if card.fits(self.model)]
        if not fitting:
            raise NotFound(
                f"there is no sparse autoencoder for {self.model.name!r}: {MAKES_ONE}", param=field
            )
        wanted = default_layer(self.model.layers)
        return min(fitting, key=lambda card: (abs(card.layer - wanted), card.name)).name

    def _get(self, name: str, field: str) -> StoredSae:
        folder = self.folder / name
        if not folder.is_dir():
            known = ", ".join(card.name for card in self.list() if card.fits(self.model))
            there = f"those of {self.model.name!r} are {known}" if known else MAKES_ONE
            raise NotFound(f"there is no sparse autoencoder {name!r}; {there}", param=field)
        try:
            card = read_card(folder)
            if not card.fits(self.model):
                raise Conflict(
                    f"the autoencoder {name!r} is of {card.model_name!r} ({card.d_in} wide, block "
                    f"{card.layer}); this server serves {self.model.name!r} ({self.model.width} wide, "
                    f"blocks 0 to {self.model.layers - 1})",
                    param=field,
                    code="sae_of_another_model",
                )
            return self._cached(name, folder)
        except SaeError as error:
            raise Conflict(
                f"the autoencoder {name!r} cannot be used: {error}", param=field, code="corrupt_sae"
            ) from error

    def _cached(self, name: str, folder: Path) -> StoredSae:
        stamp = _stamp(folder)
        held = self._read.get(name)
        if held is None or held[0] != stamp:
            try:
                held = (stamp, read(folder))
            except CorruptSae:
                if _stamp(folder) == stamp:
                    raise
                held = (_stamp(folder), read(folder))  # it was replaced meanwhile
            self._read[name] = held
        self._read.move_to_end(name)
        while len(self._read) > 1 and sum(each.bytes for _, each in self._read.values()) > _CACHED_BYTES:
            self._read.popitem(last=False)
        return held[1]


def default_layer(layers: int) -> int:
    """The block at two thirds of the depth, where steering begins by default too."""
    return layers * 2 // 3


def _stamp(folder: Path) -> _Stamp:
    try:
        found = [(folder / name).stat() for name in (CARD, saelens.CONFIG, saelens.WEIGHTS)]
    except OSError as error:
        raise CorruptSae(f"a file of it cannot be read: {error.strerror}") from error
    return tuple((stat.st_ino, stat.st_mtime_ns) for stat in found)
