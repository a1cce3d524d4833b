"""Distance to the closest record for tables of numbers and categories, by SDMetrics' definition.

It finds copies. A good median says nothing of membership risk (Yao et al. 2025, arXiv 2505.01524).
"""

from __future__ import annotations

import dataclasses
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Float32, Float64, Int, Int32

from genaug.evaluation.distances import row_blocks
from genaug.evaluation.memorisation import Share, share_of_votes
from genaug.types import UserError

# Float32 may take a record for the closest that is further away by less than this.
_ROUNDING = 1e-6
# In ranges of a column reference values lie in [0, 1]: this is further than 1 from all that count.
_MISSING = 4.0


class Table(NamedTuple):
    """Records as two arrays of equal length; either may have no columns.

    numeric: float [n, p], in any units; NaN is a missing value.
    codes: int [n, q], categories numbered alike in all tables; a missing value is one of them.
    """

    numeric: Float[np.ndarray, "n p"]
    codes: Int[np.ndarray, "n q"]


@dataclasses.dataclass(frozen=True)
class Closest:
    """The reference record closest to each record: its distance in [0, 1], and its row."""

    distance: Float64[np.ndarray, " n"]
    index: Int32[np.ndarray, " n"]


def closest_records(query: Table, reference: Table, block: int = 256) -> Closest:
    """The distance of each record to the closest one of `reference` (DCR), as in SDMetrics 0.32.

    The mean over columns of: |difference| over the range of the column in `reference`, at most 1
    (of a constant column 0 if equal, else 1); for categories 0 if equal, else 1. A number missing
    in one of two records counts 1, in both 0. Dates are numbers once turned into days or seconds.

    The closest record is sought in float32 and its distance measured in float64: equal records are
    at exactly 0, and a distance is at most 1e-6 too large. Memory: `block` x m entries.

    Args:
        query: n records.
        reference: m records, with the columns of `query`.
        block: query records at a time, fewer when `reference` is long.

    Raises:
        UserError: no records, no columns, other columns in one table, or infinity.
    """
    _require_tables((query, "the query"), (reference, "the reference"))
    return _closest(query, reference, _ranges(reference.numeric), block)


def records_closer_to_train(
    synthetic: Table, train: Table, holdout: Table, *, seed: int, block: int = 256
) -> Share:
    """The share of synthetic records closer to the training than to the held-out records.

    The longer of `train` and `holdout` is subsampled to the length of the other and both are
    measured in one range, that of the two together, so 0.5 is what data scores that knows neither.
    (SDMetrics does neither, which favours the longer and the wider set.) Ties, which categories
    make common, count half, and so do differences below 1e-6; SDMetrics counts them as held-out.
    The interval is that of `share_of_votes`.

    Raises:
        UserError: what `closest_records` refuses.
    """
    _require_tables(
        (synthetic, "the synthetic table"),
        (train, "the training table"),
        (holdout, "the held-out table"),
    )
    size = min(len(train.numeric), len(holdout.numeric))
    generator = np.random.Generator(np.random.PCG64(seed))
    train, holdout = (_subsample(table, size, generator) for table in (train, holdout))
    ranges = _ranges(np.concatenate([train.numeric, holdout.numeric]))
    near, far = (_closest(synthetic, table, ranges, block) for table in (train, holdout))
    gap = near.distance - far.distance
    votes = np.where(np.abs(gap) < _ROUNDING, 0.5, gap < 0)
    return share_of_votes(votes, np.where(gap <= 0, near.index, size + far.index))


def _subsample(table: Table, size: int, generator: np.random.Generator) -> Table:
    rows = np.sort(generator.permutation(len(table.numeric))[:size])
    return Table(table.numeric[rows], table.codes[rows])


def _require_tables(*tables: tuple[Table, str]) -> None:
    columns = [(table.numeric.shape[1], table.codes.shape[1]) for table, _ in tables]
    if len(set(columns)) > 1 or sum(columns[0]) == 0:
        raise UserError(
            f"the tables have {', '.join(f'{p} and {q}' for p, q in columns)} numeric and category "
            "columns: give all the same ones, in one order"
        )
    for table, name in tables:
        if len(table.numeric) != len(table.codes) or len(table.codes) == 0:
            raise UserError(
                f"{name} has {len(table.numeric)} rows of numbers and {len(table.codes)} of "
                "categories: give both for at least one record"
            )
        if np.isinf(table.numeric).any():
            raise UserError(f"{name} holds infinite values: drop or repair those rows")


def _ranges(numeric: np.ndarray) -> Float64[np.ndarray, "2 p"]:
    """Least and largest of each column, NaN apart; of a column without a value, 0 and 1."""
    some = np.asarray(numeric, np.float64)
    low = np.where(np.isnan(some), np.inf, some).min(axis=0)
    high = np.where(np.isnan(some), -np.inf, some).max(axis=0)
    empty = high < low
    return np.stack([np.where(empty, 0, low), np.where(empty, 1, high)])


def _closest(query: Table, reference: Table, ranges: np.ndarray, block: int) -> Closest:
    columns = _scaled(reference.numeric, ranges), reference.codes.T.astype(np.int32)
    left = _scaled(query.numeric, ranges), query.codes.T.astype(np.int32)
    on_device = tuple(jnp.asarray(each) for each in columns)
    found = []
    every = np.arange(len(query.codes))[:, None]
    for _, rows in row_blocks(every, len(reference.codes), block):
        chosen = rows[:, 0]
        found.append(np.asarray(_closest_rows(left[0][:, chosen], left[1][:, chosen], *on_device)))
    index = np.concatenate(found)[: len(query.codes)]
    return Closest(_pair_distances(query, reference, index, ranges), index)


def _scaled(numeric: np.ndarray, ranges: np.ndarray) -> Float32[np.ndarray, "p n"]:
    """Columns in units of their range, such that differences capped at 1 are the distances."""
    low, high = ranges
    some = np.asarray(numeric, np.float64)
    span = np.where(high > low, high - low, 1)
    scaled = np.clip((some - low) / span, -1, 2)
    scaled = np.where(high > low, scaled, np.where(some == low, 0, 2))
    return np.where(np.isnan(some), _MISSING, scaled).T.astype(np.float32)


@jax.jit
def _closest_rows(
    numeric: Float32[Array, "p b"],
    codes: Int32[Array, "q b"],
    other_numeric: Float32[Array, "p m"],
    other_codes: Int32[Array, "q m"],
) -> Int32[Array, " b"]:
    def add_numeric(total: Array, pair: tuple[Array, Array]) -> tuple[Array, None]:
        difference = jnp.abs(pair[0][:, None] - pair[1][None, :])
        return total + jnp.minimum(difference, 1), None

    def add_codes(total: Array, pair: tuple[Array, Array]) -> tuple[Array, None]:
        return total + (pair[0][:, None] != pair[1][None, :]), None

    # Unrolled columns fuse into one pass over the block.
    total = jnp.zeros((numeric.shape[1], other_numeric.shape[1]), jnp.float32)
    total, _ = jax.lax.scan(add_numeric, total, (numeric, other_numeric), unroll=8)
    total, _ = jax.lax.scan(add_codes, total, (codes, other_codes), unroll=8)
    # XLA's argmin is not vectorised on a CPU; a minimum is.
    is_closest = total == total.min(axis=1)[:, None]
    places = jnp.arange(total.shape[1], dtype=jnp.int32)[None, :]
    return jnp.where(is_closest, places, total.shape[1]).min(axis=1)


def _pair_distances(
    query: Table, reference: Table, index: np.ndarray, ranges: np.ndarray
) -> Float64[np.ndarray, " n"]:
    """The distance of each record to the reference record `index` gives it, in float64."""
    a = np.asarray(query.numeric, np.float64)
    b = np.asarray(reference.numeric, np.float64)[index]
    span = ranges[1] - ranges[0]
    difference = np.abs(a - b)
    capped = np.minimum(difference / np.where(span > 0, span, 1), 1)
    capped = np.where(span > 0, capped, difference > 0)
    missing = np.isnan(a), np.isnan(b)
    capped = np.where(missing[0] | missing[1], missing[0] != missing[1], capped)
    other = query.codes != reference.codes[index]
    return (capped.sum(axis=1) + other.sum(axis=1)) / (a.shape[1] + other.shape[1])
