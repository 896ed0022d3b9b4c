"""Vectors optimised on few examples (Dunefsky and Cohan, arXiv 2502.18862).

The paper adds v to the input of block L, we to the output of block L, which is the input of L + 1.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from steering.train.pairs import EncodedPair
from steering.train.tail import Batch, Tail, batches
from steering.vector import Array

# Elements of logits at a time: what is made of them stays below the size at which malloc maps fresh pages.
_LOGITS = 6 * 2**20


@dataclass(frozen=True, slots=True)
class Options:
    """`coldness` scales the logits, `eps` guards the logarithms and is the change below which a run ends.

    `per_token` divides each completion's loss by its length; `target_loss` is a mean over completions.
    """

    iterations: int = 20
    lr: float = 0.1
    coldness: float = 0.7
    eps: float = 1e-6
    target_loss: float | None = None
    per_token: bool = False
    seed: int = 0

    def __post_init__(self) -> None:
        if self.iterations < 1:
            raise ValueError("iterations must be at least 1")
        for name in ("lr", "coldness", "eps"):
            value = getattr(self, name)
            if not (math.isfinite(value) and value > 0):
                raise ValueError(f"{name} must be a positive number")


@dataclass(frozen=True, slots=True)
class Step:
    """The loss found at one iteration of one run, and how many evaluations of all are done."""

    layers: tuple[int, ...]
    iteration: int
    loss: float
    done: int
    total: int


@dataclass(frozen=True)
class Found:
    """The best vector of a run: `loss` is its own, `before` that without it, `mean_norm` the mean ‖h‖."""

    direction: Array
    loss: float
    before: float
    iterations: int
    mean_norm: float


class Objective:
    """The loss of all completions as a function of the vectors; a mean over completions.

    Promoted tokens cost `-log(p + eps)`, suppressed ones `-log(1 - p + eps)`, p from softmax(coldness z).
    `begin` says from which layer on vectors will act, and has to come first.
    """

    def __init__(self, tail: Tail, pairs: Sequence[EncodedPair], options: Options, device: str) -> None:
        answers = [pair.positive for pair in pairs]
        promoted = len(answers)
        answers += [pair.negative for pair in pairs if pair.negative]
        lengths = [answer.end - answer.start if options.per_token else 1 for answer in answers]
        self.tail, self.options = tail, options
        self.batches = batches(answers, device)
        self.mean_norms: dict[int, float] = {}  # mean ‖h‖ where the answers are predicted
        self._promoted = promoted
        self._weights = 1.0 / (len(answers) * torch.tensor(lengths, device=device, dtype=torch.float32))
        self._first = 0
        self._states: list[Tensor] = []

    def begin(self, layers: Sequence[int]) -> Tensor:
        """Compute what lies below the lowest of `layers`, once. Returns a tensor of the states' kind."""
        self._first, self._states = min(layers), []
        norms: dict[int, list[Tensor]] = {layer: [] for layer in layers}
        for batch in self.batches:
            states = self.tail.states(batch, layers)
            self._states.append(states[self._first])
            for layer, state in states.items():
                norms[layer].append(state.flatten(0, 1)[batch.rows].float().norm(dim=-1))
        self.mean_norms |= {layer: float(torch.cat(parts).mean()) for layer, parts in norms.items()}
        return self._states[0][0, 0]

    def __call__(self, vectors: Mapping[int, Tensor], *, grad: bool = False) -> float:
        """The loss; with `grad` its gradient is added to that of each vector."""
        total = 0.0
        for batch, state in zip(self.batches, self._states, strict=True):
            with torch.set_grad_enabled(grad):
                hidden = self.tail.hidden(batch, self._first, state, vectors)
            # The head in parts, each with its backward pass: logits of a batch would outgrow the caches.
            leaf = hidden.detach().requires_grad_(grad)
            for rows in self._parts(len(leaf)):
                with torch.set_grad_enabled(grad):
                    loss = self._loss(leaf[rows], batch, rows)
                if grad:
                    loss.backward()  # type: ignore[no-untyped-call]
                total += float(loss.detach())
            if grad:
                hidden.backward(leaf.grad)  # type: ignore[no-untyped-call]
        return total

    def _parts(self, count: int) -> list[slice]:
        vocabulary = self.tail.model.config.get_text_config().vocab_size  # type: ignore[operator, union-attr]
        size = max(1, _LOGITS // int(vocabulary))
        return [slice(start, start + size) for start in range(0, count, size)]

    def _loss(self, hidden: Tensor, batch: Batch, rows: slice) -> Tensor:
        logits = self.tail.logits(hidden)
        p = _log_prob(logits, batch.targets[rows], self.options.coldness).exp()
        wanted = batch.texts[rows] < self._promoted
        loss = -torch.log(torch.where(wanted, p, 1.0 - p) + self.options.eps)
        return (loss * self._weights[batch.texts[rows]]).sum()


class _LogProb(torch.autograd.Function):
    """Log-probability of each row's target under softmax(coldness z).

    What autograd would make of it walks five more times over the vocabulary, which takes as long as the head.
    """

    @staticmethod
    def forward(ctx: Any, logits: Tensor, targets: Tensor, coldness: float) -> Tensor:
        log_p = torch.log_softmax(coldness * logits, dim=-1)
        ctx.save_for_backward(log_p, targets)
        ctx.coldness = coldness
        return log_p.gather(-1, targets[:, None])[:, 0]

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None]:
        log_p, targets = ctx.saved_tensors
        scale = -ctx.coldness * grads[0]
        grad = log_p.exp_().mul_(scale[:, None])  # in place: each graph here is walked once
        grad[torch.arange(len(targets), device=targets.device), targets] -= scale
        return grad, None, None


def _log_prob(logits: Tensor, targets: Tensor, coldness: float) -> Tensor:
    log_p: Tensor = _LogProb.apply(logits, targets, coldness)  # type: ignore[no-untyped-call]
    return log_p


def optimise(
    objective: Objective,
    layers: Sequence[int],
    max_norms: Mapping[int, float],
    on_step: Callable[[Step], None],
    *,
    together: bool = False,
) -> dict[int, Found]:
    """Each layer's vector alone, or all of them `together`, to act in one forward pass."""
    runs = [tuple(layers)] if together else [(layer,) for layer in layers]
    found: dict[int, Found] = {}
    for number, run in enumerate(runs):
        found |= _run(objective, run, max_norms, on_step, turn=(number, len(runs)))
    return found


def _run(
    objective: Objective,
    layers: tuple[int, ...],
    max_norms: Mapping[int, float],
    on_step: Callable[[Step], None],
    *,
    turn: tuple[int, int],
) -> dict[int, Found]:
    options = objective.options
    number, runs = turn
    evaluations = options.iterations + 1  # the last step's outcome counts too
    like = objective.begin(layers)
    vectors = {layer: _start(like, layer, max_norms[layer], options.seed) for layer in layers}
    before = objective({})
    adam = torch.optim.Adam(vectors.values(), lr=options.lr)
    best, kept, previous = math.inf, vectors, math.inf
    for iteration in range(evaluations):
        final = iteration == options.iterations
        adam.zero_grad()
        loss = objective(vectors, grad=not final)
        if not math.isfinite(loss):
            raise ValueError(f"the loss at layers {layers} is not a number; a smaller lr may help")
        on_step(Step(layers, iteration, loss, number * evaluations + iteration + 1, runs * evaluations))
        if loss < best:
            best = loss
            kept = {layer: vector.detach().clone() for layer, vector in vectors.items()}
        reached = options.target_loss is not None and loss <= options.target_loss
        if final or reached or abs(previous - loss) < options.eps:
            break
        previous = loss
        adam.step()
        for layer, vector in vectors.items():
            bound(vector, max_norms[layer])
    return {
        layer: Found(_array(kept[layer]), best, before, iteration, objective.mean_norms[layer])
        for layer in layers
    }


def _start(like: Tensor, layer: int, max_norm: float, seed: int) -> Tensor:
    """Random, of norm 1, or of a tenth of what it may become where this is less.

    Drawn on the CPU from seed and layer alone, so that neither the device nor other layers matter.
    """
    generator = torch.Generator().manual_seed(seed * 1009 + layer)
    vector = torch.randn(like.shape, generator=generator, dtype=torch.float32)
    vector *= min(1.0, 0.1 * max_norm) / vector.norm()
    dtype = torch.float64 if like.dtype == torch.float64 else torch.float32
    return vector.to(like.device, dtype).requires_grad_()


@torch.no_grad()
def bound(vector: Tensor, max_norm: float) -> None:
    """Shorten the vector, in place, to `max_norm` where it is longer."""
    norm = vector.norm()
    if norm > max_norm:
        vector *= max_norm / norm


def _array(vector: Tensor) -> Array:
    return np.asarray(vector.cpu().numpy(), np.float32)
