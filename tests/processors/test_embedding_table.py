import json

import pytest
import torch
from safetensors.torch import save_file

from processors.embedding_table import TableError, build_table, cached_table, load_table, read_embeddings


def embeddings(rows=400, width=32):
    """Rows with a common offset and one loud direction, as real input embeddings have."""
    pick = torch.Generator().manual_seed(0)
    meaning = torch.randn(rows, width, generator=pick)
    loud = torch.randn(1, width, generator=pick)
    return meaning + 5.0 + 30 * torch.randn(rows, 1, generator=pick) * loud


def test_rows_are_units():
    """S_aa = 1 for every token, those with no direction of their own included."""
    weights = embeddings()
    weights[:40] = weights.mean(0)  # unused vocabulary
    table = build_table(weights)
    assert table.dtype == torch.float16
    assert torch.allclose(table.float().norm(dim=-1), torch.ones(400), atol=1e-3)


def test_offset_and_loud_directions_are_gone():
    """Random rows, nearly parallel before, are on average orthogonal after."""
    weights = embeddings()
    before = torch.nn.functional.normalize(weights) @ torch.nn.functional.normalize(weights).T
    after = build_table(weights).float()
    assert before.abs().mean() > 0.7
    cosine = after @ after.T - torch.eye(400)
    assert cosine.mean().abs() < 0.02
    assert cosine.abs().mean() < 0.25


def test_neighbours_stay_neighbours():
    """Two tokens with nearly one embedding remain the closest pair, also when a wide table is projected."""
    for width in (64, 1024):
        weights = torch.randn(300, width, generator=torch.Generator().manual_seed(1))
        weights[1] = weights[0] + 0.1 * weights[2]
        table = build_table(weights).float()
        assert table.shape[1] == (width if width == 64 else 256)
        assert (table[1:] @ table[0]).argmax() == 0
        assert table[1] @ table[0] > 0.9


def test_same_weights_same_table():
    """Every rank of a tensor-parallel engine computes one table."""
    weights = embeddings(300, 1024)
    assert torch.equal(build_table(weights), build_table(weights.clone()))


@pytest.mark.parametrize("sharded", [False, True])
def test_cached_by_content(tmp_path, sharded):
    """One file per content: found again, and another for other weights; bf16 and shards are read."""
    model, cache = tmp_path / "model", tmp_path / "cache"
    model.mkdir()

    def store(weights):
        name = "model-00002-of-00002.safetensors" if sharded else "model.safetensors"
        save_file({"model.embed_tokens.weight": weights}, model / name)
        if sharded:
            save_file({"lm_head.weight": torch.zeros(2, 2)}, model / "model-00001-of-00002.safetensors")
            index = {"weight_map": {"a": "model-00001-of-00002.safetensors", "b": name}}
            (model / "model.safetensors.index.json").write_text(json.dumps(index))

    weights = embeddings().bfloat16()
    store(weights)
    path = cached_table(model, cache)
    made = path.stat().st_mtime_ns
    assert torch.equal(load_table(path, 400), build_table(weights))
    assert load_table(path, 390).shape == (390, 32)
    assert cached_table(model, cache) == path
    assert path.stat().st_mtime_ns == made
    store(weights + 1)
    assert cached_table(model, cache) != path


def test_refusals(tmp_path):
    """No embeddings, or fewer rows than logits columns, stops the start with the reason."""
    with pytest.raises(TableError, match="no input embeddings"):
        read_embeddings(tmp_path)
    path = tmp_path / "table.safetensors"
    save_file({"table": build_table(embeddings())}, path)
    with pytest.raises(TableError, match="400 rows, the model 401"):
        load_table(path, 401)
