"""What a decoder's raw outputs say about an image of bytes: log p(x | outputs), mean, draws.

Each is a frozen dataclass with `outputs_per_value`, `log_prob(outputs, x) -> [n]` in nats,
`mean(outputs)` and `draw(outputs, key)`, the last two in [0, 1]. `x` is uint8, of an image
[n, h, w, c], and `outputs` float32 with one axis more, of `outputs_per_value`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float, UInt8

Outputs = Float[Array, "n *d m"]
Images = UInt8[Array, "n *d"]
Values = Float[Array, "n *d"]
LogProb = Float[Array, " n"]


def to_unit(x: Images) -> Values:
    """Bytes to [0, 1]."""
    return x.astype(jnp.float32) / 255.0


def to_net(x: Images) -> Values:
    """Bytes to [-1, 1], what networks read."""
    return 2.0 * to_unit(x) - 1.0


def to_bytes(x: Values) -> Images:
    """[0, 1] to the nearest byte."""
    return jnp.round(jnp.clip(x, 0.0, 1.0) * 255.0).astype(jnp.uint8)


def _summed(value: Callable[[Array, Array], Array], outputs: Outputs, x: Images) -> LogProb:
    """The sum of `value(outputs, x)` over an image.

    On a CPU its values are taken in a row: where an axis of one ends them, XLA:CPU computes each by
    itself.
    """

    def total(outputs: Array, x: Array) -> Array:
        return jnp.sum(value(outputs, x), axis=tuple(range(1, x.ndim)))

    def in_rows(outputs: Array, x: Array) -> Array:
        return total(outputs.reshape(len(x), -1, outputs.shape[-1]), x.reshape(len(x), -1))

    return lax.platform_dependent(outputs, x, cpu=in_rows, default=total)


@dataclass(frozen=True, kw_only=True)
class Bernoulli:
    """Each value is a coin whose probability the decoder says (Kingma & Welling 2014, app. C.1).

    Gray levels count as fractional outcomes: the usual choice for digits, but no density over
    bytes, so its bound compares only with other Bernoulli bounds.
    """

    outputs_per_value: ClassVar[int] = 1

    def log_prob(self, outputs: Outputs, x: Images) -> LogProb:
        """Negative cross-entropy, summed over values."""

        def value(outputs: Array, x: Array) -> Array:
            logits = outputs[..., 0]
            # t log p + (1 - t) log(1 - p), with one logarithm instead of two.
            softplus = jnp.maximum(logits, 0.0) + jnp.log1p(jnp.exp(-jnp.abs(logits)))
            return to_unit(x) * logits - softplus

        return _summed(value, outputs, x)

    def mean(self, outputs: Outputs) -> Values:
        """The probability of white."""
        return jax.nn.sigmoid(outputs[..., 0])

    def draw(self, outputs: Outputs, key: jax.Array) -> Values:
        """Black or white."""
        return jax.random.bernoulli(key, self.mean(outputs)).astype(jnp.float32)


@dataclass(frozen=True, kw_only=True)
class Gaussian:
    """Values in [0, 1] with normal noise of one fixed scale (Kingma & Welling 2014, app. C.2)."""

    scale: float = 0.1  # standard deviation of the noise
    outputs_per_value: ClassVar[int] = 1

    def log_prob(self, outputs: Outputs, x: Images) -> LogProb:
        """Log-density per [0, 1]-scaled value, summed over values."""

        def value(outputs: Array, x: Array) -> Array:
            return jax.scipy.stats.norm.logpdf(to_unit(x), self.mean(outputs), self.scale)

        return _summed(value, outputs, x)

    def mean(self, outputs: Outputs) -> Values:
        """The centre of the noise."""
        return jax.nn.sigmoid(outputs[..., 0])

    def draw(self, outputs: Outputs, key: jax.Array) -> Values:
        """Mean plus noise."""
        mean = self.mean(outputs)
        return jnp.clip(mean + self.scale * jax.random.normal(key, mean.shape), 0.0, 1.0)


@dataclass(frozen=True, kw_only=True)
class DiscretizedLogistic:
    """Probability of each of 256 levels under a logistic (Salimans et al. 2017, eq. 2).

    A distribution over bytes, so `-log_prob / (h w c ln 2)` is in bits per dimension.
    """

    min_log_scale: float = -7.0  # of values scaled to [-1, 1]
    outputs_per_value: ClassVar[int] = 2

    def _mean_and_log_scale(self, outputs: Outputs) -> tuple[Values, Values]:
        # A scale of 1000 is as flat as any; from e^88 on the width of a level would round to zero.
        log_scale = jnp.clip(outputs[..., 1] - 2.0, self.min_log_scale, 7.0)
        return jnp.tanh(outputs[..., 0]), log_scale

    def log_prob(self, outputs: Outputs, x: Images) -> LogProb:
        """Log-probability of the bytes, summed over values; the end levels take the tails."""

        def value(outputs: Array, x: Array) -> Array:
            mean, log_scale = self._mean_and_log_scale(outputs)
            centred = 2.0 * to_unit(x) - 1.0 - mean
            inverse = jnp.exp(-log_scale)
            upper = jax.nn.log_sigmoid(inverse * (centred + 1.0 / 255.0))
            lower = jax.nn.log_sigmoid(-inverse * (centred - 1.0 / 255.0))
            # log(sigmoid(u) - sigmoid(l)) without cancellation in either tail.
            inside = upper + lower + jnp.log(-jnp.expm1(-2.0 / 255.0 * inverse))
            return jnp.where(x == 0, upper, jnp.where(x == 255, lower, inside))

        return _summed(value, outputs, x)

    def mean(self, outputs: Outputs) -> Values:
        """The centre of the logistic."""
        return (self._mean_and_log_scale(outputs)[0] + 1.0) / 2.0

    def draw(self, outputs: Outputs, key: jax.Array) -> Values:
        """A draw of the logistic, clipped to the levels."""
        mean, log_scale = self._mean_and_log_scale(outputs)
        x = mean + jnp.exp(log_scale) * jax.random.logistic(key, mean.shape)
        return jnp.clip((x + 1.0) / 2.0, 0.0, 1.0)


Likelihood = Bernoulli | Gaussian | DiscretizedLogistic
