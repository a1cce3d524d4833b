"""Wrong uses that would give a number all the same."""

import numpy as np
import pytest

from genaug.evaluation.guards import check_features, check_sets
from genaug.evaluation.matching import Sets
from genaug.types import UserError


def images(seed, n=40):
    return np.random.default_rng(seed).integers(256, size=(n, 4, 4, 1)).astype(np.uint8)


TRAIN, HOLDOUT, MADE = images(0), images(1), images(2)


def test_sets_that_are_as_they_should_be():
    assert check_sets(Sets(TRAIN, HOLDOUT, MADE)) == ((), ())


@pytest.mark.parametrize(
    "sets, words",
    [
        (Sets(TRAIN, HOLDOUT, TRAIN[::-1]), "the training and the synthetic set are the same"),
        (Sets(TRAIN, HOLDOUT, HOLDOUT), "the held-out and the synthetic set are the same"),
        (Sets(TRAIN, TRAIN, MADE), "hold others out"),
        (Sets(*(each / np.float32(255) for each in (TRAIN, HOLDOUT, MADE))), "images as float32"),
        (Sets(TRAIN * 1.0, HOLDOUT * 1.0, MADE * 1.0), "images as float64, and files hold bytes"),
    ],
)
def test_nothing_true_can_be_said(sets, words):
    with pytest.raises(UserError, match=words):
        check_sets(sets)


def test_nan_is_found_where_it_is():
    rows = np.random.default_rng(0).normal(size=(3, 20, 5))
    rows[2, 7, 3] = np.nan
    with pytest.raises(UserError, match="synthetic set holds NaN or infinity, first in row 7"):
        check_sets(Sets(*rows))


def test_held_out_examples_that_come_out_of_the_generator():
    remarks = check_sets(Sets(TRAIN, HOLDOUT, np.concatenate([MADE, HOLDOUT[:3]])))
    assert len(remarks.memorisation) == 1
    assert "3 synthetic examples equal held-out ones" in remarks.memorisation[0]
    # It may have them from the training set, where they are too: then it is the split that leaks.
    shared = np.concatenate([TRAIN, HOLDOUT[:3]])
    remarks = check_sets(Sets(shared, HOLDOUT, np.concatenate([MADE, HOLDOUT[:3]])))
    copied, shared = remarks.memorisation
    assert "3 of the 43 synthetic examples equal training ones" in copied
    assert "3 held-out examples are in the training set too" in shared


def test_oversampled_sets():
    twice = np.concatenate([TRAIN, TRAIN])
    (remark,) = check_sets(Sets(twice, HOLDOUT, MADE)).likeness
    assert "40 of the 80 examples of the training set are exact copies" in remark
    assert check_sets(Sets(images(0, 100), HOLDOUT, MADE)).likeness == ()


def test_a_distance_on_fewer_examples_than_features():
    assert check_features(65, 64, "net") == ()
    (remark,) = check_features(64, 64, "net")
    assert "64 examples are no more than the 64 features of net" in remark
