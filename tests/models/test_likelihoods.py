"""Likelihoods of bytes, against scikit-learn, SciPy and their own draws."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.special
import scipy.stats
from sklearn.metrics import log_loss

from genaug.nets.likelihoods import Bernoulli, DiscretizedLogistic, Gaussian, to_bytes, to_unit

SHAPE = (3, 4, 5, 2)
LIKELIHOODS = [Bernoulli(), Gaussian(), Gaussian(scale=0.02), DiscretizedLogistic()]
EVERY_BYTE = np.arange(256, dtype=np.uint8).reshape(256, 1, 1, 1)


def images(seed=0):
    return np.random.default_rng(seed).integers(0, 256, SHAPE).astype(np.uint8)


def outputs(likelihood, seed=1, scale=2.0):
    shape = (*SHAPE, likelihood.outputs_per_value)
    return scale * np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def logistic_outputs(mean, log_scale, rows=256):
    """What a decoder says for this mean in [-1, 1] and this log-scale."""
    pair = np.array([np.arctanh(mean), log_scale + 2.0], np.float32)
    return np.broadcast_to(pair, (rows, 1, 1, 1, 2))


def test_bytes_and_units_are_inverse():
    np.testing.assert_array_equal(to_bytes(to_unit(jnp.asarray(EVERY_BYTE))), EVERY_BYTE)
    np.testing.assert_allclose(to_unit(jnp.asarray(EVERY_BYTE)), EVERY_BYTE / 255, rtol=1e-6)


def test_bernoulli_is_minus_the_cross_entropy():
    x, raw = images(), outputs(Bernoulli())
    black_or_white = np.where(x > 127, 255, 0).astype(np.uint8)
    probability = scipy.special.expit(raw[..., 0].astype(np.float64))
    got = Bernoulli().log_prob(jnp.asarray(raw), jnp.asarray(black_or_white))
    want = [
        -log_loss(row.reshape(-1) > 127, p.reshape(-1), normalize=False)
        for row, p in zip(black_or_white, probability, strict=True)
    ]
    np.testing.assert_allclose(got, want, rtol=1e-5)
    gray = Bernoulli().log_prob(jnp.asarray(raw), jnp.asarray(x))
    target = x / 255
    entropy = target * np.log(probability) + (1 - target) * np.log1p(-probability)
    np.testing.assert_allclose(gray, entropy.sum((1, 2, 3)), rtol=1e-5)


@pytest.mark.parametrize("scale", [0.02, 0.1, 1.0])
def test_gaussian_is_scipys(scale):
    x, raw = images(), outputs(Gaussian())
    centre = scipy.special.expit(raw[..., 0].astype(np.float64))
    want = scipy.stats.norm.logpdf(x / 255, centre, scale).sum((1, 2, 3))
    got = Gaussian(scale=scale).log_prob(jnp.asarray(raw), jnp.asarray(x))
    np.testing.assert_allclose(got, want, rtol=1e-5)


@pytest.mark.parametrize("mean", [-0.999, -0.3, 0.0, 0.123, 0.98])
@pytest.mark.parametrize("log_scale", [-30.0, -7.0, -5.0, -2.0, 0.0, 3.0])
def test_discretized_logistic_sums_to_one_over_all_bytes(mean, log_scale):
    raw = jnp.asarray(logistic_outputs(mean, log_scale))
    log_prob = DiscretizedLogistic().log_prob(raw, jnp.asarray(EVERY_BYTE))
    assert np.isfinite(log_prob).all()
    np.testing.assert_allclose(np.exp(np.float64(log_prob)).sum(), 1.0, atol=2e-4)


@pytest.mark.parametrize("mean", [-0.9, 0.0, 0.5])
@pytest.mark.parametrize("log_scale", [-4.0, -2.0, 0.0])
def test_discretized_logistic_is_the_difference_of_scipys_distribution_function(mean, log_scale):
    centre, scale = np.tanh(np.float32(np.arctanh(mean))).astype(np.float64), np.exp(log_scale)
    level = 2.0 * np.arange(256) / 255.0 - 1.0
    above = scipy.stats.logistic.cdf(level + 1 / 255, centre, scale)
    below = scipy.stats.logistic.cdf(level - 1 / 255, centre, scale)
    above[-1], below[0] = 1.0, 0.0
    want = above - below
    raw = jnp.asarray(logistic_outputs(mean, log_scale))
    got = np.exp(np.float64(DiscretizedLogistic().log_prob(raw, jnp.asarray(EVERY_BYTE))))
    np.testing.assert_allclose(got, want, rtol=2e-3, atol=1e-7)


@pytest.mark.parametrize("likelihood", LIKELIHOODS)
@pytest.mark.parametrize("extreme", [-1e4, -100.0, -30.0, 30.0, 100.0, 1e4])
def test_values_and_gradients_are_finite_at_extreme_outputs(likelihood, extreme):
    raw = jnp.full((256, 1, 1, 1, likelihood.outputs_per_value), extreme)
    for sign in (1.0, -1.0):  # the second output, where there is one, at either end
        signs = jnp.asarray([1.0, sign], jnp.float32)[: likelihood.outputs_per_value]
        value, gradient = jax.value_and_grad(
            lambda raw: jnp.sum(likelihood.log_prob(raw, jnp.asarray(EVERY_BYTE)))
        )(raw * signs.reshape(1, 1, 1, 1, -1))
        assert np.isfinite(value)
        assert np.isfinite(gradient).all()


@pytest.mark.parametrize("likelihood", LIKELIHOODS)
def test_means_and_draws_are_in_the_unit_interval(likelihood, key):
    raw = jnp.asarray(outputs(likelihood, scale=20.0))
    for values in (likelihood.mean(raw), likelihood.draw(raw, key)):
        assert values.shape == SHAPE
        assert values.min() >= 0
        assert values.max() <= 1


@pytest.mark.parametrize(
    "likelihood, raw, deviation",
    [
        (Bernoulli(), [0.4], 0.5),
        (Gaussian(), [0.1], 0.1),
        (DiscretizedLogistic(), [0.2, -1.0], np.pi / np.sqrt(3) * np.exp(-3) / 2),
    ],
)
def test_the_mean_of_draws_is_the_mean(likelihood, raw, deviation, key):
    """Where clipping does not bite; within five standard errors."""
    raw = jnp.broadcast_to(jnp.asarray(raw, jnp.float32), (1, 100, 100, 1, len(raw)))
    drawn = likelihood.draw(raw, key)
    np.testing.assert_allclose(
        drawn.mean(), likelihood.mean(raw)[0, 0, 0, 0], atol=5 * deviation / 100
    )


def test_drawn_bytes_follow_the_discretized_logistics_probabilities(key):
    mean, log_scale, count = 0.8, -2.0, 200_000
    raw = jnp.asarray(logistic_outputs(mean, log_scale, count))
    drawn = np.bincount(to_bytes(DiscretizedLogistic().draw(raw, key)).reshape(-1), minlength=256)
    log_prob = DiscretizedLogistic().log_prob(raw[:256], jnp.asarray(EVERY_BYTE))
    probability = np.exp(np.float64(log_prob))
    seen = probability * count > 5
    error = np.sqrt(probability * (1 - probability) / count)
    assert np.max(np.abs(drawn / count - probability)[seen] / error[seen]) < 5
