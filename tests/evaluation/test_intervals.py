import time

import numpy as np
import pytest
import scipy.stats

from genaug.evaluation import (
    bootstrap_scores,
    classification_scores,
    difference,
    frechet_distance,
    half_sampling,
    holm,
    manifold_scores,
    paired_bootstrap,
    paired_t,
    resampling,
    wilson,
)
from genaug.types import UserError


@pytest.mark.parametrize("successes,n", [(0, 10), (10, 10), (3, 17), (500, 1000)])
def test_wilson_agrees_with_scipy(successes, n):
    expected = scipy.stats.binomtest(successes, n).proportion_ci(0.9, method="wilson")
    estimate, low, high = wilson(successes, n, 0.9)
    assert estimate == successes / n
    assert (low, high) == pytest.approx((expected.low, expected.high), abs=1e-12)
    assert 0 <= low <= estimate <= high <= 1


def test_paired_t_agrees_with_scipy():
    x = np.random.default_rng(0).normal(0.3, 1, size=7)
    expected = scipy.stats.ttest_1samp(x, 0)
    found = paired_t(x, 0.9)
    assert found.p_value == pytest.approx(expected.pvalue)
    assert found[1:3] == pytest.approx(tuple(expected.confidence_interval(0.9)))
    assert paired_t(np.zeros(3)) == (0, 0, 0, 1)


def test_holm():
    np.testing.assert_allclose(holm([0.01, 0.04, 0.03]), [0.03, 0.06, 0.06])
    np.testing.assert_allclose(holm(np.array([0.5, 0.9])), [1, 1])


def arm(generator, s, labels, skill, c=4):
    """Probabilities of s seeds; `skill` [s] is each one's margin for the true class."""
    logits = generator.normal(size=(s, len(labels), c))
    logits += skill[:, None, None] * np.eye(c)[labels]
    return np.exp(logits) / np.exp(logits).sum(axis=-1, keepdims=True)


def test_bootstrap_equals_scoring_the_resampled_set():
    generator = np.random.default_rng(1)
    labels = np.repeat(np.arange(4), [5, 10, 20, 40])
    p = arm(generator, 3, labels, np.full(3, 1.5))
    weights = resampling(labels, 3, draws=300, seed=2)
    # Stratified: every draw has the class counts of the test set, and as many seeds.
    for label in range(4):
        assert (weights.examples[:, labels == label].sum(axis=1) == (labels == label).sum()).all()
    assert (weights.seeds.sum(axis=1) == 3).all()
    found = bootstrap_scores(p, labels, [0], weights)
    for draw in (0, 7, 299):
        rows = np.repeat(np.arange(len(labels)), weights.examples[draw])
        seeds = np.repeat(np.arange(3), weights.seeds[draw])
        expected = classification_scores(p[seeds][:, rows], labels[rows], [0])
        for name in ("accuracy", "balanced_accuracy", "macro_f1", "rare_recall", "ece"):
            assert found.draws[name][draw] == pytest.approx(expected[name].mean()), name
        assert found.draws["recall/2"][draw] == pytest.approx(expected["recall"][:, 2].mean())


def test_paired_bootstrap_estimate_and_pairing():
    generator = np.random.default_rng(3)
    labels = np.repeat(np.arange(4), 30)
    a = arm(generator, 4, labels, np.full(4, 2.0))
    b = arm(generator, 4, labels, np.full(4, 0.5))
    found = paired_bootstrap(a, b, labels, [3], draws=400, seed=0)
    accuracy = [classification_scores(p, labels)["accuracy"].mean() for p in (a, b)]
    assert found["accuracy"].estimate == pytest.approx(accuracy[0] - accuracy[1])
    assert found["accuracy"].low > 0
    # An arm against itself: the same draws for both, so nothing is left.
    assert set(paired_bootstrap(a, a, labels, [3], draws=50, seed=0).values()) == {(0, 0, 0)}
    assert found == paired_bootstrap(a, b, labels, [3], draws=400, seed=0)
    weights = resampling(labels, 4, draws=400, seed=0)
    shared = [bootstrap_scores(p, labels, [3], weights) for p in (a, b)]
    assert difference(*shared) == found


def test_bootstrap_covers():
    # The expected difference is 0: both arms have the same skill, which varies with the seed.
    covered = 0
    for trial in range(150):
        generator = np.random.default_rng(trial)
        labels = np.repeat(np.arange(4), 40)
        shared = generator.normal(1.5, 0.3, size=6)
        arms = [arm(generator, 6, labels, shared + generator.normal(0, 0.1, 6)) for _ in range(2)]
        found = paired_bootstrap(*arms, labels, [], draws=200, seed=trial)["balanced_accuracy"]
        covered += found.low <= 0 <= found.high
    assert 0.89 < covered / 150 <= 1


def test_bootstrap_is_fast():
    generator = np.random.default_rng(4)
    labels = generator.integers(10, size=1500)
    p = arm(generator, 6, labels, np.ones(6), c=10)
    start = time.perf_counter()
    paired_bootstrap(p, p, labels, [8, 9], draws=2000, seed=0)
    assert time.perf_counter() - start < 10  # Takes 0.1 s; a loop over draws would take minutes.


def test_half_sampling_has_the_spread_of_the_full_sample():
    # Closed form: the difference of two means has variance s2/n + t2/m.
    generator = np.random.default_rng(5)
    x, y = generator.normal(size=(200, 1)), 3 * generator.normal(size=(120, 1))

    def gap(x, y):
        return {"gap": float(x.mean() - y.mean())}

    found = half_sampling(gap, x, y, draws=800, seed=0)["gap"]
    assert found.estimate == gap(x, y)["gap"]
    expected = 1.96 * np.sqrt(x.var(ddof=1) / 200 + y.var(ddof=1) / 120)
    assert (found.high - found.low) / 2 == pytest.approx(expected, rel=0.1)


def test_half_sampling_covers_the_frechet_distance_at_this_size():
    def statistic(x, y):
        return {"fd": frechet_distance(x, y)}

    generator = np.random.default_rng(6)

    def draw():
        return generator.normal(size=(80, 3)), generator.normal(size=(80, 3)) + 0.5

    expected = np.mean([statistic(*draw())["fd"] for _ in range(400)])
    intervals = [half_sampling(statistic, *draw(), draws=30, seed=i)["fd"] for i in range(100)]
    covered = np.mean([low <= expected <= high for _, low, high in intervals])
    assert 0.86 < covered <= 1


def test_half_sampling_has_the_spread_of_neighbour_scores():
    def statistic(x, y):
        return manifold_scores(x, y)._asdict()

    generator = np.random.default_rng(7)

    def draw():
        return generator.normal(size=(2, 150, 8))

    truth = [statistic(*draw()) for _ in range(40)]
    found = [half_sampling(statistic, *draw(), draws=12, seed=i) for i in range(12)]
    for name in ("precision", "recall", "density", "coverage"):
        sd = np.std([row[name] for row in truth], ddof=1)
        guess = np.mean([(row[name].high - row[name].low) / 3.92 for row in found])
        assert 0.6 < guess / sd < 1.6, name


def test_refusals():
    with pytest.raises(UserError, match="not a share"):
        wilson(1, 0)
    with pytest.raises(UserError, match="more seeds"):
        paired_t(np.zeros(1))
    with pytest.raises(UserError, match="4 rows"):
        half_sampling(lambda x, y: {}, np.zeros((3, 1)), np.zeros((9, 1)), seed=0)
    labels = np.zeros(5, int)
    with pytest.raises(UserError, match="2 seeds"):
        bootstrap_scores(np.ones((3, 5, 1)), labels, [], resampling(labels, 2, draws=3, seed=0))
