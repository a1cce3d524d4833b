"""Maximum mean discrepancy: KID (Bińkowski et al. 2018) and Gaussian MMD (CMMD), with intervals.

One blocked pass takes the row sums of the three kernel matrices, and everything follows from them:
the U-statistic, the V-statistic and all their leave-one-out values. No matrix is ever held.

Rounding: inner products of centred rows are float32 (`precision="highest"`), everything after them
is float64 on the device. A kernel value is off by about 1e-7 |a| |b| / d (KID), a and b the centred
rows, in both directions, so the mean over the pairs is closer than that by orders of magnitude.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike
from jaxtyping import Array, Bool, Float, Float64, Int

from genaug import layouts
from genaug.devices import DeviceMesh
from genaug.evaluation.distances import centred, require_rows, row_blocks, squared_lengths
from genaug.evaluation.intervals import Interval, normal_quantile
from genaug.types import UserError

# (inner products, term of the row, term of the column, scale) -> kernel values.
_Kernel = Callable[[jax.Array, jax.Array, jax.Array, ArrayLike], jax.Array]


class Subsets(NamedTuple):
    """KID over random subsets: the mean, and the spread of single subsets (not its error)."""

    mean: float
    std: float


class _Set(NamedTuple):
    """One set as a kernel reads it: float32 rows, and float64 terms that depend on one row."""

    rows: Float[np.ndarray, "n d"]
    terms: Float64[np.ndarray, " n"]
    diagonal: Float64[np.ndarray, " n"]  # k(x, x)


class _Sums(NamedTuple):
    """Row sums of the three kernel matrices; those within a set leave the diagonal out."""

    xx: Float64[np.ndarray, " n"]
    yy: Float64[np.ndarray, " m"]
    xy: Float64[np.ndarray, " n"]
    yx: Float64[np.ndarray, " m"]
    diagonal_x: Float64[np.ndarray, " n"]
    diagonal_y: Float64[np.ndarray, " m"]


def kid(
    x: Float[np.ndarray, "n d"],
    y: Float[np.ndarray, "m d"],
    level: float = 0.95,
    *,
    mesh: DeviceMesh | None = None,
) -> Interval:
    """The kernel distance of Bińkowski et al. 2018, k(x, y) = (x·y / d + 1)^3, on the whole sets.

    Unbiased: sets of one distribution average 0, so about half of them score below it. All pairs
    are used, so no choice of subsets moves the number and it varies less than `kid_subsets`.

    The interval is estimate -+ z sd by the two-sample jackknife of U-statistics (Arvesen 1969):
    var = (n-1)/n sum_i (t_i - t.)^2 + the same over y, t_i the statistic without row i. For sets
    of one distribution the statistic is degenerate and the interval up to 1.4 times too wide.

    Args:
        x: float [n, d], n >= 3. On torch-fidelity's Inception features this is KID.
        y: float [m, d], m >= 3.
        level: confidence.
        mesh: the devices to work on; None is JAX's default device. Sums in another order move the
            last digits of float64.

    Raises:
        UserError: fewer than 3 rows, different feature lengths, NaN or infinity.
    """
    require_pair(x, y)
    return _with_jackknife(_sums(*_for_cubic(x, y), _cubic, 1 / x.shape[1], mesh), False, level)


def kid_subsets(
    x: Float[np.ndarray, "n d"],
    y: Float[np.ndarray, "m d"],
    *,
    subsets: int = 100,
    size: int = 1000,
    seed: int = 2020,
) -> Subsets:
    """KID as torch-fidelity and most papers print it: mean and std over random subsets.

    For comparison with published numbers; `kid` is the better estimate and has an interval. Per
    subset `size` rows of `x`, then of `y`, are drawn without replacement by NumPy's legacy
    `RandomState(seed)`, in torch-fidelity's order. `std` (ddof 0) is that of one subset; subsets
    share rows, so neither it nor std / sqrt(subsets) is the error of the mean.

    Raises:
        UserError: a set shorter than `size`, different feature lengths, NaN or infinity.
    """
    require_pair(x, y, at_least=size)
    if subsets < 1 or size < 2:
        raise UserError(f"{subsets} subsets of {size} rows: ask for at least 1 subset of 2 rows")
    left, right = _for_cubic(x, y)
    generator = np.random.RandomState(seed)
    draws = [
        (
            generator.choice(len(x), size, replace=False),
            generator.choice(len(y), size, replace=False),
        )
        for _ in range(subsets)
    ]
    # Subsets share rows: where all pairs are fewer than theirs, every pair is computed once.
    pairs = len(x) ** 2 + len(y) ** 2 + len(x) * len(y)
    if pairs <= 3 * subsets * size**2:
        some, others = (
            np.stack([np.isin(np.arange(len(rows)), chosen) for chosen in drawn], axis=1)
            for rows, drawn in zip((x, y), zip(*draws, strict=True), strict=True)
        )
        values = _subset_values(left, right, some, others)
    else:
        whole = np.ones((size, 1), bool)
        values = np.concatenate(
            [_subset_values(_take(left, a), _take(right, b), whole, whole) for a, b in draws]
        )
    return Subsets(float(np.mean(values)), float(np.std(values)))


def _subset_values(
    x: _Set, y: _Set, some: Bool[np.ndarray, "n s"], others: Bool[np.ndarray, "m s"]
) -> Float64[np.ndarray, " s"]:
    """The U-statistic of each of s pairs of subsets; column i says which rows are in the i-th.

    The sum over the pairs of a subset is a^T K b, a and b its columns, K the kernel matrix.
    """
    n, m = some.sum(axis=0), others.sum(axis=0)
    scale = 1 / x.rows.shape[1]

    def pairs(a: _Set, b: _Set, of_a: np.ndarray, of_b: np.ndarray) -> Float64[np.ndarray, " s"]:
        total = np.zeros(of_a.shape[1])
        weights = of_b.astype(np.float64)
        with jax.enable_x64(True):
            columns, terms = jnp.asarray(b.rows), jnp.asarray(b.terms)
            for start, rows in row_blocks(a.rows, len(b.rows), 1024):
                block = _placed(a, start, rows, None, within=a is b)
                sums = _block_products(block, columns, terms, scale, weights, kernel=_cubic)
                part = of_a[start : start + len(rows)]
                total += (np.asarray(sums)[: len(part)] * part).sum(axis=0)
        return total

    within = pairs(x, x, some, some) / (n * (n - 1)) + pairs(y, y, others, others) / (m * (m - 1))
    return np.asarray(within - 2 * pairs(x, y, some, others) / (n * m))


def rbf_mmd(
    x: Float[np.ndarray, "n d"],
    y: Float[np.ndarray, "m d"],
    *,
    sigma: float = 10.0,
    normalise: bool = False,
    biased: bool = False,
    level: float = 0.95,
    mesh: DeviceMesh | None = None,
) -> Interval:
    """Squared MMD with k(x, y) = exp(-|x - y|^2 / (2 sigma^2)) (Gretton et al. 2012, eq. 3 and 5).

    CMMD (Jayasumana et al. 2024) is 1000 times this on CLIP features with `sigma=10`,
    `normalise=True` and `biased=True`. The biased form counts each row's likeness to itself: two
    sets of one distribution score about (1 - E k(x, x')) (1/n + 1/m), not 0, so compare at equal
    n. The unbiased form averages 0 there. The interval is that of `kid`.

    Rounding: float32 products leave about 1e-7 (|a|^2 + |b|^2) / (2 sigma^2) in one kernel value,
    a and b the centred rows.

    Args:
        x: float [n, d], n >= 3.
        y: float [m, d], m >= 3, in the units of `x`.
        sigma: width of the kernel, in the units of the features.
        normalise: scale each row to length 1 first.
        biased: the V-statistic in place of the U-statistic.
        level: confidence.
        mesh: as for `kid`.

    Raises:
        UserError: sigma not positive, a row of zeros to normalise, or what `kid` refuses.
    """
    require_pair(x, y)
    if not sigma > 0:
        raise UserError(f"sigma is {sigma}: give a positive kernel width")
    if normalise:
        x, y = unit_rows(x, "the first set"), unit_rows(y, "the second set")
    shift = (x.mean(axis=0, dtype=np.float64) + y.mean(axis=0, dtype=np.float64)) / 2

    def prepare(rows: np.ndarray) -> _Set:
        near = centred(rows, shift)
        return _Set(near, squared_lengths(near) / 2, np.ones(len(near)))

    sums = _sums(prepare(x), prepare(y), _gaussian, 1 / sigma**2, mesh)
    return _with_jackknife(sums, biased, level)


def unit_rows(x: Float[np.ndarray, "n d"], name: str) -> Float64[np.ndarray, "n d"]:
    """Every row over its Euclidean length, float64 [n, d]; raises `UserError` for a row of 0."""
    length = np.linalg.norm(np.asarray(x, np.float64), axis=1, keepdims=True)
    if not length.all():
        raise UserError(f"{name} has a row of zeros, which has no direction: drop such rows")
    return x / length


def require_pair(x: np.ndarray, y: np.ndarray, at_least: int = 3) -> None:
    """Raise `UserError` unless both are finite, long enough, and of equally many features."""
    require_rows(x, "the first set of features", at_least)
    require_rows(y, "the second set of features", at_least)
    if x.shape[1] != y.shape[1]:
        raise UserError(
            f"the sets have {x.shape[1]} and {y.shape[1]} features: use one feature net for both"
        )


def _take(some: _Set, rows: Int[np.ndarray, " s"]) -> _Set:
    return _Set(*(column[rows] for column in some))


def _for_cubic(x: np.ndarray, y: np.ndarray) -> tuple[_Set, _Set]:
    """With x = c + a and y = c + b, x·y = a·b + (c·a + |c|^2/2) + (c·b + |c|^2/2)."""
    centre = (x.mean(axis=0, dtype=np.float64) + y.mean(axis=0, dtype=np.float64)) / 2
    half = centre @ centre / 2

    def prepare(rows: np.ndarray) -> _Set:
        near, d = centred(rows, centre), rows.shape[1]
        terms = (near @ centre + half) / d + 0.5
        return _Set(near, terms, (squared_lengths(near) / d + 2 * terms) ** 3)

    return prepare(x), prepare(y)


def _cubic(product: jax.Array, row: jax.Array, column: jax.Array, scale: ArrayLike) -> jax.Array:
    base = product * scale + row + column
    return base * base * base


def _gaussian(product: jax.Array, row: jax.Array, column: jax.Array, scale: ArrayLike) -> jax.Array:
    return jnp.exp((product - row - column) * scale)


def _sums(x: _Set, y: _Set, kernel: _Kernel, scale: float, mesh: DeviceMesh | None = None) -> _Sums:
    xx, _ = _matrix_sums(x, x, kernel, scale, mesh, within=True)
    yy, _ = _matrix_sums(y, y, kernel, scale, mesh, within=True)
    xy, yx = _matrix_sums(x, y, kernel, scale, mesh, within=False)
    return _Sums(xx, yy, xy, yx, x.diagonal, y.diagonal)


def _matrix_sums(
    x: _Set, y: _Set, kernel: _Kernel, scale: float, mesh: DeviceMesh | None, *, within: bool
) -> tuple[Float64[np.ndarray, " n"], Float64[np.ndarray, " m"]]:
    """The sums over each row and each column of k(x, y), less the diagonal if `within` a set."""
    by_row, by_column = [], np.zeros(len(y.rows))
    # Sums of 10^10 terms that nearly cancel are float64's; it is on in this block alone.
    with jax.enable_x64(True):
        columns, terms = layouts.copied(y.rows, mesh), layouts.copied(y.terms, mesh)
        for start, rows in row_blocks(x.rows, len(y.rows), 1024, mesh):
            some = _placed(x, start, rows, mesh, within=within)
            block = _block_sums(some, columns, terms, scale, kernel=kernel)
            by_row.append(layouts.gathered(block[0], mesh))
            by_column += layouts.gathered(block[1], mesh)
    return np.concatenate(by_row)[: len(x.rows)], by_column


class _Rows(NamedTuple):
    """A block of rows of one set, padded, on the devices."""

    rows: Float[Array, "b d"]
    terms: Float64[Array, " b"]
    valid: Bool[Array, " b"]
    own: Int[Array, " b"]  # the column of the same row, -1 where the columns are another set


def _placed(
    x: _Set, start: int, rows: np.ndarray, mesh: DeviceMesh | None, *, within: bool
) -> _Rows:
    own = np.arange(start, start + len(rows))
    valid = own < len(x.rows)
    terms = np.where(valid, x.terms[np.where(valid, own, 0)], 0)
    block = rows, terms, valid, own if within else np.full(len(rows), -1)
    return _Rows(*(layouts.shared_out(each, mesh) for each in block))


def _values(
    x: _Rows,
    y: Float[Array, "m d"],
    y_terms: Float64[Array, " m"],
    scale: ArrayLike,
    kernel: _Kernel,
) -> Float64[Array, "b m"]:
    """k(x, y), and 0 for padding and for a row with itself."""
    product = jnp.matmul(x.rows, y.T, precision="highest").astype(jnp.float64)
    values = kernel(product, x.terms[:, None], y_terms[None, :], scale)
    counted = x.valid[:, None] & (jnp.arange(len(y))[None, :] != x.own[:, None])
    return jnp.where(counted, values, 0)


@functools.partial(jax.jit, static_argnames="kernel")
def _block_sums(
    x: _Rows,
    y: Float[Array, "m d"],
    y_terms: Float64[Array, " m"],
    scale: ArrayLike,
    kernel: _Kernel,
) -> tuple[Float64[Array, " b"], Float64[Array, " m"]]:
    values = _values(x, y, y_terms, scale, kernel)
    return values.sum(axis=1), values.sum(axis=0)


@functools.partial(jax.jit, static_argnames="kernel")
def _block_products(
    x: _Rows,
    y: Float[Array, "m d"],
    y_terms: Float64[Array, " m"],
    scale: ArrayLike,
    weights: Float64[Array, "m s"],
    kernel: _Kernel,
) -> Float64[Array, "b s"]:
    """For every row its values times the weights of the columns."""
    return _values(x, y, y_terms, scale, kernel) @ weights


def _statistic(sums: _Sums, biased: bool) -> float:
    n, m = len(sums.xx), len(sums.yy)
    if biased:
        within = (sums.xx.sum() + sums.diagonal_x.sum()) / n**2
        within += (sums.yy.sum() + sums.diagonal_y.sum()) / m**2
    else:
        within = sums.xx.sum() / (n * (n - 1)) + sums.yy.sum() / (m * (m - 1))
    return float(within - 2 * sums.xy.sum() / (n * m))


def _with_jackknife(sums: _Sums, biased: bool, level: float) -> Interval:
    x_part = _jackknife_variance(sums.xx, sums.diagonal_x, sums.xy, len(sums.yy), biased)
    y_part = _jackknife_variance(sums.yy, sums.diagonal_y, sums.yx, len(sums.xx), biased)
    value = _statistic(sums, biased)
    half = normal_quantile(level) * float(np.sqrt(x_part + y_part))
    return Interval(value, value - half, value + half)


def _jackknife_variance(
    within: np.ndarray, diagonal: np.ndarray, across: np.ndarray, others: int, biased: bool
) -> float:
    """Of leaving out each row of one set; the part of the other set is constant."""
    n = len(within)
    if biased:
        left = (within.sum() + diagonal.sum() - 2 * within - diagonal) / (n - 1) ** 2
    else:
        left = (within.sum() - 2 * within) / ((n - 1) * (n - 2))
    values = left - 2 * (across.sum() - across) / ((n - 1) * others)
    return float((n - 1) * np.var(values))
