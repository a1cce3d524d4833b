import numpy as np
import pytest
import scipy.linalg

from genaug.evaluation import distance_to, frechet_from_moments, frechet_infinity, moments
from genaug.types import UserError


def by_sqrtm(x, y):
    a, b = np.cov(x.T), np.cov(y.T)
    shift = x.mean(axis=0) - y.mean(axis=0)
    return shift @ shift + np.trace(a + b - 2 * scipy.linalg.sqrtm(a @ b).real)


def sets(n, m, d, seed, scale=1.2, shift=0.1):
    generator = np.random.default_rng(seed)
    return generator.normal(size=(n, d)), scale * generator.normal(size=(m, d)) + shift


@pytest.mark.parametrize("both", [False, True])
def test_the_curve_is_that_of_beginnings_of_a_seeded_order(both):
    real, synthetic = sets(300, 200, 6, 0)
    found = frechet_infinity(real, synthetic, both=both, num_sizes=5, smallest=60, seed=7)
    generator = np.random.Generator(np.random.PCG64(7))
    real, synthetic = (rows[generator.permutation(len(rows))] for rows in (real, synthetic))
    np.testing.assert_array_equal(found.sizes, [60, 95, 130, 165, 200])
    expected = [by_sqrtm(real[:n] if both else real, synthetic[:n]) for n in found.sizes]
    np.testing.assert_allclose(found.distances, expected, rtol=1e-8)
    columns = np.stack([np.ones(5), 1 / found.sizes], axis=1)
    line = np.linalg.lstsq(columns, np.array(expected), rcond=None)[0]
    np.testing.assert_allclose([found.estimate, found.slope], line, rtol=1e-6)


def test_the_bias_is_gone_and_the_interval_covers():
    truth = 8 * (0.2**2 + 0.1**2)
    found = [
        frechet_infinity(*sets(800, 800, 8, s), both=True, num_sizes=6, groups=6, seed=s)
        for s in range(30)
    ]
    estimates = np.array([each.estimate for each in found])
    error = estimates.std() / len(found) ** 0.5
    assert abs(estimates.mean() - truth) < 4 * error
    assert np.mean([each.distances[-1] for each in found]) > truth + 4 * error
    assert np.mean([each.low <= truth <= each.high for each in found]) >= 0.85


def test_the_law_holds_from_twice_as_many_examples_as_features():
    found = [
        frechet_infinity(*sets(500, 500, 40, s), both=True, num_sizes=6, groups=3, seed=s)
        for s in range(4)
    ]
    truth = 40 * (0.2**2 + 0.1**2)
    plain = np.mean([each.distances[-1] for each in found])
    assert abs(np.mean([each.estimate for each in found]) - truth) < 0.15 * (plain - truth)


def test_the_factor_serves_many_sets():
    x, y = sets(90, 80, 5, 1)
    flat = np.pad(x, ((0, 0), (0, 1)))  # A singular reference has no factor, and a distance.
    a, b = moments(x), moments(y)
    assert distance_to(a)(b) == pytest.approx(by_sqrtm(x, y), rel=1e-8)
    assert distance_to(moments(flat))(moments(np.pad(y, ((0, 0), (0, 1))))) == pytest.approx(
        frechet_from_moments(a, b), rel=1e-6
    )


def test_refusals():
    x, y = sets(100, 100, 40, 2)
    with pytest.raises(UserError, match="no curve from 80 to 60 examples of 40"):
        frechet_infinity(x, y[:60], seed=0)
    with pytest.raises(UserError, match="no curve from 30"):
        frechet_infinity(x, y, smallest=30, seed=0)
    with pytest.raises(UserError, match="at least 3 sizes"):
        frechet_infinity(x, y, num_sizes=2, seed=0)
    with pytest.raises(UserError, match="synthetic set holds NaN"):
        frechet_infinity(x, np.full((100, 40), np.nan), seed=0)
