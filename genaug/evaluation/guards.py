"""What makes numbers about sets mean something else, noticed before they are read.

An error where nothing true could be said; a remark, which goes with the numbers, where something
can.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import NamedTuple

import numpy as np
from jaxtyping import Shaped

from genaug.evaluation.matching import Sets
from genaug.types import UserError

# Copies within one set are worth a remark above this share of it.
_DUPLICATES = 0.02


Counts = dict[bytes, int]


class Remarks(NamedTuple):
    """Sentences for the reader, by what they are about."""

    likeness: tuple[str, ...]
    memorisation: tuple[str, ...]


def check_sets(sets: Sets) -> Remarks:
    """Look at the examples themselves.

    sets: examples [n, ...] of one shape and dtype.

    Raises:
        UserError: NaN or infinity, floats where bytes were meant, or one set given twice.
    """
    for name, each in zip(("training", "held-out", "synthetic"), sets, strict=True):
        _check_values(each, name)
    _check_bytes(sets)
    train, holdout, synthetic = (_counted(each) for each in sets)
    both = {row: train.get(row, 0) + holdout.get(row, 0) for row in train | holdout}
    for name, real in (("training", train), ("held-out", holdout), ("whole real", both)):
        if real == synthetic:
            raise UserError(
                f"the {name} and the synthetic set are the same examples: a set says nothing "
                "about itself; name another"
            )
    if train == holdout:
        raise UserError("the training and the held-out set are the same examples: hold others out")
    counts = {"training": train, "held-out": holdout, "synthetic": synthetic}
    return Remarks(_duplicates(counts), _leaks(train, holdout, synthetic))


def check_features(n: int, d: int, name: str) -> tuple[str, ...]:
    """What is to be said of a Fréchet distance on n rows of d features."""
    if n > d:
        return ()
    return (
        f"{n} examples are no more than the {d} features of {name}: this distance is mostly bias "
        "by the size of the sets, so read it beside the floor alone.",
    )


def _check_values(examples: Shaped[np.ndarray, "n ..."], name: str) -> None:
    if examples.dtype == np.uint8:
        return
    if not np.isfinite(examples).all():
        row = int(np.flatnonzero(~np.isfinite(examples).reshape(len(examples), -1).all(1))[0])
        raise UserError(f"the {name} set holds NaN or infinity, first in row {row}: repair it")
    if examples.ndim == 4 and examples.shape[-1] in (1, 3):
        raise UserError(
            f"the {name} set holds images as {examples.dtype}, and files hold bytes: generated "
            "floats would carry a precision that no real image has. Round them first: "
            "np.clip(np.rint(255 * x), 0, 255).astype(np.uint8) if 1 is white"
        )


def _check_bytes(sets: Sets) -> None:
    """Floats from 0 to 1 cast to bytes are all 0 and 1, which beside real bytes is black."""
    if any(each.dtype != np.uint8 or not each.size for each in sets):
        return
    brightest = [int(each.max()) for each in sets]
    for name, value in zip(("training", "held-out", "synthetic"), brightest, strict=True):
        if value == 1 and max(brightest) > 1:
            raise UserError(
                f"the {name} set holds no byte but 0 and 1, another set bytes up to "
                f"{max(brightest)}: it looks like images from 0 to 1 that were cast to bytes. "
                "Scale before you round: np.clip(np.rint(255 * x), 0, 255).astype(np.uint8)"
            )


def _counted(examples: np.ndarray) -> Counts:
    """How often each example occurs, by the digest of its bytes."""
    found: Counts = {}
    for row in np.ascontiguousarray(examples):
        key = hashlib.blake2b(row.data, digest_size=16).digest()
        found[key] = found.get(key, 0) + 1
    return found


def _duplicates(sets: Mapping[str, Counts]) -> tuple[str, ...]:
    remarks = []
    for name, counts in sets.items():
        total = sum(counts.values())
        copies = total - len(counts)
        if copies > _DUPLICATES * total:
            remarks.append(
                f"{copies} of the {total} examples of the {name} set are exact copies of others in "
                "it, as oversampling leaves them: precision, recall, density and coverage sink "
                "for that alone."
            )
    return tuple(remarks)


def _leaks(train: Counts, holdout: Counts, synthetic: Counts) -> tuple[str, ...]:
    """Examples that two of the sets share."""
    copied = sum(count for row, count in synthetic.items() if row in train)
    leaked = sum(count for row, count in synthetic.items() if row in holdout and row not in train)
    both = sum(count for row, count in holdout.items() if row in train)
    remarks = []
    if copied:
        remarks.append(
            f"{copied} of the {sum(synthetic.values())} synthetic examples equal training ones: "
            "what they score in likeness is not the generator's."
        )
    if leaked:
        remarks.append(
            f"{leaked} synthetic examples equal held-out ones that are not in the training set: "
            "the generator has seen the held-out data, so nothing measured against it counts."
        )
    if both:
        remarks.append(
            f"{both} held-out examples are in the training set too: drop them, or copies of them "
            "pass for likeness."
        )
    return tuple(remarks)
