"""Intervals for shares, paired differences, classification scores and distances between sets."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import numpy as np
import scipy.special
from jaxtyping import Float, Float64, Int, UInt16

from genaug.evaluation.scores import scores, statistics_of
from genaug.types import UserError

# Bootstrap draws per matrix product: bounds the float64 copy of the weights.
_DRAWS_AT_ONCE = 256


class Interval(NamedTuple):
    """An estimate and the ends of its confidence interval, in the unit of the estimate."""

    estimate: float
    low: float
    high: float


class PairedT(NamedTuple):
    """The outcome of a paired t-test: mean difference, its interval, two-sided p-value."""

    estimate: float
    low: float
    high: float
    p_value: float


class Resampling(NamedTuple):
    """How often each test example and each seed counts in each draw, shared by all arms."""

    examples: UInt16[np.ndarray, "draws n"]
    seeds: UInt16[np.ndarray, "draws s"]


class Bootstrap(NamedTuple):
    """One arm's scores: as measured, and under each draw of a `Resampling`."""

    estimate: dict[str, float]
    draws: dict[str, Float64[np.ndarray, " draws"]]


def wilson(successes: int | float, n: int | float, level: float = 0.95) -> Interval:
    """The score interval of a share (Wilson 1927): sound at 0, at 1 and for small n.

    Args:
        successes: how many of `n`; ties may count half.
        n: how many independent trials; an effective number need not be whole.
        level: confidence.

    Raises:
        UserError: n is not positive, or successes are not in [0, n].
    """
    if not 0 <= successes <= n or n == 0:
        raise UserError(f"{successes} of {n} is not a share: give 0 <= successes <= n and n > 0")
    share = float(successes) / float(n)
    z2 = normal_quantile(level) ** 2 / n
    centre = (share + z2 / 2) / (1 + z2)
    half = float(np.sqrt(z2 * (share * (1 - share) + z2 / 4))) / (1 + z2)
    # Rounding must not push an end past the share it encloses.
    return Interval(share, min(max(0.0, centre - half), share), max(min(1.0, centre + half), share))


def paired_t(differences: Float[np.ndarray, " s"], level: float = 0.95) -> PairedT:
    """Student's t interval and test for the mean of paired `differences` (one per seed).

    Raises:
        UserError: fewer than 2 differences.
    """
    s = len(differences)
    if s < 2:
        raise UserError("a paired t-test needs at least 2 differences: run more seeds")
    mean = float(differences.mean(dtype=np.float64))
    error = float(differences.std(ddof=1, dtype=np.float64)) / s**0.5
    half = t_quantile(level, s - 1) * error
    if error > 0:
        p_value = float(2 * scipy.special.stdtr(s - 1, -abs(mean) / error))
    else:
        p_value = 0.0 if mean else 1.0
    return PairedT(mean, mean - half, mean + half, p_value)


def holm(p_values: Sequence[float] | Float[np.ndarray, " m"]) -> Float64[np.ndarray, " m"]:
    """Adjusted p-values for `m` tests at once, in the given order (Holm 1979)."""
    p = np.asarray(p_values, np.float64)
    order = np.argsort(p, kind="stable")
    stepped = np.maximum.accumulate(p[order] * np.arange(len(p), 0, -1))
    adjusted = np.empty_like(p)
    adjusted[order] = np.minimum(stepped, 1)
    return adjusted


def resampling(
    labels: Int[np.ndarray, " n"], num_seeds: int, *, draws: int = 2000, seed: int
) -> Resampling:
    """Draw the weights of a two-way bootstrap: examples within their class, and seeds.

    Draw it once and hand it to `bootstrap_scores` for every arm: that pairs the arms.
    """
    generator = np.random.Generator(np.random.PCG64(seed))
    examples = np.zeros((draws, len(labels)), np.uint16)
    for label in np.unique(labels):
        members = np.flatnonzero(labels == label)
        examples[:, members] = _with_replacement(generator, draws, len(members))
    return Resampling(examples, _with_replacement(generator, draws, num_seeds))


def bootstrap_scores(
    probabilities: Float[np.ndarray, "s n c"],
    labels: Int[np.ndarray, " n"],
    rare_classes: Sequence[int],
    weights: Resampling,
) -> Bootstrap:
    """The scores of one arm, averaged over its seeds, under each draw of `weights`.

    The scores are functions of sums over examples (`scores.statistics_of`), so a block of draws
    is one matrix product. Recall comes per class, as `recall/3`, for the classes in `labels`.

    Raises:
        UserError: `weights` drawn for another number of seeds or examples, or what `statistics_of`
            refuses.
    """
    s, n, _ = probabilities.shape
    if (s, n) != (weights.seeds.shape[1], weights.examples.shape[1]):
        raise UserError(
            f"weights were drawn for {weights.seeds.shape[1]} seeds and "
            f"{weights.examples.shape[1]} examples, this arm has {s} and {n}: draw anew"
        )
    statistics = statistics_of(probabilities, labels)
    present = np.unique(labels)
    measured = _named(scores(statistics.sum(axis=1), rare_classes), present)
    flat = statistics.transpose(1, 0, 2).reshape(n, -1)
    parts = []
    for start in range(0, len(weights.examples), _DRAWS_AT_ONCE):
        part = slice(start, start + _DRAWS_AT_ONCE)
        sums = weights.examples[part].astype(np.float64) @ flat
        seeds = weights.seeds[part] / s
        per_seed = _named(scores(sums.reshape(len(seeds), s, -1), rare_classes), present)
        parts.append({name: (value * seeds).sum(axis=1) for name, value in per_seed.items()})
    return Bootstrap(
        {name: float(value.mean()) for name, value in measured.items()},
        {name: np.concatenate([part[name] for part in parts]) for name in measured},
    )


def difference(a: Bootstrap, b: Bootstrap, level: float = 0.95) -> dict[str, Interval]:
    """`a` minus `b` for every score, with its percentile interval.

    Both must come from the same `Resampling`. The estimate is the plain difference of the means.
    """
    tail = (1 - level) / 2
    result = {}
    for name, value in a.estimate.items():
        low, high = np.quantile(a.draws[name] - b.draws[name], [tail, 1 - tail])
        result[name] = Interval(value - b.estimate[name], float(low), float(high))
    return result


def paired_bootstrap(
    probabilities_a: Float[np.ndarray, "s n c"],
    probabilities_b: Float[np.ndarray, "s n c"],
    labels: Int[np.ndarray, " n"],
    rare_classes: Sequence[int],
    *,
    draws: int = 2000,
    seed: int,
    level: float = 0.95,
) -> dict[str, Interval]:
    """How much better arm `a` scores than arm `b`: test examples and seeds both resampled.

    Seed i of both arms is a pair, and so is every test example. Resampling rows and columns apart
    is Owen's (2007) pigeonhole bootstrap: mildly conservative in the seed-by-example part, while
    the seed part is short by (s - 1) / s; with fewer than 5 seeds read `paired_t` beside it.

    Args:
        probabilities_a: [s, n, c], rows sum to 1, for s seeds and n test examples.
        probabilities_b: [s, n, c], the same seeds and examples.
        labels: int [n], true classes in [0, c).
        rare_classes: classes whose mean recall is `rare_recall`; may be empty.
        draws: bootstrap repetitions.
        seed: of the resampling.
        level: confidence.

    Returns:
        One interval of the difference a - b per score.
    """
    weights = resampling(labels, len(probabilities_a), draws=draws, seed=seed)
    a = bootstrap_scores(probabilities_a, labels, rare_classes, weights)
    b = bootstrap_scores(probabilities_b, labels, rare_classes, weights)
    return difference(a, b, level)


def half_sampling(
    statistic: Callable[[np.ndarray, np.ndarray], Mapping[str, float]],
    x: Float[np.ndarray, "n d"],
    y: Float[np.ndarray, "m e"],
    *,
    draws: int = 50,
    seed: int,
    level: float = 0.95,
) -> dict[str, Interval]:
    """Intervals for statistics of two sets that duplicates would spoil (distances, neighbours).

    A bootstrap with replacement puts copies at distance 0 and shrinks neighbour radii. Here every
    draw computes the statistic on a random half of each set, without replacement. Of r = n - d
    rows the delete-d jackknife variance is r/d times the spread of the draws (Shao & Wu 1989),
    and r/d = 1 for halves: with Var = s2/n, a half-sample has s2/(n/2) (1 - 1/2) = s2/n
    about its mean. So the standard deviation of the draws is that of the full sample, unscaled.
    Deviations are taken about the draws' own mean, because a statistic biased by 1/n (the Fréchet
    distance) is further off on halves. The interval is estimate -+ z sd: it says how far the
    number would move with other examples at this n, and leaves the bias at this n in.

    Args:
        statistic: two arrays in, named numbers out.
        x: [n, d], n >= 4.
        y: [m, e], m >= 4; e is d for most statistics.
        draws: half-samples; 50 give the standard deviation to 10 %.
        seed: of the halves.
        level: confidence.
    """
    if min(len(x), len(y)) < 4 or draws < 2:
        raise UserError("half-sampling needs 4 rows in each set and 2 draws: give more")
    full = statistic(x, y)
    generator = np.random.Generator(np.random.PCG64(seed))

    def half(rows: np.ndarray) -> np.ndarray:
        return rows[np.sort(generator.permutation(len(rows))[: len(rows) // 2])]

    drawn = [statistic(half(x), half(y)) for _ in range(draws)]
    z = normal_quantile(level)
    result = {}
    for name, value in full.items():
        spread = z * float(np.std([draw[name] for draw in drawn], ddof=1))
        result[name] = Interval(float(value), float(value) - spread, float(value) + spread)
    return result


def normal_quantile(level: float) -> float:
    """How many standard deviations a two-sided interval of confidence `level` reaches."""
    return float(scipy.special.ndtri((1 + level) / 2))


def t_quantile(level: float, freedom: int) -> float:
    """The same where the standard deviation is estimated: Student's t of so many degrees."""
    return float(scipy.special.stdtrit(freedom, (1 + level) / 2))


def _with_replacement(generator: np.random.Generator, draws: int, n: int) -> np.ndarray:
    """How often each of `n` is drawn in `n` draws with replacement: uint16 [draws, n]."""
    chosen = generator.integers(n, size=(draws, n)) + n * np.arange(draws)[:, None]
    counts = np.bincount(chosen.reshape(-1), minlength=draws * n)
    return counts.reshape(draws, n).astype(np.uint16)


def _named(values: Mapping[str, np.ndarray], present: np.ndarray) -> dict[str, np.ndarray]:
    """Spread the recall per class over names, one for each class that is present."""
    named = {name: value for name, value in values.items() if name != "recall"}
    return named | {f"recall/{label}": values["recall"][..., label] for label in present}
