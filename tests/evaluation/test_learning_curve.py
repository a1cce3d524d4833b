"""Learning curves, and p-values from intervals."""

import math

import numpy as np
import pytest
import scipy.stats

from genaug.evaluation import Interval, paired_t
from genaug.evaluation.learning_curve import effective_samples, examples_for, p_value
from genaug.types import UserError

BUDGETS = (10, 100, 1000)
POWER_LAW = [1 - n**-0.5 for n in BUDGETS]


def test_what_the_curve_was_measured_at_is_given_back():
    for budget, score in zip(BUDGETS, POWER_LAW, strict=True):
        assert examples_for(BUDGETS, POWER_LAW, score) == pytest.approx(budget)


def test_between_budgets_it_is_straight_in_the_logarithm():
    middle = (POWER_LAW[0] + POWER_LAW[1]) / 2
    assert examples_for(BUDGETS, POWER_LAW, middle) == pytest.approx(math.sqrt(1000))


def test_a_fine_curve_is_the_law_it_samples():
    budgets = np.unique(np.geomspace(10, 1000, 60).astype(int)).tolist()
    scores = [1 - n**-0.5 for n in budgets]
    for n in (15, 77, 640):
        assert examples_for(budgets, scores, 1 - n**-0.5) == pytest.approx(n, rel=1e-2)


def test_a_curve_that_dips_is_made_to_rise():
    # Isotonic regression pools the dip: 0.5, 0.7, 0.6, 0.9 becomes 0.5, 0.65, 0.65, 0.9.
    budgets, scores = (1, 10, 100, 1000), [0.5, 0.7, 0.6, 0.9]
    assert examples_for(budgets, scores, 0.65 - 1e-9) == pytest.approx(10)
    assert examples_for(budgets, scores, 0.775) == pytest.approx(math.sqrt(100_000))


def test_outside_the_curve():
    assert examples_for(BUDGETS, POWER_LAW, 0.1) == 10
    assert examples_for(BUDGETS, POWER_LAW, 0.999) == math.inf


def test_a_gain_as_real_data():
    reached = Interval(POWER_LAW[1], POWER_LAW[0], 0.999)
    assert effective_samples(BUDGETS, POWER_LAW, 10, reached) == pytest.approx((10, 1, math.inf))


@pytest.mark.parametrize("budgets", [(10,), (10, 10), (100, 10), (0, 10)])
def test_no_curve(budgets):
    with pytest.raises(UserError):
        examples_for(budgets, [0.5] * len(budgets), 0.5)


def test_a_p_value_is_the_paired_t_tests():
    differences = np.array([0.02, 0.05, -0.01, 0.04])
    found = paired_t(differences, 0.9)
    want = scipy.stats.ttest_1samp(differences, 0).pvalue
    assert p_value(Interval(*found[:3]), 0.9, 4) == pytest.approx(want)


def test_a_p_value_of_one_split_is_a_normal_ones():
    half = scipy.stats.norm.ppf(0.975) * 0.01
    assert p_value(Interval(0.02, 0.02 - half, 0.02 + half), 0.95, 1) == pytest.approx(
        2 * scipy.stats.norm.sf(2)
    )
    assert p_value(Interval(0.0, 0.0, 0.0), 0.95, 1) == 1
    assert p_value(Interval(0.1, 0.1, 0.1), 0.95, 1) == 0
