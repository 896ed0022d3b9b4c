"""Finding decoder blocks, and the state that leaves one."""

import importlib.util
from pathlib import Path
from types import CodeType

import pytest
import torch
from torch import nn

from steering.layers import (
    UnsteerableError,
    _reads_residual,
    decoder_blocks,
    leaves_reduction,
    residual_stream,
    wrap,
)


class Named(nn.Module):
    """Modules under the given names."""

    def __init__(self, **modules):
        super().__init__()
        for name, module in modules.items():
            self.add_module(name, module)


def stack(count):
    return nn.ModuleList(nn.Linear(2, 2) for _ in range(count))


@pytest.mark.parametrize("name", ["layers", "h", "blocks", "anything"])
def test_the_list_of_blocks_is_found(name):
    """Whatever it is called and however deep it stands."""
    blocks = stack(3)
    model = Named(model=Named(decoder=Named(**{name: blocks, "norm": nn.LayerNorm(2)})))
    assert decoder_blocks(model, 3) == list(blocks)


def test_the_language_models_list_is_taken():
    """Not a vision tower's of the same depth, nor a list of another kind or length."""
    blocks = stack(3)
    model = Named(
        vision_tower=Named(layers=stack(3)),
        experts=stack(3),
        heads=Named(layers=stack(2)),
        language_model=Named(model=Named(layers=blocks)),
    )
    assert decoder_blocks(model, 3) == list(blocks)


class Hearing(Named):
    """A model whose audio tower is as deep as its language model, and stands higher."""

    def get_language_model(self):
        return self.speech.language


def test_a_model_that_says_where_its_language_model_is():
    """Is believed: a list outside of it is not the decoder's."""
    blocks = stack(3)
    speech = Named(language=Named(model=Named(layers=blocks)))
    assert decoder_blocks(Hearing(audio_tower=Named(layers=stack(3)), speech=speech), 3) == list(blocks)


def test_a_model_that_does_not_know_its_language_model():
    """Is looked through as a whole."""

    class Unsure(Named):
        def get_language_model(self):
            raise NotImplementedError

    blocks = stack(3)
    assert decoder_blocks(Unsure(layers=blocks), 3) == list(blocks)


def test_a_model_without_blocks_is_refused():
    """Said, not passed over."""
    with pytest.raises(UnsteerableError, match="no list of 3 decoder blocks"):
        decoder_blocks(Named(layers=stack(2)), 3)


X, R = torch.ones(4, 2), torch.full((4, 2), 2.0)


@pytest.mark.parametrize(
    ("output", "residual"),
    [(X, None), ((X,), None), ((X, None), None), ((X, R), R), ((X, R, None), R), ((X, None, "y"), None)],
    ids=["bare", "single", "none", "pair", "triple", "third"],
)
def test_what_a_block_returns(output, residual):
    """A tensor, or a tuple that begins with one, with or without its residual."""
    found, second = residual_stream(output, 2, adds=True)
    assert found is X
    assert second is residual


def test_a_state_that_is_whole():
    """Where the next block does not add what stands beside it, the state is the first tensor alone."""
    found, second = residual_stream((X, R), 2, adds=False)
    assert found is X
    assert second is None
    assert residual_stream((X, torch.ones(3, 2)), 2, adds=False) is None, "whatever it is, it is no such pair"


@pytest.mark.parametrize("pair", [False, True])
def test_transformers_batches_are_rows(pair):
    """Transformers' own models have a dimension more; what is changed in the view is so in the output."""
    x, r = X.clone()[None], R.clone()[None]
    hidden, residual = residual_stream((x, r) if pair else x, 2, adds=True)
    assert hidden.shape == (4, 2)
    assert (residual is not None) is pair
    hidden[1] += 1
    assert torch.equal(x[0, 1], torch.tensor([2.0, 2.0]))


@pytest.mark.parametrize(
    "output",
    [
        None,
        (),
        [X],
        {"x": X},
        (None, X),
        (X, torch.ones(3, 2)),
        (X, "residual"),
        (X, None, R),
        (X, R, R),
        torch.ones(2),
        torch.ones(4, 3),
        torch.ones(1, 1, 1, 1),
        torch.ones(2, 4, 2),
    ],
    ids=str,
)
def test_anything_else_is_left_alone(output):
    """A block that returns what nobody foresaw, or states of another width, runs as it did, and is noted."""

    class Block(nn.Module):
        def forward(self):
            return output

    block, unread = Block(), {}
    wrap(block, 7, 2, lambda *_: pytest.fail("there is no state"), unread)
    assert block() is output
    assert unread == {7: type(output).__name__}


class Adding(nn.Module):
    """As most of vLLM's blocks: what it is given is one state with its residual."""

    def forward(self, x, residual=None, *, shift=0.0):
        if residual is None:
            residual = torch.full_like(x, 2.0)
        return x + shift, residual


class Whole(nn.Module):
    """As StableLM's and Cohere's: the state it returns holds the residual, which the next one ignores."""

    def forward(self, x, residual=None, *, shift=0.0):
        residual = x
        x = x + shift
        return x, residual


class Plain(nn.Module):
    def forward(self, x, *, shift=0.0):
        return x + shift


class Inheriting(Adding):
    pass


@pytest.mark.parametrize(("kind", "residual"), [(Adding, R), (Inheriting, R), (Whole, None), (Plain, None)])
def test_a_wrapped_block_lets_its_output_be_changed(kind, residual):
    """Arguments and output are the block's own; what is called sees the state and its layer."""
    seen, block = [], kind()

    def apply(hidden, second, layer):
        seen.append((second, layer))
        hidden += 10

    wrap(block, 5, 2, apply, {})
    output = block(X, shift=1.0)
    hidden = output[0] if isinstance(output, tuple) else output
    assert torch.equal(hidden, X + 11)
    ((second, layer),) = seen
    assert layer == 5
    assert second is None if residual is None else torch.equal(second, residual)


def test_a_layer_that_nothing_steers_is_skipped_once_it_was_seen():
    """The first output is looked at whatever `skips` says, so that a block without a state is noted."""
    seen, unread, idle, block = [], {}, True, Plain()
    wrap(block, 5, 2, lambda *_: seen.append(idle), unread, skips=lambda layer: idle and layer == 5)
    block(X)
    block(X)
    assert seen == [True]
    idle = False
    assert torch.equal(block(X, shift=1.0), X + 1)
    assert seen == [True, False]
    other = Plain()
    wrap(other, 6, 3, lambda *_: pytest.fail("there is no state"), unread, skips=lambda _: True)
    other(X)
    assert unread == {6: "Tensor"}


@pytest.mark.parametrize("width", [2, 3])
def test_compiled(width):
    """A compiled model calls what its blocks were wrapped with, and notes a block without a state too."""
    model, unread = nn.Sequential(Plain(), Plain()), {}
    for layer, block in enumerate(model):
        wrap(block, layer, width, lambda hidden, _, layer: hidden.add_(layer + 1), unread)
    found = torch.compile(model, fullgraph=True, backend="eager")(X)
    assert torch.equal(found, X + (3 if width == 2 else 0))
    assert unread == ({} if width == 2 else {0: "Tensor", 1: "Tensor"})


def test_blocks_that_leave_their_sum_over_ranks():
    """Told by what their code calls."""

    class Deferring(nn.Module):
        def forward(self, x, residual):
            return fused_allreduce_rms_norm(x, residual, self.norm)  # noqa: F821

    assert leaves_reduction(Deferring())
    assert not leaves_reduction(Adding())


# Every module of vLLM that takes a `residual` and writes it before it reads it. Each was read: what stands
# beside its state is no part of it. A name that is new here must be looked at too.
IGNORING = {
    "Cohere2MoeDecoderLayer",
    "CohereCompassDecoderLayer",
    "CohereDecoderLayer",
    "Exaone4DecoderLayer",
    "GraniteMoeHybridAttentionDecoderLayer",
    "GraniteMoeHybridMambaDecoderLayer",
    "HyperCLOVAXDecoderLayer",
    "MuseGlimmerDecoderLayer",
    "PhiMoEDecoderLayer",
    # with hyper-connections its pair is not of one shape; without, the state is whole
    "Glm5NextDecoderLayer",
    # return None beside it
    "Gemma4DecoderLayer",
    "MiniCPMDecoderLayer",
    "Molmo2DecoderNormAfterLayer",
    "MolmoDecoderNormAfterLayer",
    # drafters, which are never steered
    "DeepseekV2Eagle3DecoderLayer",
    "EagleMiniCPMDecoderLayer",
    "Gemma4MTPDecoderLayer",
    "LlamaDecoderLayer of llama_eagle3",
    "Qwen3Eagle3DecoderLayer",
    # no block but a part of one
    "Plamo3AttentionMixer",
}


def forwards(code, owner=""):
    """Class name and code of every `forward` in a compiled module."""
    for inner in code.co_consts:
        if isinstance(inner, CodeType):
            if inner.co_name == "forward":
                yield owner, inner
            yield from forwards(inner, inner.co_name)


def test_which_of_vllms_blocks_ignore_a_residual():
    """What is read off their code is what a reader finds, over all of vLLM's models."""
    package = Path(importlib.util.find_spec("vllm").origin).parent
    files = [*package.glob("model_executor/models/*.py"), *package.glob("models/**/*.py")]
    assert len(files) > 250
    found = {
        f"{owner} of {file.stem}" if owner == "LlamaDecoderLayer" else owner
        for file in files
        for owner, code in forwards(compile(file.read_text(), file, "exec"))
        if "residual" in code.co_varnames[: code.co_argcount] and not _reads_residual(code)
    }
    assert found == IGNORING
