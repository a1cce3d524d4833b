"""One call: how near a synthetic set comes to real data, and whether it copies it."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal, NamedTuple

import numpy as np
from jaxtyping import Float, Int, Shaped

from genaug.evaluation.frechet import frechet_distance
from genaug.evaluation.intervals import half_sampling
from genaug.evaluation.manifold import manifold_scores
from genaug.evaluation.memorisation import (
    Share,
    authenticity,
    closer_to_train,
    copies,
    near_copy_threshold,
)
from genaug.types import UserError

# A class with less than this part of its share in the synthetic set is named to the reader.
_SHORT = 0.8
# Above this share of examples without a neighbourhood of their own, the reader is told.
_EMPTY_BALLS = 0.02


@dataclasses.dataclass(frozen=True)
class Result:
    """One measured number, with all that is needed to read it.

    name: `fd/<feature net>`, `precision`, `closer_to_train`, ...
    value, low, high: the number and its 95 % interval.
    floor: what real, unseen data scores at the same size; None if there is no such number.
    better: which way is better.
    n: how many synthetic examples it was measured on.
    meaning: a plain sentence for a reader who does not know the metric.
    """

    name: str
    value: float
    low: float
    high: float
    floor: float | None
    better: Literal["lower", "higher", "none"]
    n: int
    meaning: str


class Labels(NamedTuple):
    """The classes of the sets, int [n] each."""

    train: Int[np.ndarray, " t"]
    holdout: Int[np.ndarray, " h"]
    synthetic: Int[np.ndarray, " s"]
    second: Int[np.ndarray, " r"] | None = None


class _Sets(NamedTuple):
    train: np.ndarray
    holdout: np.ndarray
    synthetic: np.ndarray


def audit(
    train: Shaped[np.ndarray, "t ..."],
    holdout: Shaped[np.ndarray, "h ..."],
    synthetic: Shaped[np.ndarray, "s ..."],
    *,
    second: Shaped[np.ndarray, "r ..."] | None = None,
    features: Callable[[np.ndarray], np.ndarray] | None = None,
    feature_name: str = "pixels",
    labels: Labels | None = None,
    k: int = 5,
    draws: int = 50,
    seed: int,
) -> list[Result]:
    """Measure likeness, variety and memorisation of `synthetic`, each beside its floor.

    Likeness and variety compare n synthetic with n held-out examples, in the space of `features`.
    Their floor compares n of a second real set (the training set unless `second` is given) with
    the same n held-out examples: two real sets at that very size, as these numbers are biased by
    1/n. The held-out set is the reference, as nearness to the training set is also had by copying
    it. If `features` was fitted to the training set the floor is a little worse than for a
    network that saw neither. n is the length of the shortest set; given `labels`, all three have
    the class counts of the synthetic set, as far as there are real examples (`Result.meaning`
    names the classes that fall short).

    Memorisation is measured on pixels: no network stands between a copy and its original.

    Args:
        train: what the generator was fitted to; uint8 images [t, h, w, c] or floats of any shape.
        holdout: real examples it never saw, of the same shape and dtype.
        synthetic: what it drew, of the same shape and dtype.
        second: real examples in neither set, for the floor; where the training set is small or
            unbalanced, n is larger with it.
        features: raw examples in, float [n, d] out; None takes the pixels (uint8 over 255).
        feature_name: names the distance: `fd/<feature_name>`.
        labels: classes of the three sets.
        k: neighbour whose distance is the radius in precision, recall, density, coverage.
        draws: half-samples behind each interval of those and of the Fréchet distance.
        seed: of every subsample.

    Raises:
        UserError: sets of different shape or dtype, too few examples, NaN or infinity.
    """
    sets = _Sets(train, holdout, synthetic)
    _require_alike(sets, None if labels is None else labels[:3])
    generator = np.random.Generator(np.random.PCG64(seed))
    compared, compared_labels = sets, None if labels is None else labels[:3]
    if second is not None:
        compared = sets._replace(train=second)
        if labels is not None:
            if labels.second is None:
                raise UserError("the second real set has no labels and the others do: give them")
            compared_labels = (labels.second, *labels[1:3])
    _require_alike(compared, compared_labels)
    rows, caveat = _comparable(compared, compared_labels, generator)
    n = len(rows.synthetic)
    if n < 2 * (k + 1):
        raise UserError(
            f"only {n} examples of each set are comparable, k={k} needs {2 * (k + 1)}: "
            "draw more examples or take a smaller k"
        )
    embed = _pixels if features is None else features
    embedded = _Sets(
        *(np.asarray(embed(each[some])) for each, some in zip(compared, rows, strict=True))
    )
    likeness = _likeness(embedded, feature_name, caveat, k, draws, seed)
    pixels = _Sets(*(_pixels(each) for each in sets))
    return likeness + _memorisation(pixels, rows, labels, seed)


def to_json(results: Sequence[Result]) -> list[dict[str, Any]]:
    """Plain dictionaries, ready for `json.dumps`."""
    return [dataclasses.asdict(result) for result in results]


def from_json(rows: Sequence[Mapping[str, Any]]) -> list[Result]:
    """The inverse of `to_json`.

    Raises:
        UserError: an entry without the fields of a `Result`.
    """
    try:
        return [Result(**row) for row in rows]
    except TypeError as error:
        raise UserError(f"these are no audit results ({error}): write them by to_json") from error


def _likeness(
    embedded: _Sets, feature_name: str, caveat: str, k: int, draws: int, seed: int
) -> list[Result]:
    """Fréchet distance, precision, recall, density and coverage, all at one n."""
    fd = f"fd/{feature_name}"

    def measure(real: np.ndarray, other: np.ndarray) -> dict[str, float]:
        return {fd: frechet_distance(real, other), **manifold_scores(real, other, k)._asdict()}

    measured = half_sampling(measure, embedded.holdout, embedded.synthetic, draws=draws, seed=seed)
    floor = measure(embedded.holdout, embedded.train)
    if max(measured[name].estimate for name in ("empty_real", "empty_synthetic")) > _EMPTY_BALLS:
        copied = " Many examples have exact copies in their own set, which lowers this."
    else:
        copied = ""
    n = len(embedded.synthetic)

    def result(
        name: str, better: Literal["lower", "higher"], top: float, meaning: str, note: str = ""
    ) -> Result:
        value, low, high = measured[name]
        ends = max(low, 0.0), min(high, top)
        return Result(name, value, *ends, floor[name], better, n, meaning + note + caveat)

    above = float("inf")
    return [
        result(
            fd,
            "lower",
            above,
            f"How far the synthetic set as a whole lies from held-out real data, seen through "
            f"{feature_name}; the floor is what two real sets of {n} score.",
        ),
        result(
            "precision",
            "higher",
            1.0,
            "Share of synthetic examples that look like some real ones.",
            copied,
        ),
        result(
            "recall",
            "higher",
            1.0,
            "Share of real examples that lie within what the generator can draw.",
            copied,
        ),
        result(
            "density",
            "higher",
            above,
            "How firmly synthetic examples sit where real ones are dense; real data scores about "
            "1, more means they crowd the typical ones.",
            copied,
        ),
        result(
            "coverage",
            "higher",
            1.0,
            "Share of real examples that have a synthetic one close by.",
            copied,
        ),
    ]


def _memorisation(pixels: _Sets, rows: _Sets, labels: Labels | None, seed: int) -> list[Result]:
    """Nearness to the training data, on pixels."""
    train, holdout, synthetic = pixels
    # Floors hold the class mix of the synthetic set: some classes lie closer together than others.
    unseen = holdout[rows.holdout]
    threshold = near_copy_threshold(train, unseen)
    found, floor = copies(synthetic, train, threshold), copies(unseen, train, threshold)
    authentic = authenticity(synthetic, train)
    if labels is not None:
        # Both real sets with equal class counts, or nearness would tell of the classes.
        generator = np.random.Generator(np.random.PCG64(seed))
        counts = _fewest(labels.train, labels.holdout)
        train_rows = _pick(labels.train, counts, generator)
        closer = closer_to_train(
            synthetic, train[train_rows], holdout[_pick(labels.holdout, counts, generator)], seed
        )
    else:
        closer = closer_to_train(synthetic, train, holdout, seed)

    def result(
        name: str, share: Share, low: float, better: Literal["lower", "higher"], meaning: str
    ) -> Result:
        return Result(name, share.value, share.low, share.high, low, better, share.n, meaning)

    return [
        result(
            "closer_to_train",
            closer,
            0.5,
            "lower",
            "Share of synthetic examples that lie closer to a training example than to any of as "
            "many held-out ones; an honest generator scores one half, a copyist more.",
        ),
        result(
            "exact_copies",
            found.exact,
            floor.exact.value,
            "lower",
            "Share of synthetic examples that equal a training example pixel for pixel; the floor "
            "is that of real unseen data.",
        ),
        result(
            "near_copies",
            found.near,
            floor.near.value,
            "lower",
            "Share of synthetic examples closer to a training example than 99 % of real unseen "
            "ones are.",
        ),
        result(
            "authenticity",
            authentic,
            authenticity(unseen, train).value,
            "higher",
            "Share of synthetic examples that are no closer to their nearest training example than "
            "other training examples are; the floor is that of real unseen data.",
        ),
    ]


def _comparable(
    sets: _Sets, labels: tuple[np.ndarray, ...] | None, generator: np.random.Generator
) -> tuple[_Sets, str]:
    """Rows of each set for a comparison at equal n, and what the reader must know about them."""
    size = min(len(each) for each in sets)
    if labels is None:
        rows = (np.sort(generator.permutation(len(each))[:size]) for each in sets)
        return _Sets(*rows), " The class mix of the sets was not checked: no labels were given."
    first, holdout, synthetic = labels
    classes, drawn = np.unique(synthetic, return_counts=True)
    wanted = {
        int(label): round(size * count / len(synthetic))
        for label, count in zip(classes, drawn, strict=True)
    }
    real = _fewest(first, holdout)
    counts = {label: min(count, real.get(label, 0)) for label, count in wanted.items()}
    short = [
        f"{label} ({counts[label]} of {wanted[label]})"
        for label in counts
        if counts[label] < _SHORT * wanted[label]
    ]
    caveat = f" Too few real examples to match class {', '.join(short)}." if short else ""
    return _Sets(*(_pick(each, counts, generator) for each in labels)), caveat


def _fewest(a: np.ndarray, b: np.ndarray) -> dict[int, int]:
    """Per class that both have: the smaller of the two counts."""
    both = np.intersect1d(a, b)
    return {int(label): int(min((a == label).sum(), (b == label).sum())) for label in both}


def _pick(
    labels: np.ndarray, counts: Mapping[int, int], generator: np.random.Generator
) -> Int[np.ndarray, " n"]:
    """Rows, ascending, with `counts[label]` of each label, at random."""
    chosen = [
        generator.permutation(np.flatnonzero(labels == label))[:count]
        for label, count in counts.items()
    ]
    return np.sort(np.concatenate(chosen)) if chosen else np.zeros(0, np.int64)


def _require_alike(sets: _Sets, labels: tuple[np.ndarray, ...] | None) -> None:
    shapes = {(each.shape[1:], each.dtype) for each in sets}
    if len(shapes) > 1:
        raise UserError(
            "the three sets differ in shape or dtype "
            f"({', '.join(f'{e.dtype}{list(e.shape[1:])}' for e in sets)}): bring them to one"
        )
    if labels is not None and [len(each) for each in labels] != [len(each) for each in sets]:
        raise UserError("labels and examples differ in number: give one label per example")


def _pixels(images: np.ndarray) -> Float[np.ndarray, "n d"]:
    """Flat float32 rows; uint8 becomes 0 to 1."""
    flat = images.reshape(len(images), -1)
    return flat.astype(np.float32) / 255 if images.dtype == np.uint8 else flat.astype(np.float32)
