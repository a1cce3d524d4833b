import numpy as np
import pytest
import scipy.linalg

from genaug.evaluation import Moments, frechet_distance, frechet_from_moments, moments
from genaug.types import UserError


def reference(x, y):
    """By the textbook formula, with scipy's matrix root."""
    a, b = np.cov(x.T), np.cov(y.T)
    shift = x.mean(axis=0) - y.mean(axis=0)
    return shift @ shift + np.trace(a + b - 2 * scipy.linalg.sqrtm(a @ b).real)


def normal(n, d, seed, rank=None):
    generator = np.random.default_rng(seed)
    mix = generator.normal(size=(rank or d, d)) / d**0.5
    return generator.normal(size=(n, rank or d)) @ mix + generator.normal(size=d)


def test_closed_form_of_diagonal_gaussians():
    a = Moments(np.array([1.0, 2.0, 0.0]), np.diag([1.0, 4.0, 9.0]), 10)
    b = Moments(np.array([0.0, 2.0, 2.0]), np.diag([4.0, 4.0, 1.0]), 10)
    assert frechet_from_moments(a, b) == pytest.approx(1 + 4 + 1 + 0 + 4, rel=1e-12)


def test_closed_form_of_singular_gaussians():
    a = Moments(np.zeros(3), np.diag([4.0, 0.0, 1.0]), 10)
    b = Moments(np.zeros(3), np.diag([0.0, 9.0, 1.0]), 10)
    assert frechet_from_moments(a, b) == pytest.approx(4 + 9, rel=1e-9)


def test_moments_agree_with_numpy():
    x = normal(50, 7, 0)
    found = moments(x)
    np.testing.assert_allclose(found.mean, x.mean(axis=0), rtol=1e-12)
    np.testing.assert_allclose(found.cov, np.cov(x.T), rtol=1e-12)
    assert found.n == 50


@pytest.mark.parametrize("n,m", [(400, 300), (300, 900)])
def test_full_rank_agrees_with_sqrtm(n, m):
    x, y = normal(n, 40, 1), normal(m, 40, 2)
    assert frechet_distance(x, y) == pytest.approx(reference(x, y), rel=1e-8)
    assert frechet_from_moments(moments(x), moments(y)) == pytest.approx(reference(x, y), rel=1e-8)


@pytest.mark.parametrize("n,m,rank", [(20, 30, 30), (20, 200, 30), (200, 20, 30), (100, 90, 5)])
@pytest.mark.filterwarnings("ignore")  # sqrtm's own, on a singular matrix.
def test_deficient_rank_agrees_with_a_regular_projection(n, m, rank):
    # Both sets span at most n + m dimensions: a small ridge makes sqrtm defined, and its effect
    # vanishes with its root, so two ridges extrapolate to none.
    x, y = normal(n, 30, 3, rank), normal(m, 30, 4, rank)
    a, b = moments(x), moments(y)

    def ridged(ridge):
        eye = ridge * np.eye(30)
        root = scipy.linalg.sqrtm((a.cov + eye) @ (b.cov + eye)).real
        return np.sum((a.mean - b.mean) ** 2) + np.trace(a.cov + b.cov + 2 * eye - 2 * root)

    expected = 2 * ridged(1e-10) - ridged(4e-10)
    assert frechet_distance(x, y) == pytest.approx(expected, rel=1e-5)
    assert frechet_from_moments(a, b) == pytest.approx(frechet_distance(x, y), rel=1e-6)


def test_rank_deficient_regime_of_known_value():
    # y is x scaled: the trace term is 2 tr(S), so the distance is tr(S) (1 + 4 - 2 * 2) + shift.
    x = normal(10, 64, 5)
    shift = x.mean(axis=0)
    assert frechet_distance(x, 2 * x) == pytest.approx(
        np.trace(np.cov(x.T)) + shift @ shift, rel=1e-10
    )


@pytest.mark.parametrize("n,d", [(100, 20), (21, 20), (20, 20), (5, 200), (2, 3)])
def test_identical_sets_are_at_zero(n, d):
    x = normal(n, d, 6) * 100
    assert frechet_distance(x, x.copy()) == 0
    assert frechet_from_moments(moments(x), moments(x)) == pytest.approx(0, abs=1e-6)


def test_ill_conditioned_features():
    # Rotated, so that no single feature is small; squaring the factors would cost 5 digits.
    x, y = np.random.default_rng(7).normal(size=(2, 900, 128))
    turn = np.linalg.qr(normal(128, 128, 8))[0]
    scale = np.where(np.arange(128) < 64, 1.0, 1e-7)
    small = frechet_distance((x * scale) @ turn, (y * scale) @ turn)
    assert small == pytest.approx(frechet_distance(x[:, :64], y[:, :64]), rel=1e-10)
    assert frechet_distance((x * scale) @ turn, (x * scale) @ turn) == 0


@pytest.mark.parametrize("digits", [1, 3, 6, 9, 12])
def test_any_spectrum_keeps_its_digits(digits):
    """Covariances with common eigenvectors have a closed form, whatever their condition."""
    d = 60
    turn = np.linalg.qr(normal(d, d, 13))[0]
    values = [10.0 ** -np.linspace(0, digits, d), 10.0 ** -(np.linspace(digits, 0, d) ** 0.9)]
    a, b = (Moments(np.zeros(d), (turn * v) @ turn.T, 100) for v in values)
    expected = np.square(np.sqrt(values[0]) - np.sqrt(values[1])).sum()
    size = values[0].sum() + values[1].sum()
    assert frechet_from_moments(a, b) == pytest.approx(expected, abs=1e-9 * size)


def test_a_constant_feature_changes_nothing():
    x, y = normal(200, 10, 9), normal(200, 10, 10)
    padded = (np.pad(each, ((0, 0), (0, 3))) for each in (x, y))
    assert frechet_distance(*padded) == pytest.approx(frechet_distance(x, y), rel=1e-9)


def test_symmetry_and_float32():
    x, y = normal(80, 12, 11).astype(np.float32), normal(60, 12, 12).astype(np.float32)
    assert frechet_distance(x, y) == pytest.approx(frechet_distance(y, x), rel=1e-9)


def test_refusals():
    x = np.zeros((3, 2))
    with pytest.raises(UserError, match="at least 2"):
        frechet_distance(x[:1], x)
    with pytest.raises(UserError, match=r"second.*infinite"):
        frechet_distance(x, np.full((3, 2), np.inf))
    with pytest.raises(UserError, match="one feature net"):
        frechet_from_moments(moments(x), moments(np.zeros((3, 4))))


def test_a_set_of_one_point_is_as_far_as_the_other_spreads():
    x = normal(50, 6, 14)
    expected = np.trace(np.cov(x.T)) + np.square(x.mean(axis=0)).sum()
    assert frechet_distance(x, np.zeros((40, 6))) == pytest.approx(expected, rel=1e-12)
    assert frechet_distance(np.zeros((40, 6)), x) == pytest.approx(expected, rel=1e-12)
