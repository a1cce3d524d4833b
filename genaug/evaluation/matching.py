"""Which rows of several sets to compare: as many of each, and of the same classes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import numpy as np
from jaxtyping import Int

from genaug.types import UserError

# A class with less than this part of its share in the synthetic set is named to the reader.
_SHORT = 0.8


class Sets(NamedTuple):
    """One array of each kind: examples, features or rows."""

    train: np.ndarray
    holdout: np.ndarray
    synthetic: np.ndarray


class Labels(NamedTuple):
    """The classes of the sets, int [n] each."""

    train: Int[np.ndarray, " t"]
    holdout: Int[np.ndarray, " h"]
    synthetic: Int[np.ndarray, " s"]
    second: Int[np.ndarray, " r"] | None = None


def require_alike(sets: Sets, labels: Sets | None) -> None:
    """Raise `UserError` unless the examples have one shape and dtype, and one label each."""
    shapes = {(each.shape[1:], each.dtype) for each in sets}
    if len(shapes) > 1:
        raise UserError(
            "the three sets differ in shape or dtype "
            f"({', '.join(f'{e.dtype}{list(e.shape[1:])}' for e in sets)}): bring them to one"
        )
    if labels is not None and [len(each) for each in labels] != [len(each) for each in sets]:
        raise UserError("labels and examples differ in number: give one label per example")


def comparable(
    sets: Sets, labels: Sets | None, names: Mapping[int, str], generator: np.random.Generator
) -> tuple[Sets, tuple[str, ...]]:
    """Rows of each set for a comparison at equal n, and what the reader must know about them."""
    size = min(len(each) for each in sets)
    if labels is None:
        rows = (np.sort(generator.permutation(len(each))[:size]) for each in sets)
        return Sets(*rows), ("The class mix of the sets was not checked: no labels were given.",)
    classes, drawn = np.unique(labels.synthetic, return_counts=True)
    wanted = {
        int(label): round(size * count / len(labels.synthetic))
        for label, count in zip(classes, drawn, strict=True)
    }
    real = fewest(labels.train, labels.holdout)
    counts = {label: min(count, real.get(label, 0)) for label, count in wanted.items()}
    short = [
        f"{names.get(label, label)} ({counts[label]} of {wanted[label]})"
        for label in counts
        if counts[label] < _SHORT * wanted[label]
    ]
    remark = (f"Too few real examples to match class {', '.join(short)}.",) if short else ()
    return Sets(*(pick(each, counts, generator) for each in labels)), remark


def fewest(a: Int[np.ndarray, " a"], b: Int[np.ndarray, " b"]) -> dict[int, int]:
    """Per class that both have: the smaller of the two counts."""
    both = np.intersect1d(a, b)
    return {int(label): int(min((a == label).sum(), (b == label).sum())) for label in both}


def pick(
    labels: Int[np.ndarray, " n"], counts: Mapping[int, int], generator: np.random.Generator
) -> Int[np.ndarray, " m"]:
    """Rows, ascending, with `counts[label]` of each label, at random."""
    chosen = [
        generator.permutation(np.flatnonzero(labels == label))[:count]
        for label, count in counts.items()
    ]
    return np.sort(np.concatenate(chosen)) if chosen else np.zeros(0, np.int64)
