"""The embedding table of ADS's kernel: unit vectors, nearby where tokens mean the same.

`python -m processors.embedding_table MODEL_DIRECTORY CACHE_DIRECTORY` prints the path of the table to name in
`--additional-config '{"ads_embedding_table": PATH}'`.
"""

import hashlib
import json
import sys
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

_VERSION = "1"  # changes with the recipe, so that old tables are not mistaken for new ones
_NUISANCE = 8  # leading principal directions removed: frequency and script, not meaning
_SAMPLE = 12_000
_WIDEST = 768
_PROJECTED = 256
_SEED = 0
_NAMES = ("embed_tokens.weight", "wte.weight", "word_embeddings.weight", "tok_embeddings.weight")


class TableError(ValueError):
    """A checkpoint without input embeddings, or a table that does not fit the model."""


def cached_table(model: Path, cache: Path) -> Path:
    """Path of the table for the checkpoint directory `model`, made on the first call. Raises `TableError`."""
    weights = read_embeddings(model)
    digest = hashlib.sha256(_VERSION.encode())
    digest.update(f"{weights.dtype}{tuple(weights.shape)}".encode())
    digest.update(weights.contiguous().view(torch.uint8).numpy().data)
    path = cache / f"ads-table-{digest.hexdigest()[:32]}.safetensors"
    if not path.exists():
        cache.mkdir(parents=True, exist_ok=True)
        partial = path.with_suffix(".partial")
        save_file({"table": build_table(weights)}, partial)
        partial.replace(path)
    return path


def load_table(path: Path, columns: int) -> Tensor:
    """The table as float16 [columns, d], a row per logits column. Raises `TableError` if it is too short."""
    table: Tensor = load_file(path)["table"]
    if len(table) < columns:
        raise TableError(f"{path} has {len(table)} rows, the model {columns} logits columns")
    return table[:columns].contiguous()


def read_embeddings(model: Path) -> Tensor:
    """Input embeddings [V, d] of a safetensors checkpoint. Raises `TableError` where there are none."""
    index = model / "model.safetensors.index.json"
    files = (
        sorted(set(json.loads(index.read_text())["weight_map"].values()))
        if index.exists()
        else sorted(path.name for path in model.glob("*.safetensors"))
    )
    for name in files:
        with safe_open(model / name, framework="pt") as tensors:
            for key in tensors.keys():  # noqa: SIM118  # not a dict
                if key.endswith(_NAMES):
                    weights: Tensor = tensors.get_tensor(key)
                    return weights
    raise TableError(f"no input embeddings in the safetensors files of {model}")


def build_table(weights: Tensor) -> Tensor:
    """[V, d] embeddings → [V, ≤ 768] float16 unit rows, one per token.

    Centred, nuisance directions removed, wide ones projected at random.
    Deterministic: the same weights give the same table on every rank.
    """
    rows = weights.float()
    rows = rows - rows.mean(0)
    seeded = torch.Generator().manual_seed(_SEED)
    sample = rows[torch.randperm(len(rows), generator=seeded)[:_SAMPLE]].double()
    _, directions = torch.linalg.eigh(sample.T @ sample)  # ascending: the last columns lead
    nuisance = directions[:, -min(_NUISANCE, rows.shape[1] - 1) :].float()
    rows -= (rows @ nuisance) @ nuisance.T
    if rows.shape[1] > _WIDEST:
        rows = rows @ torch.randn(rows.shape[1], _PROJECTED, generator=seeded)
    norm = rows.norm(dim=-1, keepdim=True)
    # Unused vocabulary rows are often all alike, hence nearly zero by now.
    fixed = torch.nn.functional.one_hot(torch.tensor(0), rows.shape[1]).float()
    rows = torch.where(norm > 1e-6 * norm.mean(), rows / norm, fixed)
    return rows.half()


if __name__ == "__main__":
    print(cached_table(Path(sys.argv[1]), Path(sys.argv[2])))  # noqa: T201  # a command's answer
