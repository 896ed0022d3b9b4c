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
        parallel_config=SimpleNamespace(**parallel | parts),
    )


@pytest.mark.parametrize(
    "mode",
    [
        {"use_v2_model_runner": True},
        {"use_ubatching": True},
        {"pipeline_parallel_size": 2},
        {"use_sequence_parallel_moe": True},
    ],
    ids=str,
)
def test_modes_never_tried_are_refused(mode):
    """Each by name, so that such a server says that it cannot steer."""
    _refuse_modes(config())
    with pytest.raises(UnsteerableError, match="which steering does not cover"):
        _refuse_modes(config(**mode))


def block(seed, *, name="input_layernorm", dtype=torch.float32, width=8):
    torch.manual_seed(seed)
    made = nn.Module()
    made.add_module(name, nn.LayerNorm(width))
    made.add_module("mlp", nn.Linear(width, width))
    getattr(made, name).weight.data = torch.randn(width)
    return made.to(dtype)


def fingerprint(*made):
    return _fingerprint(dict(enumerate(made)), len(made), 8)


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
    assert _fingerprint({0: first, 1: second}, 2, 9) != whole


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
