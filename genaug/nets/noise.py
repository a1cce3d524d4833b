"""Gaussian noise on data: schedules, what a network predicts of it, and one step back.

Every schedule is a path from data to noise in continuous time t, 0 = data and 1 = noise:

    x_t = alpha(t) x0 + sigma(t) eps,    eps ~ N(0, I).

Ho et al.'s T discrete steps are the times i / T. The signal-to-noise ratio is alpha^2 / sigma^2.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar, Literal, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Shaped

Time = Float[Array, " n"]
Values = Float[Array, "n ..."]
Prediction = Literal["eps", "x0", "v", "flow"]


class Level(NamedTuple):
    """A noise level of every row."""

    t: Time
    alpha: Time
    sigma: Time


def over(values: Shaped[Array, " n"], x: Values) -> Shaped[Array, "n ..."]:
    """One value a row, shaped to multiply rows of x."""
    return values.reshape(-1, *[1] * (x.ndim - 1))


@dataclass(frozen=True, kw_only=True)
class Linear:
    """Variance preserving, beta growing linearly (Ho et al. 2020, section 4).

    The continuous limit of T steps with beta_i from `beta_min` / T to `beta_max` / T (Song et al.
    2021, eq. 33): Ho et al.'s 1e-4 to 0.02 at T = 1000 are 0.1 and 20.
    """

    beta_min: float = 0.1
    beta_max: float = 20.0
    first: ClassVar[float] = 1e-3

    def level(self, t: Time) -> Level:
        """alpha and sigma at times t."""
        log_alpha_bar = -(self.beta_min * t + 0.5 * (self.beta_max - self.beta_min) * t**2)
        return Level(t, jnp.exp(0.5 * log_alpha_bar), jnp.sqrt(-jnp.expm1(log_alpha_bar)))

    def training_time(self, u: Time) -> Time:
        """Uniform."""
        return u


@dataclass(frozen=True, kw_only=True)
class Cosine:
    """Variance preserving, alpha_bar a squared cosine (Nichol & Dhariwal 2021, eq. 17)."""

    offset: float = 0.008
    first: ClassVar[float] = 1e-3

    def level(self, t: Time) -> Level:
        """alpha and sigma at times t; as in the paper, noise stops short of infinite ratio."""
        angle = 0.5 * jnp.pi * (jnp.minimum(t, 0.999) + self.offset) / (1.0 + self.offset)
        start = 0.5 * jnp.pi * self.offset / (1.0 + self.offset)
        alpha = jnp.cos(angle) / jnp.cos(start)
        # 1 - cos^2 a / cos^2 b = sin(a - b) sin(a + b) / cos^2 b keeps its digits near t = 0.
        squared = jnp.sin(angle - start) * jnp.sin(angle + start) / jnp.cos(start) ** 2
        return Level(t, alpha, jnp.sqrt(jnp.maximum(squared, 0.0)))

    def training_time(self, u: Time) -> Time:
        """Uniform."""
        return u


@dataclass(frozen=True, kw_only=True)
class EDM:
    """Noise levels of Karras et al. 2022, table 1: spaced by eq. 5, log-normal in training.

    Their x = x0 + s eps is here divided by sqrt(1 + s^2), in the place of their input scaling
    c_in = 1 / sqrt(sigma_data^2 + s^2); `prediction="v"` is in the place of c_skip and c_out.
    Both are theirs where the data have unit variance (sigma_data 1; theirs is 0.5).
    """

    s_min: float = 0.002
    s_max: float = 80.0
    rho: float = 7.0
    log_mean: float = -1.2
    log_std: float = 1.2
    first: ClassVar[float] = 0.0

    def level(self, t: Time) -> Level:
        """alpha and sigma at times t."""
        low, high = self.s_min ** (1.0 / self.rho), self.s_max ** (1.0 / self.rho)
        s = (low + t * (high - low)) ** self.rho
        return Level(t, 1.0 / jnp.sqrt(1.0 + s**2), s / jnp.sqrt(1.0 + s**2))

    def training_time(self, u: Time) -> Time:
        """The time whose s is log-normal."""
        low, high = self.s_min ** (1.0 / self.rho), self.s_max ** (1.0 / self.rho)
        normal = jax.scipy.stats.norm.ppf(jnp.clip(u, 1e-6, 1.0 - 1e-6))
        s = jnp.exp(self.log_mean + self.log_std * normal)
        return jnp.clip((s ** (1.0 / self.rho) - low) / (high - low), 0.0, 1.0)


@dataclass(frozen=True, kw_only=True)
class Flow:
    """The straight path x_t = (1 - t) x0 + t eps (Lipman et al. 2023; Liu et al. 2023).

    Training times are logit-normal (Esser et al. 2024, eq. 19); `log_std` None makes them uniform.
    """

    log_mean: float = 0.0
    log_std: float | None = None
    first: ClassVar[float] = 1e-3

    def level(self, t: Time) -> Level:
        """alpha and sigma at times t."""
        return Level(t, 1.0 - t, t)

    def training_time(self, u: Time) -> Time:
        """Uniform or logit-normal."""
        if self.log_std is None:
            return u
        normal = jax.scipy.stats.norm.ppf(jnp.clip(u, 1e-6, 1.0 - 1e-6))
        return jax.nn.sigmoid(self.log_mean + self.log_std * normal)


Schedule = Linear | Cosine | EDM | Flow


def grid(schedule: Schedule, remaining: Array, num_steps: Array) -> Level:
    """The level with `remaining` of a row's `num_steps` steps to go; none left is clean data.

    Times are equally spaced from 1 down to the schedule's first, which is as near to the data as
    the sampler asks the network; for `EDM` that is Karras et al. 2022, eq. 5.
    """
    share = (remaining - 1) / jnp.maximum(num_steps - 1, 1)
    t = jnp.where(num_steps == 1, 1.0, schedule.first + (1.0 - schedule.first) * share)
    clean = remaining <= 0
    level = schedule.level(jnp.where(clean, 1.0, t))
    return Level(
        jnp.where(clean, 0.0, t),
        jnp.where(clean, 1.0, level.alpha),
        jnp.where(clean, 0.0, level.sigma),
    )


def diffuse(x0: Values, eps: Values, level: Level) -> Values:
    """x_t (Ho et al. 2020, eq. 4)."""
    return over(level.alpha, x0) * x0 + over(level.sigma, x0) * eps


COEFFICIENTS: dict[str, Callable[[Level], tuple[Array, Array]]] = {
    "eps": lambda level: (jnp.zeros_like(level.t), jnp.ones_like(level.t)),
    "x0": lambda level: (jnp.ones_like(level.t), jnp.zeros_like(level.t)),
    "v": lambda level: (-level.sigma, level.alpha),  # Salimans & Ho 2022, app. D
    "flow": lambda level: (-jnp.ones_like(level.t), jnp.ones_like(level.t)),  # Liu et al., eq. 1
}
"""What a network predicts, as (a, b) of a x0 + b eps."""


def determinant(prediction: Prediction, level: Level) -> Time:
    """alpha b - sigma a: prediction and x_t determine x0 and eps up to this divisor."""
    a, b = COEFFICIENTS[prediction](level)
    return level.alpha * b - level.sigma * a


def target_of(prediction: Prediction, x0: Values, eps: Values, level: Level) -> Values:
    """What the network should say."""
    a, b = COEFFICIENTS[prediction](level)
    return over(a, x0) * x0 + over(b, x0) * eps


def x0_of(prediction: Prediction, output: Values, xt: Values, level: Level) -> Values:
    """The denoised example that the network's output means: the solution of two equations."""
    _, b = COEFFICIENTS[prediction](level)
    divisor = over(determinant(prediction, level), xt)
    return (over(b, xt) * xt - over(level.sigma, xt) * output) / divisor


def eps_of(x0: Values, xt: Values, level: Level) -> Values:
    """The noise that goes with a denoised example; 0 where there is none."""
    sigma = over(level.sigma, xt)
    return (xt - over(level.alpha, xt) * x0) / jnp.where(sigma > 0, sigma, 1.0)


def min_snr(prediction: Prediction, level: Level, gamma: float) -> Time:
    """Weight of the squared error of the output: min(SNR, gamma) on that of x0.

    Hang et al. 2023, eq. 8: min(SNR, gamma) / SNR for eps and / (SNR + 1) for v.
    """
    snr = level.alpha**2 / level.sigma**2
    return jnp.minimum(snr, gamma) * (level.sigma / determinant(prediction, level)) ** 2


class Posterior(NamedTuple):
    """q(x_s | x_t, x0) for a step from `now` to the less noisy `then`: Gaussian, per row."""

    mean: Values
    variance: Time
    large: Time  # the variance of q(x_t | x_s), beta_t of one step


def posterior(x0: Values, xt: Values, now: Level, then: Level) -> Posterior:
    """Ho et al. 2020, eq. 6-7, between any two levels (Kingma et al. 2021, app. A.2)."""
    ratio = now.alpha / then.alpha
    large = jnp.maximum(now.sigma**2 - ratio**2 * then.sigma**2, 0.0)
    to_xt = ratio * then.sigma**2 / now.sigma**2
    to_x0 = then.alpha * large / now.sigma**2
    mean = over(to_xt, xt) * xt + over(to_x0, xt) * x0
    return Posterior(mean, large * then.sigma**2 / now.sigma**2, large)
