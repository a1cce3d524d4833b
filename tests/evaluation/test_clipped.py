from fractions import Fraction
from math import comb

import numpy as np
import pytest
from scipy.spatial.distance import cdist

from genaug.evaluation import clipped_scores, manifold_scores
from genaug.evaluation.clipped import expected_coverage
from genaug.types import UserError


def exact_expectation(n, good, k):
    """By counting: j good ones come before the k-th of the n - 1 other real ones."""
    orders = comb(n - 1 + good, good)
    found = Fraction(0)
    for j in range(good + 1):
        ways = comb(k - 1 + j, j) * comb(n - 1 - k + good - j, good - j)
        found += Fraction(min(j, k), k) * Fraction(ways, orders)
    return float(found)


def naive(real, synthetic, k):
    own, cross = cdist(real, real), cdist(synthetic, real)
    np.fill_diagonal(own, np.inf)
    radius = np.sort(own, axis=1)[:, k - 1]
    clipped = np.minimum(radius, np.median(radius))
    of_real = np.minimum(1, (own <= clipped[None, :]).sum(axis=1) / k).mean()
    of_synthetic = np.minimum(1, (cross <= clipped[None, :]).sum(axis=1) / k).mean()
    covered = np.minimum(1, (cross < radius[None, :]).sum(axis=0) / k).mean()
    table = [exact_expectation(len(real), good, k) for good in range(len(synthetic) + 1)]
    steps = np.searchsorted(table, covered) / len(table)  # g of the authors
    return min(1, of_synthetic / of_real), steps


def two_sets(n=1000, m=1000, d=4, seed=0):
    generator = np.random.default_rng(seed)
    return generator.normal(size=(n, d)), generator.normal(size=(m, d))


@pytest.mark.parametrize("n,m,d,k", [(120, 90, 3, 5), (60, 150, 20, 3), (50, 50, 2, 1)])
@pytest.mark.parametrize("offset", [0, 1000])
def test_agrees_with_the_naive_version(n, m, d, k, offset):
    real, synthetic = two_sets(n, m, d)
    real, synthetic = real + offset, 0.8 * synthetic + 0.5 + offset
    density, coverage = naive(real, synthetic, k)
    found = clipped_scores(real, synthetic, k)
    assert 0.1 < found.density == pytest.approx(density, rel=1e-12)
    assert 0.1 < found.coverage == pytest.approx(coverage, abs=1 / m)
    assert found.empty_real == 0


@pytest.mark.parametrize("n,m,k", [(40, 30, 5), (6, 12, 5), (100, 7, 1)])
def test_the_expected_coverage_is_exact(n, m, k):
    expected = [exact_expectation(n, good, k) for good in range(m + 1)]
    np.testing.assert_allclose(expected_coverage(n, m, k), expected, rtol=0, atol=1e-12)


def test_the_expected_coverage_is_that_of_any_distribution():
    # Uniform on a line: hardly a Gaussian, and its ends have one-sided balls.
    generator, found = np.random.default_rng(1), []
    for _ in range(200):
        real, good = generator.random(40), generator.random(25)
        radius = np.sort(np.abs(real[:, None] - real[None, :]), axis=1)[:, 3]
        held = (np.abs(good[:, None] - real[None, :]) < radius[None, :]).sum(axis=0)
        found.append(np.minimum(held, 3).mean() / 3)
    error = np.std(found) / len(found) ** 0.5
    assert abs(np.mean(found) - expected_coverage(40, 25, 3)[-1]) < 3 * error


def test_identical_and_disjoint_sets():
    real, _ = two_sets(200)
    assert clipped_scores(real, real.copy()) == (1, 1, 0)
    assert clipped_scores(real, real + 100) == (0, 0, 0)


def test_two_sets_of_one_distribution_score_one():
    # Both go up and down with the real set drawn, with a standard deviation of about 0.03.
    scores = clipped_scores(*two_sets())
    assert scores.density > 0.93
    assert scores.coverage > 0.93


@pytest.mark.parametrize("share", [0.25, 0.5, 0.9])
def test_bad_examples_cost_their_share(share):
    found = []
    for seed in range(6):
        real, synthetic = two_sets(600, 600, seed=seed)
        synthetic[int(share * 600) :] += 1000
        found.append(clipped_scores(real, synthetic)[:2])
    np.testing.assert_allclose(np.mean(found, axis=0), share, atol=0.04)


def test_crowding_the_dense_part_buys_nothing():
    real, crowd = two_sets(400, 400)
    crowd *= 0.05
    assert manifold_scores(real, crowd).density > 1.2
    scores = clipped_scores(real, crowd)
    assert scores.density == 1
    assert scores.coverage < 0.2


def test_an_outlier_lends_nobody_its_ball():
    real, _ = two_sets(200)
    real[:2] = [[50.0] * 4, [-50.0] * 4]
    # Far from all real examples but for one, whose ball is huge.
    synthetic = two_sets(100, seed=4)[0] + 45
    assert manifold_scores(real, synthetic).precision == 1
    assert clipped_scores(real, synthetic)[0] == 0
    # And one good set beside: the outliers change next to nothing.
    good = two_sets(300, seed=5)[0]
    without, with_them = clipped_scores(real[2:], good), clipped_scores(real, good)
    np.testing.assert_allclose(with_them, without, atol=0.03)


def test_ties_at_the_radius():
    # On a line of whole numbers every radius is 1, and met exactly: `<=` and `<` differ everywhere.
    real = np.arange(20.0)[:, None] + 1000
    found = clipped_scores(real, real + 1, 2)
    density, coverage = naive(real, real + 1, 2)
    assert found.density == pytest.approx(density)
    assert found.coverage == pytest.approx(coverage, abs=1 / 20)


def test_duplicates_are_reported():
    x = two_sets(40)[0]
    repeated = np.repeat(x, 6, axis=0)
    # Balls of radius 0 hold copies (`<=`) and nothing strictly inside.
    assert clipped_scores(repeated, x) == (1, 0, 1)


def test_refusals():
    x = np.zeros((5, 2))
    with pytest.raises(UserError, match="real set has 5 rows: give at least 6"):
        clipped_scores(x, np.zeros((9, 2)))
    with pytest.raises(UserError, match="synthetic set has 4 rows: give at least 5"):
        clipped_scores(np.zeros((9, 2)), x[:4])
    with pytest.raises(UserError, match="k is 0"):
        clipped_scores(x, x, 0)
