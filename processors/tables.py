"""Arguments of the batch's rows as device tensors, rebuilt only when the batch changes."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from processors.ads import MAX_WIDTH, AdsRows
from processors.args import AdsArgs, TypicalArgs
from processors.upload import Upload


@dataclass(frozen=True, slots=True)
class TypicalTable:
    """`rows` int64 [R] of the batch, None = its first R; `mass`, `log_min_p` float32 [R]."""

    rows: Tensor | None
    mass: Tensor
    log_min_p: Tensor
    truncates: bool  # any mass < 1
    floor: bool  # any min_p > 0


@dataclass(frozen=True, slots=True)
class AdsTable:
    """`rows` as in `TypicalTable`; `siblings` int64 [R, N], cells of the ring each row reads."""

    rows: Tensor | None
    args: AdsRows
    siblings: Tensor


def typical_table(rows: Sequence[tuple[int, TypicalArgs]], upload: Upload) -> TypicalTable | None:
    """Table of the rows with something to do, None if there is none."""
    active = [(row, args) for row, args in rows if args.mass < 1 or args.min_p > 0]
    if not active:
        return None
    return TypicalTable(
        rows=_rows([row for row, _ in active], upload),
        mass=upload([args.mass for _, args in active], torch.float32),
        log_min_p=upload([_log(args.min_p) for _, args in active], torch.float32),
        truncates=any(args.mass < 1 for _, args in active),
        floor=any(args.min_p > 0 for _, args in active),
    )


def ads_table(
    rows: Sequence[tuple[int, AdsArgs]],
    siblings: Sequence[Sequence[int]],
    upload: Upload,
    *,
    kernel: bool,
) -> AdsTable | None:
    """Table of the ADS rows, None if there is none; `siblings` are the rows' cells in the ring.

    With a `kernel` the pool is only as wide as its largest needs, as the kernel's cost grows with it.
    Without, it has one width whatever the batch, so that a row's bits do not depend on its neighbours.
    """
    if not rows:
        return None
    asked = [args for _, args in rows]
    pool = [min(args.subset_size, args.top_k or args.subset_size) for args in asked]
    return AdsTable(
        rows=_rows([row for row, _ in rows], upload),
        args=AdsRows(
            pool=upload(pool, torch.int64),
            strength=upload([args.beta / (1 - args.beta) for args in asked], torch.float32),
            top_p=upload([args.top_p for args in asked], torch.float32),
            log_min_p=upload([_log(args.min_p) for args in asked], torch.float32),
            width=min(MAX_WIDTH, 2 * max(pool)) if kernel else MAX_WIDTH,
            nucleus=any(args.top_p < 1 for args in asked),
            floor=any(args.min_p > 0 for args in asked),
        ),
        siblings=upload(siblings, torch.int64),
    )


def _rows(rows: list[int], upload: Upload) -> Tensor | None:
    return None if rows == list(range(len(rows))) else upload(rows, torch.int64)


def _log(probability: float) -> float:
    return math.log(probability) if probability > 0 else -math.inf
