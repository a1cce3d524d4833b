"""The balance plan with a sampler and a judge whose every answer is known."""

import numpy as np
import pytest
from scipy.spatial.distance import cdist

from genaug.augmentation import (
    MIN_HOLDOUT,
    Balance,
    Filters,
    closeness_limits,
    draw,
    duplicate_limit,
    flat,
    wanted,
)
from genaug.sampling import Sampler
from genaug.types import CondField, LabelSpec, UserError

NUM_CLASSES, SHAPE = 3, (4, 4, 1)
READS = {"label": CondField(LabelSpec(NUM_CLASSES))}


def images(count, labels, seed):
    """Random images whose first pixel says the class."""
    pixels = np.random.default_rng(seed).integers(0, 256, (count, *SHAPE)).astype(np.uint8)
    pixels[:, 0, 0, 0] = 50 * np.asarray(labels) + 5
    return pixels


def real(per_class, seed):
    labels = np.repeat(np.arange(NUM_CLASSES, dtype=np.int32), per_class)
    return {"image": images(len(labels), labels, seed), "label": labels}


TRAIN, HOLDOUT = real(12, 0), real(25, 0)  # random images lie apart; unseen real ones are near:
HOLDOUT["image"] = TRAIN["image"][np.repeat(np.arange(36).reshape(3, 12), 3, axis=1)[:, :25]]
HOLDOUT["image"] = HOLDOUT["image"].reshape(75, *SHAPE) // 2 + images(75, HOLDOUT["label"], 1) // 2


def judge(pixels):
    """Reads the class from the first pixel, with certainty."""
    return np.eye(NUM_CLASSES, dtype=np.float32)[pixels[:, 0, 0, 0] // 50]


GOOD, WRONG_LABEL, COPY, DUPLICATE = range(4)


def every_fifth(index):
    """Plants each fault at a fifth of the addresses; two fifths are good."""
    return {1: WRONG_LABEL, 2: COPY, 3: DUPLICATE}.get(index % 5, GOOD)


def sampler(plant=every_fifth, seen=None, with_labels=True):
    def program(weights, key, rows):
        del weights, key
        assert np.max(rows["index"]) < 1000, "drawing does not end"
        drawn = []
        for index, label in zip(np.asarray(rows["index"]), np.asarray(rows["label"]), strict=True):
            kind = plant(int(index))
            if kind == COPY:
                drawn.append(TRAIN["image"][TRAIN["label"] == label][0])
            else:
                shown = (label + 1) % NUM_CLASSES if kind == WRONG_LABEL else label
                seed = 999 if kind == DUPLICATE else 1000 + int(index)
                drawn.append(images(1, [shown], seed)[0])
        if seen is not None:
            seen.append(rows)
        result = {"image": np.stack(drawn), "label": rows["label"]}
        return result if with_labels else {"image": result["image"]}

    return Sampler(program, None, 16, READS if with_labels else {})


def draw_with(key, missing, source=None, plan=None, filters=None):
    return draw(
        source or sampler(),
        key,
        np.asarray(missing),
        plan or Balance(),
        filters or Filters(),
        judge,
        TRAIN,
        HOLDOUT,
    )


@pytest.mark.parametrize(
    "per_class, want", [(None, [0, 4, 10]), (8, [0, 2, 8]), (12, [2, 6, 12]), (1, [0, 0, 1])]
)
def test_every_class_is_brought_to_the_target(per_class, want):
    got = wanted(np.array([10, 6, 0]), Balance(per_class=per_class))
    np.testing.assert_array_equal(got, want)


def test_a_target_below_one_is_refused():
    with pytest.raises(UserError, match=r"per-class is 0"):
        wanted(np.array([3]), Balance(per_class=0))


def test_a_factor_asks_for_more_of_balanced_classes_too():
    got = wanted(np.array([10, 10, 4]), Balance(factor=1.5))
    np.testing.assert_array_equal(got, [5, 5, 11])
    np.testing.assert_array_equal(
        wanted(np.array([9, 10]), Balance(per_class=9, factor=3.0)), [0, 0]
    )


def test_what_is_missing_is_drawn_and_the_counts_add_up(key):
    drawn = draw_with(key, [0, 7, 20])
    kept = np.bincount(drawn.labels, minlength=NUM_CLASSES)
    np.testing.assert_array_equal(kept, [0, 7, 20])
    np.testing.assert_array_equal(drawn.wanted, [0, 7, 20])
    np.testing.assert_array_equal(drawn.drawn, kept + sum(drawn.refused.values()))
    assert set(drawn.refused) == {"label", "closeness", "duplicate"}
    assert all(counts[1:].any() and counts[0] == 0 for counts in drawn.refused.values())
    assert len(set(drawn.address.tolist())) == len(drawn.address)
    lengths = {len(column) for column in drawn[:6]}
    assert lengths == {27}


def test_each_planted_fault_is_refused_by_its_own_name(key):
    """One class: its addresses run from 0 without a gap."""
    drawn = draw_with(key, [0, 15, 0])
    addresses = np.arange(drawn.drawn[1])
    kinds = np.array([every_fifth(index) for index in addresses])
    assert drawn.refused["label"][1] == np.sum(kinds == WRONG_LABEL) > 0
    assert drawn.refused["closeness"][1] == np.sum(kinds == COPY) > 0
    assert drawn.refused["duplicate"][1] == np.sum(kinds == DUPLICATE) - 1 > 0  # the first is new
    good = [i for i in addresses if kinds[i] == GOOD or i == 3]
    np.testing.assert_array_equal(drawn.address, good)


def test_checks_that_are_none_refuse_nothing(key):
    off = Filters(label=None, closeness=None, duplicate=None)
    drawn = draw_with(key, [0, 15, 0], filters=off)
    np.testing.assert_array_equal(drawn.address, np.arange(15))
    assert not any(counts.any() for counts in drawn.refused.values())


@pytest.mark.parametrize("name", ["label", "closeness", "duplicate"])
def test_each_check_can_be_turned_off_alone(name, key):
    drawn = draw_with(key, [0, 15, 0], filters=Filters(**{name: None}))
    assert {other for other, counts in drawn.refused.items() if counts.any()} == {
        "label",
        "closeness",
        "duplicate",
    } - {name}


@pytest.mark.parametrize("max_draws", [1.0, 2.5, 8.0])
def test_drawing_ends_at_the_limit_when_all_is_refused(max_draws, key):
    hopeless = sampler(lambda index: WRONG_LABEL)
    drawn = draw_with(key, [3, 0, 5], hopeless, Balance(max_draws=max_draws))
    want = np.floor(max_draws * np.array([3, 0, 5]))
    np.testing.assert_array_equal(drawn.drawn, want)
    np.testing.assert_array_equal(drawn.refused["label"], want)
    assert len(drawn.labels) == 0
    assert drawn.images.shape == (0, *SHAPE)


def test_one_hopeless_class_does_not_hold_up_the_others(key):
    source = sampler(lambda index: GOOD)

    def program(weights, key, rows):
        out = source.program(weights, key, rows)
        out["image"][np.asarray(rows["label"]) == 0, 0, 0, 0] = 105  # shows class 2
        return out

    drawn = draw_with(key, [4, 6, 0], Sampler(program, None, 16, READS))
    np.testing.assert_array_equal(np.bincount(drawn.labels, minlength=3), [0, 6, 0])
    np.testing.assert_array_equal(drawn.drawn, [32, 6, 0])


def test_nothing_missing_draws_nothing(key):
    seen = []
    drawn = draw_with(key, [0, 0, 0], sampler(seen=seen))
    assert not seen
    assert len(drawn.labels) == 0


def test_the_same_key_draws_the_same(key):
    first, second = draw_with(key, [2, 7, 9]), draw_with(key, [2, 7, 9])
    for a, b in zip(first[:8], second[:8], strict=True):
        np.testing.assert_array_equal(a, b)


def test_an_address_makes_its_image_again(key):
    source = sampler()
    drawn = draw_with(key, [2, 7, 9], source)
    again = source(key, {"index": drawn.address, "label": drawn.labels})
    np.testing.assert_array_equal(again["image"], drawn.images)


def test_the_nearest_training_image_is_on_record(key):
    drawn = draw_with(key, [2, 7, 9])
    apart = cdist(flat(drawn.images), flat(TRAIN["image"]))
    np.testing.assert_allclose(drawn.nearest_train, apart.min(1), rtol=1e-5)
    np.testing.assert_array_equal(drawn.nearest_train_row, apart.argmin(1))
    np.testing.assert_array_equal(drawn.label_probability, 1)


def test_a_model_that_reads_no_label_is_refused(key):
    with pytest.raises(UserError, match="class-conditional"):
        draw_with(key, [0, 3, 0], sampler(with_labels=False))


def test_closeness_limits_are_each_classs_own_quantile():
    limits = closeness_limits(TRAIN, HOLDOUT, NUM_CLASSES, 0.1)
    for c in range(NUM_CLASSES):
        apart = cdist(
            flat(HOLDOUT["image"][HOLDOUT["label"] == c]),
            flat(TRAIN["image"][TRAIN["label"] == c]),
        )
        np.testing.assert_allclose(limits[c], np.quantile(apart.min(1), 0.1), rtol=1e-6)


def test_a_class_with_little_holdout_takes_the_limit_of_all():
    few = np.flatnonzero(HOLDOUT["label"] == 1)[MIN_HOLDOUT - 1 :]
    holdout = {name: np.delete(rows, few, axis=0) for name, rows in HOLDOUT.items()}
    limits = closeness_limits(TRAIN, holdout, NUM_CLASSES + 1, 0.1)
    apart = cdist(flat(holdout["image"]), flat(TRAIN["image"])).min(1)
    np.testing.assert_allclose(limits[[1, 3]], np.quantile(apart, 0.1), rtol=1e-6)
    assert (limits[[0, 2]] != limits[1]).all()


def test_without_holdout_or_quantile_nothing_is_too_close():
    nothing = {name: rows[:0] for name, rows in HOLDOUT.items()}
    assert (closeness_limits(TRAIN, nothing, NUM_CLASSES, 0.1) < 0).all()
    assert (closeness_limits(TRAIN, HOLDOUT, NUM_CLASSES, None) < 0).all()


def test_the_duplicate_limit_is_a_quantile_between_training_images():
    pixels = flat(TRAIN["image"])
    apart = cdist(pixels, pixels) + np.diag(np.full(len(pixels), np.inf))
    want = np.quantile(apart.min(1), 0.2)
    np.testing.assert_allclose(duplicate_limit(pixels, 0.2), want, rtol=1e-6)
    assert duplicate_limit(pixels, None) < 0
    assert duplicate_limit(pixels[:1], 0.2) < 0


def test_pixels_become_rows_from_zero_to_one():
    rows = flat(TRAIN["image"])
    assert rows.shape == (36, 16)
    np.testing.assert_allclose(rows[5].reshape(SHAPE), TRAIN["image"][5] / 255, rtol=1e-6)
    assert flat(TRAIN["image"][:0]).shape == (0, 16)
