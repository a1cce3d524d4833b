import sys

import numpy as np
import pytest
from peers import torch_fidelity
from scipy.spatial.distance import cdist

from genaug.devices import Mesh, make_mesh
from genaug.evaluation import kernels, kid, kid_subsets, rbf_mmd
from genaug.evaluation.intervals import normal_quantile
from genaug.types import UserError


def features(n, seed, d=48, scale=1.0):
    # Of a mean far from 0 for their spread, as a network's are after ReLU.
    return np.abs(np.random.default_rng(seed).normal(size=(n, d)) * scale).astype(np.float32)


def cubic(a, b):
    return (a @ b.T / a.shape[1] + 1) ** 3


def gaussian(a, b, sigma=10.0):
    return np.exp(-cdist(a, b, "sqeuclidean") / (2 * sigma**2))


def naive(x, y, kernel, biased=False):
    x, y = x.astype(np.float64), y.astype(np.float64)
    a, b, c = kernel(x, x), kernel(y, y), kernel(x, y)
    if biased:
        return a.mean() + b.mean() - 2 * c.mean()
    n, m = len(x), len(y)
    within = (a.sum() - np.trace(a)) / (n * (n - 1)) + (b.sum() - np.trace(b)) / (m * (m - 1))
    return within - 2 * c.mean()


def jackknife(x, y, statistic):
    """The textbook way: the statistic anew without each row."""
    parts = [
        [statistic(np.delete(x, i, axis=0), y) for i in range(len(x))],
        [statistic(x, np.delete(y, i, axis=0)) for i in range(len(y))],
    ]
    return sum((len(part) - 1) * np.var(part) for part in parts)


# More than one block of rows, and the last one padded.
@pytest.mark.parametrize("n,m", [(1500, 700), (40, 1100)])
def test_whole_sets_agree_with_the_full_matrices(n, m):
    x, y = features(n, 0), features(m, 1, scale=1.05)
    assert kid(x, y).estimate == pytest.approx(naive(x, y, cubic), rel=2e-6)
    for biased in (False, True):
        found = rbf_mmd(x, y, biased=biased).estimate
        assert found == pytest.approx(naive(x, y, gaussian, biased), rel=2e-6)


def test_a_large_common_offset_costs_no_digits():
    # An uncentred float32 product would be off by 1e-7 of the kernel values, here about 10^9.
    x, y = features(300, 2) + 1000, features(300, 3, scale=1.05) + 1000
    assert kid(x, y).estimate == pytest.approx(naive(x, y, cubic), rel=1e-5)


def test_intervals_are_those_of_leaving_each_row_out():
    x, y = features(30, 4, 5), features(20, 5, 5, 1.5)
    z = normal_quantile(0.95)
    for found, kernel, biased in (
        (kid(x, y), cubic, False),
        (rbf_mmd(x, y), gaussian, False),
        (rbf_mmd(x, y, biased=True), gaussian, True),
    ):
        expected = jackknife(x, y, lambda a, b, k=kernel, v=biased: naive(a, b, k, v))
        assert ((found.high - found.low) / 2 / z) ** 2 == pytest.approx(expected, rel=1e-5)


def test_intervals_cover():
    # E k for Gaussians of standard deviation s and t: 1 + 3 s^2 t^2 / d (odd powers vanish).
    d, scale = 8, 1.3
    truth = 3 * (1 + scale**4 - 2 * scale**2) / d
    covered = 0
    for seed in range(100):
        generator = np.random.default_rng(seed)
        x, y = generator.normal(size=(200, d)), scale * generator.normal(size=(150, d))
        found = kid(x, y)
        covered += found.low <= truth <= found.high
    assert 0.88 <= covered / 100 <= 0.99


def test_unbiased_where_the_biased_form_has_a_floor():
    values = np.array(
        [
            [rbf_mmd(*pair, sigma=2.0, biased=biased).estimate for biased in (False, True)]
            for pair in np.random.default_rng(6).normal(size=(60, 2, 50, 4))
        ]
    )
    # E k(x, x') = (1 + 2 / sigma^2)^(-d/2) for two standard normal rows.
    floor = (1 - (1 + 2 / 4) ** -2) * (1 / 50 + 1 / 50)
    error = values.std(axis=0) / 60**0.5
    assert abs(values[:, 0].mean()) < 4 * error[0]
    assert abs(values[:, 1].mean() - floor) < 4 * error[1]


def test_normalised_rows():
    x, y = features(60, 7), features(50, 8, scale=3.0)
    x64, y64 = x.astype(np.float64), y.astype(np.float64)
    unit = [each / np.linalg.norm(each, axis=1, keepdims=True) for each in (x64, y64)]
    found = rbf_mmd(x, y, sigma=0.5, normalise=True, biased=True).estimate
    expected = naive(*unit, lambda a, b: gaussian(a, b, 0.5), biased=True)
    assert found == pytest.approx(expected, rel=1e-6)


def test_subsets_agree_with_torch_fidelity(monkeypatch):
    peer = torch_fidelity(monkeypatch, "metric_kid")
    torch = sys.modules["torch"]
    x, y = features(600, 9), features(500, 10, scale=1.05)
    expected = peer.kid_features_to_metric(
        torch.tensor(x),
        torch.tensor(y),
        kid_subsets=10,
        kid_subset_size=200,
        kid_kernel="poly",
        rng_seed=2020,
        verbose=False,
    )
    found = kid_subsets(x, y, subsets=10, size=200)
    assert found.mean == pytest.approx(expected["kernel_inception_distance_mean"], rel=1e-3)
    assert found.std == pytest.approx(expected["kernel_inception_distance_std"], rel=1e-3)


@pytest.mark.parametrize(("subsets", "size"), [(4, 30), (40, 30)])
def test_subsets_agree_with_the_full_matrices(subsets, size):
    """Few of them each by itself, many of them from all pairs at once."""
    x, y = features(90, 11), features(70, 12)
    generator = np.random.RandomState(2020)
    values = []
    for _ in range(subsets):
        some, others = (generator.choice(n, size, replace=False) for n in (90, 70))
        values.append(naive(x[some], y[others], cubic))
    found = kid_subsets(x, y, subsets=subsets, size=size)
    np.testing.assert_allclose(found, (np.mean(values), np.std(values)), rtol=2e-6)


@pytest.mark.parametrize("devices", [1, 2, 8])
def test_a_mesh_moves_no_more_than_last_digits(devices):
    # Rows that neither 2 nor 8 divide.
    x, y = features(1101, 0), features(83, 1, scale=1.05)
    mesh = make_mesh(Mesh(data=devices))
    np.testing.assert_allclose(kid(x, y, mesh=mesh), kid(x, y), rtol=1e-9)
    np.testing.assert_allclose(rbf_mmd(x, y, mesh=mesh), rbf_mmd(x, y), rtol=1e-9)


def test_refusals():
    x = features(10, 13)
    with pytest.raises(UserError, match="one feature net"):
        kernels.require_pair(x, x[:, :4])
    with pytest.raises(UserError, match=r"second.* 2 rows"):
        kid(x, x[:2])
    with pytest.raises(UserError, match="at least 1000"):
        kid_subsets(x, x)
    with pytest.raises(UserError, match="sigma is 0"):
        rbf_mmd(x, x, sigma=0.0)
    with pytest.raises(UserError, match="second set has a row of zeros"):
        rbf_mmd(x, np.zeros((5, 48)), normalise=True)
