"""Milliseconds per step of each sampling method, beside torch's own top-p (a full sort) and softmax.

    PYTHONPATH=. python tests/bench/sampling_methods.py [--device cuda] [--threads 1] [--batches 1 8 32 256]

Rows are shaped like a language model's: a power law over the vocabulary with noise. Figures are medians.
"""

import argparse
import math
import statistics
import time
from collections.abc import Callable

import torch

from processors.ads import AdsRows, ads
from processors.min_p import min_p_removed
from processors.ring import MAX_COVERED
from processors.typical import typical_removed

METHODS = ("softmax", "top-p by sort", "min-p", "typical", "ADS", "ADS + top-p", "ADS, table")
WIDTH = 128  # of the embedding table
SECONDS = 1.0  # per cell, at least three runs


def rows(batch: int, vocabulary: int, device: torch.device) -> torch.Tensor:
    pick = torch.Generator().manual_seed(0)
    ranks = torch.arange(1, vocabulary + 1).float()
    law = torch.stack([-2.0 * ranks.log()[torch.randperm(vocabulary, generator=pick)] for _ in range(batch)])
    return (law + torch.randn(batch, vocabulary, generator=pick)).to(device)


def top_p_by_sort(z: torch.Tensor, mass: float) -> torch.Tensor:
    ordered, order = z.sort(dim=-1)
    ordered.masked_fill_(ordered.softmax(-1).cumsum(-1) <= 1 - mass, -math.inf)
    return z.scatter_(-1, order, ordered)


def arguments(batch: int, device: torch.device, *, top_p: float, width: int) -> AdsRows:
    def column(value: float, dtype: torch.dtype = torch.float32) -> torch.Tensor:
        return torch.full((batch,), value, dtype=dtype, device=device)

    return AdsRows(
        pool=column(8, torch.int64),
        strength=column(0.3 / 0.7),
        top_p=column(top_p),
        log_min_p=column(-math.inf),
        width=width,
        nucleus=top_p < 1,
    )


def methods(z: torch.Tensor) -> dict[str, Callable[[torch.Tensor], object]]:
    """Method → what it does to a row tensor it may overwrite, as the adapter would."""
    batch, vocabulary = z.shape
    mass = torch.full((batch,), 0.95, device=z.device)
    log_min_p = torch.full((batch,), math.log(0.05), device=z.device)
    covered = torch.randint(0, vocabulary, (batch, MAX_COVERED), device=z.device)
    table = torch.nn.functional.normalize(torch.randn(vocabulary, WIDTH)).half().to(z.device)
    plain = arguments(batch, z.device, top_p=1.0, width=64)
    nucleus = arguments(batch, z.device, top_p=0.9, width=64)
    kernel = arguments(batch, z.device, top_p=1.0, width=16)
    return {
        "softmax": lambda row: row.softmax(-1),
        "top-p by sort": lambda row: top_p_by_sort(row, 0.95),
        "min-p": lambda row: row.masked_fill_(min_p_removed(row, log_min_p), -math.inf),
        "typical": lambda row: row.masked_fill_(typical_removed(row, mass), -math.inf),
        "ADS": lambda row: ads(row, plain, covered),
        "ADS + top-p": lambda row: ads(row, nucleus, covered),
        "ADS, table": lambda row: ads(row, kernel, covered, table),
    }


def milliseconds(method: Callable[[torch.Tensor], object], z: torch.Tensor) -> float:
    """Median time on fresh rows; their copy is not counted."""
    taken: list[float] = []
    scratch = z.clone()
    method(scratch)
    began = time.perf_counter()
    while len(taken) < 3 or (time.perf_counter() - began < SECONDS and len(taken) < 100):
        scratch.copy_(z)
        wait(z.device)
        start = time.perf_counter()
        method(scratch)
        wait(z.device)
        taken.append((time.perf_counter() - start) * 1000)
    return statistics.median(taken)


def wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--device", default="cpu", type=torch.device)
    parser.add_argument("--threads", default=1, type=int)
    parser.add_argument("--batches", nargs="+", type=int, default=[1, 8, 32, 256])
    parser.add_argument("--vocabularies", nargs="+", type=int, default=[32_000, 128_256, 256_000])
    chosen = parser.parse_args()
    torch.set_num_threads(chosen.threads)
    print(f"torch {torch.__version__}, {chosen.device}, {chosen.threads} thread(s), ms per step\n")
    print("| vocabulary | rows | " + " | ".join(METHODS) + " |")
    print("|---|---|" + "---|" * len(METHODS))
    for vocabulary in chosen.vocabularies:
        for batch in chosen.batches:
            z = rows(batch, vocabulary, chosen.device)
            times = [milliseconds(method, z) for method in methods(z).values()]
            print(f"| {vocabulary} | {batch} | " + " | ".join(f"{t:.2f}" for t in times) + " |", flush=True)


if __name__ == "__main__":
    main()
