"""How much real data a gain is worth: read off the scores that more real data gave."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence

import numpy as np
from scipy.special import ndtr, stdtr
from sklearn.isotonic import isotonic_regression

from genaug.evaluation.intervals import Interval, normal_quantile, t_quantile
from genaug.types import UserError


def examples_for(budgets: Sequence[int], scores: Sequence[float], wanted: float) -> float:
    """How many real examples give the score `wanted`, by a learning curve.

    The curve is the rising one nearest to the scores in the sense of least squares (isotonic
    regression), straight between budgets on a logarithmic axis. What it starts with already is
    given the smallest budget, and what it never reaches infinity.

    Args:
        budgets: numbers of real examples, ascending, at least 1 each.
        scores: of each; higher is better.
        wanted: the score to reach.

    Raises:
        UserError: fewer than 2 budgets, or budgets that do not ascend.
    """
    if len(budgets) < 2 or len(budgets) != len(scores) or min(budgets) < 1:
        raise UserError("a learning curve needs a score at 2 budgets or more, each at least 1")
    if any(b <= a for a, b in itertools.pairwise(budgets)):
        raise UserError(f"the budgets {list(budgets)} of a learning curve do not ascend")
    rising = np.asarray(isotonic_regression(np.asarray(scores, np.float64)))
    if wanted <= rising[0]:
        return float(budgets[0])
    if wanted > rising[-1]:
        return math.inf
    after = int(np.argmax(rising >= wanted))
    low, high = rising[after - 1], rising[after]
    share = (wanted - low) / (high - low)
    ends = math.log(budgets[after - 1]), math.log(budgets[after])
    return math.exp(ends[0] + share * (ends[1] - ends[0]))


def effective_samples(
    budgets: Sequence[int], scores: Sequence[float], budget: int, reached: Interval
) -> Interval:
    """Times as much real data as `budget` that would give the scores `reached`.

    1 is no gain. The ends are those of the interval of `reached`, taken to the curve; the curve's
    own uncertainty is not in them. At most the largest budget over `budget` can be told: beyond it
    is infinity, and nothing below the smallest is.

    Args:
        budgets, scores: the learning curve without synthetic data, as `examples_for` takes them.
        budget: how many real examples stood behind `reached`.
        reached: the score with synthetic data, and the ends of its interval.
    """
    return Interval(*(examples_for(budgets, scores, value) / budget for value in reached))


def p_value(gain: Interval, level: float, num_splits: int) -> float:
    """Two-sided p-value of no gain, from an interval.

    Over 2 or more splits the interval is Student's, so this is exactly the paired t-test's. Within
    one split it is a bootstrap's, read as that of a normal estimate.
    """
    half = (gain.high - gain.low) / 2
    if half == 0:
        return 0.0 if gain.estimate else 1.0
    if num_splits == 1:
        return float(2 * ndtr(-abs(gain.estimate) / (half / normal_quantile(level))))
    freedom = num_splits - 1
    return float(2 * stdtr(freedom, -abs(gain.estimate) / (half / t_quantile(level, freedom))))
