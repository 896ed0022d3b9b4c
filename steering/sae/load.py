"""A sparse autoencoder from a local folder, whichever library wrote it."""

from collections.abc import Callable
from pathlib import Path
from typing import Final

from steering.sae import gemma_scope, saelens, sparsify
from steering.sae.errors import CorruptSae, SaeError
from steering.sae.model import ModelFacts
from steering.sae.sae import SparseAutoencoder
from steering.sae.told import Told
from steering.sae.weights import MAX_BYTES, refuse_pickle

# By the file that tells a format; each reads (folder, told, limit).
FORMATS: Final[dict[str, Callable[[Path, Told, int], SparseAutoencoder]]] = {
    saelens.WEIGHTS: saelens.read,
    sparsify.WEIGHTS: sparsify.read,
    gemma_scope.WEIGHTS: gemma_scope.read,
}


def load(
    folder: Path,
    model: ModelFacts | None = None,
    told: Told | None = None,
    *,
    any_name: bool = False,
    limit: int = MAX_BYTES,
) -> SparseAutoencoder:
    """From a folder, or from the weights' file in it; fits `model` as `ModelFacts.check` says.

    Raises a kind of SaeError: see `steering.sae.errors`.
    """
    folder, name = _found(folder)
    try:
        sae = FORMATS[name](folder, told or Told(), limit)
    except SaeError as error:
        if type(error) is SaeError:  # parts that do not belong together come from the file
            raise CorruptSae(f"{name}: {error}") from error
        raise
    if model:
        model.check(sae, any_name=any_name)
    return sae


def _found(path: Path) -> tuple[Path, str]:
    if path.is_file():
        refuse_pickle(path)
        if path.name in FORMATS:
            return path.parent, path.name
        path = path.parent
    if not path.is_dir():
        raise CorruptSae(f"there is no folder {path}")
    for name in FORMATS:
        if (path / name).is_file():
            return path, name
    for file in sorted(path.iterdir()):
        refuse_pickle(file)
    raise CorruptSae(f"{path} holds none of {', '.join(FORMATS)}")
