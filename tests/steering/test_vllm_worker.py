"""What the worker decides before any engine runs; the rest is in `test_vllm_engines`."""

from types import SimpleNamespace

import pytest
import torch
from torch import nn
from vllm.v1.worker.worker_base import WorkerBase

from steering.layers import UnsteerableError
from steering.vllm_worker import SteeringWorker, _fingerprint, _refuse_modes


def config(**parts):
    parallel = {"use_ubatching": False, "pipeline_parallel_size": 1, "use_sequence_parallel_moe": False}
    return SimpleNamespace(
        use_v2_model_runner=parts.pop("use_v2_model_runner", False),
        speculative_config=parts.pop("speculative_config", None),
        scheduler_config=SimpleNamespace(async_scheduling=parts.pop("async_scheduling", False)),
        parallel_config=SimpleNamespace(**parallel | parts),
    )


@pytest.mark.parametrize(
    "mode",
    [
        {"use_v2_model_runner": True},
        {"use_ubatching": True},
        {"pipeline_parallel_size": 2},
        {"use_sequence_parallel_moe": True},
        {"speculative_config": "ngram", "async_scheduling": True},
    ],
    ids=str,
)
def test_modes_never_tried_are_refused(mode):
    """Each by name, so that such a server says that it cannot steer."""
    for fine in ({}, {"speculative_config": "ngram"}, {"async_scheduling": True}):
        _refuse_modes(config(**fine))
    with pytest.raises(UnsteerableError, match="which steering does not cover"):
        _refuse_modes(config(**mode))


def block(seed, *, name="input_layernorm", dtype=torch.float32, width=8):
    torch.manual_seed(seed)
    made = nn.Module()
    made.add_module(name, nn.LayerNorm(width))
    made.add_module("mlp", nn.Linear(width, width))
    getattr(made, name).weight.data = torch.randn(width)
    return made.to(dtype)


def fingerprint(*made, width=8):
    return _fingerprint(nn.ModuleList(made), made, width)


@pytest.mark.parametrize(
    "name", ["input_layernorm", "ln_1", "norm", "self_attn_layer_norm", "q_norm", "ln_attn"]
)
def test_the_fingerprint_is_of_the_weights(name):
    """Norms under any usual name tell models of one shape apart."""
    assert fingerprint(block(0, name=name)) == fingerprint(block(0, name=name))
    assert fingerprint(block(0, name=name)) != fingerprint(block(1, name=name))


def test_the_fingerprint_knows_layers_and_width():
    """Order, number and width of blocks."""
    first, second = block(0), block(1)
    whole = fingerprint(first, second)
    assert len({whole, fingerprint(second, first), fingerprint(first)}) == 3
    assert fingerprint(first, second, width=9) != whole


def test_the_fingerprint_of_norms_without_weights():
    """Such models, as OLMo's first, are told apart by their embeddings."""

    def bare(seed):
        torch.manual_seed(seed)
        model = nn.Module()
        model.embed_tokens, model.layers = nn.Embedding(100, 8), nn.ModuleList([nn.Linear(8, 8)])
        return _fingerprint(model, model.layers, 8)

    assert bare(0) == bare(0)
    assert bare(0) != bare(1)


def test_the_fingerprint_forgets_how_a_model_is_served():
    """Another number type, quantised matrices and sharded ones are the same model."""
    plain, narrow, other = block(0), block(0, dtype=torch.bfloat16), block(0)
    other.mlp = nn.Linear(4, 2)
    assert fingerprint(plain) == fingerprint(narrow) == fingerprint(other)


def test_our_calls_do_not_hide_vllms():
    """No method that is called by name through `collective_rpc` is one of the worker's own."""
    ours = {name for name in vars(SteeringWorker) if name.startswith("steersman_")}
    assert ours
    assert not any(hasattr(WorkerBase, name) for name in ours)
