"""Euclidean neighbours: fast to find, exact to report, never the whole matrix in memory."""

from __future__ import annotations

import dataclasses
import functools
import math
import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Float64, Int, Int32

from genaug import layouts
from genaug.devices import DeviceMesh
from genaug.types import UserError

# One float32 block of distances holds at most this many entries (32 MiB).
_BLOCK_ENTRIES = 2**23
# Direct differences hold at most this many float64 coordinates at a time (2 MiB, of a cache).
_PAIR_ENTRIES = 2**18
# Bounds the error of a squared distance, as a share of both squared lengths together: 170 float32
# roundings; measured: at most 7 for d up to 4096.
ROUNDING = 1e-5
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

    A float32 matrix product on centred data proposes k + 8 candidates per row; of those that may
    be among the k, the distances are measured in float64 by direct difference, because
    |x|^2 - 2xy + |y|^2 cancels for near copies. So distances are exact, copies are at exactly 0,
    and only where more than eight rows lie within float32 rounding of the k-th may another one of
    those be reported.

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

    # Of a set with itself each row is a candidate too, and left out at the end.
    wanted = k + int(exclude_self)
    keep = min(wanted + _SPARE, len(reference))
    depth = max(1, math.isqrt(len(reference) // keep))  # so about as many groups as members
    shift, columns = _columns(reference, mesh, depth)
    found = []
    for _, raw in row_blocks(query, len(reference), block, mesh):
        rows = _with_lengths(centred(raw, shift), layouts.shared_out, mesh)
        chosen = _candidates(rows, columns, wanted=wanted, keep=keep, depth=depth, mesh=mesh)
        found.append([layouts.gathered(each, mesh) for each in chosen])
    index, near = (np.concatenate(each)[: len(query)] for each in zip(*found, strict=True))

    order = np.argsort(index, axis=1)  # equal distances come in the order of their index
    index, near = (np.take_along_axis(each, order, axis=1) for each in (index, near))
    if exclude_self:
        near &= index != np.arange(len(query))[:, None]
    distance = np.full(index.shape, np.inf)
    distance[near] = pair_distances(query, reference, np.nonzero(near)[0], index[near])
    order = np.argsort(distance, axis=1, kind="stable")[:, :k]
    return Neighbours(
        np.take_along_axis(distance, order, axis=1),
        np.take_along_axis(index, order, axis=1).astype(np.int32),
    )


class Balls(NamedTuple):
    """A ball around every row of one of two sets.

    radius: of each, in units of the rows.
    around: whose rows the centres are.
    closed: whether a row at exactly the radius is inside.
    """

    radius: Float64[np.ndarray, " rows"]
    around: Literal["query", "reference"]
    closed: bool


def inside_blocks(
    query: Float[np.ndarray, "n d"],
    reference: Float[np.ndarray, "m d"],
    balls: Sequence[Balls],
    block: int = 1024,
    mesh: DeviceMesh | None = None,
) -> Iterator[tuple[int, list[Bool[np.ndarray, "b m"]]]]:
    """Walk through the [n, m] pairs some query rows at a time; `block`, `mesh` as for `nearest`.

    A float32 matrix product on centred data decides all pairs but those too near one of the radii
    for its rounding, which are measured again in float64: every answer is that of exact distances.

    Yields:
        `(start, inside)`: for each of `balls`, whether the query rows from `start` on and the
        reference rows lie within the radius of one another.
    """
    shift, columns = _columns(reference, mesh)
    of_columns = {i: layouts.copied(_squares(ball.radius)[None, :], mesh)
                  for i, ball in enumerate(balls) if ball.around == "reference"}  # fmt: skip
    for start, raw in row_blocks(query, len(reference), block, mesh):
        count = min(len(raw), len(query) - start)
        radii = [ball.radius[start : start + count] if ball.around == "query" else ball.radius
                 for ball in balls]  # fmt: skip
        squares = [
            of_columns[i] if i in of_columns
            else layouts.shared_out(np.resize(_squares(radius), (len(raw), 1)), mesh)
            for i, radius in enumerate(radii)
        ]  # fmt: skip
        rows = _with_lengths(centred(raw, shift), layouts.shared_out, mesh)
        sure, unsure = _compared(rows, columns, squares)
        doubted = layouts.gathered(unsure, mesh)[:count]
        near = np.unravel_index(np.flatnonzero(doubted), doubted.shape)  # flat is faster
        exact = pair_distances(query, reference, near[0] + start, near[1])
        inside = [np.array(layouts.gathered(each, mesh)[:count]) for each in sure]
        for found, ball, radius in zip(inside, balls, radii, strict=True):
            limit = radius[near[0 if ball.around == "query" else 1]]
            found[near] = exact <= limit if ball.closed else exact < limit
        yield start, inside


def _squares(radius: np.ndarray) -> np.ndarray:
    with np.errstate(over="ignore"):  # infinite: every pair is surely inside
        return np.square(radius).astype(np.float32)


def pair_distances(
    x: Float[np.ndarray, "n d"],
    y: Float[np.ndarray, "m d"],
    rows: Int[np.ndarray, " p"],
    columns: Int[np.ndarray, " p"],
) -> Float64[np.ndarray, " p"]:
    """The distance between `x[rows[i]]` and `y[columns[i]]` for each i, in float64 [p]."""
    size = max(1, _PAIR_ENTRIES // x.shape[1])
    squared = np.empty(len(rows), np.float64)

    def measure(start: int) -> None:
        part = slice(start, start + size)
        difference = np.subtract(x[rows[part]], y[columns[part]], dtype=np.float64)
        squared[part] = np.einsum("pd,pd->p", difference, difference)

    with ThreadPoolExecutor(os.cpu_count()) as pool:  # NumPy leaves the interpreter free meanwhile
        list(pool.map(measure, range(0, len(rows), size)))
    return np.sqrt(squared)


def centred(
    x: Float[np.ndarray, "n d"], shift: Float[np.ndarray, " d"], rows: int | None = None
) -> Float[np.ndarray, "rows d"]:
    """`x - shift` in float32, from a difference in the wider of their types.

    rows: filled up with zeros to so many.
    """
    near = np.zeros((rows or len(x), x.shape[1]), np.float32)
    # Piece by piece inside the ufunc: no float64 copy of the whole.
    np.subtract(x, shift[None, :], out=near[: len(x)], dtype=np.float64, casting="same_kind")
    return near


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


class _Side(NamedTuple):
    """Rows of a set on the devices, centred, and their squared lengths."""

    rows: Float[Array, "n d"]
    lengths: Float[Array, " n"]


def _with_lengths(
    near: Float[np.ndarray, "n d"],
    place: Callable[[np.ndarray, DeviceMesh | None], jax.Array],
    mesh: DeviceMesh | None,
    count: int | None = None,
) -> _Side:
    """`count`: of rows that are there; those after them are infinitely far from all."""
    with np.errstate(over="ignore"):
        lengths = squared_lengths(near).astype(np.float32)
    if not np.isfinite(lengths).all():
        raise UserError("features are so large that distances pass float32: scale them down")
    if count is not None:
        lengths[count:] = np.inf
    return _Side(place(near, mesh), place(lengths, mesh))


def _columns(
    reference: Float[np.ndarray, "m d"], mesh: DeviceMesh | None, multiple: int = 1
) -> tuple[Float64[np.ndarray, " d"], _Side]:
    """The mean of a set, and on every device the set less its mean, filled up to a multiple."""
    shift = reference.mean(axis=0, dtype=np.float64)
    near = centred(reference, shift, -(-len(reference) // multiple) * multiple)
    return shift, _with_lengths(near, layouts.copied, mesh, len(reference))


def _squared_distances(x: _Side, y: _Side) -> Float[Array, "n m"]:
    product = jnp.matmul(x.rows, y.rows.T, precision="highest")
    return jnp.maximum(x.lengths[:, None] - 2 * product + y.lengths[None, :], 0)


@jax.jit
def _compared(
    x: _Side, y: _Side, squared_radii: list[Float[Array, "#n #m"]]
) -> tuple[list[Bool[Array, "n m"]], Bool[Array, "n m"]]:
    """Whether each pair is nearer than each radius, and where one is too near to tell."""
    squared = _squared_distances(x, y)
    bound = ROUNDING * (x.lengths[:, None] + y.lengths[None, :])
    unsure = jnp.zeros(squared.shape, bool)
    for radius in squared_radii:
        unsure |= ~(jnp.abs(squared - radius) > bound)  # not `<=`: an overflow to NaN is unsure too
    return [squared < radius for radius in squared_radii], unsure


@functools.partial(jax.jit, static_argnames=("wanted", "keep", "depth", "mesh"))
def _candidates(
    x: _Side, y: _Side, *, wanted: int, keep: int, depth: int, mesh: DeviceMesh | None
) -> tuple[Int32[Array, "n {keep}"], Bool[Array, "n {keep}"]]:
    """The `keep` columns of smallest distance in each row, in no order, and which of them may be
    among the `wanted` nearest, their rounding considered."""

    def of_rows(columns: _Side, rows: _Side) -> tuple[jax.Array, jax.Array]:
        values = _squared_distances(rows, columns)
        index = _smallest(values, keep, depth)
        squared = jnp.take_along_axis(values, index, axis=1)
        bound = ROUNDING * (rows.lengths[:, None] + columns.lengths[index])
        farthest = -jax.lax.top_k(-(squared + bound), wanted)[0][:, -1:]
        return index, ~(squared - bound > farthest)

    # Left to itself XLA would bring all rows to one device for `top_k`.
    return layouts.on_rows(of_rows, mesh)(y, x)


def _smallest(values: Float[Array, "n m"], keep: int, depth: int) -> Int32[Array, "n {keep}"]:
    """The positions of the `keep` smallest entries of each row, in no order.

    The columns are dealt into groups of `depth`: the `keep` smallest entries lie in the `keep`
    groups of smallest minimum, so one pass finds those, and what sorts sees a small part of a row.
    """
    num_groups = values.shape[1] // depth
    grouped = values.reshape(-1, depth, num_groups)
    groups = jax.lax.top_k(-grouped.min(axis=1), keep)[1]
    members = jnp.take_along_axis(grouped, groups[:, None, :], axis=2, mode="promise_in_bounds")
    chosen = jax.lax.top_k(-members.reshape(-1, depth * keep), keep)[1]
    return (chosen // keep) * num_groups + jnp.take_along_axis(groups, chosen % keep, axis=1)
