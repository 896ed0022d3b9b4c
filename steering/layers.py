"""Where the residual stream is: finding a model's decoder blocks, and reading what leaves one."""

import dis
import inspect
import re
from collections.abc import Callable, Sequence
from contextlib import suppress
from types import CodeType
from typing import Any, cast

from torch import Tensor, nn

# (hidden, residual or None, layer) → changes hidden in place; the state is their sum
Apply = Callable[[Tensor, Tensor | None, int], None]

_NAMES = ("layers", "h", "blocks")  # what architectures call their list of blocks, likeliest first
_TOUCH = re.compile("(LOAD|STORE)_(?:FAST|DEREF)")  # instructions on variables, some on two at once


class UnsteerableError(Exception):
    """This model, or this way of running it, cannot be steered; the message says why."""


def decoder_blocks(model: nn.Module, count: int) -> Sequence[nn.Module]:
    """The `count` decoder blocks in order.

    Raises UnsteerableError where the model has no single list of them.
    """
    lists = {
        name: module
        for name, module in _language_model(model).named_modules()
        if isinstance(module, nn.ModuleList) and len(module) == count
    }
    named = {name: blocks for name, blocks in lists.items() if name.rpartition(".")[2] in _NAMES}
    # Others may be as long; the decoder's has the shortest path.
    found = sorted(named or lists, key=lambda name: ("vision" in name, name.count(".")))
    if not found:
        raise UnsteerableError(f"the model has no list of {count} decoder blocks")
    return list(lists[found[0]])


def _language_model(model: nn.Module) -> nn.Module:
    """Of a model with towers for images or sounds, which may be as deep."""
    find = cast("Callable[[], nn.Module] | None", getattr(model, "get_language_model", None))
    if find is not None:
        with suppress(NotImplementedError):  # vLLM's own way to say that the model has no such part
            return find()
    return model


def wrap(
    block: nn.Module,
    layer: int,
    width: int,
    apply: Apply,
    unread: dict[int, str],
    *,
    skips: Callable[[int], bool] | None = None,
) -> None:
    """Call `apply` on what leaves `block`, from now on.

    Where that is no state of this width, the block is left to itself, and `unread` gets the type of what it
    returned. Once that is known, `skips` says where `apply` would do nothing: what is not steered then pays
    for one look-up.
    """
    forward, adds = block.forward, adds_residual(block)
    looked = False

    def look(output: Any) -> None:
        stream = residual_stream(output, width, adds=adds)
        if stream is None:
            unread[layer] = type(output).__name__
        else:
            apply(*stream, layer)

    def steered(*args: Any, **kwargs: Any) -> Any:
        output = forward(*args, **kwargs)
        look(output)
        return output

    def steered_or_skipped(*args: Any, **kwargs: Any) -> Any:
        nonlocal looked
        output = forward(*args, **kwargs)
        if not (looked and skips is not None and skips(layer)):
            looked = True
            look(output)
        return output

    block.forward = steered if skips is None else steered_or_skipped


def residual_stream(output: Any, width: int, *, adds: bool) -> tuple[Tensor, Tensor | None] | None:
    """What a block returns, one addend or two, as `[tokens, width]` views; None where it is neither.

    Without `adds` the first tensor is the whole state, whatever stands beside it.
    """
    parts = output if isinstance(output, tuple) else (output,)
    hidden, residual, *others = (*parts, None, None)
    # Transformers' own models, which vLLM runs for want of its own, count batches: all is one.
    if not isinstance(hidden, Tensor) or (hidden.dim() != 2 and (hidden.dim() != 3 or len(hidden) != 1)):
        return None
    if hidden.shape[-1] != width or any(isinstance(other, Tensor) for other in others):
        return None
    if residual is None:
        return _rows(hidden), None
    if isinstance(residual, Tensor) and residual.shape == hidden.shape:
        return _rows(hidden), _rows(residual) if adds else None
    return None


def adds_residual(block: nn.Module) -> bool:
    """Whether a block of this kind adds the `residual` it is given, and so leaves its own to the next one.

    Most of vLLM's do. Some return a state that is whole (StableLM, Cohere, EXAONE 4, Granite hybrids, PhiMoE
    and more), and beside it, by the same name, a tensor that the next block is not given, or overwrites
    before it reads it: which of them do so, their code says.
    """
    return _reads_residual(_code(block))


def _reads_residual(forward: CodeType) -> bool:
    """Before it writes the variable, if it ever does."""
    for instruction in dis.get_instructions(forward):
        value = instruction.argval
        names = value if isinstance(value, tuple) else (value,)
        for touch, name in zip(_TOUCH.findall(instruction.opname), names, strict=False):
            if name == "residual":
                return bool(touch == "LOAD")
    return False


def leaves_reduction(block: nn.Module) -> bool:
    """Whether a block leaves the sum over tensor-parallel ranks to the next: then no rank has the state."""
    return any(name.startswith("fused_allreduce") for name in _code(block).co_names)


def _code(block: nn.Module) -> CodeType:
    # The class's own: vLLM's offloading replaces the method of the object.
    code: CodeType = inspect.unwrap(type(block).forward).__code__
    return code


def _rows(x: Tensor) -> Tensor:
    return x[0] if x.dim() == 3 else x
