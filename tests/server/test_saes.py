"""Autoencoders on disk: written whole, read checked, found for the model that is served."""

import asyncio
import json

import numpy as np
import pytest
import torch
from safetensors.torch import save

from server import saes
from server.errors import Conflict, InvalidRequest, NotFound
from server.saes import Saes
from steering.sae import saelens
from steering.sae.encode import Architecture
from steering.sae.errors import CorruptSae
from steering.spec import default_layers
from tests.server.sae_world import LATENTS, MODEL, WIDTH, autoencoder, stored


@pytest.fixture
def folder(tmp_path):
    return tmp_path / "saes"


@pytest.fixture
def registry(folder):
    return Saes(folder, MODEL)


def test_what_is_written_is_read(folder):
    """Card, weights and densities come back as they were."""
    one = stored()
    path = saes.write(folder, one)
    again = saes.read(path)
    assert again.card == one.card
    assert again.sae.digest == one.sae.digest
    np.testing.assert_array_equal(again.density, one.density)
    x = torch.randn(7, WIDTH)
    torch.testing.assert_close(again.sae.encode(x), one.sae.encode(x), rtol=0, atol=0)


def test_density_may_be_unknown(folder):
    """Without a file of densities there is None."""
    assert saes.read(saes.write(folder, stored(density=False))).density is None


def test_a_name_is_taken_once(folder):
    """A second write needs `replace`, and leaves nothing beside the new folder."""
    saes.write(folder, stored())
    with pytest.raises(Conflict, match="already"):
        saes.write(folder, stored(seed=1))
    assert saes.read(folder / "small").sae.digest == stored().sae.digest
    saes.write(folder, stored(seed=1), replace=True)
    assert saes.read(folder / "small").sae.digest == stored(seed=1).sae.digest
    assert [path.name for path in folder.iterdir()] == ["small"]


def test_a_failed_write_leaves_nothing(folder, monkeypatch):
    """The folder of that name appears whole or not at all."""

    def full(path, data):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(saelens, "replace_file", full)
    with pytest.raises(OSError, match="space"):
        saes.write(folder, stored())
    assert list(folder.iterdir()) == []


@pytest.mark.parametrize("name", ["", ".hidden", "..", "a/b", "A", "ä", "x" * 65, "a b"])
async def test_names_are_names(folder, registry, name):
    """No name leads out of the folder; the refusal names the field."""
    with pytest.raises(InvalidRequest, match="name of an autoencoder") as refused:
        await registry.get(name, "feature.sae")
    assert refused.value.param == "feature.sae"
    with pytest.raises(InvalidRequest):
        saes.write(folder, stored(name))


def damaged(folder, kind):  # noqa: C901  # a case for each
    """One sound folder, spoiled."""
    path = saes.write(folder, stored())
    card = json.loads((path / "card.json").read_text())
    match kind:
        case "no card":
            (path / "card.json").unlink()
        case "half a card":
            (path / "card.json").write_text('{"name": ')
        case "a card without a layer":
            del card["layer"]
            (path / "card.json").write_text(json.dumps(card))
        case "a card of tomorrow":
            (path / "card.json").write_text(json.dumps(card | {"format": 2}))
        case "copied under another name":
            path = path.rename(folder / "other")
        case "no weights":
            (path / "sae_weights.safetensors").unlink()
        case "a pickle in place of weights":
            (path / "sae_weights.safetensors").write_bytes(b"\x80\x04K\x01.")
        case "weights of another":
            saelens.write(autoencoder(seed=5), path)
        case "too few densities":
            (path / "density.safetensors").write_bytes(save({"density": torch.ones(3)}))
        case "a ranking":
            ranking = autoencoder(architecture=Architecture.TOPK)
            saelens.write(ranking, path)
            (path / "card.json").write_text(json.dumps(card | {"digest": ranking.digest}))
    return path


@pytest.mark.parametrize(
    ("kind", "says", "listed"),
    [
        ("no card", "no card.json", False),
        ("half a card", "not valid JSON", False),
        ("a card without a layer", "layer", False),
        ("a card of tomorrow", "another version", False),
        ("copied under another name", "renamed or copied", False),
        ("no weights", "sae_weights.safetensors are missing", False),
        ("a pickle in place of weights", "not a sound safetensors file", True),
        ("weights of another", "not those that card.json", True),
        ("too few densities", "density.safetensors", True),
        ("a ranking", "ranks all its latents", True),
    ],
)
async def test_damage_is_told(folder, registry, kind, says, listed):
    """What a card can tell is listed as broken; whoever names it gets a conflict that says what is wrong."""
    path = damaged(folder, kind)
    with pytest.raises(CorruptSae, match=says):
        saes.read(path)
    assert [card.name for card in registry.list()] == ([path.name] if listed else [])
    broken = registry.broken()
    assert [each.name for each in broken] == ([] if listed else [path.name])
    assert all(says in each.problem for each in broken)
    with pytest.raises(Conflict, match=says) as refused:
        await registry.get(path.name)
    assert (refused.value.param, refused.value.reason) == ("sae", "corrupt_sae")


def test_what_is_being_made_is_not_listed(folder, registry):
    """Hidden folders and files beside the folders are none of them."""
    saes.write(folder, stored())
    (folder / ".training-x").mkdir()
    (folder / "notes.txt").write_text("mine")
    assert [card.name for card in registry.list()] == ["small"]
    assert registry.broken() == []


async def test_nothing_there(registry):
    """Without the folder there are none, and the refusal says how to make one."""
    assert registry.list() == []
    for name in (None, "small"):
        with pytest.raises(NotFound, match=r"steersman sae train.*make sae"):
            await registry.get(name)


async def test_the_one_that_fits_is_the_default(folder, registry):
    """Unnamed, it is the one nearest to two thirds of the depth: block 4 of 6."""
    saes.write(folder, stored("a-shallow", layer=0))
    assert (await registry.get(None)).card.name == "a-shallow"
    saes.write(folder, stored("b-deep", layer=5))
    saes.write(folder, stored("c-wrong", layer=4, fingerprint="0" * 64))
    assert (await registry.get(None)).card.name == "b-deep"
    saes.write(folder, stored("d-right", layer=4))
    assert (await registry.get(None)).card.name == "d-right"
    assert [card.name for card in registry.list()] == ["a-shallow", "b-deep", "c-wrong", "d-right"]


@pytest.mark.parametrize(
    "foreign",
    [{"fingerprint": "0" * 64}, {"width": WIDTH + 1}, {"layer": 6}],
    ids=["weights", "width", "depth"],
)
async def test_another_models_is_refused(folder, registry, foreign):
    """It is listed, is no default, and whoever names it hears of both models."""
    saes.write(folder, stored(model_name="org/elsewhere", **foreign))
    assert [card.fits(MODEL) for card in registry.list()] == [False]
    with pytest.raises(NotFound):
        await registry.get(None)
    with pytest.raises(Conflict, match=r"org/elsewhere.*org/model") as refused:
        await registry.get("small", "steering.sae")
    assert (refused.value.param, refused.value.reason) == ("steering.sae", "sae_of_another_model")


async def test_an_unknown_name_lists_the_known(folder, registry):
    """Only those that fit are offered."""
    saes.write(folder, stored("mine"))
    saes.write(folder, stored("theirs", fingerprint="0" * 64))
    with pytest.raises(NotFound, match=r"'nothing'.* mine") as refused:
        await registry.get("nothing")
    assert "theirs" not in str(refused.value)


async def test_weights_are_read_once(folder, registry, monkeypatch):
    """Also by many at once; again when the folder was replaced, and not when it is gone."""
    reads = []
    whole = saes.read
    monkeypatch.setattr(saes, "read", lambda path: reads.append(path.name) or whole(path))
    saes.write(folder, stored())
    found = await asyncio.gather(*(registry.get(name) for name in ["small", None] * 8))
    assert reads == ["small"]
    assert len({id(each) for each in found}) == 1
    saes.write(folder, stored(seed=1), replace=True)
    assert (await registry.get("small")).sae.digest == stored(seed=1).sae.digest
    assert reads == ["small"] * 2
    saes.remove(folder, "small")
    with pytest.raises(NotFound):
        await registry.get("small")


async def test_memory_holds_the_last_ones(folder, registry, monkeypatch):
    """Above the limit the one longest unused goes; the one asked for stays, however large."""
    names = ["a", "b", "c"]
    for name in names:
        saes.write(folder, stored(name))
    one = stored().bytes
    assert one == 4 * (2 * WIDTH * LATENTS + 2 * LATENTS + WIDTH)
    monkeypatch.setattr(saes, "_CACHED_BYTES", 2 * one)
    for name in ("a", "b", "a", "c"):
        await registry.get(name)
    assert list(registry._read) == ["a", "c"]
    monkeypatch.setattr(saes, "_CACHED_BYTES", 1)
    await registry.get("b")
    assert list(registry._read) == ["b"]


def test_removing(folder):
    """The folder goes whole; a name that is not there is said."""
    saes.write(folder, stored())
    saes.remove(folder, "small")
    assert list(folder.iterdir()) == []
    with pytest.raises(NotFound, match="small"):
        saes.remove(folder, "small")


@pytest.mark.parametrize(("layers", "layer"), [(1, 0), (2, 1), (3, 2), (12, 8), (30, 20)])
def test_two_thirds_of_the_depth(layers, layer):
    """Where steering begins by default too."""
    assert saes.default_layer(layers) == layer == default_layers(layers)[0]
