"""Which updates count: decided on the devices, from the metrics of the update alone.

These are the same on all devices, so all decide alike: it costs a pass over nothing, and XLA joins
it with the update, so that no second state is kept. Families report the norm of every gradient,
which is not finite where the gradient is not.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float, Int

from genaug.types import Metrics, State

WARM_UP = 100
"""Updates before a norm can be called a spike; later ones are remembered about as long."""


class Usual(NamedTuple):
    """The norm that gradients had lately: a mean of so many updates, of the last `WARM_UP` most.

    norm is that of all gradients of an update together.
    """

    norm: Float[jax.Array | np.ndarray, ""]
    updates: Int[jax.Array | np.ndarray, ""]

    def after(self, norm: jax.Array, largest: jax.Array) -> Usual:
        """With one more. A larger norm counts as `largest`: what stays high is usual in time."""
        seen = jnp.minimum(norm, largest)
        share = jnp.maximum(1 / (self.updates + 1), 1 / WARM_UP)
        new = Usual(self.norm + share * (seen - self.norm), self.updates + 1)
        return jax.tree.map(lambda a, b: jnp.where(jnp.isfinite(norm), a, b), new, self)


def usual_from(told: dict[str, Any] | None) -> Usual:
    """What `usual_to_json` told, or nothing yet."""
    told = told or {"norm": 0.0, "updates": 0}
    return Usual(np.float32(told["norm"]), np.int32(told["updates"]))  # type: ignore[arg-type]


def usual_to_json(usual: Usual) -> dict[str, Any]:
    """Both numbers, exactly."""
    return {"norm": float(np.asarray(usual.norm)), "updates": int(np.asarray(usual.updates))}


class Watched(NamedTuple):
    """A state, and what is usual for its gradients."""

    state: State
    usual: Usual


def bare(held: State) -> State:
    """The state, watched or not."""
    return held.state if isinstance(held, Watched) else held


class Guard(NamedTuple):
    """What an update's metrics must be for it to count: finite, and no gradient's norm too large.

    largest_norm: of any gradient.
    spike_factor: how many times the usual norm all gradients together may have; None asks nothing,
                  and no state is then `Watched`.
    """

    largest_norm: float | None = None
    spike_factor: float | None = None

    def __call__(
        self, metrics: Metrics, usual: Usual | None
    ) -> tuple[Float[jax.Array, " metrics"], Usual | None]:
        """1 for every metric that is as it must be, by name, and what is usual after it."""
        norms = [name for name in metrics if name.endswith("grad_norm")]
        even: Any = True
        if usual is not None and self.spike_factor is not None and norms:
            norm = jnp.sqrt(sum(metrics[name] ** 2 for name in norms))
            warm = usual.updates >= WARM_UP
            largest = jnp.where(warm, self.spike_factor * usual.norm, jnp.inf)
            even, usual = norm <= largest, usual.after(norm, largest)

        def one(name: str) -> jax.Array:
            good = jnp.all(jnp.isfinite(metrics[name]))
            if name in norms:
                good &= even
                if self.largest_norm is not None:
                    good &= jnp.all(metrics[name] <= self.largest_norm)
            return good.astype(jnp.float32)

        return jnp.stack([one(name) for name in sorted(metrics)]), usual
