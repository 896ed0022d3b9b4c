"""Adaptive Determinantal Sampling: siblings of one prompt are drawn apart where the model has a choice.

The name has no published definition; this one is Steersman's. Building blocks: the conditional determinantal
point process as a Schur complement (Kulesza & Taskar, arXiv 1207.6083) and greedy MAP's trade-off between
quality and log-determinant (Chen, Zhang & Zhou, arXiv 1709.05135). On temperature-scaled logits z of one row:

1. pool     C = top-m ∩ top-k ∩ nucleus ∩ min-p, each judged on the whole row; p = softmax of z on C
2. kernel   S = (1-α)·identity + α·⟨v_a, v_b⟩ over an embedding table v; without a table α = 0
3. covered  A = the siblings' last tokens, weight 1, and the step's own pool, weight p
4. gain     h_i = det(S_{A+i}) / det(S_A), ridged, token i's own weight left out; 1 = new, small = covered
5. gate     a = min(1, entropy(p) / ln 2): off where the model is certain
6. output   z_i + a · β/(1-β) · log h_i on C, -inf elsewhere
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import normalize

MAX_WIDTH = 64
_PRECISION = 4.0  # γ: how strongly one covered token counts
_KERNEL_MIX = 0.5  # α with a table
_SMALLEST_GAIN = 1e-6
_OFF = float("-inf")


@dataclass(frozen=True, slots=True)
class AdsRows:
    """Arguments of R rows, as device tensors [R], and what the host knows about them.

    `pool` int64 = min(m, top_k), `strength` = β/(1-β), `top_p` 1 = off, `log_min_p` -inf = off. `width` ≤ 64
    columns hold the pool with its ties; `nucleus`, `floor` say whether any row has top_p, min_p.
    """

    pool: Tensor
    strength: Tensor
    top_p: Tensor
    log_min_p: Tensor
    width: int = MAX_WIDTH
    nucleus: bool = False
    floor: bool = False


@dataclass(frozen=True, slots=True)
class Pool:
    """Candidates of R rows, likeliest first: `tokens` int64, `logits`, `keep`, `p`, all [R, P]."""

    tokens: Tensor
    logits: Tensor
    keep: Tensor
    p: Tensor


def ads(logits: Tensor, rows: AdsRows, covered: Tensor, table: Tensor | None = None) -> Tensor:
    """Reweigh `logits` [R, V] float32 after temperature, in place, and return them.

    `covered` [R, N] int64: tokens the siblings said last, -1 = none. `table` [≥ V, d]: unit rows, see
    `embedding_table`; None counts repeated tokens instead. No random numbers, no synchronisation on a GPU.
    """
    pool = pool_of(logits, rows)
    penalty = gate(pool) * rows.strength[:, None] * _surprise(pool, covered, table)
    values = torch.where(pool.keep, pool.logits - penalty, _OFF)
    return _write(logits, pool, values)


def pool_of(logits: Tensor, rows: AdsRows) -> Pool:
    """Step 1. Tokens tied with the last of the pool belong to it."""
    v, tokens = logits.topk(min(MAX_WIDTH, logits.shape[-1]), dim=-1)
    v, tokens = v[:, : rows.width], tokens[:, : rows.width]
    boundary = v.gather(-1, (rows.pool[:, None] - 1).clamp(max=v.shape[-1] - 1))
    keep = (v > _OFF) & (v >= boundary)
    if rows.nucleus:
        q = (v - logits.logsumexp(-1, keepdim=True)).exp()
        inside = (q.cumsum(-1) - q < rows.top_p[:, None]) | (rows.top_p >= 1)[:, None]
        inside[:, 0] = True
        keep &= inside
    if rows.floor:
        keep &= v >= v[:, :1] + rows.log_min_p[:, None]
    p = torch.where(keep, torch.softmax(v.masked_fill(~keep, _OFF), dim=-1), 0.0)
    return Pool(tokens, v, keep, p)


def gate(pool: Pool) -> Tensor:
    """Step 5: [R, 1] in 0..1, entropy of the pool in bits, at most one."""
    bits: Tensor = torch.special.entr(pool.p).sum(-1, keepdim=True) / math.log(2)
    return bits.clamp(0, 1)


def gain(pool: Pool, covered: Tensor, table: Tensor) -> Tensor:
    """Step 4 with the embedding kernel: h [R, P] in (0, 1]."""
    tokens = torch.cat((covered.clamp(min=0), pool.tokens), dim=-1)
    weight = torch.cat(((covered >= 0).to(pool.p.dtype), pool.p), dim=-1)
    vectors = normalize(table[tokens].float(), dim=-1)  # half-precision rows are not quite unit
    kernel: Tensor = _KERNEL_MIX * vectors @ vectors.mT
    kernel += (1 - _KERNEL_MIX) * (tokens[:, :, None] == tokens[:, None, :])
    scale = (_PRECISION * weight).sqrt_()
    own = (kernel[:, covered.shape[1] :] * scale[:, None, :]).mT  # before the kernel is scaled in place
    kernel *= scale[:, :, None] * scale[:, None, :]
    kernel.diagonal(dim1=-2, dim2=-1).add_(1)
    factor = torch.linalg.cholesky_ex(kernel).L  # eigenvalues ≥ 1: cannot fail, so nobody asks
    solved = torch.linalg.solve_triangular(factor, own, upper=False)
    h: Tensor = (1 - solved.square().sum(-2)).clamp_(_SMALLEST_GAIN, 1)
    return (h / (1 - _PRECISION * pool.p * h)).clamp_(_SMALLEST_GAIN, 1)


def _surprise(pool: Pool, covered: Tensor, table: Tensor | None) -> Tensor:
    """-log h [R, P]: how much of what token i would add has been said."""
    if table is None:  # α = 0: the pool cancels out and h = 1 / (1 + γ · count)
        count = (pool.tokens[:, :, None] == covered[:, None, :]).sum(-1)
        return torch.log1p(_PRECISION * count)
    return -gain(pool, covered, table).log()


def _write(logits: Tensor, pool: Pool, values: Tensor) -> Tensor:
    """Write the pool back in place; everything else becomes -inf, except ties beyond the pool's columns."""
    last_kept = pool.keep[:, -1:]
    if logits.device.type != "cpu" or bool(last_kept.any()):
        # More ties than columns: they stay as the model gave them. A GPU cannot ask without waiting.
        boundary = pool.logits[:, -1:].masked_fill(~last_kept, float("inf"))
        logits.masked_fill_(logits < boundary, _OFF)
    else:
        logits.fill_(_OFF)
    return logits.scatter_(-1, pool.tokens, values)
