"""What steering must come to, by formula: one token at a time, in float64."""

import numpy as np

from steering.spec import GateKind, Operation, Phase


def covers(tokens, position, prompt_tokens):
    """Whether a term acts on the input token at `position`."""
    start, end = (
        bound + prompt_tokens if bound is not None and bound < 0 else bound
        for bound in (tokens.start, tokens.end)
    )
    if tokens.phase is Phase.PROMPT and position >= prompt_tokens:
        return False
    if tokens.phase is Phase.GENERATED and position < prompt_tokens:
        return False
    return (start is None or position >= start) and (end is None or position < end)


def changed(term, x, layer):
    """One state after one term, its gate aside."""
    v, s = np.asarray(layer.direction, np.float64), term.strength
    u = v / np.linalg.norm(v)
    if term.operation is Operation.ADD:
        return x + s * v
    if term.operation is Operation.NORM_ADD:
        y = x + s * v
        return y * np.linalg.norm(x) / np.linalg.norm(y)
    if term.operation is Operation.CLAMP:
        c = x @ u
        return x + s * (min(max(c, term.low), term.high) - c) * u
    delta = np.zeros_like(x)
    for latent, threshold in enumerate(layer.units.threshold):
        before = x @ np.asarray(layer.units.read[latent], np.float64) + layer.units.bias[latent]
        now = before if before > threshold else 0.0
        after = before + s * layer.units.offset[latent]
        moved = (after if after > threshold else 0.0) - now
        if term.operation is Operation.LATENTS:
            moved = s * (min(max(now, term.low), term.high) - now)
        delta += moved * layer.units.write[latent]
    return x + delta


def opened(gate, x, layer):
    """How far a gate lets its term act on a token whose state is `x`."""
    if gate.kind is GateKind.COSINE:
        w = np.asarray(layer.direction, np.float64)
        value = float(x @ w / (np.linalg.norm(x) * np.linalg.norm(w)) > gate.threshold)
    else:
        score = x @ np.asarray(layer.probe.weight, np.float64) + layer.probe.bias
        if gate.kind is GateKind.PROBE:
            value = 1 / (1 + np.exp(-layer.probe.slope * score))
        else:
            value = min(max(gate.slope * (gate.threshold - score), 0.0), 1.0)
    return 1 - value if gate.inverted else value


def steered(spec, vectors, x, *, layer, position, prompt_tokens):
    """The state of one token after all terms of a spec; `vectors` by digest. Clamps come last."""
    y = x
    for term in sorted(spec.terms, key=lambda term: term.operation in {Operation.CLAMP, Operation.LATENTS}):
        if layer in term.layers and covers(term.tokens, position, prompt_tokens):
            moved = changed(term, y, vectors[term.vector].layers[layer])
            gate = term.gate
            share = opened(gate, x, vectors[gate.vector].layers[layer]) if gate else 1.0
            y = y + share * (moved - y)
    return y
