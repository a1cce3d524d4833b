import numpy as np
import pytest
import scipy.stats

from genaug.evaluation import mind
from genaug.types import UserError


def naive(x, y, slices, seed):
    """By scipy's one-dimensional distance between distributions given as quantile steps."""
    directions = np.random.Generator(np.random.PCG64(seed)).normal(size=(slices, x.shape[1]))
    directions /= np.linalg.norm(directions, axis=1, keepdims=True)
    steps = (np.arange(len(x) * len(y)) + 0.5) / (len(x) * len(y))
    values = []
    for direction in directions:
        a, b = (np.sort(rows @ direction)[(steps * len(rows)).astype(int)] for rows in (x, y))
        values.append(np.mean((a - b) ** 2))
    return 3 * x.shape[1] * np.mean(values)


@pytest.mark.parametrize("n,m", [(60, 60), (60, 40), (31, 50)])
def test_agrees_with_the_naive_version_at_any_sizes(n, m):
    generator = np.random.default_rng(0)
    x, y = generator.normal(size=(n, 7)) + 50, generator.gamma(2, size=(m, 7)) + 50
    assert mind(x, y, slices=30, seed=3).value == pytest.approx(naive(x, y, 30, 3), rel=1e-5)


@pytest.mark.parametrize(("scale", "shift"), [(1.0, 0.5), (1.5, 0.0), (0.7, 0.3)])
def test_closed_form_of_gaussians(scale, shift):
    # 3 (|shift|^2 + d (scale - 1)^2).
    generator = np.random.default_rng(1)
    d = 8
    x = generator.normal(size=(20000, d))
    y = scale * generator.normal(size=(20000, d)) + shift
    found = mind(x, y, slices=400, seed=0)
    expected = 3 * d * (shift**2 + (scale - 1) ** 2)
    assert found.value == pytest.approx(expected, abs=4 * found.slice_error + 0.02 * expected)


def test_one_dimension_is_the_wasserstein_distance_itself():
    quantiles = scipy.stats.norm.ppf((np.arange(500) + 0.5) / 500)[:, None]
    found = mind(quantiles, 2 * quantiles + 1, slices=5, seed=0)
    assert found.value == pytest.approx(3 * (1 + np.mean(quantiles**2)), rel=1e-5)
    # All directions are one.
    assert found.slice_error == pytest.approx(0, abs=1e-5)


def test_the_slice_error_is_that_of_other_directions():
    generator = np.random.default_rng(2)
    x = generator.normal(size=(300, 5))
    y = x + np.array([2.0, 0, 0, 0, 0])
    found = [mind(x, y, slices=50, seed=seed) for seed in range(40)]
    spread = np.std([each.value for each in found], ddof=1)
    assert np.mean([each.slice_error for each in found]) == pytest.approx(spread, rel=0.35)


def test_equal_sets_are_at_zero_in_any_order():
    x = np.random.default_rng(3).normal(size=(200, 6))
    assert mind(x, x[::-1], seed=0).value == 0
    assert mind(x, np.repeat(x, 2, axis=0), seed=0).value == pytest.approx(0, abs=1e-10)


def test_more_directions_than_one_block_holds(monkeypatch):
    x, y = np.random.default_rng(4).normal(size=(2, 100, 6))
    whole = mind(x, y, slices=37, seed=0)
    monkeypatch.setattr("genaug.evaluation.sliced._VALUES", 1000)
    np.testing.assert_allclose(mind(x, y, slices=37, seed=0), whole, rtol=1e-6)


def test_refusals():
    x = np.zeros((4, 3))
    with pytest.raises(UserError, match="at least 2"):
        mind(x, x, slices=1, seed=0)
    with pytest.raises(UserError, match="second set of features has 0 rows"):
        mind(x, x[:0], seed=0)
