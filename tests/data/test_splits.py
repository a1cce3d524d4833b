"""Splits: disjoint, by class, the same every time, and no image on both sides."""

import dataclasses

import numpy as np
import pytest

from genaug.data import Data, load, split
from genaug.types import DataError, UserError

CONFIG = Data(source="digits")


@pytest.fixture(scope="module")
def digits(tmp_path_factory):
    return load(Data(source="digits", directory=str(tmp_path_factory.mktemp("digits"))))


def from_arrays(tmp_path, **arrays):
    np.savez(tmp_path / "set.npz", **arrays)
    return load(Data(source=str(tmp_path / "set.npz"), directory=str(tmp_path / "data")))


def test_disjoint_complete_stratified_and_repeatable(digits):
    parts = split(digits, CONFIG)
    assert sorted(np.concatenate(parts).tolist()) == list(range(1797))
    whole = np.bincount(digits.labels)
    for part, share in zip(parts, (0.6, 0.1, 0.3), strict=True):
        assert (abs(np.bincount(digits.labels[part]) - share * whole) <= 1).all()
    again = split(digits, CONFIG)
    assert all((a == b).all() for a, b in zip(parts, again, strict=True))
    other = split(digits, dataclasses.replace(CONFIG, split_seed=1))
    assert parts.test.tolist() != other.test.tolist()


def test_equal_images_fall_into_one_part(tmp_path):
    kinds = np.arange(40, dtype=np.uint8)
    images = np.repeat(kinds, 5)[:, None, None] * np.ones((1, 3, 3), np.uint8)
    dataset = from_arrays(tmp_path, image=images, label=np.repeat(kinds % 2, 5))
    parts = split(dataset, Data())
    seen = [set(dataset.digests[part].tolist()) for part in parts]
    assert len(set.union(*seen)) == sum(map(len, seen)) == 40
    assert [len(part) for part in parts] == [120, 20, 60]


def test_preset_test_split(tmp_path):
    images = np.arange(30, dtype=np.uint8)[:, None, None] * np.ones((1, 3, 3), np.uint8)
    labels = np.arange(30) % 2
    arrays = {"x_train": images[:20], "y_train": labels[:20]}
    dataset = from_arrays(tmp_path, **arrays, x_test=images[20:], y_test=labels[20:])
    parts = split(dataset, Data(test_fraction=0.9, valid_fraction=0.05))
    assert parts.test.tolist() == list(range(20, 30))
    leaky = np.concatenate([images[20:], images[3:5]])
    dataset = from_arrays(tmp_path, **arrays, x_test=leaky, y_test=np.append(labels[20:], [1, 0]))
    with pytest.raises(DataError, match=r"2 of 12 test images.*30 is training example 3") as caught:
        split(dataset, Data())
    assert caught.value.exit_code == 3


def test_class_without_training_examples(tmp_path):
    images = np.arange(5, dtype=np.uint8)[:, None, None] * np.ones((1, 3, 3), np.uint8)
    names = np.array(["ant", "bee", "cow"])
    dataset = from_arrays(tmp_path, image=images, label=[0, 0, 0, 2, 2], class_names=names)
    with pytest.raises(DataError, match="'bee' has no example in the training split"):
        split(dataset, Data())
    dataset = from_arrays(
        tmp_path, x_train=images[:3], y_train=[0, 0, 1], x_test=images[3:], y_test=[1, 2]
    )
    with pytest.raises(DataError, match=r"'2' has no example.*1 in the test split"):
        split(dataset, Data(valid_fraction=0.0))


def test_rare_classes_are_cut_in_training_only(digits):
    full = split(digits, CONFIG)
    cut = split(digits, dataclasses.replace(CONFIG, rare_classes=("3", "8"), rare_count=7))
    counts = np.bincount(digits.labels[cut.train])
    assert counts[3] == counts[8] == 7
    assert counts[4] == np.bincount(digits.labels[full.train])[4]
    assert cut.test.tolist() == full.test.tolist()
    assert cut.valid.tolist() == full.valid.tolist()
    assert set(cut.train) <= set(full.train)


def test_fewer_images_of_a_class_are_among_more_of_them(digits):
    config = dataclasses.replace(CONFIG, rare_classes=("3",), rare_count=2)
    few, more = (split(digits, dataclasses.replace(config, class_count=n)) for n in (5, 20))
    counts = np.bincount(digits.labels[few.train])
    assert counts.tolist() == [2 if label == 3 else 5 for label in range(10)]
    assert set(few.train) < set(more.train)
    assert few.test.tolist() == more.test.tolist() == split(digits, CONFIG).test.tolist()


@pytest.mark.parametrize(
    "change, message",
    [
        ({"class_count": 0}, "class-count is 0"),
        ({"class_count": 5000}, "class-count is 5000.*'0' has only"),
        ({"rare_classes": ("33",), "rare_count": 5}, "no class '33'.*did you mean '3'"),
        ({"rare_classes": ("3",)}, "rare-count go together"),
        ({"rare_classes": ("3",), "rare_count": 5000}, "5000.*'3' has only"),
        ({"rare_classes": ("3",), "rare_count": 0}, "rare-count is 0"),
        ({"test_fraction": 1.5}, "test-fraction is 1.5"),
        ({"test_fraction": 0.6, "valid_fraction": 0.4}, "leave nothing"),
        ({"split_seed": -1}, "split-seed is -1"),
    ],
)
def test_what_cannot_be_asked(digits, change, message):
    with pytest.raises(UserError, match=message) as caught:
        split(digits, dataclasses.replace(CONFIG, **change))
    assert caught.value.exit_code == 2
