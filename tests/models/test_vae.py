"""The VAE's mathematics: divergence, bounds on a model with a known likelihood, steering."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.integrate
import scipy.stats

from genaug.models import vae
from genaug.types import row_keys


def posterior(n=5, dim=3, seed=0):
    generator = np.random.default_rng(seed)
    mean, logvar = generator.normal(size=(2, n, dim)).astype(np.float32)
    return jnp.asarray(mean), jnp.asarray(logvar)


def test_kl_is_the_integral_per_dimension():
    mean, logvar = posterior()

    def divergence(mean, logvar):
        q = scipy.stats.norm(float(mean), float(np.exp(logvar / 2)))
        p = scipy.stats.norm()
        value = lambda z: q.pdf(z) * (q.logpdf(z) - p.logpdf(z))  # noqa: E731
        return scipy.integrate.quad(value, q.mean() - 12 * q.std(), q.mean() + 12 * q.std())[0]

    want = np.vectorize(divergence)(np.asarray(mean), np.asarray(logvar)).sum(-1)
    np.testing.assert_allclose(vae.gaussian_kl((mean, logvar)), want, rtol=1e-4)


def test_kl_is_zero_at_the_prior_alone():
    zero = jnp.zeros((2, 3))
    np.testing.assert_array_equal(vae.gaussian_kl((zero, zero)), 0)
    assert (vae.gaussian_kl(posterior()) > 0).all()


def test_kl_is_the_mean_log_ratio_of_draws(key):
    mean, logvar = posterior(n=1)
    count = 100_000
    eps = jax.random.normal(key, (count, mean.shape[1]))
    wide = jnp.broadcast_to(mean, eps.shape), jnp.broadcast_to(logvar, eps.shape)
    z = np.asarray(vae.reparametrise(wide, eps), np.float64)
    log_q = scipy.stats.norm.logpdf(z, np.asarray(mean), np.exp(np.asarray(logvar) / 2)).sum(-1)
    ratio = log_q - scipy.stats.norm.logpdf(z).sum(-1)
    error = ratio.std() / np.sqrt(count)
    np.testing.assert_allclose(vae.gaussian_kl((mean, logvar))[0], ratio.mean(), atol=5 * error)


def test_reparametrised_draws_have_the_posteriors_moments(key):
    count = 100_000
    mean, logvar = jnp.float32(1.5), jnp.log(jnp.float32(0.25))
    wide = jnp.full((count, 1), mean), jnp.full((count, 1), logvar)
    z = vae.reparametrise(wide, jax.random.normal(key, (count, 1)))
    np.testing.assert_allclose(z.mean(), 1.5, atol=5 * 0.5 / np.sqrt(count))
    np.testing.assert_allclose(z.std(), 0.5, atol=5 * 0.5 / np.sqrt(2 * count))


class LinearGaussian:
    """x = W z + noise, with orthogonal columns of W: the posterior is diagonal and known."""

    def __init__(self, rows):
        generator = np.random.default_rng(0)
        self.noise = 0.5
        self.w = np.linalg.qr(generator.normal(size=(3, 2)))[0] * [1.5, 0.7]
        covariance = self.w @ self.w.T + self.noise**2 * np.eye(3)
        self.x = generator.normal(size=3)
        self.log_evidence = scipy.stats.multivariate_normal(cov=covariance).logpdf(self.x)
        self.variance = 1 / (1 + (self.w**2).sum(0) / self.noise**2)
        self.mean = self.variance * (self.x @ self.w) / self.noise**2
        self.rows = rows

    def log_prob(self, z):
        centre = z @ jnp.asarray(self.w.T, jnp.float32)
        x = jnp.asarray(np.broadcast_to(self.x, (self.rows, 3)), jnp.float32)
        return jnp.sum(jax.scipy.stats.norm.logpdf(x, centre, self.noise), axis=-1)

    def posterior(self, shift=0.0, log_ratio=0.0):
        """q: the exact posterior, or one off it."""
        mean = np.broadcast_to(self.mean + shift, (self.rows, 2))
        logvar = np.broadcast_to(np.log(self.variance) + log_ratio, (self.rows, 2))
        return jnp.asarray(mean, jnp.float32), jnp.asarray(logvar, jnp.float32)

    def gap(self, shift, log_ratio):
        """KL(q || exact posterior)."""
        ratio = np.exp(log_ratio)
        return 0.5 * np.sum(ratio + shift**2 / self.variance - 1 - log_ratio)


@pytest.mark.parametrize("k", [1, 3, 20])
def test_iwae_is_the_evidence_for_every_k_when_q_is_the_exact_posterior(k, key):
    model = LinearGaussian(rows=4)
    found = vae.bounds(model.log_prob, model.posterior(), key, k)
    np.testing.assert_allclose(found["iwae"], model.log_evidence, atol=1e-4)
    np.testing.assert_allclose(found["elbo"], model.log_evidence, atol=1e-4)


def test_elbo_is_below_the_evidence_by_the_divergence(key):
    rows = 20_000
    model = LinearGaussian(rows)
    found = vae.bounds(model.log_prob, model.posterior(0.4, 0.5), key, 2)["elbo"]
    error = np.std(found) / np.sqrt(rows)
    np.testing.assert_allclose(
        np.mean(found), model.log_evidence - model.gap(0.4, 0.5), atol=5 * error
    )


def test_training_terms_are_the_bound_in_two_parts(key):
    """E[log p(x|z)] - KL(q || p), the second part exact: the same number as `bounds` estimates."""
    rows = 20_000
    model = LinearGaussian(rows)
    reconstruction, kl = vae.elbo_terms(
        model.log_prob, model.posterior(0.4, 0.5), jax.random.split(key, rows)
    )
    error = np.std(reconstruction) / np.sqrt(rows)
    want = model.log_evidence - model.gap(0.4, 0.5)
    np.testing.assert_allclose(np.mean(reconstruction - kl), want, atol=5 * error)
    loss, (metrics, statistics) = vae.negative_elbo(reconstruction, kl, 2.0)
    np.testing.assert_allclose(metrics["elbo"], want, atol=5 * error)
    np.testing.assert_allclose(loss, 2 * np.mean(kl) - np.mean(reconstruction), rtol=1e-5)
    assert statistics == {}


def test_iwae_tightens_with_k_and_stays_below_the_evidence(key):
    rows, means, errors = 20_000, [], []
    model = LinearGaussian(rows)
    for k in (1, 4, 16):
        found = vae.bounds(model.log_prob, model.posterior(0.4, 0.5), key, k)
        means.append(float(np.mean(found["iwae"])))
        errors.append(float(np.std(found["iwae"]) / np.sqrt(rows)))
        assert (np.asarray(found["iwae"] - found["elbo"]) > -1e-4).all()  # Jensen, row by row
    assert means[0] + 5 * errors[0] < means[1]
    assert means[1] + 5 * errors[1] < means[2]
    assert means[2] < model.log_evidence + 5 * errors[2]
    assert means[2] > model.log_evidence - 0.1


def unit_rows(n, dim, seed):
    rows = np.random.default_rng(seed).normal(size=(n, dim))
    return jnp.asarray(rows / np.linalg.norm(rows, axis=1, keepdims=True), jnp.float32)


def test_slerp_goes_from_end_to_end_on_the_sphere_at_even_speed():
    a, b = 3.0 * unit_rows(6, 4, 0), 3.0 * unit_rows(6, 4, 1)
    np.testing.assert_allclose(vae.slerp(a, b, jnp.zeros(6)), a, atol=1e-5)
    np.testing.assert_allclose(vae.slerp(a, b, jnp.ones(6)), b, atol=1e-5)
    path = np.stack([vae.slerp(a, b, jnp.full(6, f)) for f in np.linspace(0, 1, 5)])
    np.testing.assert_allclose(np.linalg.norm(path, axis=-1), 3.0, rtol=1e-5)
    steps = np.linalg.norm(np.diff(path, axis=0), axis=-1)
    np.testing.assert_allclose(steps, np.broadcast_to(steps[:1], steps.shape), rtol=1e-3)


def test_slerp_of_parallel_vectors_is_the_line():
    a = unit_rows(3, 4, 0)
    np.testing.assert_allclose(vae.slerp(a, 3.0 * a, jnp.full(3, 0.25)), 1.5 * a, rtol=1e-4)


@pytest.mark.parametrize("fraction", [0.0, 0.3, 0.5, 1.0])
def test_slerp_has_no_nan_where_it_has_no_direction(fraction):
    a = unit_rows(2, 3, 0)
    share = jnp.full(2, fraction)
    zero = jnp.zeros_like(a)
    for other in (-a, -a + 1e-6, zero):
        assert np.isfinite(vae.slerp(a, other, share)).all()
    assert np.isfinite(vae.slerp(zero, zero, share)).all()


DIM = 6


def encode(x):
    """A stand-in encoder that tells images apart."""
    mean = jnp.mean(x.astype(jnp.float32), axis=(1, 2, 3)) / 50.0
    spread = jnp.expand_dims(jnp.arange(1.0, DIM + 1), 0)
    return jnp.expand_dims(mean, 1) * jnp.sin(spread), -spread * jnp.expand_dims(mean, 1) / 4


def steer(key, **cond):
    cond = {"index": jnp.arange(4), **cond}
    return vae.steer(encode, row_keys(key, cond), cond, DIM, 1.0)


NEAR = jnp.asarray(np.random.default_rng(0).integers(0, 256, (4, 3, 3, 1)), jnp.uint8)
TOWARD = jnp.asarray(np.random.default_rng(1).integers(0, 99, (4, 3, 3, 1)), jnp.uint8)


def test_without_a_condition_latents_are_standard_normal(key):
    z = vae.steer(encode, jax.random.split(key, 5000), {}, DIM, 1.0)
    assert scipy.stats.kstest(np.asarray(z).reshape(-1), "norm").pvalue > 1e-3


def test_temperature_scales_the_prior_row_by_row(key):
    temperature = jnp.array([0.0, 0.5, 1.0, 2.0])
    got = steer(key, temperature=temperature)
    np.testing.assert_allclose(got, jnp.expand_dims(temperature, 1) * steer(key), rtol=1e-6)


def test_near_an_example_latents_are_the_posteriors(key):
    mean, logvar = encode(NEAR)
    np.testing.assert_allclose(steer(key, near=NEAR, temperature=jnp.zeros(4)), mean)
    want = mean + jnp.exp(logvar / 2) * steer(key)
    np.testing.assert_allclose(steer(key, near=NEAR), want, rtol=1e-5)


@pytest.mark.parametrize("fraction, end", [(0.0, NEAR), (1.0, TOWARD)])
def test_between_two_examples_the_ends_are_the_posterior_means(fraction, end, key):
    got = steer(key, near=NEAR, toward=TOWARD, fraction=jnp.full(4, fraction))
    np.testing.assert_allclose(got, encode(end)[0], rtol=1e-5, atol=1e-5)


def test_between_two_examples_a_temperature_adds_noise(key):
    fraction, temperature = jnp.full(4, 0.5), jnp.ones(4)
    still = steer(key, near=NEAR, toward=TOWARD, fraction=fraction)
    noisy = steer(key, near=NEAR, toward=TOWARD, fraction=fraction, temperature=temperature)
    logvar = (encode(NEAR)[1] + encode(TOWARD)[1]) / 2
    np.testing.assert_allclose(
        noisy - still, jnp.exp(logvar / 2) * steer(key), rtol=1e-4, atol=1e-5
    )


def test_a_rows_key_depends_on_its_index_alone(key):
    keys = row_keys(key, {"index": jnp.array([7, 3])})
    for i, index in enumerate([7, 3]):
        np.testing.assert_array_equal(
            jax.random.key_data(keys[i]), jax.random.key_data(jax.random.fold_in(key, index))
        )
