"""A causal language model of transformers from the output of one of its blocks on.

Blocks below the steered one do not see the vector, so their output is computed once. What follows runs in
the model's own `forward` (masks, rotary embeddings, final norm, caps on logits), only the lower blocks return
at once: nothing here knows an architecture.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from steering.train.pairs import Answer


@dataclass(frozen=True)
class Batch:
    """Answers padded on the right. `rows` `[predictions]` index the flattened `tokens` `[texts, length]`."""

    tokens: Tensor
    mask: Tensor
    rows: Tensor
    targets: Tensor
    texts: Tensor  # `[predictions]`: the number of the answer in the whole job


def batches(answers: Sequence[Answer], device: str, *, tokens: int = 2048) -> list[Batch]:
    """Answers of like length together, at most `tokens` with padding in a batch of several."""
    order = sorted(range(len(answers)), key=lambda number: len(answers[number].tokens))
    made: list[list[int]] = [[]]
    for number in order:
        if made[-1] and (len(made[-1]) + 1) * len(answers[number].tokens) > tokens:
            made.append([])
        made[-1].append(number)
    return [_batch(answers, numbers, device) for numbers in made]


def _batch(answers: Sequence[Answer], numbers: Sequence[int], device: str) -> Batch:
    length = max(len(answers[number].tokens) for number in numbers)
    tokens = torch.zeros(len(numbers), length, dtype=torch.long)
    mask = torch.zeros_like(tokens)
    rows: list[int] = []
    targets: list[int] = []
    texts: list[int] = []
    for line, number in enumerate(numbers):
        answer = answers[number]
        tokens[line, : len(answer.tokens)] = torch.tensor(answer.tokens)
        mask[line, : len(answer.tokens)] = 1
        rows += range(line * length + answer.start, line * length + answer.end)
        targets += answer.targets
        texts += [number] * (answer.end - answer.start)
    parts = (tokens, mask, torch.tensor(rows), torch.tensor(targets), torch.tensor(texts))
    return Batch(*(part.to(device) for part in parts))


class Tail:
    """`states` runs the model once; `hidden` and `logits` then take it from a block's output to the end."""

    def __init__(self, model: nn.Module) -> None:
        self.model = model.requires_grad_(requires_grad=False).eval()
        config = model.config.get_text_config()  # type: ignore[operator, union-attr]
        self.base, self.blocks = _decoder(model, int(config.num_hidden_layers))
        self.width, self.vocabulary = int(config.hidden_size), int(config.vocab_size)
        weight = next(model.parameters())
        self.dtype, self.device = weight.dtype, weight.device
        self._tuples = False  # whether this architecture's blocks return tuples

    @torch.no_grad()
    def states(self, batch: Batch, layers: Sequence[int]) -> dict[int, Tensor]:
        """Output of each of `layers`, `[texts, length, hidden]`, unsteered."""
        kept: dict[int, Tensor] = {}

        def keeper(layer: int) -> Callable[[nn.Module, Any, Any], None]:
            def keep(_module: nn.Module, _inputs: Any, output: Any) -> None:
                self._tuples = isinstance(output, tuple)
                kept[layer] = _first(output)

            return keep

        with ExitStack() as stack:
            for layer in layers:
                handle = self.blocks[layer].register_forward_hook(keeper(layer))
                stack.callback(handle.remove)
            self._run(batch)
        return kept

    def hidden(self, batch: Batch, layer: int, state: Tensor, vectors: Mapping[int, Tensor]) -> Tensor:
        """What the head reads at `batch.rows`, from the output `state` of `layer`.

        `vectors` are added, at all tokens, to the output of their layers, none of them below `layer`.
        """
        with ExitStack() as stack:
            for index, block in enumerate(self.blocks[: layer + 1]):
                passed = self._constant(state) if index == layer else self._untouched
                stack.enter_context(_replaced(block, passed))
            for index, vector in vectors.items():
                handle = self.blocks[index].register_forward_hook(_adder(vector))
                stack.callback(handle.remove)
            return self._run(batch).flatten(0, 1)[batch.rows]

    def logits(self, hidden: Tensor) -> Tensor:
        """`[predictions, vocabulary]` in float32 from what `hidden` returned, or some of its rows."""
        # Named here so that the server, which imports the types of this file, does without transformers.
        from transformers.modeling_outputs import (  # noqa: PLC0415
            BaseModelOutputWithPastAndCrossAttentions,
        )

        # Of all such outputs it has the most fields, and some heads read more of them than the first.
        result = BaseModelOutputWithPastAndCrossAttentions(last_hidden_state=hidden[None])
        ids = torch.zeros(1, len(hidden), dtype=torch.long, device=hidden.device)
        with _replaced(self.base, lambda *_args, **_kwargs: result):
            logits: Tensor = self.model(input_ids=ids, use_cache=False).logits[0]
        return logits if logits.dtype == torch.float64 else logits.float()

    @torch.no_grad()
    def check(self, batch: Batch, layer: int) -> None:
        """Raises ValueError where this way of running the model does not give its own logits."""
        first = (batch.rows < batch.tokens.shape[1]).nonzero()[:, 0]  # one text is enough
        parts = [part[first] for part in (batch.rows, batch.targets, batch.texts)]
        one = Batch(batch.tokens[:1], batch.mask[:1], *parts)
        state = self.states(one, [layer])[layer]
        ours = self.logits(self.hidden(one, layer, state, {}))
        output = self.model(input_ids=one.tokens, attention_mask=one.mask, use_cache=False)
        theirs = output.logits[0][one.rows].to(ours.dtype)
        # The same kernels run, but on rows of another number, which may change the rounding of the head.
        bound = 1e-3 if state.dtype in {torch.float32, torch.float64} else 0.1
        if not torch.allclose(ours, theirs, rtol=bound, atol=bound * float(theirs.abs().max())):
            name = type(self.model).__name__
            raise ValueError(f"{name} cannot be run in part, so few-shot cannot train vectors for it")

    def _run(self, batch: Batch) -> Tensor:
        output = self.base(input_ids=batch.tokens, attention_mask=batch.mask, use_cache=False)
        last: Tensor = output.last_hidden_state
        return last

    def _untouched(self, hidden: Tensor, *_args: Any, **_kwargs: Any) -> Any:
        return (hidden,) if self._tuples else hidden

    def _constant(self, state: Tensor) -> Callable[..., Any]:
        return lambda *_args, **_kwargs: (state,) if self._tuples else state


def _decoder(model: nn.Module, count: int) -> tuple[nn.Module, nn.ModuleList]:
    """The module that runs the blocks, from token ids to the final norm, and its list of them."""
    for module in model.modules():
        for child in module.children():
            if isinstance(child, nn.ModuleList) and len(child) == count:
                return module, child
    raise ValueError(f"{type(model).__name__} has no list of {count} decoder blocks")


def _first(output: Any) -> Tensor:
    tensor: Tensor = output[0] if isinstance(output, tuple) else output
    return tensor


def _adder(vector: Tensor) -> Callable[[nn.Module, Any, Any], Any]:
    def add(_module: nn.Module, _inputs: Any, output: Any) -> Any:
        steered = _first(output) + vector.to(_first(output).dtype)
        return (steered, *output[1:]) if isinstance(output, tuple) else steered

    return add


@contextmanager
def _replaced(module: nn.Module, forward: Callable[..., Any]) -> Iterator[None]:
    """This one module's `forward`; its attributes, which the model may read, stay."""
    module.forward = forward  # shadows the method of the class
    try:
        yield
    finally:
        del module.forward
