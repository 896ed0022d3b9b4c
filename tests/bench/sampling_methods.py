"""Milliseconds per step of each sampling method, beside torch's own top-p (a full sort) and softmax.

    PYTHONPATH=. python tests/bench/sampling_methods.py [--device cuda] [--threads 1] [--batches 1 8 32 256]

Rows are shaped like a language model's: a power law over the vocabulary with noise. Figures are medians.
Forbidden terms: ten, of which each row has begun one, over tokens made of random letters; what a step costs
once every state was met (in brackets: with a look at what is left, as beside a grammar). A second table says
what it takes to prepare the terms and to meet a state.
"""

import argparse
import math
import random
import statistics
import time
from collections.abc import Callable

import torch

from processors.ads import AdsRows, ads
from processors.ban import ban
from processors.forbidden import ROOT, Automaton, prepare
from processors.min_p import min_p_removed
from processors.ring import MAX_COVERED
from processors.typical import typical_removed
from processors.upload import Upload
from processors.vocabulary import Vocabulary

METHODS = (
    "softmax",
    "top-p by sort",
    "min-p",
    "typical",
    "ADS",
    "ADS + top-p",
    "ADS, table",
    "forbidden",
    "(yielding)",
)
TERMS = (
    "kill",
    "murder",
    "a bomb",
    " idiot",
    "Straße",
    "istanbul",
    "secret plan",
    "password",
    "über",
    "café",
)
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


def vocabulary_of(size: int) -> Vocabulary:
    """Tokens of one to twelve letters, half of them behind a space, beside the bytes."""
    pick = random.Random(0)
    words = ("".join(pick.choices("etaoinshrdlcumwfgypbvk", k=pick.randint(1, 11))) for _ in range(size))
    spaced = [(" " * pick.randint(0, 1) + pick.choice((word, word.title()))).encode() for word in words]
    return Vocabulary([*(bytes([byte]) for byte in range(256)), *spaced][:size])


def automaton_of(size: int) -> Automaton:
    if size not in _AUTOMATA:
        _AUTOMATA[size] = Automaton(TERMS, vocabulary_of(size))
    return _AUTOMATA[size]


_AUTOMATA: dict[int, Automaton] = {}


def begun(automaton: Automaton) -> list[int]:
    """The states of texts that have begun a term: all of their prefixes."""
    states = {ROOT}
    for term in TERMS:
        state = ROOT
        for byte in term.encode()[:-1]:
            state = automaton.advance(state, byte)
            states.add(state)
    return sorted(states)


def forbidding(z: torch.Tensor, *, yields: bool) -> Callable[[torch.Tensor], object]:
    """One step of rows that have each drawn a token."""
    batch, vocabulary = z.shape
    automaton, upload = automaton_of(vocabulary), Upload(z.device, pinned=z.device.type == "cuda")
    states = begun(automaton)
    bans = [upload(automaton.banned(state), torch.int64) for state in states]
    rows = list(range(batch))
    tokens = [bans[row % len(bans)] for row in rows]

    def step(z: torch.Tensor) -> None:
        for row in rows:
            automaton.advance(states[row % len(states)], 256 + row)
        ban(z, rows, tokens, upload, yields=yields)

    return step


def preparation(vocabulary: int) -> tuple[float, float, float, float]:
    """Milliseconds to lay out the vocabulary, prepare the terms, and meet a state: mean and worst."""
    prepare()
    texts = list(vocabulary_of(vocabulary))
    start = time.perf_counter()
    laid_out = Vocabulary(texts)
    marks = [time.perf_counter() - start]
    start = time.perf_counter()
    automaton = Automaton(TERMS, laid_out)
    marks.append(time.perf_counter() - start)
    met: list[float] = []
    for state in begun(automaton):
        start = time.perf_counter()
        automaton.banned(state)
        met.append(time.perf_counter() - start)
    return marks[0] * 1000, marks[1] * 1000, statistics.mean(met) * 1000, max(met) * 1000


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
        "forbidden": forbidding(z, yields=False),
        "(yielding)": forbidding(z, yields=True),
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
    print(f"\n{len(TERMS)} forbidden terms, ms\n")
    print("| vocabulary | vocabulary laid out | terms prepared | state met, mean | worst |")
    print("|---|---|---|---|---|")
    for vocabulary in chosen.vocabularies:
        print(
            f"| {vocabulary} | " + " | ".join(f"{t:.2f}" for t in preparation(vocabulary)) + " |", flush=True
        )


if __name__ == "__main__":
    main()
