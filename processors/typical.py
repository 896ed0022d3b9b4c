"""Locally typical sampling (Meister et al., arXiv 2202.00666).

Masks equal those of Hugging Face's `TypicalLogitsWarper` bit for bit: the smallest set of tokens, by distance
of their surprisal from the row's entropy, whose mass reaches the target; ties at the boundary stay.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

# Most rows reach their mass within this many tokens, which spares the sort of the whole row.
_PARTIAL = 1024
# The reference's float32 sum of probabilities is off by rounding, below this, ...
_ROUNDING = 1e-5
# ... and by what it absorbs of each token: at most half a unit in the last place of a lane's partial sum,
# 2^-25 near 1, in the one lane of four or more that is so full. The full sort decides what lies within both.
_ABSORBED = 2.0**-27


@dataclass(frozen=True, slots=True)
class _Row:
    """Rows' distances |surprisal - entropy| [R, V] and log p [R, V]; `doubt` [R], see `_ROUNDING`."""

    distance: Tensor
    log_p: Tensor
    doubt: Tensor


def typical(logits: Tensor, mass: Tensor, *, min_tokens_to_keep: int = 1) -> Tensor:
    """Mask the tokens outside the locally typical set.

    `logits` [R, V] after temperature, `mass` [R] float32 in (0, 1]; rows with mass 1 return untouched and
    a row of -inf alone stays so. Returns [R, V] in the dtype of `logits`.
    """
    removed = typical_removed(logits, mass, min_tokens_to_keep=min_tokens_to_keep)
    return logits.masked_fill(removed, float("-inf"))


def typical_removed(logits: Tensor, mass: Tensor, *, min_tokens_to_keep: int = 1) -> Tensor:
    """The mask behind `typical`: True where a token goes, [R, V]. Does not synchronise a GPU."""
    logits = logits.float()
    row = _measure(logits)
    if logits.device.type == "cpu" and logits.shape[-1] > 4 * _PARTIAL:
        limit = _limit_partial(logits, row, mass)
    else:
        limit = _limit_sorted(logits, row.distance, mass)
    removed = row.distance > limit[:, None]
    if min_tokens_to_keep > 1:
        count = min(min_tokens_to_keep, logits.shape[-1])
        removed.scatter_(-1, row.distance.topk(count, largest=False).indices, value=False)
    return removed.logical_and_((mass < 1)[:, None])


def _measure(logits: Tensor) -> _Row:
    log_p = torch.log_softmax(logits, dim=-1)
    p = log_p.exp()
    entropy = -(log_p * p).nansum(-1, keepdim=True)
    doubt = _ROUNDING + p.clamp_(max=_ABSORBED).sum(-1)
    return _Row((-log_p - entropy).abs_(), log_p, doubt)


def _limit_sorted(logits: Tensor, distance: Tensor, mass: Tensor) -> Tensor:
    """Largest distance kept per row, [R]."""
    ordered, order = distance.sort(dim=-1)
    # Softmax of the sorted logits, not sorted probabilities: the order of the sum decides boundary tokens.
    reached = logits.gather(-1, order).softmax(-1).cumsum(-1)
    last = (reached < mass[:, None]).sum(-1, keepdim=True).clamp_(max=distance.shape[-1] - 1)
    return ordered.gather(-1, last)[:, 0]


def _limit_partial(logits: Tensor, row: _Row, mass: Tensor) -> Tensor:
    """`_limit_sorted` from the nearest tokens alone where that is certain; other rows are sorted whole."""
    ordered, order = row.distance.topk(_PARTIAL, dim=-1, largest=False)
    reached = row.log_p.gather(-1, order).double().exp_().cumsum(-1)
    last = (reached < mass[:, None]).sum(-1, keepdim=True).clamp_(max=_PARTIAL - 1)
    limit = ordered.gather(-1, last)[:, 0]
    after = reached.gather(-1, last)[:, 0]
    before = reached.gather(-1, (last - 1).clamp_(min=0))[:, 0].masked_fill_(last[:, 0] == 0, 0.0)
    certain = (after > mass + row.doubt) & (before < mass - row.doubt) | (mass >= 1)
    if not bool(certain.all()):
        rows = (~certain).nonzero()[:, 0]
        limit[rows] = _limit_sorted(logits[rows], row.distance[rows], mass[rows])
    return limit
