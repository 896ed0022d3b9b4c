"""What one token goes through at one layer, as a Triton kernel over the buffers of `steering.kernel`.

Only `steering.kernel` imports this, when it has a device: Triton is slow to import, and absent on most CPUs.
"""

# Triton has no stubs, gives parameters their types at each launch, and knows no structures.
# mypy: disable-error-code="import-untyped, import-not-found, untyped-decorator, no-untyped-def"
# ruff: noqa: ANN001, ANN201, ANN202, PLR0917

import triton
import triton.language as tl

from steering.spec import GateKind, Operation
from steering.vector import Scaling

NORM_ADD = tl.constexpr(tuple(Operation).index(Operation.NORM_ADD))
CLAMP = tl.constexpr(tuple(Operation).index(Operation.CLAMP))
UNITS = tl.constexpr(tuple(Operation).index(Operation.UNITS))
LATENTS = tl.constexpr(tuple(Operation).index(Operation.LATENTS))
COSINE = tl.constexpr(1 + tuple(GateKind).index(GateKind.COSINE))  # 0: no gate
PROBE = tl.constexpr(1 + tuple(GateKind).index(GateKind.PROBE))
CONSTANT_NORM = tl.constexpr(tuple(Scaling).index(Scaling.CONSTANT_NORM))
UNSCALED = tl.constexpr(tuple(Scaling).index(Scaling.NONE))


@triton.jit
def _line(bank, line, width, columns, mask):
    return tl.load(bank + line.to(tl.int64) * width + columns, mask=mask, other=0.0)


@triton.jit
def _length(x):
    return tl.sqrt_rn(tl.sum(x * x))


@triton.jit
def _gate(state, w, kind, inverted, bias, slope, threshold):
    """See `ops.cosine_gate`, `probe_gate` and `ramp_gate`."""
    score = tl.sum(state * w)
    if kind == COSINE:
        gate = tl.where(score > threshold * (_length(state) * _length(w)), 1.0, 0.0)
    elif kind == PROBE:
        gate = tl.sigmoid(slope * (score + bias))
    else:
        gate = tl.minimum(tl.maximum(slope * (threshold - score - bias), 0.0), 1.0)
    if inverted != 0:
        gate = 1.0 - gate
    return gate


@triton.jit
def _step(x, v, operation, norm, strength, low, high):
    """How far `ops.add`, `norm_preserving_add` and `clamp` move x."""
    step = strength * v
    if operation == NORM_ADD:
        y = x + step
        before = _length(x)
        after = _length(y)
        ratio = before / tl.where(after > 0, after, 1.0)
        step = tl.where(after > 0, (ratio - 1.0) * y + step, 0.0)
    elif operation == CLAMP:
        u = v / norm
        c = tl.sum(x * u)
        step = strength * (tl.minimum(tl.maximum(c, low), high) - c) * u
    return step


@triton.jit
def _units_step(
    x, bank, unit_lines, unit_numbers, first, count, operation, strength, low, high, width, columns, mask
):
    """How far `ops.units` and `clamp_latents` move x."""
    step = tl.zeros_like(x)
    for unit in range(first, first + count):
        a = tl.sum(x * _line(bank, tl.load(unit_lines + unit * 2), width, columns, mask))
        a += tl.load(unit_numbers + unit * 4)
        b = a + strength * tl.load(unit_numbers + unit * 4 + 1)
        threshold = tl.load(unit_numbers + unit * 4 + 2)
        now = tl.where(a > threshold, a, 0.0)
        moved = tl.where(b > threshold, b, 0.0) - now
        if operation == LATENTS:
            moved = strength * (tl.minimum(tl.maximum(now, low), high) - now)
        if moved != 0:
            step += moved * _line(bank, tl.load(unit_lines + unit * 2 + 1), width, columns, mask)
    return step


@triton.jit
def _change(state, x, bank, integers, floats, unit_lines, unit_numbers, width, columns, mask):
    """How far one change moves x; its gate reads the state. Columns as `steering.kernel` writes them."""
    operation = tl.load(integers)
    strength = tl.load(floats)
    low = tl.load(floats + 1)
    high = tl.load(floats + 2)
    if (operation == UNITS) | (operation == LATENTS):
        first = tl.load(integers + 5)
        count = tl.load(integers + 6)
        step = _units_step(
            x,
            bank,
            unit_lines,
            unit_numbers,
            first,
            count,
            operation,
            strength,
            low,
            high,
            width,
            columns,
            mask,
        )
    else:
        v = _line(bank, tl.load(integers + 1), width, columns, mask)
        norm = tl.load(floats + 3)
        step = _step(x, v, operation, norm, strength, low, high)
    kind = tl.load(integers + 2)
    if kind != 0:
        w = _line(bank, tl.load(integers + 3), width, columns, mask)
        bias = tl.load(floats + 4)
        slope = tl.load(floats + 5)
        step = _gate(state, w, kind, tl.load(integers + 4), bias, slope, tl.load(floats + 6)) * step
    return step


@triton.jit
def _keep(x, line, sums, norms, counts, width, columns, mask):
    tl.atomic_add(sums + line.to(tl.int64) * width + columns, x, mask=mask, sem="relaxed")
    tl.atomic_add(norms + line, _length(x), sem="relaxed")
    tl.atomic_add(counts + line, 1, sem="relaxed")


@triton.jit
def _scaled(x, scaling, mask, width: tl.constexpr):
    """As `ops.detect` has it."""
    y = x
    if scaling == CONSTANT_NORM:
        y = x * (width**0.5 / tl.maximum(_length(x), 1e-30))
    elif scaling != UNSCALED:
        centred = tl.where(mask, x - tl.sum(x) / width, 0.0)
        y = centred / (_length(centred) / (width - 1) ** 0.5 + 1e-5)
    return y


@triton.jit
def _score(x, first, count, bank, latent_lines, latent_numbers, width, columns, mask):
    """The latents' part of `ops.detect`."""
    score = 0.0
    for latent in range(first, first + count):
        numbers = latent_numbers + latent * 8
        a = tl.sum(x * _line(bank, tl.load(latent_lines + latent), width, columns, mask)) + tl.load(numbers)
        active = tl.maximum(a * tl.load(numbers + 2) + tl.load(numbers + 3), 0.0)
        score += tl.where(a > tl.load(numbers + 1), active, 0.0) * tl.load(numbers + 4)
    return score


@triton.jit
def _watch(
    state,
    watch,
    layer,
    integers,
    floats,
    watched,
    bank,
    latent_lines,
    latent_numbers,
    columns,
    mask,
    width: tl.constexpr,
):
    """Move the level of each watch at this layer by its score. Columns as `steering.latch` writes them."""
    for row in range(watch, watch + tl.load(integers + watch * 8 + 4)):
        if tl.load(integers + row * 8) == layer:
            level = tl.load(watched + row * 4 + 1)
            first = tl.load(integers + row * 8 + 1)
            count = tl.load(integers + row * 8 + 2)
            x = _scaled(state, tl.load(integers + row * 8 + 3), mask, width)
            score = _score(x, first, count, bank, latent_lines, latent_numbers, width, columns, mask)
            score += tl.load(floats + row * 8)
            level += tl.load(floats + row * 8 + 1) * (score - level)
            tl.store(watched + row * 4, score)
            tl.store(watched + row * 4 + 1, level)
            if level > tl.load(floats + row * 8 + 2):
                tl.store(watched + row * 4 + 2, 1.0)


@triton.jit
def _latches(watch, integers, watched, layer):
    """A bit for each watch that had drifted when the step began, after one for no guard; how many look here.

    The first layer keeps for the others what the step before found, and reads nothing that this step writes.
    """
    latches = 1
    looks = 0
    for number in range(tl.load(integers + watch * 8 + 4)):
        state = watched + (watch + number) * 4
        if layer == 0:
            drifted = tl.load(state + 2)
            tl.store(state + 3, drifted)
        else:
            drifted = tl.load(state + 3)
        latches += tl.where(drifted > 0, 2, 0) << number
        looks += tl.where(tl.load(integers + (watch + number) * 8) == layer, 1, 0)
    return latches, looks


@triton.jit(do_not_specialize=["layer"])
def steer(
    hidden,
    residual,
    hidden_stride,
    residual_stride,
    layer,
    bank,
    slot_of_token,
    spans,
    entries,
    integers,
    floats,
    unit_lines,
    unit_numbers,
    reading_of_token,
    reading_lines,
    sums,
    norms,
    counts,
    block_of_token,
    watch_integers,
    watch_floats,
    watch_state,
    latent_lines,
    latent_numbers,
    layers: tl.constexpr,
    width: tl.constexpr,
    block: tl.constexpr,
    has_residual: tl.constexpr,
):
    """One program per token. Nothing is written for a token without changes at this layer.

    The move away from the state is summed by itself, so that a large state costs it no digits.
    """
    token = tl.program_id(0).to(tl.int64)
    slot = tl.load(slot_of_token + token)
    reading = tl.load(reading_of_token + token)
    watch = tl.load(block_of_token + token)
    if (slot == 0) & (reading == 0) & (watch == 0):
        return
    span = spans + (slot * layers + layer) * 2
    first = tl.load(span)
    count = tl.load(span + 1)
    line = tl.load(reading_lines + reading * layers + layer)  # negative: read after steering
    latches, looks = _latches(watch, watch_integers, watch_state, layer)  # none and none of the first block
    if (count == 0) & (line == 0) & (looks == 0):
        return
    columns = tl.arange(0, block)
    mask = columns < width
    row = hidden + token * hidden_stride + columns
    own = tl.load(row, mask=mask, other=0.0).to(tl.float32)
    carried = tl.zeros_like(own)
    if has_residual:
        row_of_residual = residual + token * residual_stride + columns
        carried = tl.load(row_of_residual, mask=mask, other=0.0).to(tl.float32)
    state = own + carried
    if line > 0:
        _keep(state, line, sums, norms, counts, width, columns, mask)
    if looks > 0:
        _watch(
            state,
            watch,
            layer,
            watch_integers,
            watch_floats,
            watch_state,
            bank,
            latent_lines,
            latent_numbers,
            columns,
            mask,
            width,
        )
    if count > 0:
        delta = tl.zeros_like(own)
        for entry in range(first, first + count):
            change = tl.load(entries + entry * 2)
            if ((latches >> tl.load(entries + entry * 2 + 1)) & 1) != 0:
                delta += _change(
                    state,
                    state + delta,
                    bank,
                    integers + change * 8,
                    floats + change * 8,
                    unit_lines,
                    unit_numbers,
                    width,
                    columns,
                    mask,
                )
        changed = (own + delta).to(hidden.dtype.element_ty)
        tl.store(row, changed, mask=mask)
        state = changed.to(tl.float32) + carried
    if line < 0:
        _keep(state, -line, sums, norms, counts, width, columns, mask)
