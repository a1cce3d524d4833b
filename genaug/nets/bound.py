"""The variational bound of a diffusion model (Ho et al. 2020, eq. 5), in bits per value."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from genaug.nets import noise
from genaug.nets.noise import Level, Schedule, over
from genaug.nets.samplers import Denoise, Denoised

Values = Float[Array, "n h w c"]
PerExample = Float[Array, " n"]


def term(
    schedule: Schedule, num_levels: int, x0: Values, xt: Values, guess: Denoised, now: Level
) -> PerExample:
    """One of the T terms, nats per value: a KL, or at the first level -log p(x0 | x1).

    The step back is a Gaussian around the posterior's mean at the denoised example, its
    log-variance between the posterior's and beta (Nichol & Dhariwal 2021, eq. 15).
    """
    step = 1.0 / num_levels
    is_first = now.t <= 1.5 * step
    before = schedule.level(jnp.maximum(now.t - step, 0.0))
    then = Level(
        before.t,
        jnp.where(is_first, 1.0, before.alpha),
        jnp.where(is_first, 0.0, before.sigma),
    )
    true = noise.posterior(x0, xt, now, then)
    mean = noise.posterior(guess.x0, xt, now, then).mean
    # The first level's posterior has no variance: as published, the second level's stands for it.
    floor = _variance(schedule, 2.0 * step, step)
    small = over(jnp.log(jnp.maximum(true.variance, floor)), x0)
    large = over(jnp.log(jnp.maximum(true.large, floor)), x0)
    log_variance = guess.fraction * large + (1.0 - guess.fraction) * small
    kl = 0.5 * (
        log_variance
        - small
        + jnp.exp(small - log_variance)
        + (true.mean - mean) ** 2 * jnp.exp(-log_variance)
        - 1.0
    )
    value = jnp.where(over(is_first, x0), -log_bin(x0, mean, log_variance), kl)
    return jnp.mean(value, axis=(1, 2, 3))


def _variance(schedule: Schedule, t: float, s: float) -> Array:
    now, then = (schedule.level(jnp.full((1,), time)) for time in (t, s))
    return noise.posterior(jnp.zeros((1, 1)), jnp.zeros((1, 1)), now, then).variance


def log_bin(x0: Values, mean: Values, log_variance: Array) -> Values:
    """log of a Gaussian's mass on the bin of a byte, the end bins open (Ho et al. 2020, eq. 13).

    x0 holds bytes scaled to [-1, 1]; bins reach 1/255 to both sides.
    """
    inverse = jnp.exp(-0.5 * log_variance)
    above = inverse * (x0 - mean + 1.0 / 255.0)
    below = inverse * (x0 - mean - 1.0 / 255.0)
    # Mirrored into the lower tail, the difference of two CDFs keeps its digits.
    mirrored = x0 > mean
    high = jax.scipy.stats.norm.logcdf(jnp.where(mirrored, -below, above))
    low = jax.scipy.stats.norm.logcdf(jnp.where(mirrored, -above, below))
    inner = high + jnp.log(-jnp.expm1(jnp.minimum(low - high, -1e-7)))
    lowest = jax.scipy.stats.norm.logcdf(above)
    highest = jax.scipy.stats.norm.logcdf(-below)
    return jnp.where(x0 < -0.999, lowest, jnp.where(x0 > 0.999, highest, inner))


def bits_per_dim(
    schedule: Schedule,
    model: Denoise,
    x0: Values,
    key: jax.Array,
    num_levels: int,
    score_levels: int,
) -> PerExample:
    """The bound, its T terms estimated without bias from `score_levels` of them.

    The levels are cut into as many equal parts, and of each part one level is drawn.
    """
    n, count = x0.shape[0], min(score_levels, num_levels)

    def one(i: Array) -> PerExample:
        key_time, key_eps = jax.random.split(jax.random.fold_in(key, i))
        u = (i + jax.random.uniform(key_time, (n,))) / count
        t = jnp.clip(jnp.ceil(u * num_levels), 1, num_levels) / num_levels
        level = schedule.level(t)
        xt = noise.diffuse(x0, jax.random.normal(key_eps, x0.shape), level)
        return term(schedule, num_levels, x0, xt, model(xt, level), level)

    terms = jax.lax.map(one, jnp.arange(count))
    last = schedule.level(jnp.ones(n))
    alpha, sigma = over(last.alpha, x0), over(last.sigma, x0)
    prior = 0.5 * (sigma**2 + (alpha * x0) ** 2 - 1.0 - 2.0 * jnp.log(sigma))
    nats = num_levels * jnp.mean(terms, axis=0) + jnp.mean(prior, axis=(1, 2, 3))
    return nats / jnp.log(2.0)
