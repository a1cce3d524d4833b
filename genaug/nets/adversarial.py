"""What a discriminator's logits say: the losses of the two networks, and the critic's penalty.

Each loss is a frozen dataclass with `d_loss(real_logits, fake_logits)` and `g_loss(fake_logits)`,
both to be made small and means over examples; `critic_steps`, the discriminator's updates for each
of the generator's; and `penalty_weight`, of `gradient_penalty` in the discriminator's loss.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from genaug.types import row_uniform

Logits = Float[Array, " n"]
Images = Float[Array, "n h w c"]
Scalar = Float[Array, ""]


@dataclass(frozen=True, kw_only=True)
class NonSaturating:
    """D is a logistic regression, G raises log D(G(z)) (Goodfellow et al. 2014, eq. 1 and 3)."""

    critic_steps: int = 1
    penalty_weight: ClassVar[float] = 0.0

    def d_loss(self, real_logits: Logits, fake_logits: Logits) -> Scalar:
        """-E log D(x) - E log(1 - D(G(z))), D being the sigmoid of a logit."""
        return jnp.mean(jax.nn.softplus(-real_logits)) + jnp.mean(jax.nn.softplus(fake_logits))

    def g_loss(self, fake_logits: Logits) -> Scalar:
        """-E log D(G(z)), whose gradient does not vanish where D is sure (their section 3)."""
        return jnp.mean(jax.nn.softplus(-fake_logits))


@dataclass(frozen=True, kw_only=True)
class Hinge:
    """Margins for D, its mean for G (Lim & Ye 2017; Miyato et al. 2018, eq. 16 and 17)."""

    critic_steps: int = 1
    penalty_weight: ClassVar[float] = 0.0

    def d_loss(self, real_logits: Logits, fake_logits: Logits) -> Scalar:
        """E max(0, 1 - D(x)) + E max(0, 1 + D(G(z)))."""
        return jnp.mean(jax.nn.relu(1.0 - real_logits)) + jnp.mean(jax.nn.relu(1.0 + fake_logits))

    def g_loss(self, fake_logits: Logits) -> Scalar:
        """-E D(G(z))."""
        return -jnp.mean(fake_logits)


@dataclass(frozen=True, kw_only=True)
class WassersteinGP:
    """Wasserstein distance, slopes of D held at 1 (Gulrajani et al. 2017, eq. 3)."""

    critic_steps: int = 5
    penalty_weight: float = 10.0

    def d_loss(self, real_logits: Logits, fake_logits: Logits) -> Scalar:
        """E D(G(z)) - E D(x), without the penalty."""
        return jnp.mean(fake_logits) - jnp.mean(real_logits)

    def g_loss(self, fake_logits: Logits) -> Scalar:
        """-E D(G(z))."""
        return -jnp.mean(fake_logits)


Loss = NonSaturating | Hinge | WassersteinGP


def gradient_penalty(
    critic: Callable[[Array], Array], real: Images, fake: Images, keys: jax.Array
) -> Scalar:
    """E (||dD/dx|| - 1)^2 at uniform points between pairs (Gulrajani et al. 2017, eq. 3).

    `critic` maps images to logits, each of its own image alone.
    """
    share = row_uniform(keys, (1, 1, 1))
    slopes = jax.grad(lambda x: jnp.sum(critic(x)))(share * real + (1.0 - share) * fake)
    # The root of a slope of exactly zero would have no gradient.
    norms = jnp.sqrt(jnp.sum(slopes**2, axis=(1, 2, 3)) + 1e-12)
    return jnp.mean((norms - 1.0) ** 2)
