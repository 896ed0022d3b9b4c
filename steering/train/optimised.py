"""Vectors optimised on few examples (Dunefsky and Cohan, arXiv 2502.18862).

The paper adds v to the input of block L, we to the output of block L, which is the input of L + 1.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from steering.train.pairs import EncodedPair
from steering.train.tail import Batch, Tail, batches
from steering.vector import Array

# Elements of logits at a time: what is made of them stays below the size at which malloc maps fresh pages.
_LOGITS = 6 * 2**20
_STATES = 2**30  # bytes of states to hold at once


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
    `begin` says at which layers vectors will act, and has to come first. `draft` is the same model in a type
    that is faster: gradients, and the losses that come with them, are then its own.
    """

    def __init__(
        self,
        tail: Tail,
        pairs: Sequence[EncodedPair],
        options: Options,
        device: str,
        draft: Tail | None = None,
    ) -> None:
        answers = [pair.positive for pair in pairs]
        promoted = len(answers)
        answers += [pair.negative for pair in pairs if pair.negative]
        lengths = [answer.end - answer.start if options.per_token else 1 for answer in answers]
        self.tail, self.draft, self.options = tail, draft, options
        self.batches = batches(answers, device)
        self.mean_norms: dict[int, float] = {}  # mean ‖h‖ where the answers are predicted
        self._promoted = promoted
        self._weights = 1.0 / (len(answers) * torch.tensor(lengths, device=device, dtype=torch.float32))
        self._states: list[dict[int, Tensor]] = []

    @property
    def capacity(self) -> int:
        """How many layers' states to hold at once."""
        tokens = sum(batch.tokens.numel() for batch in self.batches)
        return max(1, _STATES // (4 * tokens * self.tail.width))

    def begin(self, layers: Sequence[int]) -> None:
        """Compute what lies below these layers, once."""
        self._states = [self.tail.states(batch, layers) for batch in self.batches]
        for layer in layers:
            norms = [
                states[layer].flatten(0, 1)[batch.rows].float().norm(dim=-1)
                for batch, states in zip(self.batches, self._states, strict=True)
            ]
            self.mean_norms[layer] = float(torch.cat(norms).mean())

    def __call__(self, vectors: Mapping[int, Tensor], *, grad: bool = False) -> float:
        """The loss; with `grad` its gradient is added to that of each vector."""
        tail = self.draft if grad and self.draft else self.tail
        # Where no vector acts the deepest state will do, and costs least.
        first = min(vectors, default=max(self._states[0]))
        total = 0.0
        for batch, states in zip(self.batches, self._states, strict=True):
            with torch.set_grad_enabled(grad):
                hidden = tail.hidden(batch, first, states[first].to(tail.dtype), vectors)
            # The head in parts, each with its backward pass: logits of a batch would outgrow the caches.
            leaf = hidden.detach().requires_grad_(grad)
            for rows in self._parts(len(leaf)):
                with torch.set_grad_enabled(grad):
                    loss = self._loss(tail.logits(leaf[rows]), batch, rows)
                if grad:
                    loss.backward()
                total += float(loss.detach())
            if grad:
                hidden.backward(leaf.grad)
        return total

    def _parts(self, count: int) -> list[slice]:
        size = max(1, _LOGITS // self.tail.vocabulary)
        return [slice(start, start + size) for start in range(0, count, size)]

    def _loss(self, logits: Tensor, batch: Batch, rows: slice) -> Tensor:
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
    log_p: Tensor = _LogProb.apply(logits, targets, coldness)  # type: ignore[no-untyped-call]  # our own class
    return log_p


def optimise(
    objective: Objective,
    layers: Sequence[int],
    max_norms: Mapping[int, float],
    on_step: Callable[[Step], None],
) -> dict[int, Found]:
    """Each layer's vector by itself, to act without the others."""
    before = math.nan
    found: dict[int, Found] = {}
    for number, layer in enumerate(layers):
        if number % objective.capacity == 0:
            objective.begin(layers[number : number + objective.capacity])
        if not number:
            before = objective({})
        counted = _counted(on_step, number, len(layers))
        found[layer] = _run(objective, layer, max_norms[layer], before, counted)
    return found


def _counted(on_step: Callable[[Step], None], number: int, runs: int) -> Callable[[Step], None]:
    """Steps of run `number` as steps of all `runs`."""
    return lambda step: on_step(replace(step, done=number * step.total + step.done, total=runs * step.total))


def _run(
    objective: Objective, layer: int, max_norm: float, before: float, on_step: Callable[[Step], None]
) -> Found:
    options = objective.options
    vector = _start(objective.tail, layer, max_norm, options.seed)
    adam = torch.optim.Adam([vector], lr=options.lr)
    best, kept, previous = math.inf, vector, math.inf
    for iteration in range(options.iterations + 1):  # the last step's outcome counts too
        final = iteration == options.iterations
        adam.zero_grad()
        loss = objective({layer: vector}, grad=not final)
        if not math.isfinite(loss):
            raise ValueError(f"the loss at layer {layer} is not a number; a smaller lr may help")
        on_step(Step((layer,), iteration, loss, iteration + 1, options.iterations + 1))
        if final and objective.draft:
            best = objective({layer: kept})  # losses of the draft do not compare with this one
        if loss < best:
            best, kept = loss, vector.detach().clone()
        reached = options.target_loss is not None and loss <= options.target_loss
        if final or reached or abs(previous - loss) < options.eps:
            break
        previous = loss
        adam.step()
        bound(vector, max_norm)
    if objective.draft and iteration < options.iterations:
        best = objective({layer: kept})
    return Found(_array(kept), best, before, iteration, objective.mean_norms[layer])


def _start(tail: Tail, layer: int, max_norm: float, seed: int) -> Tensor:
    """Random, of norm 1, or of a tenth of what it may become where this is less.

    Drawn on the CPU from seed and layer alone, so that neither the device nor other layers matter.
    """
    generator = torch.Generator().manual_seed(seed * 1009 + layer)
    vector = torch.randn(tail.width, generator=generator, dtype=torch.float32)
    vector *= min(1.0, 0.1 * max_norm) / vector.norm()
    dtype = torch.float64 if tail.dtype == torch.float64 else torch.float32
    return vector.to(tail.device, dtype).requires_grad_()


@torch.no_grad()
def bound(vector: Tensor, max_norm: float) -> None:
    """Shorten the vector, in place, to `max_norm` where it is longer."""
    norm = vector.norm()
    if norm > max_norm:
        vector *= max_norm / norm


def _array(vector: Tensor) -> Array:
    return np.asarray(vector.cpu().numpy(), np.float32)
