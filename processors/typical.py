"""Locally typical sampling (Meister et al., arXiv 2202.00666).

Masks equal those of Hugging Face's `TypicalLogitsWarper` bit for bit: the smallest set of tokens, by distance
of their surprisal from the row's entropy, whose mass reaches the target; ties at the boundary stay. The order
of tied tokens, which the reference leaves to its sort and which rounding can feel, is here that of their ids.
"""

import torch
from torch import Tensor

_INDEX = 2**32 - 1  # the half of a sort key that holds the token
# Elements that a CPU takes at a time, so that what is made of them stays in its cache.
_BLOCK = 2**18


def typical(logits: Tensor, mass: Tensor, *, min_tokens_to_keep: int = 1) -> Tensor:
    """Mask the tokens outside the locally typical set.

    `logits` [R, V] after temperature, `mass` [R] float32 in (0, 1]; rows with mass 1 return untouched and
    a row of -inf alone stays so. Returns [R, V] in the dtype of `logits`.
    """
    removed = typical_removed(logits, mass, min_tokens_to_keep=min_tokens_to_keep)
    return logits.masked_fill(removed, float("-inf"))


def typical_removed(logits: Tensor, mass: Tensor, *, min_tokens_to_keep: int = 1) -> Tensor:
    """The mask behind `typical`: True where a token goes, [R, V]. Does not synchronise a GPU."""
    if logits.device.type == "cpu" and logits.numel() > _BLOCK:
        rows = max(1, _BLOCK // logits.shape[-1])
        blocks = zip(torch.split(logits, rows), torch.split(mass, rows), strict=True)
        return torch.cat([_removed(*block, min_tokens_to_keep) for block in blocks])
    return _removed(logits, mass, min_tokens_to_keep)


def _removed(logits: Tensor, mass: Tensor, min_tokens_to_keep: int) -> Tensor:
    logits = logits.float()
    distance = _distance(logits)
    limit = _limit(logits, distance, mass)
    removed = distance > limit[:, None]
    if min_tokens_to_keep > 1:
        count = min(min_tokens_to_keep, logits.shape[-1])
        removed.scatter_(-1, distance.topk(count, largest=False).indices, value=False)
    return removed.logical_and_((mass < 1)[:, None])


def _distance(logits: Tensor) -> Tensor:
    """|surprisal - entropy| of every token, [R, V]."""
    log_p = torch.log_softmax(logits, dim=-1)
    entropy = -(log_p * log_p.exp()).nansum(-1, keepdim=True)
    return (-log_p - entropy).abs_()


def _limit(logits: Tensor, distance: Tensor, mass: Tensor) -> Tensor:
    """Largest distance kept per row, [R]."""
    ordered, order = _sorted(distance)
    # Softmax of the sorted logits, not sorted probabilities: the order of the sum decides boundary tokens.
    reached = logits.gather(-1, order).softmax(-1).cumsum(-1)
    last = (reached < mass[:, None]).sum(-1, keepdim=True).clamp_(max=distance.shape[-1] - 1)
    return ordered.gather(-1, last)[:, 0]


def _sorted(distance: Tensor) -> tuple[Tensor, Tensor]:
    """Values and indices in ascending order, ties by index.

    On a CPU numpy's vectorised sort of integers is some ten times as fast as torch's of floats. The bits of a
    float that is not negative order as the float does; with the index below them they make one integer.
    """
    if distance.device.type != "cpu":
        return distance.sort(dim=-1, stable=True)
    keys = distance.view(torch.int32).to(torch.int64).bitwise_left_shift_(32)
    keys.bitwise_or_(torch.arange(distance.shape[-1]))
    keys.numpy().sort(axis=-1)
    order = keys.bitwise_and_(_INDEX)
    return distance.gather(-1, order), order
