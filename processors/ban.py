"""Take tokens out of some rows."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from processors.upload import Upload


def ban(
    logits: Tensor, rows: Sequence[int], tokens: Sequence[Tensor], upload: Upload, *, yields: bool
) -> None:
    """Set `logits` [B, V] to -inf in `rows`, each at its own `tokens` int64; other cells keep their bits.

    With `yields`, which reads the rows as a whole, one of which nothing else is left stays as it is: nothing
    could be drawn from it otherwise. Does not synchronise a GPU.
    """
    if not rows:
        return
    counts = [len(ids) for ids in tokens]
    chosen, repeats = upload(rows, torch.int64), upload(counts, torch.int64)
    cells = chosen.repeat_interleave(repeats, output_size=sum(counts)), torch.cat(list(tokens))
    before = logits[cells] if yields else None
    logits[cells] = -math.inf
    if before is not None:
        empty = logits.index_select(0, chosen).amax(-1) == -math.inf
        logits[cells] = before.where(empty.repeat_interleave(repeats, output_size=sum(counts)), -math.inf)
