"""What a model loses when it goes on from an autoencoder's reconstructions: the cross-entropy of texts."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from steering.sae.errors import SaeError
from steering.sae.quality import cross_entropy_recovered
from steering.sae.sae import SparseAutoencoder
from steering.train.tail import Tail
from steering.vector import Array

Replace = Callable[[Tensor], Tensor]


@dataclass(frozen=True, slots=True)
class CrossEntropies:
    """Means in nats over `tokens` predictions: with states as they are, reconstructed, and replaced by their
    mean."""

    tokens: int
    clean: float
    reconstructed: float
    ablated: float

    @property
    def recovered(self) -> float:
        """See `cross_entropy_recovered`, which raises SaeError where ablation does no harm."""
        return cross_entropy_recovered(self.clean, self.reconstructed, self.ablated)


@torch.no_grad()
def cross_entropies(
    model: nn.Module,
    sae: SparseAutoencoder,
    texts: Sequence[Sequence[int]],
    mean: Array,
    longest: float,
) -> CrossEntropies:
    """Of a causal language model of transformers, on texts in tokens, states of block `sae.layer` replaced.

    `mean` `[d_in]` stands in for ablated states. Each text's first state, and those longer than `longest`,
    stay as they are: attention sinks, which autoencoders pass over. What follows the first token is predicted
    from that state alone, and not counted. Raises SaeError for texts without anything to predict.
    """
    blocks = Tail(model).blocks
    texts = [ids for ids in texts if len(ids) > 2]
    tokens = sum(len(ids) - 2 for ids in texts)
    if not tokens:
        raise SaeError("there are no texts of at least 3 tokens to predict")
    stand_in = torch.from_numpy(mean)
    ways: list[Replace] = [
        lambda x: x,
        lambda x: sae.decode(sae.encode(x), x),
        stand_in.expand_as,
    ]
    sums = [0.0, 0.0, 0.0]
    for ids in texts:
        for number, way in enumerate(ways):
            with _replacing(blocks[sae.layer], way, longest):
                logits = model(input_ids=torch.tensor([list(ids)]), use_cache=False).logits[0]
            targets = torch.tensor(list(ids[2:]))
            sums[number] += float(cross_entropy(logits[1:-1].float(), targets, reduction="sum"))
    return CrossEntropies(tokens, *(total / tokens for total in sums))


@contextmanager
def _replacing(block: nn.Module, way: Replace, longest: float) -> Iterator[None]:
    def hook(_module: nn.Module, _inputs: Any, output: Any) -> Any:
        states = output[0] if isinstance(output, tuple) else output
        replaced = way(states[0].float()).to(states.dtype)
        kept = states[0].float().norm(dim=1) > longest
        kept[0] = True
        made = torch.where(kept[:, None], states[0], replaced)[None]
        return (made, *output[1:]) if isinstance(output, tuple) else made

    handle = block.register_forward_hook(hook)
    try:
        yield
    finally:
        handle.remove()
