"""What steering must come to, as hooks of Transformers' own model."""

from contextlib import ExitStack, contextmanager

import numpy as np
import torch

from steering.vector import Layer, Probe, SteeringVector, Units
from tests.steering.formulas import steered
from tests.steering.models import blocks


@contextmanager
def hooked(model, spec, vectors, prompt_tokens):
    """The model steered by `spec` while within."""

    def hook(layer):
        def after(_module, _inputs, output):
            hidden = output[0] if isinstance(output, tuple) else output
            states = hidden[0].double().numpy()
            at = {"layer": layer, "prompt_tokens": prompt_tokens}
            rows = [steered(spec, vectors, x, position=p, **at) for p, x in enumerate(states)]
            result = torch.from_numpy(np.stack(rows)).to(hidden.dtype)[None]
            return (result, *output[1:]) if isinstance(output, tuple) else result

        return after

    with ExitStack() as stack:
        for layer in {layer for term in spec.terms for layer in term.layers}:
            stack.callback(blocks(model)[layer].register_forward_hook(hook(layer)).remove)
        yield


def logprobs(model, ids, spec=None, vectors=None, prompt_tokens=0):
    """Of every token of `ids` but the first, given those before it."""
    with ExitStack() as stack:
        if spec is not None:
            stack.enter_context(hooked(model, spec, vectors, prompt_tokens))
        with torch.no_grad():
            table = model(torch.tensor([ids]), use_cache=False).logits[0].log_softmax(-1)
    return [float(table[index, token]) for index, token in enumerate(ids[1:])]


def states(model, ids, spec=None, vectors=None, prompt_tokens=0, *, after=False):
    """What leaves each block, `[layers, tokens, hidden]`: before the layer's own change, or after it."""
    kept = {}

    def keep(layer):
        def read(_module, _inputs, output):
            kept[layer] = (output[0] if isinstance(output, tuple) else output)[0].double().numpy()

        return read

    with ExitStack() as stack:
        if spec is not None and after:
            stack.enter_context(hooked(model, spec, vectors, prompt_tokens))
        for layer, block in enumerate(blocks(model)):
            stack.callback(block.register_forward_hook(keep(layer)).remove)
        if spec is not None and not after:
            stack.enter_context(hooked(model, spec, vectors, prompt_tokens))
        with torch.no_grad():
            model(torch.tensor([ids]), use_cache=False)
    return np.stack([kept[layer] for layer in sorted(kept)])


def vector_for(model, prompt, layers, *, dose=0.4, seed=0):
    """Random directions as long as `dose` times the states that they meet, each with a probe and latents."""
    found, rng = states(model, prompt), np.random.default_rng(seed)
    made = {}
    for layer in layers:
        scale, width = np.linalg.norm(found[layer], axis=-1).mean(), found.shape[-1]

        def unit(*shape, width=width):
            rows = rng.standard_normal((*shape, width))
            return (rows / np.linalg.norm(rows, axis=-1, keepdims=True)).astype(np.float32)

        weight, read = unit(), unit(3)
        scores = found[layer] @ weight
        made[layer] = Layer(
            unit() * np.float32(dose * scale),
            Probe(weight, float(-np.median(scores)), float(2 / scores.std())),
            Units(
                read,
                unit(3),
                np.zeros(3, np.float32),
                np.full(3, dose * scale, np.float32),
                np.median(found[layer] @ read.T, axis=0).astype(np.float32),
            ),
        )
    return SteeringVector(made)
