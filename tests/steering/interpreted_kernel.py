"""The kernel's tests in Triton's interpreter, for which `test_kernel` starts a process of its own."""

from functools import partial

import numpy as np
import pytest
import torch

from steering.apply import TorchPass
from steering.capture import Capture
from steering.kernel import CapacityError, GraphPass, lines_of
from steering.layout import Layout, Reading, Stretch
from steering.program import Change
from steering.spec import MAX_RANGES, MAX_TERMS, CaptureSpec, Operation, SteeringSpec, Tokens
from steering.vector import Scaling
from tests.steering.random_layouts import (
    LAYERS,
    World,
    every_combination,
    random_world,
    run,
    states,
    touched,
)
from tests.steering.watched_lives import agree, watched_life

PADDING = 3


def graph_pass(bank, **options):
    return GraphPass(
        bank, **{"layers": LAYERS, "max_tokens": 160, "max_requests": 32, "capture_lines": 64, **options}
    )


def close(result, expected, tolerance=1e-5):
    return torch.allclose(result, expected, rtol=tolerance, atol=tolerance * float(expected.abs().max()))


def addition(bank, line=1, strength=1.0):
    return Change(Operation.ADD, line, float(bank[line].norm()), strength, -np.inf, np.inf)


def both(make, width, residual, dtype=torch.float32):
    """Results of the kernel and of torch in float32, and their worlds."""
    ours, tokens = make()
    theirs, _ = make()
    hidden, second = states(tokens + PADDING, width, dtype, residual)
    subject, reference = graph_pass(ours.bank), TorchPass(theirs.bank, torch.float32)
    subject.take(ours.layout)
    reference.take(theirs.layout)
    result = run(subject, hidden, second)
    subject.collect()
    expected = run(reference, hidden.float(), None if second is None else second.float())
    for layer in range(LAYERS):
        alone = ~touched(ours.layout, layer, len(hidden))
        assert alone[tokens:].all()
        assert torch.equal(result[layer][alone], hidden[alone])
        assert not torch.equal(result[layer], hidden)
    return result, expected, ours, theirs


@pytest.mark.parametrize("residual", [True, False], ids=["with residual", "alone"])
def test_every_operation_behind_every_gate(residual):
    """Each gives what torch gives, though they share a batch; a token left alone keeps its bits."""
    result, expected, *_ = both(lambda: every_combination(24), 24, residual)
    assert close(result, expected)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("seed", range(3))
def test_random_batches(seed, dtype):
    """Several terms, phases and readings at once give what torch gives, rounded once to the model's type."""
    result, expected, ours, theirs = both(lambda: random_world(40, seed), 40, seed % 2 == 0, dtype)
    if dtype is torch.float32:
        assert close(result, expected)
    else:
        exact = expected.to(dtype).float()
        assert torch.allclose(result.float(), exact, rtol=2**-7, atol=1e-4)  # one step of bfloat16
    assert len(ours.captures) == 3
    for mine, other in zip(ours.captures, theirs.captures, strict=True):
        assert mine.missing == other.missing == 0
        tolerance = 2**-7 if dtype is torch.bfloat16 and mine.spec.after else 1e-5
        largest = np.abs(other.means()).max()
        assert np.allclose(mine.means(), other.means(), rtol=tolerance, atol=tolerance * largest)
        assert np.allclose(mine.norms(), other.norms(), rtol=tolerance)


def test_bfloat16_is_within_its_rounding_of_torch():
    """The torch path rounds the sum of some changes before it adds them; nothing else differs."""
    world, tokens = every_combination(24)
    hidden, second = states(tokens, 24, torch.bfloat16, residual=True)
    subject, reference = graph_pass(world.bank), TorchPass(world.bank, torch.bfloat16)
    subject.take(world.layout)
    reference.take(world.layout)
    expected = run(reference, hidden, second).float()
    assert (run(subject, hidden, second).float() - expected).abs().max() <= 2**-6 * expected.abs().max()


def test_steps_follow_each_other():
    """Over a prompt in chunks, decoding and an idle step, the same buffers serve layout after layout."""
    width, names, prompts = 20, ["a", "b", "c"], [9, 4, 6]
    worlds = []
    for _ in range(2):
        rng, world = np.random.default_rng(5), World.of(width)
        for name, prompt in zip(names, prompts, strict=True):
            world.batch.admit(name, SteeringSpec(tuple(world.random_term(rng) for _ in range(3))), prompt)
        world.capture("a", CaptureSpec("a", (0, 2), ((1, 8),)))
        world.capture("b", CaptureSpec("b", (1,), ((0, 1), (2, 6)), after=True))
        worlds.append(world)
    ours, theirs = worlds
    subject, reference = graph_pass(ours.bank), TorchPass(theirs.bank, torch.float32)
    computed = np.zeros(3, np.int64)
    for step, counts in enumerate([(4, 4, 2), (4, 1, 4), (1, 1, 1), (1, 1, 1), (1, 1, 1)]):
        scheduled = np.array(counts, np.int32)
        for world, one in ((ours, subject), (theirs, reference)):
            if world.batch.prepare(names, scheduled, computed):
                one.take(world.layout)
        hidden, residual = states(sum(counts) + PADDING, width, torch.float32, residual=True, seed=step)
        assert close(run(subject, hidden, residual), run(reference, hidden, residual))
        computed += scheduled
        if step == 1:
            subject.collect()  # in the middle: what comes later is added
    assert ours.batch.clear()
    subject.take(ours.layout)
    assert torch.equal(run(subject, hidden, residual), hidden.expand(LAYERS, -1, -1))
    subject.collect()
    for mine, other in zip(ours.captures, theirs.captures, strict=True):
        assert mine.missing == other.missing == 0
        assert np.allclose(mine.means(), other.means(), rtol=1e-5, atol=1e-5)
    assert subject._captures._held == {}


def test_padding_after_a_longer_step_is_left_alone():
    """Tokens beyond the batch, steered in the step before, keep their bits."""
    bank = World.of(16).bank
    subject, program = graph_pass(bank), {1: (addition(bank),)}
    hidden, residual = states(20, 16, torch.float32, residual=True)
    for end in (18, 3, 11):
        subject.take(Layout((Stretch(1, end, program),)))
        result = run(subject, hidden, residual, [1])[0]
        assert (result[1:end] != hidden[1:end]).any(dim=1).all()
        assert torch.equal(result[end:], hidden[end:])
        assert torch.equal(result[0], hidden[0])


def test_wide_states_and_long_strides():
    """A width beyond one block of registers, not a power of two, and rows that do not follow one another."""
    width, device = 16_390, torch.device("cpu")
    generator = torch.Generator().manual_seed(3)
    bank = torch.randn(4, width, generator=generator, device=device) / 128
    wide = torch.randn(3, 2, width, generator=generator) * 2
    hidden, residual = wide[:, 0], torch.randn(3, 2, width, generator=generator)[:, 1]
    norm = float(bank[2].norm())
    program = {
        0: (Change(Operation.NORM_ADD, 1, 1.0, 2.0, 0, 0), Change(Operation.CLAMP, 2, norm, 1.0, 3.0, 4.0))
    }
    layout = Layout((Stretch(0, 2, program),))
    results, other = [], wide[:, 1].clone()
    for subject in (graph_pass(bank), TorchPass(bank, torch.float32)):
        copy = wide.clone()
        subject.take(layout)
        subject(copy[:, 0], residual, 0)
        assert torch.equal(copy[:, 1], other)
        results.append(copy[:, 0])
    assert close(*results)
    assert torch.equal(results[0][2], hidden[2])


def test_what_moves_nothing_changes_no_bit():
    """A clamp whose bounds hold leaves the state as it was, in bfloat16 too, however large the residual."""
    bank = World.of(16).bank
    inside = Change(Operation.CLAMP, 1, float(bank[1].norm()), 1.0, -1e9, 1e9)
    hidden, residual = states(4, 16, torch.bfloat16, residual=True)
    subject = graph_pass(bank)
    subject.take(Layout((Stretch(0, 4, {0: (inside,)}),)))
    assert torch.equal(run(subject, hidden, residual * 1000, [0])[0], hidden)


def test_a_sum_that_vanishes_keeps_the_state():
    """As in torch: no direction is left that could be given the old length."""
    bank = World.of(16).bank
    change = Change(Operation.NORM_ADD, 1, float(bank[1].norm()), -1.0, 0, 0)
    subject = graph_pass(bank)
    subject.take(Layout((Stretch(0, 1, {0: (change,)}),)))
    assert torch.equal(run(subject, bank[1:2].clone(), None, [0])[0], bank[1:2])


def test_steering_never_overflows():
    """The most that a full batch of full specs asks for, in one step and in those after it, has its place."""
    world = World.of(16)
    rng = np.random.default_rng(0)
    ranges = [Tokens(start=number, end=20 - number) for number in range(MAX_RANGES)]
    subject = graph_pass(world.bank, max_tokens=64, max_requests=3)
    for step in range(3):
        names = [f"{step}-{number}" for number in range(3)]
        for name in names:
            terms = [world.term(rng, list(Operation)[n % 4], tokens=ranges[n // 4]) for n in range(MAX_TERMS)]
            world.batch.admit(name, SteeringSpec(tuple(terms)), 20)
        world.batch.prepare(names, np.full(3, 20, np.int32), np.zeros(3, np.int64))
        assert len(world.layout.stretches) == 3 * (2 * MAX_RANGES - 1)
        subject.take(world.layout)
        for name in names:
            world.batch.retire(name)
    first = Layout(tuple(stretch for stretch in world.layout.stretches if stretch.end <= 20))
    hidden, residual = states(20, 16, torch.float32, residual=True)
    reference = TorchPass(world.bank, torch.float32)
    reference.take(first)
    assert close(run(subject, hidden, residual, [2]), run(reference, hidden, residual, [2]))


def test_an_overflow_names_what_is_full():
    """Tokens, programs, changes and captures each say so."""
    bank = World.of(16).bank
    subject = graph_pass(bank, max_tokens=40, max_requests=1, capture_lines=3)
    program = {0: (addition(bank),)}
    with pytest.raises(CapacityError, match="41 tokens, the buffers 40"):
        subject.take(Layout((Stretch(0, 41, program),)))
    with pytest.raises(CapacityError, match="more than the 8 programs"):
        subject.take(Layout(tuple(Stretch(n, n + 1, {0: (addition(bank),)}) for n in range(8))))
    many = tuple(addition(bank, strength=float(n)) for n in range(1 + MAX_TERMS * LAYERS))
    with pytest.raises(CapacityError, match="different changes"):
        subject.take(Layout((Stretch(0, 1, {0: many}),)))
    capture = Capture(CaptureSpec("x", (0, 1), ((0, 1), (1, 2))))
    with pytest.raises(CapacityError, match="captures more than 3 spans times layers"):
        subject.take(Layout((), (Reading(0, 1, capture, 0),)))
    subject.take(Layout((Stretch(0, 40, program),)))  # and goes on
    hidden, _ = states(40, 16, torch.float32, residual=False)
    assert close(run(subject, hidden, None, [0])[0], hidden + bank[1])


def test_captures_make_room_for_one_another():
    """One that is no longer read gives up its lines and loses nothing; the room left counts all that live."""
    bank = World.of(16).bank
    subject = graph_pass(bank, capture_lines=4)
    hidden, residual = states(6, 16, torch.float32, residual=True)
    specs = [CaptureSpec(name, (0, 2), ((0, 2),)) for name in "abc"]
    first, second, third = map(Capture, specs)
    assert [subject.free_capture_lines(specs[:n]) for n in range(3)] == [4, 2, 0]
    assert lines_of(specs[0]) == 2
    subject.take(Layout((), (Reading(0, 2, first, 0), Reading(2, 4, second, 0))))
    assert torch.equal(run(subject, hidden, residual), hidden.expand(LAYERS, -1, -1))
    assert first.missing == 4
    subject.take(Layout((), (Reading(1, 2, second, 0), Reading(4, 6, third, 0))))
    assert first.missing == 0
    run(subject, hidden, residual)
    subject.collect()
    x = (hidden + residual).numpy()
    assert np.allclose(first.means(), x[:2].mean(0), atol=1e-6)
    assert np.allclose(second.means(), (x[1] + x[2] + x[3]) / 3, atol=1e-6)
    assert np.allclose(third.means(), x[4:6].mean(0), atol=1e-6)
    assert np.allclose(third.norms(), np.linalg.norm(x[4:6], axis=1).mean(), rtol=1e-6)
    subject.take(Layout())
    subject.collect()
    assert subject._captures._held == {}
    assert sorted(subject._captures._free) == [1, 2, 3, 4]
    assert float(subject._captures.sums.abs().sum() + subject._captures.norms.sum()) == 0


def test_an_idle_layer_launches_nothing_once_its_kernel_is_there():
    """Where Python runs and the layout leaves a layer alone, only the first call of its kind is a launch."""
    world = World.of(16)
    subject = graph_pass(world.bank)
    hidden, residual = states(4, 16, torch.float32, residual=True)
    subject(hidden, residual, 0)
    kinds = set(subject._seen)
    assert len(kinds) == 1
    subject(hidden, residual, 1)
    subject(hidden, None, 1)
    assert len(subject._seen) == 2
    subject.take(Layout((Stretch(0, 1, {2: (addition(world.bank),)}),)))
    assert subject.live == {2}


@pytest.mark.parametrize("late", [False, True], ids=["scores at once", "scores late"])
def test_watches_are_those_of_torch(late):
    """Scores, levels, what acts from when on and its evidence, whenever the host hears of the scores."""
    width, lives = 24, []
    for latching in (True, False):
        world = World.of(width, latching=latching)
        subject = graph_pass(world.bank) if latching else TorchPass(world.bank, torch.float32)
        lives.append(watched_life(world, subject, width, partial(run, subject), late=late and latching))
    (found, told), (expected, reference) = lives
    assert agree(told, reference)
    for mine, theirs in zip(found, expected, strict=True):
        assert close(mine, theirs)


def test_watched_requests_take_turns():
    """More over time than blocks: those that are gone make room, and those of no step lose nothing."""
    ours, theirs = World.of(16, latching=True), World.of(16)
    levels = []
    for world, subject in (
        (ours, graph_pass(ours.bank, max_requests=2)),
        (theirs, TorchPass(theirs.bank, torch.float32)),
    ):
        rng = np.random.default_rng(1)
        for name in "abcd":
            world.batch.admit(name, SteeringSpec((), name, watches=(world.watch(rng, Scaling.NONE),)), 1)
        for step, names in enumerate(["ab", "cd", "ac", "bd", "ad", "bc"]):
            subject.begin()
            counts = np.ones(2, np.int32)
            done = np.array(
                [
                    1 + sum(name in earlier for earlier in ["ab", "cd", "ac", "bd", "ad"][:step])
                    for name in names
                ]
            )
            if world.batch.prepare(list(names), counts, done):
                subject.take(world.layout)
            hidden, residual = states(2, 16, torch.float32, residual=True, seed=step)
            run(subject, hidden, residual)
        subject.settle()
        levels.append([each.level for one in world.batch.evidence("abcd").values() for each in one.watchings])
    assert np.allclose(*levels, atol=1e-5)
    assert len(levels[0]) == 4
