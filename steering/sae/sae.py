"""A sparse autoencoder of one place in the residual stream, whatever library trained it."""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from steering.sae.encode import Architecture, Nonlinearity, Normalisation, normalised, scales
from steering.sae.errors import SaeError
from steering.sae.subset import Subset


@dataclass(frozen=True, eq=False, slots=True)
class Gate:
    """What a gated autoencoder has in place of `b_enc`; all `[d_sae]`."""

    b_gate: Tensor
    b_mag: Tensor
    r_mag: Tensor


@dataclass(frozen=True, eq=False)
class SparseAutoencoder:
    """Weights in float32: `W_enc` is `[d_in, d_sae]`, `W_dec` `[d_sae, d_in]`, biases are vectors.

    With x' = norm(x), less b_dec if `apply_b_dec_to_input`, pre-activations are x' W_enc + b_enc. `threshold`
    `[d_sae]` belongs to jumprelu and batchtopk, `k` to topk (batchtopk may tell its mean), `gate` to gated,
    which has no `b_enc`. `rescale_acts_by_decoder_norm` (topk only) multiplies pre-activations by the lengths
    of decoder rows before the choice and divides latents by them before decoding.

    It reads what leaves block `layer`; `hook` is that place in the words of its maker, `model` the model's
    name, or "". Raises SaeError for parts that do not belong together.
    """

    architecture: Architecture
    W_enc: Tensor
    W_dec: Tensor
    b_enc: Tensor | None
    b_dec: Tensor
    layer: int
    hook: str = ""
    model: str = ""
    k: int | None = None
    threshold: Tensor | None = None
    gate: Gate | None = None
    apply_b_dec_to_input: bool = False
    normalisation: Normalisation = Normalisation.NONE
    rescale_acts_by_decoder_norm: bool = False

    def __post_init__(self) -> None:
        _check(self)

    @property
    def d_in(self) -> int:
        return self.W_enc.shape[0]

    @property
    def d_sae(self) -> int:
        return self.W_enc.shape[1]

    @property
    def tensors(self) -> dict[str, Tensor]:
        """By the names that SAELens gives them."""
        named = {"W_enc": self.W_enc, "W_dec": self.W_dec, "b_enc": self.b_enc, "b_dec": self.b_dec}
        named["threshold"] = self.threshold
        if self.gate:
            named |= {"b_gate": self.gate.b_gate, "b_mag": self.gate.b_mag, "r_mag": self.gate.r_mag}
        return {name: tensor for name, tensor in named.items() if tensor is not None}

    @property
    def saved_as(self) -> Architecture:
        return Architecture.JUMPRELU if self.architecture is Architecture.BATCHTOPK else self.architecture

    @cached_property
    def digest(self) -> str:
        """SHA-256 over all that decides latents and reconstructions, and the place they are of."""
        topk = self.architecture is Architecture.TOPK
        head: list[Any] = [self.saved_as, self.k if topk else None, self.apply_b_dec_to_input]
        head += [self.normalisation, self.rescale_acts_by_decoder_norm, self.layer]
        made = hashlib.sha256(json.dumps(head).encode())
        for name, tensor in sorted(self.tensors.items()):
            made.update(f"{name}{list(tensor.shape)}".encode())
            made.update(tensor.contiguous().cpu().numpy().data)
        return made.hexdigest()

    @property
    def subset_is_exact(self) -> bool:
        """Whether some latents are had without computing all the others: not so where they are ranked."""
        return self.architecture is not Architecture.TOPK

    def encode(self, x: Tensor) -> Tensor:
        """Latents `[..., d_sae]` of states `[..., d_in]`, in float32."""
        return self._nonlinearity(self._inward(x) @ self.W_enc)

    def encode_some(self, x: Tensor, latents: Sequence[int]) -> Tensor:
        """`encode(x)[..., latents]`, from the columns of these latents alone.

        TopK ranks all latents: there the whole encoder runs, for the same result. See `subset_is_exact`.
        """
        chosen = self._indices(latents)
        if not self.subset_is_exact:
            return self.encode(x)[..., chosen]
        return self._nonlinearity.of(chosen)(self._inward(x) @ self.W_enc[:, chosen])

    def decode(self, latents: Tensor, x: Tensor | None = None) -> Tensor:
        """The states `[..., d_in]` that latents stand for.

        `x`, the states they were read from, is needed where their normalisation has to be undone.
        """
        write = self._write()
        made = latents.to(write.dtype) @ write + self.b_dec
        if self.normalisation is Normalisation.NONE:
            return made
        if x is None:
            raise SaeError(f"latents under {self.normalisation} are decoded with the states they are of")
        mean, _, outward = scales(x.to(write.dtype), self.normalisation)
        return made * outward + mean

    def reads_only(self, latents: Sequence[int]) -> Subset:
        """What it takes to monitor or steer these latents: with TopK, the whole encoder."""
        chosen = self._indices(latents)
        read = self.W_enc if not self.subset_is_exact else self.W_enc[:, chosen]
        nonlinearity = self._nonlinearity if not self.subset_is_exact else self._nonlinearity.of(chosen)
        if self.apply_b_dec_to_input:
            shift = (self.b_dec.double() @ read.double()).float()
            nonlinearity = nonlinearity.shifted(-shift)
        return Subset(
            latents=tuple(latents),
            read=read.T.contiguous(),
            write=self._write()[chosen],
            nonlinearity=nonlinearity,
            among=None if self.subset_is_exact else chosen,
            normalisation=self.normalisation,
        )

    def to(self, device: torch.device | str) -> "SparseAutoencoder":
        gate = self.gate and Gate(**{f.name: getattr(self.gate, f.name).to(device) for f in fields(Gate)})
        return replace(
            self,
            W_enc=self.W_enc.to(device),
            W_dec=self.W_dec.to(device),
            b_enc=None if self.b_enc is None else self.b_enc.to(device),
            b_dec=self.b_dec.to(device),
            threshold=None if self.threshold is None else self.threshold.to(device),
            gate=gate,
        )

    def folded(self, factor: float) -> "SparseAutoencoder":
        """The same autoencoder for states that its training multiplied by `factor`: expected average."""
        if not 0 < factor < float("inf"):
            raise SaeError(f"states are multiplied by a positive number, not {factor}")
        return replace(self, W_enc=self.W_enc * factor, W_dec=self.W_dec / factor, b_dec=self.b_dec / factor)

    def unscaled(self) -> "SparseAutoencoder":
        """The same latents and reconstructions, without `rescale_acts_by_decoder_norm`."""
        if not self.rescale_acts_by_decoder_norm:
            return self
        assert self.b_enc is not None
        return replace(
            self,
            W_enc=self.W_enc * self._norms,
            b_enc=self.b_enc * self._norms,
            W_dec=self._write(),
            rescale_acts_by_decoder_norm=False,
        )

    @cached_property
    def _norms(self) -> Tensor:
        norms: Tensor = self.W_dec.norm(dim=1)
        return norms

    @cached_property
    def _nonlinearity(self) -> Nonlinearity:
        bias = self.gate.b_gate if self.gate else self.b_enc
        assert bias is not None
        return Nonlinearity(
            self.architecture,
            bias,
            threshold=self.threshold,
            gain=self.gate.r_mag.exp() if self.gate else None,
            magnitude_bias=self.gate.b_mag if self.gate else None,
            k=self.k,
            norms=self._norms if self.rescale_acts_by_decoder_norm else None,
        )

    def _write(self) -> Tensor:
        """What one latent adds to a state, `[d_sae, d_in]`."""
        if not self.rescale_acts_by_decoder_norm:
            return self.W_dec
        return self.W_dec / self._norms.clamp(min=1e-30).unsqueeze(1)

    def _inward(self, x: Tensor) -> Tensor:
        inner = normalised(x.to(self.W_enc.dtype), self.normalisation)
        return inner - self.b_dec if self.apply_b_dec_to_input else inner

    def _indices(self, latents: Sequence[int]) -> Tensor:
        wrong = [latent for latent in latents if not 0 <= latent < self.d_sae]
        if wrong:
            raise SaeError(f"there is no latent {wrong[0]}: they are numbered 0 to {self.d_sae - 1}")
        return torch.tensor(list(latents), dtype=torch.long, device=self.W_enc.device)


def _check(sae: SparseAutoencoder) -> None:
    if sae.W_enc.ndim != 2 or not sae.W_enc.numel():
        raise SaeError(f"W_enc is [d_in, d_sae], not {list(sae.W_enc.shape)}")
    shapes = {"W_enc": (sae.d_in, sae.d_sae), "W_dec": (sae.d_sae, sae.d_in), "b_dec": (sae.d_in,)}
    for name, tensor in sae.tensors.items():
        shape = shapes.get(name, (sae.d_sae,))
        if tuple(tensor.shape) != shape:
            raise SaeError(f"{name} is {list(tensor.shape)}, it should be {list(shape)}")
        if tensor.dtype != torch.float32:
            raise SaeError(f"{name} is {tensor.dtype}: weights are float32")
        if not torch.isfinite(tensor).all():
            raise SaeError(f"{name} holds a value that is not a finite number")
    _check_parts(sae)


def _check_parts(sae: SparseAutoencoder) -> None:
    jumps = sae.architecture in {Architecture.JUMPRELU, Architecture.BATCHTOPK}
    gated, topk = sae.architecture is Architecture.GATED, sae.architecture is Architecture.TOPK
    if jumps != (sae.threshold is not None):
        raise SaeError(f"{sae.architecture} {'needs a' if jumps else 'has no'} threshold")
    if gated != (sae.gate is not None) or gated != (sae.b_enc is None):
        raise SaeError("gated autoencoders have b_gate, b_mag and r_mag, the others b_enc")
    if topk and not (isinstance(sae.k, int) and 1 <= sae.k <= sae.d_sae):
        raise SaeError(f"topk keeps 1 to {sae.d_sae} latents, not {sae.k}")
    if sae.rescale_acts_by_decoder_norm and not topk:
        raise SaeError(f"only topk rescales by decoder norms, not {sae.architecture}")
    if sae.normalisation is Normalisation.EXPECTED_AVERAGE:
        raise SaeError("the factor of expected_average_only_in is folded into the weights")
    if sae.layer < 0:
        raise SaeError("layers are numbered from 0")
