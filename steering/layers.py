"""Where the residual stream is: finding a model's decoder blocks, and reading what leaves one."""

from collections.abc import Callable
from typing import Any

from torch import Tensor, nn

# (hidden, residual or None, layer) → changes hidden in place; the state is their sum
Apply = Callable[[Tensor, Tensor | None, int], None]

_NAMES = ("layers", "h", "blocks")  # what architectures call their list of blocks, likeliest first


class UnsteerableError(Exception):
    """This model, or this way of running it, cannot be steered; the message says why."""


def decoder_blocks(model: nn.Module, count: int) -> dict[int, nn.Module]:
    """The `count` decoder blocks by index; on a pipeline stage those that run here.

    Raises UnsteerableError where the model has no single list of them.
    """
    lists = {
        name: module
        for name, module in model.named_modules()
        if isinstance(module, nn.ModuleList) and len(module) == count
    }
    named = {name: blocks for name, blocks in lists.items() if name.rpartition(".")[2] in _NAMES}
    # A vision tower or a drafter may be as deep; the language model's list has the shortest path.
    found = sorted(named or lists, key=lambda name: ("vision" in name, name.count(".")))
    if not found:
        raise UnsteerableError(f"the model has no list of {count} decoder blocks")
    blocks = enumerate(lists[found[0]])
    return {index: block for index, block in blocks if type(block).__name__ != "PPMissingLayer"}


def wrap(block: nn.Module, layer: int, apply: Apply, unread: dict[int, str]) -> None:
    """Call `apply` on what leaves `block`, from now on.

    Where that is no state, the block is left to itself, and `unread` gets the type of what it returned.
    """
    forward = block.forward

    def steered(*args: Any, **kwargs: Any) -> Any:
        output = forward(*args, **kwargs)
        stream = residual_stream(output)
        if stream is None:
            unread[layer] = type(output).__name__
        else:
            apply(*stream, layer)
        return output

    block.forward = steered


def residual_stream(output: Any) -> tuple[Tensor, Tensor | None] | None:
    """What a block returns, one addend or two, as `[tokens, hidden]` views; None where it is neither."""
    parts = output if isinstance(output, tuple) else (output,)
    hidden, residual = (*parts, None, None)[:2]
    # Transformers' own models, which vLLM runs for want of its own, count batches: all is one.
    if not isinstance(hidden, Tensor) or (hidden.dim() != 2 and (hidden.dim() != 3 or len(hidden) != 1)):
        return None
    if residual is None:
        return _rows(hidden), None
    if isinstance(residual, Tensor) and residual.shape == hidden.shape:
        return _rows(hidden), _rows(residual)
    return None


def _rows(x: Tensor) -> Tensor:
    return x[0] if x.dim() == 3 else x
