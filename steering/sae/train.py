"""A TopK autoencoder from a stream of states: bounded memory, resumable, the same for the same seed."""

import json
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Final

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from steering.sae.encode import Architecture
from steering.sae.errors import CorruptSae, SaeError
from steering.sae.model import block_of
from steering.sae.sae import SparseAutoencoder
from steering.sae.saelens import replace_file
from steering.sae.topk import Descent, Revival
from steering.vector import Array

_VERSION: Final = 1  # of checkpoints
_KEY: Final = "steersman_training"
_WARM_UP: Final = 0.02  # shares of all states: the rate rises over the first, falls to 0 over the last
_COOL_DOWN: Final = 0.5
_CHUNK: Final = 1024
_SAMPLE: Final = 16384  # states on which a threshold is calibrated, at most
_OUTLIER: Final = 10.0  # times the median length

# States from number n on, `[any, width]` each.
Source = Callable[[int], Iterable[Array]]


@dataclass(frozen=True, slots=True)
class Options:
    """`rows` states are learned from, `passes` times each; a shorter stream ends training early.

    `latents` compete, `active` of them explain one state. `block` states are held in memory and shuffled
    among themselves, so they should span many texts. A latent that stayed silent over `dead_after` states is
    dead, and `dead_active` of those are taught with `dead_weight` what the others miss.

    States ten times as long as the median are passed over: a few positions, the first of a text among them,
    are attention sinks, a hundred times as long as others, and would be most of what there is to explain.
    """

    rows: int
    latents: int = 2048
    active: int = 32
    passes: int = 1
    batch: int = 512
    block: int = 16384
    lr: float = 2e-3
    dead_after: int = 50_000
    dead_active: int = 128
    dead_weight: float = 1 / 32
    seed: int = 0

    def __post_init__(self) -> None:
        counts = (self.rows, self.latents, self.active, self.passes, self.batch, self.dead_active)
        if min(counts) < 1:
            raise SaeError("rows, latents, active, passes, batch and dead_active are at least 1")
        if self.active > self.latents:
            raise SaeError(f"{self.active} of {self.latents} latents cannot be active")
        if self.block < self.batch:
            raise SaeError("a block holds at least one batch")
        if not (self.lr > 0 and self.dead_after > 0 and self.dead_weight >= 0):
            raise SaeError("lr and dead_after are positive, dead_weight is not negative")


@dataclass(frozen=True, slots=True)
class Progress:
    """`rows` of the `of` states planned are done. `explained` is of the last block, before it was learned."""

    rows: int
    of: int
    steps: int
    explained: float
    dead: float


def fit(
    source: Source,
    options: Options,
    hook: str,
    *,
    model: str = "",
    checkpoint: Path | None = None,
    every: int = 4,
    on_progress: Callable[[Progress], None] = lambda _progress: None,
) -> SparseAutoencoder:
    """An autoencoder of `hook` ('blocks.L.hook_resid_post'), with decoder rows of norm 1.

    `checkpoint` is written after each `every` blocks and at the end; where it is there already, training goes
    on from it, and `source` is asked for what it has not seen. The result is then the same, to the bit on the
    same machine and number of threads, as without the interruption. `on_progress` hears of each block; what
    it raises stops training. Raises SaeError for states or a checkpoint that cannot be learned from.
    """
    layer = block_of(hook)
    training = _Training.resumed(checkpoint, options) if checkpoint and checkpoint.exists() else None
    done = training.rows if training else 0
    blocks = _blocks(source(done), options.block, options.rows - done) if done < options.rows else iter(())
    saved = done
    for number, block in enumerate(blocks, start=1):
        training = training or _Training.begun(block, options)
        explained = training.learn(block)
        if checkpoint and number % every == 0:
            training.save(checkpoint)
            saved = training.rows
        dead = float((training.silent > options.dead_after).float().mean())
        on_progress(Progress(training.rows, options.rows, training.descent.steps, explained, dead))
    if training is None:
        raise SaeError("there are no states to learn from")
    if checkpoint and saved != training.rows:
        training.save(checkpoint)
    return training.autoencoder(layer, hook, model)


def skipping(arrays: Callable[[], Iterable[Array]]) -> Source:
    """A source out of a stream that can only begin at the beginning."""

    def source(skip: int) -> Iterator[Array]:
        for array in arrays():
            if skip < len(array):
                yield array[skip:]
            skip = max(0, skip - len(array))

    return source


def longest_ordinary(rows: Array) -> float:
    """The length beyond which a state is an attention sink: ten times the median of these `[n, width]`."""
    return _OUTLIER * float(np.median(np.linalg.norm(rows, axis=1)))


def with_threshold(sae: SparseAutoencoder, rows: Array) -> SparseAutoencoder:
    """A BatchTopK approximation of a TopK autoencoder: some latents are had without all the others.

    One threshold replaces the ranking; over `rows` `[n, d_in]` it leaves k latents active on average. Rows
    beyond some thousands are thinned out.
    """
    if sae.architecture is not Architecture.TOPK or sae.k is None:
        raise SaeError(f"a ranking is replaced by a threshold, and {sae.architecture} has none")
    if sae.rescale_acts_by_decoder_norm:
        raise SaeError("decoder norms rescale its ranking, which one threshold cannot")
    rows = rows[np.linalg.norm(rows, axis=1) <= longest_ordinary(rows)]
    rows = rows[:: -(-len(rows) // _SAMPLE)]
    open_encoder = SparseAutoencoder(
        **{name: getattr(sae, name) for name in _COMMON},
        architecture=Architecture.TOPK,
        k=min(8 * sae.k, sae.d_sae),  # a row with still more above the threshold counts for that many
    )
    found = []
    for start in range(0, len(rows), _CHUNK):
        latents = open_encoder.encode(torch.from_numpy(rows[start : start + _CHUNK]).to(sae.W_enc.device))
        found.append(latents[latents > 0])
    values = torch.cat(found)
    above = len(rows) * sae.k  # so many activations stay
    threshold = float(values.kthvalue(len(values) - above).values) if len(values) > above else 0.0
    return SparseAutoencoder(
        **{name: getattr(sae, name) for name in _COMMON},
        architecture=Architecture.BATCHTOPK,
        k=sae.k,
        threshold=torch.full_like(sae.W_enc[0], threshold),
    )


_COMMON: Final = (
    *("W_enc", "W_dec", "b_enc", "b_dec", "layer", "hook", "model"),
    *("apply_b_dec_to_input", "normalisation"),
)


@dataclass
class _Training:
    """States are learned less `centre`, over `scale`: of mean squared norm `width`, so that rates suit."""

    options: Options
    descent: Descent
    centre: Tensor
    scale: float
    longest: float  # longer states are passed over
    silent: Tensor  # [latents]: states since each was last active
    rows: int = 0

    @classmethod
    def begun(cls, block: Tensor, options: Options) -> "_Training":
        """Centre, scale and first latents from the first block."""
        longest = longest_ordinary(block.numpy())
        block = block[block.norm(dim=1) <= longest]
        centre = block.mean(dim=0, dtype=torch.float64).float()
        x = block - centre
        scale = float(x.square().sum(dim=1).mean().sqrt()) / block.shape[1] ** 0.5
        if not scale > 0:
            raise SaeError("all states are the same: there is nothing to learn from")
        generator = torch.Generator().manual_seed(options.seed)
        start = x[torch.randint(len(x), (options.latents,), generator=generator)] / scale
        start += 0.3 * torch.randn(start.shape, generator=generator)
        # Latents that are states have much in common: together they say it many times over.
        sample = x[: options.batch] / scale
        again = Descent(start, options.active).reconstruct(sample)
        gain = float((sample * again).sum() / again.square().sum().clamp(min=1e-12))
        descent = Descent(start, options.active, gain)
        silent = torch.zeros(options.latents, dtype=torch.int64)
        return cls(options, descent, centre, scale, longest, silent)

    def learn(self, block: Tensor) -> float:
        """All passes over a block; the share of variance explained at the first."""
        options = self.options
        if block.shape[1] != len(self.centre):
            raise SaeError(f"states are {block.shape[1]} wide, those before were {len(self.centre)}")
        self.rows += len(block)
        block = block[block.norm(dim=1) <= self.longest]
        generator = torch.Generator().manual_seed(options.seed + self.rows)
        error = total = 0.0
        for turn in range(options.passes):
            order = torch.randperm(len(block), generator=generator)
            for start in range(0, len(block), options.batch):
                x = (block[order[start : start + options.batch]] - self.centre) / self.scale
                rate = self._rate((options.passes - turn - start / len(block)) / options.passes * len(block))
                missed, fired = self.descent.step(x, rate, self._revival())
                self.silent += len(x)
                self.silent[fired] = 0
                if turn == 0:
                    error, total = error + missed, total + float(x.square().sum())
        return 1.0 - error / total if total else 0.0

    def _rate(self, left: float) -> float:
        """`left` states of the block at hand are still to be learned from."""
        done = (self.rows - left) / self.options.rows
        rising, falling = (done + 1e-3) / _WARM_UP, (1.0 - done) / _COOL_DOWN
        return self.options.lr * min(1.0, rising, falling)

    def _revival(self) -> Revival | None:
        dead = self.silent > self.options.dead_after
        if not self.options.dead_weight or not dead.any():
            return None
        return Revival(dead, self.options.dead_active, self.options.dead_weight)

    def autoencoder(self, layer: int, hook: str, model: str) -> SparseAutoencoder:
        """In the units of the states: latents times `scale`, so that decoder rows keep norm 1."""
        tensors = self.descent.tensors()
        read, write = tensors["read"].double(), tensors["write"].clone()
        offset = self.scale * tensors["offset"].double()
        b_enc = self.scale * tensors["bias"].double() + read @ offset
        return SparseAutoencoder(
            architecture=Architecture.TOPK,
            W_enc=tensors["read"].T.contiguous(),
            W_dec=write,
            b_enc=b_enc.float(),
            b_dec=(self.centre.double() + offset).float(),
            layer=layer,
            hook=hook,
            model=model,
            k=self.options.active,
            apply_b_dec_to_input=True,
        )

    def save(self, path: Path) -> None:
        tensors = {name: tensor.contiguous() for name, tensor in self.descent.tensors().items()}
        tensors |= {"centre": self.centre, "silent": self.silent}
        state = {
            "version": _VERSION,
            "options": asdict(self.options),
            "rows": self.rows,
            "steps": self.descent.steps,
            "scale": self.scale,
            "longest": self.longest,
        }
        path.parent.mkdir(parents=True, exist_ok=True)
        replace_file(path, save(tensors, {_KEY: json.dumps(state)}))

    @classmethod
    def resumed(cls, path: Path, options: Options) -> "_Training":
        try:
            with safe_open(path, framework="pt") as file:
                state = json.loads((file.metadata() or {})[_KEY])
                tensors = {name: file.get_tensor(name).clone() for name in file.keys()}  # noqa: SIM118
            if state["version"] != _VERSION:
                raise CorruptSae(f"{path.name} is a checkpoint of version {state['version']}")
            if state["options"] != asdict(options):
                raise SaeError(
                    f"{path.name} is a checkpoint of a training with other options: "
                    "go on with those, or remove it"
                )
            descent = Descent.restored(tensors, options.active, int(state["steps"]))
            scale, longest, rows = float(state["scale"]), float(state["longest"]), int(state["rows"])
            return cls(options, descent, tensors["centre"], scale, longest, tensors["silent"], rows)
        except (SafetensorError, OSError, KeyError, TypeError, ValueError, RuntimeError) as error:
            if isinstance(error, SaeError):
                raise
            raise CorruptSae(f"{path.name} is not a checkpoint of a training: {error}") from error


def _blocks(arrays: Iterable[Array], size: int, most: int) -> Iterator[Tensor]:
    """The same states in blocks of `size`, the last one shorter, `most` in all."""
    held: list[Array] = []
    count = 0
    for array in arrays:
        rest = _checked(array)
        while len(rest):
            part = rest[: min(size - count, most)]
            held.append(part.copy())
            count, most, rest = count + len(part), most - len(part), rest[len(part) :]
            if count == size or most == 0:
                yield _joined(held)
                held, count = [], 0
            if most == 0:
                return
    if count:
        yield _joined(held)


def _joined(held: list[Array]) -> Tensor:
    if len({array.shape[1] for array in held}) > 1:
        raise SaeError("states differ in width")
    return torch.from_numpy(np.concatenate(held))


def _checked(array: Array) -> Array:
    array = np.asarray(array, np.float32)
    if array.ndim != 2:
        raise SaeError(f"states are [rows, width], not {array.shape}")
    if not np.isfinite(array).all():
        raise SaeError("states hold values that are not finite numbers")
    return array
