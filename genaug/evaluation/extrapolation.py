"""The Fréchet distance without its bias: extrapolated to infinitely many samples."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Float64, Int

from genaug.evaluation.distances import require_rows
from genaug.evaluation.frechet import Moments, distance_to, frechet_from_moments, moments
from genaug.evaluation.intervals import t_quantile
from genaug.evaluation.streaming import StreamedMoments
from genaug.types import UserError


class Extrapolation(NamedTuple):
    """The distance at infinite n with its interval, and the curve it was read off."""

    estimate: float
    low: float
    high: float
    slope: float  # the distance at n is about estimate + slope / n
    sizes: Int[np.ndarray, " s"]
    distances: Float64[np.ndarray, " s"]


def frechet_infinity(
    real: Float[np.ndarray, "n d"],
    synthetic: Float[np.ndarray, "m d"],
    *,
    both: bool = False,
    num_sizes: int = 15,
    smallest: int | None = None,
    groups: int = 10,
    seed: int,
    level: float = 0.95,
) -> Extrapolation:
    """The Fréchet distance that infinitely many synthetic examples would have.

    Chong & Forsyth 2020: the bias of the distance is about slope / N, so distances at
    `num_sizes` sizes N, evenly spaced from `smallest` to all, are fitted by least squares on 1/N,
    and the intercept is the answer. It may be negative for a very good set. As in the paper the
    synthetic set alone is subsampled, against all of `real`, whose own bias (about a constant over
    n) stays in; `both` subsamples the two at equal N <= min(n, m) and takes that out too.

    Subsets are the beginnings of one random order (no row twice: replacement biases the curve), so
    all their moments come from one pass, and the factor of the reference serves the whole curve.

    The interval is a delete-group jackknife (Kott 2001): the whole curve anew without every
    `groups`-th row of both sets, Student's t with groups - 1 degrees of freedom. It holds the
    sampling of both sets, and not what the 1/N law leaves out: for Gaussians with sizes from 2 d
    to 16 d, 2 % of the bias at 16 d. Cost: groups + 1 curves of num_sizes eigenvalue problems of
    d x d.

    Args:
        real: float [n, d], n > d.
        synthetic: float [m, d], m > smallest.
        both: whether the real set is subsampled too.
        num_sizes: points of the curve, at least 3.
        smallest: size of the first; None takes the larger of 2 d and a tenth of all.
        groups: of the jackknife, at least 2.
        seed: of the orders.
        level: confidence.

    Raises:
        UserError: too few rows for the curve, NaN or infinity.
    """
    require_rows(real, "the real set", 2)
    require_rows(synthetic, "the synthetic set", 2)
    d = real.shape[1]
    largest = min(len(real), len(synthetic)) if both else len(synthetic)
    first = max(2 * d, largest // 10) if smallest is None else smallest
    if num_sizes < 3 or groups < 2:
        raise UserError(f"{num_sizes} sizes, {groups} groups: give at least 3 sizes and 2 groups")
    if min(len(real), first) * (1 - 1 / groups) <= d or largest < first + num_sizes:
        raise UserError(
            f"no curve from {first} to {largest} examples of {d} features: the 1/N law needs sizes "
            "well above the number of features; draw more examples or take a smaller feature net"
        )
    generator = np.random.Generator(np.random.PCG64(seed))
    real, synthetic = (rows[generator.permutation(len(rows))] for rows in (real, synthetic))
    sizes = np.linspace(first, largest, num_sizes).astype(np.int64)
    distances = _curve(real, synthetic, sizes, both)
    slope, value = _line(sizes, distances)

    kept = (sizes * (1 - 1 / groups)).astype(np.int64)
    without = []
    for group in range(groups):
        some, others = (rows[np.arange(len(rows)) % groups != group] for rows in (real, synthetic))
        without.append(_line(kept, _curve(some, others, kept, both))[1])
    error = float(np.sqrt((groups - 1) * np.var(without)))
    half = t_quantile(level, groups - 1) * error
    return Extrapolation(value, value - half, value + half, slope, sizes, distances)


def _curve(
    real: np.ndarray, synthetic: np.ndarray, sizes: np.ndarray, both: bool
) -> Float64[np.ndarray, " s"]:
    """The distance between the first rows of the sets, at each of ascending sizes."""
    drawn = _beginnings(synthetic, sizes)
    if both:
        pairs = zip(_beginnings(real, sizes), drawn, strict=True)
        return np.array([frechet_from_moments(a, b) for a, b in pairs])
    distance = distance_to(moments(real))
    return np.array([distance(each) for each in drawn])


def _beginnings(x: np.ndarray, sizes: np.ndarray) -> Iterator[Moments]:
    """The moments of `x[:size]` for ascending sizes, every row read once."""
    state = StreamedMoments.start(x[: sizes[0]].mean(axis=0))
    for start, stop in zip([0, *sizes[:-1]], sizes, strict=True):
        state = state.add(x[start:stop])
        yield state.finish()


def _line(sizes: np.ndarray, distances: np.ndarray) -> tuple[float, float]:
    """Slope and intercept of the least-squares line on 1/N."""
    slope, intercept = np.polyfit(1 / sizes, distances, 1)
    return float(slope), float(intercept)
