"""Euclidean neighbours: fast to find, exact to report, never the whole matrix in memory."""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Iterator

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Float64, Int, Int32

from genaug import layouts
from genaug.devices import DeviceMesh
from genaug.types import UserError

# One float32 block of distances holds at most this many entries (32 MiB).
_BLOCK_ENTRIES = 2**23
# Direct differences hold at most this many float64 coordinates at a time (16 MiB).
_PAIR_ENTRIES = 2**21
# How many more candidates than asked for are measured again by direct difference.
_SPARE = 8


@dataclasses.dataclass(frozen=True)
class Neighbours:
    """The nearest reference rows of each query row, nearest first."""

    distance: Float64[np.ndarray, "n k"]
    index: Int32[np.ndarray, "n k"]


def require_rows(x: np.ndarray, name: str, at_least: int) -> None:
    """Raise `UserError` unless `x` is finite [n, d] with n >= `at_least`."""
    if x.ndim != 2 or x.shape[1] == 0:
        raise UserError(f"{name} has shape {x.shape}: give one row of features per example")
    if len(x) < at_least:
        raise UserError(f"{name} has {len(x)} rows: give at least {at_least}")
    if not np.isfinite(x).all():
        raise UserError(f"{name} holds NaN or infinite values: drop or repair those rows")


def nearest(
    query: Float[np.ndarray, "n d"],
    reference: Float[np.ndarray, "m d"],
    k: int = 1,
    *,
    exclude_self: bool = False,
    block: int = 1024,
    mesh: DeviceMesh | None = None,
) -> Neighbours:
    """The `k` nearest rows of `reference` for every row of `query`, by Euclidean distance.

    A float32 matrix product on centred data proposes k + 8 candidates per row; their distances are
    then measured in float64 by direct difference, because |x|^2 - 2xy + |y|^2 cancels for near
    copies. So distances are exact, copies are at exactly 0, and only where more than eight rows lie
    within float32 rounding of the k-th may another one of those be reported.

    Args:
        query: float [n, d].
        reference: float [m, d], in the units of `query`.
        k: how many neighbours.
        exclude_self: `query` is `reference`: row i is no neighbour of itself (its copies are).
        block: at most so many query rows at a time; fewer when `reference` is long. Rounded up to
            what the devices divide.
        mesh: the devices to work on, each with a copy of `reference` and a share of every block;
            None is JAX's default device. The neighbours are the same.

    Returns:
        `distance` float64 [n, k] ascending and `index` int32 [n, k] into `reference`. Equal
        distances come in the order of their index.

    Raises:
        UserError: NaN, infinity, or fewer than `k` rows to choose from.
    """
    if k < 1:
        raise UserError(f"k is {k}: ask for at least 1 neighbour")
    if exclude_self and query.shape != reference.shape:
        raise UserError("exclude_self compares a set with itself: pass the same array twice")
    require_rows(query, "the query", 1)
    require_rows(reference, "the reference", k + int(exclude_self))

    keep = min(k + _SPARE, len(reference) - int(exclude_self))
    shift = reference.mean(axis=0, dtype=np.float64)
    columns = layouts.copied(centred(reference, shift), mesh)
    found = []
    for start, raw in row_blocks(query, len(reference), block, mesh):
        # A row number that no column has: nothing is excluded.
        own = np.arange(start, start + len(raw)) if exclude_self else np.full(len(raw), -1)
        rows = layouts.shared_out(centred(raw, shift), mesh)
        chosen = _candidates(rows, columns, layouts.shared_out(own.astype(np.int32), mesh), keep)
        found.append(layouts.gathered(chosen, mesh))
    index = np.sort(np.concatenate(found)[: len(query)], axis=1)

    own = np.repeat(np.arange(len(query)), keep)
    distance = pair_distances(query, reference, own, index.reshape(-1)).reshape(index.shape)
    order = np.argsort(distance, axis=1, kind="stable")[:, :k]
    return Neighbours(
        np.take_along_axis(distance, order, axis=1),
        np.take_along_axis(index, order, axis=1).astype(np.int32),
    )


def distance_blocks(
    query: Float[np.ndarray, "n d"],
    reference: Float[np.ndarray, "m d"],
    block: int = 1024,
    mesh: DeviceMesh | None = None,
) -> Iterator[tuple[int, Float64[np.ndarray, "b m"], Float64[np.ndarray, "b m"]]]:
    """Walk through the [n, m] distances some rows at a time; `block` and `mesh` as for `nearest`.

    Yields:
        `(start, squared, error)`: squared distances of the query rows from `start` on, and a bound
        on the rounding error of each (float32 matrix product on centred data).
    """
    shift = reference.mean(axis=0, dtype=np.float64)
    near = centred(reference, shift)
    columns, norms = layouts.copied(near, mesh), squared_lengths(near)
    for start, raw in row_blocks(query, len(reference), block, mesh):
        rows = centred(raw, shift)
        count = min(len(rows), len(query) - start)
        found = _squared_distances(layouts.shared_out(rows, mesh), columns)
        squared = layouts.gathered(found, mesh)[:count].astype(np.float64)
        scale = squared_lengths(rows[:count])[:, None] + norms[None, :]
        # 170 float32 roundings; measured: at most 7 for d up to 4096.
        yield start, squared, 1e-5 * scale


def settled(
    query: Float[np.ndarray, "n d"],
    reference: Float[np.ndarray, "m d"],
    start: int,
    squared: Float64[np.ndarray, "b m"],
    error: Float64[np.ndarray, "b m"],
    *radii: Float64[np.ndarray, "#b #m"],
) -> Float64[np.ndarray, "b m"]:
    """A block of `distance_blocks` as distances [b, m] that compare with `radii` as exact ones do.

    Pairs too near one of the radii for float32 are measured again in float64. The radii, in units
    of the rows, broadcast to the block: [1, m] of the reference, [b, 1] of the query.
    """
    unsure = np.zeros(squared.shape, bool)
    for radius in radii:
        unsure |= np.abs(squared - np.square(radius)) <= error
    distance = np.sqrt(squared)
    rows, columns = np.nonzero(unsure)
    distance[rows, columns] = pair_distances(query, reference, rows + start, columns)
    return distance


def pair_distances(
    x: Float[np.ndarray, "n d"],
    y: Float[np.ndarray, "m d"],
    rows: Int[np.ndarray, " p"],
    columns: Int[np.ndarray, " p"],
) -> Float64[np.ndarray, " p"]:
    """The distance between `x[rows[i]]` and `y[columns[i]]` for each i, in float64 [p]."""
    size = max(1, _PAIR_ENTRIES // x.shape[1])
    squared = np.empty(len(rows), np.float64)
    for start in range(0, len(rows), size):
        part = slice(start, start + size)
        difference = np.subtract(x[rows[part]], y[columns[part]], dtype=np.float64)
        squared[part] = np.einsum("pd,pd->p", difference, difference)
    return np.sqrt(squared)


def centred(
    x: Float[np.ndarray, "n d"], shift: Float[np.ndarray, " d"]
) -> Float[np.ndarray, "n d"]:
    """`x - shift` in float32, from a difference in the wider of their types."""
    near = np.empty(x.shape, np.float32)
    # Piece by piece inside the ufunc: no float64 copy of the whole.
    return np.subtract(x, shift[None, :], out=near, dtype=np.float64, casting="same_kind")


def squared_lengths(x: Float[np.ndarray, "n d"]) -> Float64[np.ndarray, " n"]:
    """The squared Euclidean length of each row, summed in float64."""
    return np.einsum("nd,nd->n", x, x, dtype=np.float64)


def row_blocks(
    x: np.ndarray, num_columns: int, block: int, mesh: DeviceMesh | None = None
) -> Iterator[tuple[int, Float[np.ndarray, "b d"]]]:
    """Blocks of equal length, the last one padded with zeros: one shape, one compilation.

    The length is a multiple of the number of devices that share it.
    """
    devices = 1 if mesh is None else mesh.size
    size = min(block, len(x), max(1, _BLOCK_ENTRIES // num_columns))
    size = -(-size // devices) * devices
    for start in range(0, len(x), size):
        rows = x[start : start + size]
        yield start, np.pad(rows, ((0, size - len(rows)), (0, 0)))


@jax.jit
def _squared_distances(x: Float[Array, "b d"], y: Float[Array, "m d"]) -> Float[Array, "b m"]:
    product = jnp.matmul(x, y.T, precision="highest")
    squared = jnp.square(x).sum(axis=1)[:, None] - 2 * product + jnp.square(y).sum(axis=1)[None, :]
    return jnp.maximum(squared, 0)


@functools.partial(jax.jit, static_argnames="keep")
def _candidates(
    x: Float[Array, "b d"], y: Float[Array, "m d"], own: Int32[Array, " b"], keep: int
) -> Int32[Array, "b {keep}"]:
    """The `keep` columns of smallest distance in each row, in no order, less column `own`.

    `lax.top_k` sorts on a CPU. Instead the columns are dealt into groups: the `keep` smallest
    entries lie in the `keep` groups of smallest minimum, so one pass finds the groups and the
    repeated passes see only a small part of the row.
    """
    columns = len(y)
    depth = max(1, math.isqrt(columns // keep))
    num_groups = -(-columns // depth)
    squared = _squared_distances(x, y)
    squared = jnp.where(jnp.arange(columns)[None, :] == own[:, None], jnp.inf, squared)
    padding = ((0, 0), (0, depth * num_groups - columns))
    grouped = jnp.pad(squared, padding, constant_values=jnp.inf).reshape(-1, depth, num_groups)

    groups = _smallest(grouped.min(axis=1), keep)
    members = jnp.take_along_axis(grouped, groups[:, None, :], axis=2)
    chosen = _smallest(members.reshape(len(x), depth * keep), keep)
    return (chosen // keep) * num_groups + jnp.take_along_axis(groups, chosen % keep, axis=1)


def _smallest(values: Float[Array, "b w"], keep: int) -> Int32[Array, "b {keep}"]:
    """The positions of the `keep` smallest entries of each row, by repeated minimum."""

    def take(values: jax.Array, _: None) -> tuple[jax.Array, jax.Array]:
        position = jnp.argmin(values, axis=1)
        taken = jnp.arange(values.shape[1])[None, :] == position[:, None]
        return jnp.where(taken, jnp.inf, values), position.astype(jnp.int32)

    return jax.lax.scan(take, values, None, length=keep)[1].T
