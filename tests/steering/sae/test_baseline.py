import dataclasses
import json

import numpy as np
import pytest

from steering.sae.baseline import Baseline, BaselineError, Options, Scoring, calibrate, threshold_for

LATENTS, TELLING, LACKED, DENSE = 300, (7, 19, 42), 99, 150
DENSITY = np.full(LATENTS, 0.05)
DENSITY[DENSE] = 0.9


def texts(count, seed, *, shows):
    """Mean latents: most are noise, a few more active with the behaviour, one less, a dense one more."""
    random = np.random.default_rng(seed)
    rows = random.exponential(1.0, (count, LATENTS)) * (random.random((count, LATENTS)) < 0.5)
    rows[:, TELLING] = random.normal(2.5 if shows else 1.0, 0.7, (count, len(TELLING))).clip(0)
    rows[:, LACKED] = random.normal(1.0 if shows else 2.5, 0.7, count).clip(0)
    rows[:, DENSE] = random.normal(40 if shows else 30, 2, count)
    return rows


@pytest.fixture(scope="module", params=Scoring)
def made(request):
    options = Options(scoring=request.param, latents=6)
    positive, negative = texts(100, 1, shows=True), texts(100, 2, shows=False)
    return calibrate(positive, negative, "digest", options, density=DENSITY)


def test_the_latents_that_tell_are_found(made):
    """With their signs, strongest first; the dense one is not among them unless densities are unknown."""
    assert set(made.latents[:4]) == {*TELLING, LACKED}
    signs = dict(zip(made.latents, np.sign(made.weights), strict=True))
    assert [signs[latent] for latent in (*TELLING, LACKED)] == [1, 1, 1, -1]
    assert DENSE not in made.latents
    assert list(np.abs(made.differences)) == sorted(np.abs(made.differences), reverse=True)
    unknown = calibrate(texts(100, 1, shows=True), texts(100, 2, shows=False), "digest", Options())
    assert unknown.latents[0] == DENSE


def test_evidence_is_what_new_texts_show(made):
    """AUROC and both rates, told from the texts of training, hold for thousands of new ones."""
    positive, negative = (texts(4000, seed, shows=shows) for seed, shows in ((3, True), (4, False)))
    above = made.scores(positive[:, made.latents])
    below = made.scores(negative[:, made.latents])
    auroc = (above[:, None] > below[None, :]).mean()
    assert made.evidence.auroc == pytest.approx(auroc, abs=0.03)
    assert (below > made.threshold).mean() == pytest.approx(0.05, abs=0.04)
    assert made.evidence.false_positive_rate == pytest.approx((below > made.threshold).mean(), abs=0.04)
    assert made.evidence.true_positive_rate == pytest.approx((above > made.threshold).mean(), abs=0.1)
    assert (made.evidence.positive, made.evidence.negative, made.evidence.neutral) == (100, 100, 0)


def test_scores_are_in_deviations_of_texts_without_the_behaviour(made):
    """And linear: a text's score is the mean of its tokens' scores."""
    negative = texts(100, 2, shows=False)[:, made.latents]
    scores = made.scores(negative)
    assert scores.mean() == pytest.approx(0, abs=1e-9)
    assert scores.std(ddof=1) == pytest.approx(1)
    assert made.scores(negative.mean(axis=0)) == pytest.approx(scores.mean(), abs=1e-9)


@pytest.mark.parametrize("scoring", Scoring)
def test_texts_that_do_not_differ_show_no_more_than_chance(scoring):
    """Latents chosen on the texts that judge them would look good: these are not."""
    aurocs = []
    for seed in range(8):
        positive, negative = (texts(40, 10 * seed + side, shows=False) for side in (1, 2))
        made = calibrate(positive, negative, "digest", Options(scoring=scoring))
        aurocs.append(made.evidence.auroc)
    assert np.mean(aurocs) == pytest.approx(0.5, abs=0.1)


def test_neutral_texts_move_the_threshold_alone():
    """Benign texts that look a little like the behaviour: the threshold rises over them."""
    positive, negative = texts(100, 1, shows=True), texts(100, 2, shows=False)
    neutral = texts(200, 5, shows=False)
    neutral[:, TELLING] += 0.6
    alone = calibrate(positive, negative, "digest", density=DENSITY)
    made = calibrate(positive, negative, "digest", neutral=neutral, density=DENSITY)
    assert (made.latents, made.weights, made.bias) == (alone.latents, alone.weights, alone.bias)
    assert made.threshold > alone.threshold + 0.3
    assert made.evidence.neutral == 200
    assert made.evidence.auroc == alone.evidence.auroc
    assert made.evidence.false_positive_rate == pytest.approx(0.05, abs=0.04)


@pytest.mark.parametrize("target", [0.0, 0.01, 0.05, 0.2])
def test_a_threshold_keeps_its_share(target):
    """At most the share lies above, and a lower score would let too many pass; ties count as one."""
    scores = np.random.default_rng(0).normal(size=137).round(1)
    threshold = threshold_for(scores, target)
    assert (scores > threshold).mean() <= target
    lower = scores[scores < threshold].max()
    assert (scores > lower).mean() > target
    assert threshold_for(np.array([3.0]), 0.9) == 3.0


def test_it_survives_json(made):
    """To the bit; what is not one is refused."""
    text = json.dumps(made.encode(), allow_nan=False)
    assert Baseline.decode(json.loads(text)) == made
    whole = made.encode()
    for change in (
        {"version": 2},
        {"latents": [1]},
        {"latents": [-1, *made.latents[1:]]},
        {"weights": ["x"] * len(made.weights)},
        {"bias": float("nan")},
        {"scoring": "cosine"},
        {"evidence": {}},
        {"evidence": None},
    ):
        with pytest.raises(BaselineError):
            Baseline.decode(whole | change)
    with pytest.raises(BaselineError, match="not an encoded baseline"):
        Baseline.decode({"version": 1})


def test_latents_of_one_class_alone():
    """Active in all texts of one class and none of the other: no spread to divide by."""
    positive, negative = np.zeros((10, 20)), np.zeros((10, 20))
    positive[:, 4] = 2.0
    made = calibrate(positive, negative, "digest")
    assert made.latents == (4,)
    assert made.evidence.auroc == 1.0
    assert made.evidence.true_positive_rate == 1.0
    assert made.evidence.false_positive_rate == 0.0


def test_a_latent_of_few_texts_does_not_speak_for_all():
    """However strong it is there."""
    positive, negative = texts(40, 1, shows=True), texts(40, 2, shows=False)
    for rows in (positive, negative):
        rows[:, 0] = 0.0
    positive[:4, 0] = 500.0
    assert 0 not in calibrate(positive, negative, "digest").latents
    assert 0 in calibrate(positive, negative, "digest", Options(presence=0.0, latents=300)).latents


@pytest.mark.parametrize(
    ("positive", "negative", "message"),
    [
        (np.ones((3, 5)), np.ones((9, 5)), "4 positive and 4 negative"),
        (np.ones((9, 5)), np.ones((9, 5)), "no latent tells"),
        (np.ones((9, 5)), np.ones((9, 6)), "one autoencoder"),
        (np.ones(9), np.ones((9, 6)), r"\[texts, d_sae\]"),
        (np.full((9, 5), np.nan), np.ones((9, 5)), "finite"),
    ],
)
def test_texts_that_make_no_baseline_are_refused(positive, negative, message):
    with pytest.raises(BaselineError, match=message):
        calibrate(positive, negative, "digest")


def test_options_without_sense_are_refused():
    for change in (
        {"latents": 0},
        {"folds": 1},
        {"presence": 2.0},
        {"dense": 0.0},
        {"false_positives": 1.0},
        {"l2": 0.0},
    ):
        with pytest.raises(BaselineError):
            dataclasses.replace(Options(), **change)
    with pytest.raises(BaselineError, match="one per latent"):
        calibrate(np.ones((9, 5)), np.zeros((9, 5)), "digest", density=np.ones(4))
