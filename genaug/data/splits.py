"""Which examples train, validate and test: index arrays, a pure function of data and seed."""

from __future__ import annotations

import difflib
from typing import NamedTuple

import numpy as np
from jaxtyping import Int64, Integer, UInt64

from genaug.data.config import Data
from genaug.data.dataset import Dataset
from genaug.types import DataError, UserError

TRAIN, VALID, TEST = 0, 1, 2


class Splits(NamedTuple):
    """Positions in the dataset, ascending, disjoint."""

    train: Int64[np.ndarray, " a"]
    valid: Int64[np.ndarray, " b"]
    test: Int64[np.ndarray, " c"]


def permutation(n: int, *seed: int) -> Int64[np.ndarray, " n"]:
    """A random order of 0..n-1. Built on PCG64's raw output, which NumPy never changes."""
    return np.argsort(np.random.PCG64(list(seed)).random_raw(n), kind="stable")


def split(dataset: Dataset, config: Data) -> Splits:
    """Split by class; equal images stay together; classes are then cut in the training part.

    A source's own test split is kept, and validation is drawn from the rest. Without one,
    `test_fraction` and `valid_fraction` are shares of each class. Raises UserError for fractions or
    rare classes that cannot be, DataError for a class without training examples and for images that
    are both in the preset training and the preset test split.
    """
    _check(dataset, config)
    part = np.full(len(dataset), TRAIN)
    test_fraction = config.test_fraction
    if dataset.preset_test is not None:
        _refuse_leak(dataset)
        part[dataset.preset_test] = TEST
        test_fraction = 0.0
    pool = np.flatnonzero(part == TRAIN)
    part[pool] = hold_out(
        dataset.labels[pool],
        dataset.digests[pool],
        test_fraction=test_fraction,
        valid_fraction=config.valid_fraction,
        seed=config.split_seed,
    )
    train, valid, test = (np.flatnonzero(part == which) for which in (TRAIN, VALID, TEST))
    _require_training_examples(dataset, train, test)
    return Splits(_cut(dataset, config, train), valid, test)


def hold_out(
    labels: Integer[np.ndarray, " n"],
    digests: UInt64[np.ndarray, " n"],
    *,
    test_fraction: float,
    valid_fraction: float,
    seed: int,
) -> Int64[np.ndarray, " n"]:
    """TRAIN, VALID or TEST for each example: shares of each class, equal examples together."""
    # A group of equal examples moves as one, counted in the class of its first.
    _, first, group = np.unique(digests, return_index=True, return_inverse=True)
    group_class, group_size = labels[first], np.bincount(group)
    group_part = np.full(len(first), TRAIN)
    for label in np.unique(labels).tolist():
        # In order of first appearance: the digests' own order would be as good, but not as legible.
        members = np.flatnonzero(group_class == label)
        members = members[np.argsort(first[members])]
        total = int(group_size[members].sum())
        room = {TEST: round(test_fraction * total), VALID: round(valid_fraction * total)}
        for member in members[permutation(len(members), seed, label)]:
            for which, left in room.items():
                if group_size[member] <= left:
                    group_part[member] = which
                    room[which] -= int(group_size[member])
                    break
    return group_part[group]


def _check(dataset: Dataset, config: Data) -> None:
    shares = {"test": config.test_fraction, "valid": config.valid_fraction}
    for name, share in shares.items():
        if not 0 <= share < 1:
            raise UserError(f"--data.{name}-fraction is {share}; expected 0 or more and below 1")
    if sum(shares.values()) >= 1:
        raise UserError(
            f"--data.test-fraction {config.test_fraction} and --data.valid-fraction "
            f"{config.valid_fraction} leave nothing to train on; their sum must be below 1"
        )
    if config.split_seed < 0:
        raise UserError(f"--data.split-seed is {config.split_seed}; expected 0 or more")
    if bool(config.rare_classes) != (config.rare_count is not None):
        raise UserError(
            "--data.rare-classes and --data.rare-count go together: which, and how many"
        )
    for name in config.rare_classes:
        if name not in dataset.class_names:
            near = difflib.get_close_matches(name, dataset.class_names, n=1, cutoff=0.4)
            guess = f"did you mean {near[0]!r}? " if near else ""
            raise UserError(
                f"no class {name!r} to make rare; {guess}{dataset.name} has "
                + ", ".join(dataset.class_names)
            )
    for flag, count in (("rare", config.rare_count), ("class", config.class_count)):
        if count is not None and count < 1:
            raise UserError(f"--data.{flag}-count is {count}; expected 1 or more")


def _refuse_leak(dataset: Dataset) -> None:
    assert dataset.preset_test is not None
    test = np.flatnonzero(dataset.preset_test)
    train = np.flatnonzero(~dataset.preset_test)
    leaked = np.isin(dataset.digests[test], dataset.digests[train])
    if leaked.any():
        there = int(test[leaked][0])
        here = int(train[dataset.digests[train] == dataset.digests[there]][0])
        raise DataError(
            f"{dataset.name}: {int(leaked.sum())} of {len(test)} test images are also training "
            f"images, byte for byte (first: test example {there} is training example {here}); "
            "remove them from one of the two, or the measured gain means nothing"
        )


def _require_training_examples(dataset: Dataset, train: np.ndarray, test: np.ndarray) -> None:
    count = len(dataset.class_names)
    in_train = np.bincount(dataset.labels[train], minlength=count)
    in_test = np.bincount(dataset.labels[test], minlength=count)
    for label, name in enumerate(dataset.class_names):
        if in_train[label] == 0:
            where = f", but {in_test[label]} in the test split" if in_test[label] else ""
            raise DataError(
                f"{dataset.name}: class {name!r} has no example in the training split{where}; "
                "add examples, remove the class, or hold out less (--data.test-fraction)"
            )


def _cut(dataset: Dataset, config: Data, train: np.ndarray) -> np.ndarray:
    """Leave so many training examples of each class; more of them hold all of fewer."""
    keep = np.ones(len(train), np.bool_)
    for label, name in enumerate(dataset.class_names):
        flag = "rare" if name in config.rare_classes else "class"
        count = config.rare_count if flag == "rare" else config.class_count
        if count is None:
            continue
        members = np.flatnonzero(dataset.labels[train] == label)
        if len(members) < count:
            raise UserError(
                f"--data.{flag}-count is {count}, but class {name!r} has only {len(members)} "
                "training examples; choose a smaller number"
            )
        order = permutation(len(members), config.split_seed, label, 1)
        keep[members[order[count:]]] = False
    return train[keep]
