"""Moments of features that never lie in memory at once: batch by batch, host by host."""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Bool, Float, Shaped

from genaug.evaluation.frechet import Moments
from genaug.types import UserError


class StreamedMoments(NamedTuple):
    """Sums about a fixed point, a pytree of arrays: enough for `frechet.Moments`.

    `StreamedMoments.start(pilot)`, then `add` for every batch and `finish`. Started from a NumPy
    pilot all sums are float64 on the host; from a JAX pilot they are float32 on its device, `add`
    and `merge` trace (jit, scan, shard_map), and matrix products have `precision="highest"`.

    Raw second moments cancel (|mean|^2 against a variance), so the sums are about `pilot`: the mean
    of the first batch will do. Float32 sums of 50,000 rows are then good to about 1e-6 of the
    covariance's scale, in any partition into batches; float64 ones to 1e-12.
    """

    pilot: Shaped[Any, " d"]
    count: Shaped[Any, ""]  # int: rows so far
    total: Shaped[Any, " d"]  # of x - pilot
    outer: Shaped[Any, "d d"]  # of (x - pilot) (x - pilot)^T

    @classmethod
    def start(cls, pilot: Float[np.ndarray | jax.Array, " d"]) -> StreamedMoments:
        """No rows yet. `pilot` [d] is roughly their mean, and finite."""
        xp, dtype = _library(pilot)
        d = len(pilot)
        return cls(
            xp.asarray(pilot, dtype),
            xp.zeros((), np.int64 if xp is np else jnp.int32),
            xp.zeros(d, dtype),
            xp.zeros((d, d), dtype),
        )

    def add(
        self,
        batch: Float[np.ndarray | jax.Array, "n d"],
        valid: Bool[np.ndarray | jax.Array, " n"] | None = None,
    ) -> StreamedMoments:
        """With the rows of `batch` [n, d], or those of them that are `valid` (not padding)."""
        xp, dtype = _library(self.outer)
        shifted = xp.asarray(batch, dtype) - self.pilot[None, :]
        count: Any = len(batch)
        if valid is not None:
            # Not a product: padding may hold NaN.
            shifted = xp.where(valid[:, None], shifted, 0)
            count = valid.sum()
        if xp is np:
            outer = shifted.T @ shifted
        else:
            outer = jnp.matmul(shifted.T, shifted, precision="highest")
        return self._replace(
            count=(self.count + count).astype(self.count.dtype),
            total=self.total + shifted.sum(axis=0),
            outer=self.outer + outer,
        )

    def merge(self, other: StreamedMoments) -> StreamedMoments:
        """With all the rows of `other`, which may have another pilot.

        The shift to this pilot is the pairwise update of Chan, Golub & LeVeque (1983), written for
        sums about a point; with one pilot in both it is plain addition.
        """
        moved = other.pilot - self.pilot
        crossed = other.total[:, None] * moved[None, :]
        return self._replace(
            count=self.count + other.count,
            total=self.total + other.total + other.count * moved,
            outer=self.outer
            + other.outer
            + crossed
            + crossed.T
            + other.count * moved[:, None] * moved[None, :],
        )

    def across(self, axis_name: str) -> StreamedMoments:
        """The sum over a mapped axis (of devices or hosts), all of whose members have one pilot."""
        count, total, outer = jax.lax.psum((self.count, self.total, self.outer), axis_name)
        return self._replace(count=count, total=total, outer=outer)

    def finish(self) -> Moments:
        """Mean and unbiased covariance in float64, on the host.

        Raises:
            UserError: fewer than 2 rows, NaN or infinity among them.
        """
        pilot, total, outer = (
            np.asarray(each, np.float64) for each in (self.pilot, self.total, self.outer)
        )
        n = int(self.count)
        if n < 2:
            raise UserError(f"the moments have seen {n} rows: add at least 2")
        if not (np.isfinite(total).all() and np.isfinite(outer).all()):
            raise UserError("NaN or infinity was added to the moments: drop or repair those rows")
        offset = total / n
        cov = (outer - n * offset[:, None] * offset[None, :]) / (n - 1)
        return Moments(pilot + offset, (cov + cov.T) / 2, n)


def _library(array: Any) -> tuple[Any, Any]:
    """NumPy and float64 for what is on the host, else JAX and float32."""
    return (np, np.float64) if isinstance(array, np.ndarray) else (jnp, jnp.float32)
