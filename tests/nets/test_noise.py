"""Noise levels and predictions against closed forms, published tables and NumPy."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from genaug.nets import noise
from genaug.nets.noise import COEFFICIENTS, EDM, Cosine, Flow, Level, Linear

SCHEDULES = [Linear(), Cosine(), EDM(), Flow(), Flow(log_std=1.0)]
TIMES = jnp.linspace(0.01, 0.99, 23)


def names(value):
    return f"{value}"


@pytest.mark.parametrize("schedule", SCHEDULES, ids=names)
def test_noise_grows_from_data_to_nothing_but_noise(schedule):
    level = schedule.level(jnp.linspace(0.0, 1.0, 101))
    ratio = np.asarray(level.alpha / jnp.maximum(level.sigma, 1e-9))
    assert (np.diff(ratio) <= 0).all()
    assert ratio[0] > 200
    assert ratio[-1] < 0.013  # EDM stops at 1 / 80


@pytest.mark.parametrize("schedule", [Linear(), Cosine(), EDM()], ids=names)
def test_variance_is_preserved(schedule):
    level = schedule.level(TIMES)
    np.testing.assert_allclose(level.alpha**2 + level.sigma**2, 1.0, rtol=1e-6)


def test_linear_is_the_limit_of_the_published_thousand_steps():
    """Ho et al. 2020, section 4: beta from 1e-4 to 0.02 in 1000 steps."""
    alpha_bar = np.cumprod(1.0 - np.linspace(1e-4, 0.02, 1000))
    got = Linear().level(jnp.asarray([0.25, 0.5, 0.75])).alpha ** 2
    np.testing.assert_allclose(got, alpha_bar[[249, 499, 749]], rtol=0.03)


def test_cosine_is_the_published_formula():
    t = np.linspace(0.001, 0.95, 50)
    f = lambda t: np.cos((t + 0.008) / 1.008 * np.pi / 2) ** 2  # noqa: E731
    level = Cosine().level(jnp.asarray(t, jnp.float32))
    np.testing.assert_allclose(level.alpha**2, f(t) / f(0), rtol=2e-5)
    np.testing.assert_allclose(level.sigma**2, 1 - f(t) / f(0), rtol=2e-4)


def test_edm_levels_are_karras_et_al_s():
    """Table 1: 18 levels from 80 to 0.002 at rho 7."""
    i = np.arange(18)
    published = (80 ** (1 / 7) + i / 17 * (0.002 ** (1 / 7) - 80 ** (1 / 7))) ** 7
    level = noise.grid(EDM(), jnp.arange(18, 0, -1), jnp.full(18, 18))
    np.testing.assert_allclose(level.sigma / level.alpha, published, rtol=1e-4)


@pytest.mark.parametrize(
    "schedule, normal",
    [(EDM(), lambda level: jnp.log(level.sigma / level.alpha)), (Flow(log_std=0.7), None)],
    ids=["edm", "flow"],
)
def test_training_times_have_the_stated_distribution(schedule, normal):
    u = (jnp.arange(2000) + 0.5) / 2000
    level = schedule.level(schedule.training_time(u))
    value = normal(level) if normal else jnp.log(level.t / (1 - level.t))
    mean, std = (-1.2, 1.2) if normal else (0.0, 0.7)
    assert stats.kstest(np.asarray(value), "norm", (mean, std)).statistic < 2e-3


def test_the_grid_ends_at_clean_data_row_by_row():
    remaining, steps = jnp.array([5, 1, 0, -2, 1]), jnp.array([5, 5, 5, 3, 1])
    level = noise.grid(Linear(), remaining, steps)
    np.testing.assert_allclose(level.t, [1.0, 1e-3, 0.0, 0.0, 1.0])
    np.testing.assert_array_equal(level.sigma[2:4], 0.0)
    np.testing.assert_array_equal(level.alpha[2:4], 1.0)


@pytest.mark.parametrize("schedule", SCHEDULES[:4], ids=names)
@pytest.mark.parametrize("prediction", COEFFICIENTS)
def test_what_is_predicted_means_the_x0_and_eps_it_was_made_of(schedule, prediction, key):
    x0, eps = jax.random.normal(key, (2, 23, 3, 3))
    level = schedule.level(TIMES)
    xt = noise.diffuse(x0, eps, level)
    output = noise.target_of(prediction, x0, eps, level)
    got = noise.x0_of(prediction, output, xt, level)
    # From eps, x0 is a difference of two numbers 1 / alpha times as large.
    slack = 3e-6 / np.asarray(level.alpha if prediction == "eps" else jnp.ones(23))
    assert (np.abs(got - x0).max((1, 2)) < np.maximum(slack, 2e-5)).all()
    near = noise.eps_of(x0, xt, level)
    assert (np.abs(near - eps).max((1, 2)) < 3e-6 / np.asarray(level.sigma)).all()


def test_predictions_are_the_published_combinations():
    x0, eps, t = jnp.array([[2.0]]), jnp.array([[3.0]]), jnp.array([0.4])
    level = Linear().level(t)
    a, s = float(level.alpha[0]), float(level.sigma[0])
    want = {"eps": 3.0, "x0": 2.0, "v": a * 3 - s * 2, "flow": 3.0 - 2.0}
    assert want.keys() == COEFFICIENTS.keys()
    for name, value in want.items():
        np.testing.assert_allclose(noise.target_of(name, x0, eps, level), value, rtol=1e-6)


def test_min_snr_weights_are_the_published_ones():
    """Hang et al. 2023, section 3.4: min(SNR, g) over SNR for eps, SNR + 1 for v, 1 for x0."""
    level = Cosine().level(TIMES)
    snr = np.asarray(level.alpha / level.sigma) ** 2
    for name, divisor in {"eps": snr, "v": snr + 1, "x0": 1.0}.items():
        got = noise.min_snr(name, level, 5.0)
        np.testing.assert_allclose(got, np.minimum(snr, 5.0) / divisor, rtol=1e-5)


def test_the_posterior_is_ho_et_al_s(key):
    """Eq. 6-7 with beta and alpha_bar of the discrete process."""
    schedule, steps = Linear(), 1000
    for i in (1, 10, 500, 999):
        now, then = (schedule.level(jnp.array([j / steps])) for j in (i + 1, i))
        bar_t, bar_s = (float(level.alpha[0]) ** 2 for level in (now, then))
        alpha = bar_t / bar_s
        beta = 1 - alpha
        x0, xt = jax.random.normal(key, (2, 1, 4))
        got = noise.posterior(x0, xt, now, then)
        mean = (
            np.sqrt(bar_s) * beta / (1 - bar_t) * x0
            + np.sqrt(alpha) * (1 - bar_s) / (1 - bar_t) * xt
        )
        np.testing.assert_allclose(got.mean, mean, rtol=2e-3, atol=1e-5)
        np.testing.assert_allclose(got.large, beta, rtol=5e-3)
        np.testing.assert_allclose(got.variance, beta * (1 - bar_s) / (1 - bar_t), rtol=5e-3)


@pytest.mark.parametrize("schedule", SCHEDULES[:4], ids=names)
def test_the_posterior_is_bayes_rule(schedule, key):
    """q(x_s | x_t, x0) from many pairs of one trajectory: a regression knows nothing of eq. 7."""
    x0, eps_s, eps = jax.random.normal(key, (3, 200_000, 1))
    x0 = jnp.full_like(x0, 0.7)
    for s, t in itertools.pairwise((0.2, 0.5, 0.9)):
        then, now = (schedule.level(jnp.full(1, v)) for v in (s, t))
        (alpha_s,), (sigma_s,), (alpha_t,), (sigma_t,) = then[1], then[2], now[1], now[2]
        ratio = alpha_t / alpha_s
        x_s = alpha_s * x0 + sigma_s * eps_s
        x_t = ratio * x_s + jnp.sqrt(sigma_t**2 - ratio**2 * sigma_s**2) * eps
        slope, intercept = np.polyfit(np.ravel(x_t), np.ravel(x_s), 1)
        where = jnp.array([[1.3]])
        got = noise.posterior(jnp.full((1, 1), 0.7), where, now, then)
        np.testing.assert_allclose(got.mean[0, 0], 1.3 * slope + intercept, atol=0.01)
        residual = np.var(np.ravel(x_s) - slope * np.ravel(x_t) - intercept)
        np.testing.assert_allclose(got.variance[0], residual, rtol=0.02)


def test_levels_are_shaped_to_multiply_rows():
    level = Level(jnp.arange(2.0), jnp.arange(2.0), jnp.arange(2.0))
    assert noise.over(level.t, jnp.zeros((2, 3, 4, 5))).shape == (2, 1, 1, 1)
