"""Finding decoder blocks, and the state that leaves one."""

import pytest
import torch
from torch import nn

from steering.layers import UnsteerableError, decoder_blocks, residual_stream, wrap


class Named(nn.Module):
    """Modules under the given names."""

    def __init__(self, **modules):
        super().__init__()
        for name, module in modules.items():
            self.add_module(name, module)


def stack(count):
    return nn.ModuleList(nn.Linear(2, 2) for _ in range(count))


class PPMissingLayer(nn.Identity):
    """As vLLM calls the layers of other pipeline stages."""


@pytest.mark.parametrize("name", ["layers", "h", "blocks", "anything"])
def test_the_list_of_blocks_is_found(name):
    """Whatever it is called and however deep it stands."""
    blocks = stack(3)
    model = Named(model=Named(decoder=Named(**{name: blocks, "norm": nn.LayerNorm(2)})))
    assert decoder_blocks(model, 3) == dict(enumerate(blocks))


def test_the_language_models_list_is_taken():
    """Not a vision tower's of the same depth, nor a list of another kind or length."""
    blocks = stack(3)
    model = Named(
        vision_tower=Named(layers=stack(3)),
        experts=stack(3),
        heads=Named(layers=stack(2)),
        language_model=Named(model=Named(layers=blocks)),
    )
    assert decoder_blocks(model, 3) == dict(enumerate(blocks))


def test_blocks_of_other_stages_are_left_out():
    """What is not here keeps its number."""
    blocks = nn.ModuleList([PPMissingLayer(), nn.Linear(2, 2), PPMissingLayer()])
    assert decoder_blocks(Named(layers=blocks), 3) == {1: blocks[1]}


def test_a_model_without_blocks_is_refused():
    """Said, not passed over."""
    with pytest.raises(UnsteerableError, match="no list of 3 decoder blocks"):
        decoder_blocks(Named(layers=stack(2)), 3)


X, R = torch.ones(4, 2), torch.full((4, 2), 2.0)


@pytest.mark.parametrize(
    ("output", "residual"),
    [(X, None), ((X,), None), ((X, None), None), ((X, R), R), ((X, R, None), R), ((X, None, R), None)],
    ids=["bare", "single", "none", "pair", "triple", "third"],
)
def test_what_a_block_returns(output, residual):
    """A tensor, or a tuple that begins with one, with or without its residual."""
    found, second = residual_stream(output)
    assert found is X
    assert second is residual


@pytest.mark.parametrize("pair", [False, True])
def test_transformers_batches_are_rows(pair):
    """Transformers' own models have a dimension more; what is changed in the view is so in the output."""
    x, r = X.clone()[None], R.clone()[None]
    hidden, residual = residual_stream((x, r) if pair else x)
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
        torch.ones(2),
        torch.ones(1, 1, 1, 1),
        torch.ones(2, 4, 2),
    ],
    ids=str,
)
def test_anything_else_is_left_alone(output):
    """A block that returns what nobody foresaw runs as it did, and what it returned is noted."""

    class Block(nn.Module):
        def forward(self):
            return output

    block, unread = Block(), {}
    wrap(block, 7, lambda *_: pytest.fail("there is no state"), unread)
    assert block() is output
    assert unread == {7: type(output).__name__}


@pytest.mark.parametrize("residual", [None, R])
def test_a_wrapped_block_lets_its_output_be_changed(residual):
    """Arguments and output are the block's own; what is called sees the state and its layer."""

    class Block(nn.Module):
        def forward(self, x, *, shift=0.0):
            return (x + shift, residual) if residual is not None else x + shift

    seen, block = [], Block()

    def apply(hidden, second, layer):
        seen.append((second, layer))
        hidden += 10

    wrap(block, 5, apply, {})
    output = block(X, shift=1.0)
    hidden = output if residual is None else output[0]
    assert torch.equal(hidden, X + 11)
    assert len(seen) == 1
    assert seen[0][0] is residual
    assert seen[0][1] == 5
