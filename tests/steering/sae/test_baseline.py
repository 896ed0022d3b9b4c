import dataclasses
import json

import numpy as np
import pytest

from steering.drift import SMOOTHING
from steering.sae.baseline import Baseline, BaselineError, Options, Scoring, calibrate, threshold_for

LATENTS, TELLING, LACKED, DENSE = 300, (7, 19, 42), 99, 150
TOKENS = 40
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


def tokens_of(row, noise=2.0):
    """`[TOKENS, latents]` whose mean is `row`; single tokens lie widely around it."""
    random = np.random.default_rng(np.frombuffer(row.tobytes(), np.uint32))
    around = random.normal(0, noise, (TOKENS, len(row)))
    return row + around - around.mean(axis=0)


def given(*classes, noise=2.0):
    """What `calibrate` asks for the tokens of all texts."""
    made = [tokens_of(row, noise) for rows in classes for row in rows]
    return lambda latents: [each[:, latents] for each in made]


def made_of(positive, negative, options=None, *, neutral=None, density=None, noise=2.0):
    classes = (positive, negative) if neutral is None else (positive, negative, neutral)
    tokens = given(*classes, noise=noise)
    return calibrate(positive, negative, "digest", options, tokens=tokens, neutral=neutral, density=density)


def peak(scores):
    """The highest value of the moving average, as its definition has it."""
    average, highest = 0.0, -np.inf
    for score in scores:
        average += SMOOTHING * (score - average)
        highest = max(highest, average)
    return highest


def peaks(made, rows):
    return np.array([peak(made.scores(tokens_of(row)[:, made.latents])) for row in rows])


@pytest.fixture(scope="module", params=Scoring)
def made(request):
    options = Options(scoring=request.param, latents=6)
    positive, negative = texts(300, 1, shows=True), texts(300, 2, shows=False)
    return made_of(positive, negative, options, density=DENSITY)


def test_the_latents_that_tell_are_found(made):
    """With their signs, strongest first; the dense one is not among them unless densities are unknown."""
    assert set(made.latents[:4]) == {*TELLING, LACKED}
    signs = dict(zip(made.latents, np.sign(made.weights), strict=True))
    assert [signs[latent] for latent in (*TELLING, LACKED)] == [1, 1, 1, -1]
    assert DENSE not in made.latents
    assert list(np.abs(made.differences)) == sorted(np.abs(made.differences), reverse=True)
    unknown = made_of(texts(100, 1, shows=True), texts(100, 2, shows=False))
    assert unknown.latents[0] == DENSE


def test_evidence_is_what_new_texts_show(made):
    """AUROC of means and of peaks, and both rates, hold for hundreds of new texts read token by token."""
    positive, negative = (texts(600, seed, shows=shows) for seed, shows in ((3, True), (4, False)))
    evidence = made.evidence
    above, below = (made.scores(rows[:, made.latents]) for rows in (positive, negative))
    assert evidence.auroc == pytest.approx((above[:, None] > below[None, :]).mean(), abs=0.03)
    above, below = peaks(made, positive), peaks(made, negative)
    assert evidence.peak_auroc == pytest.approx((above[:, None] > below[None, :]).mean(), abs=0.03)
    assert (below > made.threshold).mean() == pytest.approx(0.05, abs=0.04)
    assert evidence.false_positive_rate == pytest.approx((below > made.threshold).mean(), abs=0.04)
    assert evidence.true_positive_rate == pytest.approx((above > made.threshold).mean(), abs=0.1)
    assert (evidence.positive, evidence.negative, evidence.neutral) == (300, 300, 0)
    for told in (evidence.peaks, evidence.peaks_without):  # a curve's worth of the 300
        assert len(told) == 200
        assert list(told) == sorted(told)
    drawn = np.mean(np.array(evidence.peaks)[:, None] > np.array(evidence.peaks_without)[None, :])
    assert drawn == pytest.approx(evidence.peak_auroc, abs=0.02)


def test_the_threshold_is_of_peaks_and_not_of_means():
    """Texts whose tokens vary more have the same means and higher peaks: their threshold is higher."""
    positive, negative = texts(100, 1, shows=True), texts(100, 2, shows=False)
    even = made_of(positive, negative, density=DENSITY, noise=0.0)
    uneven = made_of(positive, negative, density=DENSITY, noise=24.0)
    assert (even.latents, even.weights, even.bias) == (uneven.latents, uneven.weights, uneven.bias)
    assert even.evidence.auroc == uneven.evidence.auroc
    assert uneven.threshold > even.threshold + 0.5
    assert even.evidence.peak_auroc == pytest.approx(even.evidence.auroc, abs=0.01)
    assert uneven.evidence.peak_auroc < even.evidence.peak_auroc - 0.05


def test_a_threshold_without_false_alarms_is_the_highest_peak_held_out():
    """Two folds of even texts: every peak follows from the mean score under the other fold's baseline."""
    positive, negative = texts(40, 1, shows=True), texts(40, 2, shows=False)
    options = Options(folds=2, false_positives=0.0)
    made = made_of(positive, negative, options, density=DENSITY, noise=0.0)
    highest = []
    for fold in range(2):
        other = np.arange(40) % 2 != fold
        # Whatever the folds: latents and weights come from means alone.
        half = made_of(positive[other], negative[other], options, density=DENSITY, noise=0.0)
        highest += [peak([score] * TOKENS) for score in half.scores(negative[~other][:, half.latents])]
    assert made.threshold == pytest.approx(max(highest), rel=1e-4)


def test_tokens_are_asked_for_once_and_for_few_latents():
    """All latents of all tokens might not fit into memory."""
    positive, negative = texts(50, 1, shows=True), texts(50, 2, shows=False)
    asked = []

    def tokens(latents):
        asked.append(list(latents))
        return given(positive, negative)(latents)

    calibrate(positive, negative, "digest", Options(latents=4), tokens=tokens, density=DENSITY)
    ((*latents,),) = asked
    assert latents == sorted(set(latents))
    assert 4 <= len(latents) <= 20


def test_scores_are_in_deviations_of_texts_without_the_behaviour(made):
    """And linear: a text's score is the mean of its tokens' scores."""
    negative = texts(300, 2, shows=False)[:, made.latents]
    scores = made.scores(negative)
    assert scores.mean() == pytest.approx(0, abs=1e-9)
    assert scores.std(ddof=1) == pytest.approx(1)
    assert made.scores(negative.mean(axis=0)) == pytest.approx(scores.mean(), abs=1e-9)


@pytest.mark.parametrize("scoring", Scoring)
def test_texts_that_do_not_differ_show_no_more_than_chance(scoring):
    """Latents chosen on the texts that judge them would look good: these are not."""
    found = []
    for seed in range(8):
        positive, negative = (texts(40, 10 * seed + side, shows=False) for side in (1, 2))
        evidence = made_of(positive, negative, Options(scoring=scoring)).evidence
        found.append((evidence.auroc, evidence.peak_auroc))
    assert np.mean(found, axis=0) == pytest.approx([0.5, 0.5], abs=0.1)


def test_neutral_texts_move_the_threshold_alone():
    """Benign texts that look a little like the behaviour: the threshold rises over them."""
    positive, negative = texts(100, 1, shows=True), texts(100, 2, shows=False)
    neutral = texts(200, 5, shows=False)
    neutral[:, TELLING] += 0.6
    alone = made_of(positive, negative, density=DENSITY)
    made = made_of(positive, negative, neutral=neutral, density=DENSITY)
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


def test_one_of_an_older_version_has_no_peaks(made):
    """And is read all the same."""
    older = made.encode()
    older["evidence"] = {
        name: value for name, value in older["evidence"].items() if not name.startswith("peaks")
    }
    read = Baseline.decode(older)
    assert (read.evidence.peaks, read.evidence.peaks_without) == ((), ())
    assert read.threshold == made.threshold


def test_it_survives_json(made):
    """To the bit; what is not one is refused, what an earlier version calibrated on means among it."""
    text = json.dumps(made.encode(), allow_nan=False)
    assert Baseline.decode(json.loads(text)) == made
    whole = made.encode()
    for change in (
        {"version": 1},
        {"version": 3},
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
        Baseline.decode({"version": 2})


def test_latents_of_one_class_alone():
    """Active in all texts of one class and none of the other: no spread to divide by."""
    positive, negative = np.zeros((10, 20)), np.zeros((10, 20))
    positive[:, 4] = 2.0
    made = made_of(positive, negative, noise=0.0)
    assert made.latents == (4,)
    assert (made.evidence.auroc, made.evidence.peak_auroc) == (1.0, 1.0)
    assert made.evidence.true_positive_rate == 1.0
    assert made.evidence.false_positive_rate == 0.0


def test_a_latent_of_few_texts_does_not_speak_for_all():
    """However strong it is there."""
    positive, negative = texts(40, 1, shows=True), texts(40, 2, shows=False)
    for rows in (positive, negative):
        rows[:, 0] = 0.0
    positive[:4, 0] = 500.0
    assert 0 not in made_of(positive, negative).latents
    assert 0 in made_of(positive, negative, Options(presence=0.0, latents=300)).latents


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
        calibrate(positive, negative, "digest", tokens=lambda latents: [])


@pytest.mark.parametrize(
    ("tokens", "message"),
    [
        (lambda latents: [np.ones((3, len(latents)))] * 17, "18 texts, and the tokens of 17"),
        (lambda latents: [np.ones((3, len(latents) + 1))] * 18, r"\[tokens, 1\], not \[3, 2\]"),
        (lambda latents: [np.ones((0, len(latents)))] * 18, r"\[tokens, 1\], not \[0, 1\]"),
        (lambda latents: [np.full((3, len(latents)), np.inf)] * 18, "finite"),
    ],
)
def test_tokens_that_do_not_belong_to_the_texts_are_refused(tokens, message):
    positive, negative = np.zeros((9, 5)), np.zeros((9, 5))
    positive[:, 2] = 1.0
    with pytest.raises(BaselineError, match=message):
        calibrate(positive, negative, "digest", tokens=tokens)


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
        made_of(np.ones((9, 5)), np.zeros((9, 5)), density=np.ones(4))
