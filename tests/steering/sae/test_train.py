import dataclasses
import itertools

import numpy as np
import pytest
import torch

from steering.sae import saelens
from steering.sae.encode import Architecture
from steering.sae.errors import CorruptSae, SaeError, WrongHook
from steering.sae.load import load
from steering.sae.quality import measure
from steering.sae.topk import Descent, Revival
from steering.sae.train import Options, fit, longest_ordinary, skipping, with_threshold

WIDTH, FEATURES, ACTIVE = 32, 48, 3
HOOK = "blocks.2.hook_resid_post"
SMALL = Options(rows=4000, latents=64, active=ACTIVE, batch=128, block=1000, lr=3e-3)


def dictionary():
    rows = np.random.default_rng(0).normal(size=(FEATURES, WIDTH))
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


def states(count, seed=1):
    """Sums of three features of many lengths, far from the origin, with a little noise."""
    random = np.random.default_rng(seed)
    codes = np.zeros((count, FEATURES))
    which = random.random((count, FEATURES)).argsort(axis=1)[:, :ACTIVE]
    np.put_along_axis(codes, which, random.uniform(2, 6, (count, ACTIVE)), axis=1)
    rows = codes @ dictionary() + 0.02 * random.normal(size=(count, WIDTH)) + 9.0
    return rows.astype(np.float32)


def source(rows, size=333):
    return skipping(lambda: iter([rows[start : start + size] for start in range(0, len(rows), size)]))


@pytest.fixture(scope="module")
def trained():
    options = Options(rows=40_000, latents=64, active=ACTIVE, batch=256, block=5000, lr=1e-2, passes=3)
    return fit(source(states(40_000)), options, HOOK, model="toy")


def test_a_planted_dictionary_is_recovered(trained):
    """Nearly every feature has its own decoder row, and held-out states are explained."""
    best = (trained.W_dec.numpy() @ dictionary().T).max(axis=0)
    assert np.mean(best > 0.95) > 0.9
    quality = measure(trained, [states(3000, seed=2)])
    assert quality.explained > 0.93
    assert quality.l0 <= ACTIVE
    assert quality.dead < 0.3


def test_what_comes_out_is_served_as_it_is(trained, tmp_path):
    """Unit decoder rows, the place it is of; SAELens' files hold it whole."""
    torch.testing.assert_close(trained.W_dec.norm(dim=1), torch.ones(64))
    assert (trained.architecture, trained.k, trained.layer) == (Architecture.TOPK, ACTIVE, 2)
    assert (trained.hook, trained.model) == (HOOK, "toy")
    saelens.write(trained, tmp_path)
    assert load(tmp_path).digest == trained.digest


def test_a_threshold_stands_in_for_the_ranking(trained):
    """As many latents on average, nearly as much explained, and a subset is exact."""
    approximate = with_threshold(trained, states(4000, seed=3))
    assert approximate.architecture is Architecture.BATCHTOPK
    assert approximate.subset_is_exact
    ranked, cut = (measure(sae, [states(3000, seed=2)]) for sae in (trained, approximate))
    assert cut.l0 == pytest.approx(ACTIVE, rel=0.1)
    assert cut.explained > ranked.explained - 0.1
    for sae in (approximate, dataclasses.replace(trained, rescale_acts_by_decoder_norm=True)):
        with pytest.raises(SaeError, match="rank"):
            with_threshold(sae, states(10))


def test_the_same_for_the_same_seed_however_the_stream_is_cut():
    """Another seed gives another one."""
    rows = states(4000)
    first = fit(source(rows), SMALL, HOOK)
    assert fit(source(rows, size=4000), SMALL, HOOK).digest == first.digest
    assert fit(source(rows, size=7), SMALL, HOOK).digest == first.digest
    assert fit(source(rows), dataclasses.replace(SMALL, seed=1), HOOK).digest != first.digest


class Stop(Exception):
    pass


@pytest.mark.parametrize("stopped_after", [1, 2, 3])
def test_an_interrupted_training_ends_in_the_same_weights(tmp_path, stopped_after):
    """To the bit, dead latents and moments included; only what is new is asked for."""
    options = dataclasses.replace(SMALL, dead_after=300, passes=2)
    rows, path, asked = states(4000), tmp_path / "run" / "state.safetensors", []
    whole = fit(source(rows), options, HOOK)

    def stop(progress):
        if progress.rows == 1000 * stopped_after:
            raise Stop

    def noted(skip):
        asked.append(skip)
        return source(rows)(skip)

    with pytest.raises(Stop):
        fit(noted, options, HOOK, checkpoint=path, every=2, on_progress=stop)
    again = fit(noted, options, HOOK, checkpoint=path, every=2)
    assert again.digest == whole.digest
    assert asked == [0, stopped_after // 2 * 2000]
    assert fit(noted, options, HOOK, checkpoint=path).digest == whole.digest
    assert len(asked) == 2
    assert [file.name for file in path.parent.iterdir()] == ["state.safetensors"]


def test_a_checkpoint_of_something_else_is_refused(tmp_path):
    """Other options, another file, a damaged one."""
    path = tmp_path / "state.safetensors"
    fit(source(states(1000)), dataclasses.replace(SMALL, rows=1000), HOOK, checkpoint=path)
    with pytest.raises(SaeError, match="other options"):
        fit(source(states(1000)), SMALL, HOOK, checkpoint=path)
    whole = path.read_bytes()
    for data in (b"", whole[: len(whole) // 2], b"\x80\x04K\x01."):
        path.write_bytes(data)
        with pytest.raises(CorruptSae, match="not a checkpoint"):
            fit(source(states(1000)), SMALL, HOOK, checkpoint=path)
    saelens.write(fit(source(states(1000)), SMALL, HOOK), tmp_path)
    with pytest.raises(CorruptSae, match="not a checkpoint"):
        fit(source(states(1000)), SMALL, HOOK, checkpoint=tmp_path / "sae_weights.safetensors")


def test_no_more_is_read_than_a_block_ahead():
    """The stream may be endless: it is read as it is learned, and no further than planned."""
    read = 0

    def endless(_skip):
        nonlocal read
        for seed in itertools.count():
            read += 100
            yield states(100, seed)

    seen = []
    fit(endless, SMALL, HOOK, on_progress=lambda progress: seen.append((progress.rows, read)))
    assert seen == [(1000, 1000), (2000, 2000), (3000, 3000), (4000, 4000)]


def test_a_short_stream_ends_training_early():
    """With what there was; progress says how much that is."""
    seen = []
    sae = fit(source(states(1500)), SMALL, HOOK, on_progress=seen.append)
    assert [(p.rows, p.of) for p in seen] == [(1000, 4000), (1500, 4000)]
    assert seen[1].explained > seen[0].explained
    assert seen[1].steps == 8 + 4
    assert sae.d_sae == 64


def test_attention_sinks_are_passed_over():
    """A few states a hundred times as long as others change nothing but the count."""
    rows = states(4000)
    with_sinks = rows.copy()
    with_sinks[::100] *= 100
    seen = []
    sae = fit(source(with_sinks), SMALL, HOOK, on_progress=seen.append)
    assert (seen[-1].rows, seen[-1].steps) == (4000, 4 * 8)
    held, longest = states(2000, seed=2), longest_ordinary(rows)
    assert measure(sae, [held]).explained == pytest.approx(
        measure(fit(source(rows), SMALL, HOOK), [held]).explained, abs=0.05
    )
    assert longest == pytest.approx(10 * np.median(np.linalg.norm(rows, axis=1)))
    quality = measure(sae, [with_sinks], longest)
    assert (quality.rows, quality.passed_over) == (3960, 40)
    assert quality.explained > 0.5 > measure(sae, [with_sinks]).explained


def test_latents_that_begin_alike_do_not_say_it_many_times_over():
    """States along one direction mostly, as real ones are: the first block is explained from the start."""
    common = np.random.default_rng(3).normal(size=WIDTH) * 8
    rows = states(2000) + np.random.default_rng(4).normal(size=(2000, 1)).astype(np.float32) * common
    seen = []
    options = dataclasses.replace(SMALL, active=16)
    fit(source(rows.astype(np.float32)), options, HOOK, on_progress=seen.append)
    assert seen[0].explained > 0.5


def test_dead_latents_come_back():
    """Latents that hardly see the states are never among the strongest, until taught what those miss."""
    x = torch.from_numpy(states(4000) - 9.0)
    x = torch.cat([x, torch.zeros(4000, 8)], dim=1)
    x = x / x.square().sum(dim=1).mean().sqrt() * 40**0.5
    generator = torch.Generator().manual_seed(0)
    start = torch.randn(64, 40, generator=generator)
    start[:24] = x[:24]
    start[24:, :WIDTH] *= 0.02  # they look where all states are 0
    alive = {}
    for taught in (False, True):
        descent = Descent(start, ACTIVE)
        silent = torch.zeros(64)
        for step in range(600):
            dead = silent > 500
            revival = Revival(dead, 16, 1 / 32) if taught and dead.any() else None
            _, fired = descent.step(x[step % 31 * 128 :][:128], 3e-3, revival)
            silent += 128
            silent[fired] = 0
        alive[taught] = int((silent <= 500).sum())
    assert alive[True] >= alive[False] + 10


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        (np.zeros((0, 4), np.float32), "no states"),
        (np.full((2000, 4), 3.0, np.float32), "all states are the same"),
        (np.full((2000, 4), np.nan, np.float32), "finite"),
        (np.zeros(2000, np.float32), r"\[rows, width\]"),
    ],
)
def test_states_that_teach_nothing_are_refused(rows, message):
    with pytest.raises(SaeError, match=message):
        fit(lambda skip: [rows], SMALL, HOOK)


def test_states_of_two_widths_are_refused():
    """Within a block, and from one to the next."""
    for first in (500, 1000):
        with pytest.raises(SaeError, match=r"width|wide"):
            fit(lambda skip, n=first: [states(n), states(1000)[:, :8]], SMALL, HOOK)


def test_another_place_than_the_residual_stream_is_refused():
    with pytest.raises(WrongHook, match="an MLP"):
        fit(source(states(100)), SMALL, "blocks.2.hook_mlp_out")


@pytest.mark.parametrize(
    "options",
    [{"rows": 0}, {"active": 65}, {"block": 100}, {"lr": 0.0}, {"passes": 0}, {"dead_weight": -1.0}],
)
def test_options_without_sense_are_refused(options):
    with pytest.raises(SaeError):
        dataclasses.replace(SMALL, **options)
