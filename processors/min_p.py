"""Min-p (arXiv 2407.01082) in logit form."""

from torch import Tensor


def min_p(logits: Tensor, log_min_p: Tensor) -> Tensor:
    """Mask tokens less likely than `min_p` times the likeliest.

    `logits` [R, V] after temperature, `log_min_p` [R], -inf = off. Returns [R, V]; a row never empties.
    z_i ≥ z_max + log min_p is p_i ≥ min_p · p_max without the softmax; ties with the maximum always stay.
    """
    return logits.masked_fill(min_p_removed(logits, log_min_p), float("-inf"))


def min_p_removed(logits: Tensor, log_min_p: Tensor) -> Tensor:
    """The mask behind `min_p`: True where a token goes, [R, V]."""
    return logits < (logits.amax(-1) + log_min_p)[:, None]
