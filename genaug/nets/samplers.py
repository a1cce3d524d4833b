"""From noise to data with a trained denoiser: each sampler is one step, the loop is shared.

A sampler is a frozen dataclass with `stochastic` (whether its step reads noise) and
`step(denoise, step) -> (x at the next level, x0)`.

The loop runs as long as the row with most steps needs; step counts, start levels and everything
else are data, so nothing is compiled again when they change.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float, Int

from genaug.nets.noise import Level, Schedule, Values, diffuse, eps_of, grid, over, posterior


class Denoised(NamedTuple):
    """What the network makes of x_t.

    x0:       the example it sees in x_t.
    fraction: where the log-variance of a step back lies between the posterior's (0) and beta (1)
              (Nichol & Dhariwal 2021, eq. 15); may be an array like x0.
    """

    x0: Values
    fraction: Any = 0.0


Denoise = Callable[[Values, Level], Denoised]


class Step(NamedTuple):
    """One step's input: where it is, where it goes, and what it may use."""

    xt: Values
    memory: Values  # the previous step's x0, for multistep methods
    before: Level  # the previous step's level
    now: Level
    then: Level
    noise: Values
    is_first: Array  # bool [n]


@dataclass(frozen=True, kw_only=True)
class Ancestral:
    """Ho et al. 2020, algorithm 2, over any subset of the levels."""

    stochastic: ClassVar[bool] = True

    def step(self, denoise: Denoise, step: Step) -> tuple[Values, Values]:
        """x_s ~ N(posterior mean, variance between the posterior's and beta)."""
        x0, fraction = denoise(step.xt, step.now)
        back = posterior(x0, step.xt, step.now, step.then)
        tiny = jnp.finfo(jnp.float32).tiny
        small = over(jnp.log(jnp.maximum(back.variance, tiny)), x0)
        large = over(jnp.log(jnp.maximum(back.large, tiny)), x0)
        std = jnp.exp(0.5 * (fraction * large + (1.0 - fraction) * small))
        is_last = over(step.then.sigma, x0) == 0.0
        return back.mean + jnp.where(is_last, 0.0, std) * step.noise, x0


@dataclass(frozen=True, kw_only=True)
class DDIM:
    """Song et al. 2021 (DDIM), eq. 12 and 16; eta 0 is deterministic, 1 is ancestral."""

    eta: float = 0.0

    @property
    def stochastic(self) -> bool:
        """Whether noise is added."""
        return self.eta > 0.0

    def step(self, denoise: Denoise, step: Step) -> tuple[Values, Values]:
        """Along x0 and eps to the next level."""
        x0 = denoise(step.xt, step.now).x0
        eps = eps_of(x0, step.xt, step.now)
        if not self.stochastic:
            return diffuse(x0, eps, step.then), x0
        variance = self.eta**2 * posterior(x0, step.xt, step.now, step.then).variance
        along = jnp.sqrt(jnp.maximum(step.then.sigma**2 - variance, 0.0))
        x = over(step.then.alpha, x0) * x0 + over(along, x0) * eps
        return x + over(jnp.sqrt(variance), x0) * step.noise, x0


@dataclass(frozen=True, kw_only=True)
class DPMSolver:
    """DPM-Solver++(2M) (Lu et al. 2022b, algorithm 2).

    Its first and last steps are first order, and so are those between equal levels.
    """

    stochastic: ClassVar[bool] = False

    def step(self, denoise: Denoise, step: Step) -> tuple[Values, Values]:
        """Second order in the log-SNR, from this x0 and the one before."""
        x0 = denoise(step.xt, step.now).x0
        h = _lambda(step.then) - _lambda(step.now)
        h_before = _lambda(step.now) - _lambda(step.before)
        first_order = step.is_first | (step.then.sigma == 0.0) | (h_before <= 0.0)
        weight = jnp.where(first_order, 0.0, 0.5 * h / jnp.where(first_order, 1.0, h_before))
        guess = x0 + over(weight, x0) * (x0 - step.memory)
        # -expm1(-h) = 1 - exp(-h), which is 1 at the last step, where h is infinite.
        x = (
            over(step.then.sigma / step.now.sigma, x0) * step.xt
            - over(step.then.alpha * jnp.expm1(-h), x0) * guess
        )
        return x, x0


def _lambda(level: Level) -> Array:
    """Half the log-SNR; finite, so that differences are numbers."""
    tiny = jnp.finfo(jnp.float32).tiny
    return jnp.log(jnp.maximum(level.alpha, tiny)) - jnp.log(jnp.maximum(level.sigma, tiny))


@dataclass(frozen=True, kw_only=True)
class Heun:
    """Karras et al. 2022, algorithm 1 without churn: two network calls a step.

    The ODE is integrated in the coordinates of the straight path, x / (alpha + sigma) against
    tau = sigma / (alpha + sigma), where its slope is eps - x0 and both ends are finite.
    """

    stochastic: ClassVar[bool] = False

    def step(self, denoise: Denoise, step: Step) -> tuple[Values, Values]:
        """Euler, then the mean of the slopes at both ends."""
        x0 = denoise(step.xt, step.now).x0
        slope = eps_of(x0, step.xt, step.now) - x0
        size_now, size_then = (level.alpha + level.sigma for level in (step.now, step.then))
        dtau = over(step.then.sigma / size_then - step.now.sigma / size_now, x0)
        start = step.xt / over(size_now, x0)
        euler = start + dtau * slope
        is_last = over(step.then.sigma, x0) == 0.0
        # At the last step there is no noise left for the network to see: ask where it was.
        there = jax.tree.map(
            lambda now, then: jnp.where(step.then.sigma == 0.0, now, then), step.now, step.then
        )
        at_end = jnp.where(is_last, step.xt, over(size_then, x0) * euler)
        x0_end = denoise(at_end, there).x0
        slope_end = eps_of(x0_end, at_end, there) - x0_end
        heun = start + dtau * 0.5 * (slope + slope_end)
        return over(size_then, x0) * jnp.where(is_last, euler, heun), x0


Sampler = Ancestral | DDIM | DPMSolver | Heun


def run(
    sampler: Sampler,
    schedule: Schedule,
    denoise: Denoise,
    x: Values,
    num_steps: Int[Array, " n"],
    keys: jax.Array,
    *,
    start: Int[Array, " n"] | None = None,
    constrain: Callable[[Values, Level, jax.Array], Values] = lambda x, level, keys: x,
) -> Float[Array, "n ..."]:
    """Rows of x, at the level of `start` (default: all) steps to go, taken down to clean data.

    keys:      one a row; the noise of a row at k steps to go is drawn from `fold_in(key, k)`.
    constrain: `(x, its level, keys) -> x`, applied after every step: known parts are put back.
    """
    start = num_steps if start is None else start

    def fold(salt: Array) -> jax.Array:
        return jax.vmap(jax.random.fold_in)(keys, salt)

    def body(i: Array, carry: tuple[Values, Values]) -> tuple[Values, Values]:
        x, memory = carry
        remaining = num_steps - i
        now, then = (grid(schedule, remaining - k, num_steps) for k in (0, 1))
        noise = jnp.zeros_like(x)
        if sampler.stochastic:
            noise = jax.vmap(lambda key: jax.random.normal(key, x.shape[1:]))(fold(remaining))
        before = grid(schedule, remaining + 1, num_steps)
        step = Step(x, memory, before, now, then, noise, remaining == start)
        new, x0 = sampler.step(denoise, step)
        new = constrain(new, then, fold(remaining + (1 << 20)))
        active = over((remaining > 0) & (remaining <= start), x)
        return jnp.where(active, new, x), jnp.where(active, x0, memory)

    first = jnp.min(num_steps - start)
    return lax.fori_loop(first, jnp.max(num_steps), body, (x, jnp.zeros_like(x)))[0]
