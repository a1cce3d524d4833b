"""The balance plan: how many of which class; drawing them; refusing those that are no good."""

from __future__ import annotations

import math
from collections.abc import Callable, Container
from dataclasses import dataclass
from typing import NamedTuple

import jax
import numpy as np
from jaxtyping import Float, Int, UInt8

from genaug.evaluation.distances import nearest
from genaug.evaluation.memorisation import near_copy_threshold
from genaug.sampling import Rows, Sampler
from genaug.types import UserError

Images = UInt8[np.ndarray, "n h w c"]
Judge = Callable[[Images], Float[np.ndarray, "n k"]]


@dataclass(frozen=True, kw_only=True)
class Balance:
    """Bring every class to `per_class` examples."""

    per_class: int | None = None  # None = `factor` times as many as the largest class has
    factor: float = 1.0  # above 1, balanced classes are drawn for too
    max_draws: float = 8.0  # stop after this many draws for every example wanted


@dataclass(frozen=True, kw_only=True)
class Filters:
    """When a sample is refused. None turns a check off."""

    label: float | None = 0.5  # least probability that the judge must give to the class asked for
    closeness: float | None = 0.01  # share of unseen real images that would be refused as copies
    duplicate: float | None = 0.001  # share of real images that would be refused as duplicates


class Drawn(NamedTuple):
    """Accepted samples with their provenance, and what was refused."""

    images: Images
    labels: Int[np.ndarray, " n"]
    address: Int[np.ndarray, " n"]  # the sample's index: `fold_in(key, index)` makes it again
    label_probability: Float[np.ndarray, " n"]  # by the judge, of the class asked for
    nearest_train: Float[np.ndarray, " n"]  # distance to the nearest training image, [0, 1] pixels
    nearest_train_row: Int[np.ndarray, " n"]
    wanted: Int[np.ndarray, " k"]  # per class, as are the rest
    drawn: Int[np.ndarray, " k"]
    refused: dict[str, Int[np.ndarray, " k"]]


def wanted(counts: Int[np.ndarray, " k"], plan: Balance) -> Int[np.ndarray, " k"]:
    """How many examples every class lacks."""
    if plan.per_class is not None and plan.per_class < 1:
        raise UserError(f"balance.per-class is {plan.per_class}; it must be at least 1.")
    target = plan.per_class
    if target is None:
        target = round(plan.factor * int(counts.max()))
    return np.maximum(target - counts, 0)


def require_labels(reads: Container[str]) -> None:
    """Refuse a family that is not asked for a class: a plan counts by class."""
    if "label" not in reads:
        raise UserError(
            "A balance plan needs a class-conditional model, and this one reads no label: "
            "use one that does (CVAE), or `genaug train` and `genaug sample`."
        )


def flat(images: Images) -> Float[np.ndarray, "n d"]:
    """Pixels as rows in [0, 1]: the space of all closeness checks."""
    return images.reshape(len(images), math.prod(images.shape[1:])).astype(np.float32) / 255.0


MIN_HOLDOUT = 20
"""Held-out images that a class needs for a closeness limit of its own."""


def closeness_limits(
    train: Rows, holdout: Rows, num_classes: int, quantile: float | None
) -> Float[np.ndarray, " k"]:
    """How near to a training image a sample of each class may come, in [0, 1] pixel distance.

    The distance to the class's training images that a share `quantile` of its held-out ones falls
    below: classes differ (ones lie close together). Without enough held-out images of a class, the
    limit of all classes together. An exact copy is always too near; -1 where nothing is.
    """
    limits = np.full(num_classes, -1.0)
    if quantile is None or not len(holdout["label"]):
        return limits
    pixels, unseen = flat(train["image"]), flat(holdout["image"])
    limits[:] = near_copy_threshold(pixels, unseen, quantile)
    for c in range(num_classes):
        of_train, of_holdout = train["label"] == c, holdout["label"] == c
        if of_train.any() and of_holdout.sum() >= MIN_HOLDOUT:
            limits[c] = near_copy_threshold(pixels[of_train], unseen[of_holdout], quantile)
    return limits


def duplicate_limit(train_pixels: Float[np.ndarray, "n d"], quantile: float | None) -> float:
    """How near to each other two samples of a class may come: nearer than real images do."""
    if quantile is None or len(train_pixels) < 2:
        return -1.0
    apart = nearest(train_pixels, train_pixels, k=1, exclude_self=True).distance[:, 0]
    return float(np.quantile(apart, quantile))


def draw(
    sampler: Sampler,
    key: jax.Array,
    missing: Int[np.ndarray, " k"],
    plan: Balance,
    filters: Filters,
    judge: Judge,
    train: Rows,
    holdout: Rows,
) -> Drawn:
    """Draw in rounds until every class has what it lacks, or `plan.max_draws` is spent.

    A sample is refused for the first reason that applies: its label, its closeness to a training
    image, its closeness to a sample of its class accepted before it. Addresses count up over all
    draws; samples left over once a class is complete are neither kept nor counted.
    """
    num_classes, pixels = len(missing), flat(train["image"])
    closeness = closeness_limits(train, holdout, num_classes, filters.closeness)
    duplicate = duplicate_limit(pixels, filters.duplicate)
    refused = {
        name: np.zeros(num_classes, np.int64) for name in ("label", "closeness", "duplicate")
    }
    drawn = np.zeros(num_classes, np.int64)
    kept = _nothing(train["image"])
    first = 0
    while True:
        have = np.bincount(kept["labels"], minlength=num_classes)
        room = np.floor(plan.max_draws * missing).astype(np.int64) - drawn
        ask = np.minimum(np.ceil(1.25 * (missing - have)).astype(np.int64), room).clip(min=0)
        if not ask.any():
            return Drawn(**kept, wanted=missing, drawn=drawn, refused=refused)
        labels = np.repeat(np.arange(num_classes, dtype=np.int32), ask)
        index = np.arange(first, first + len(labels), dtype=np.int32)
        first += len(labels)
        candidates = _measure(sampler, key, index, labels, judge, pixels)
        for c in np.flatnonzero(ask):
            of_class = _rows(candidates, labels == c)
            accepted = kept["images"][kept["labels"] == c]
            room_left = int(missing[c] - have[c])
            limits = _Limits(filters.label, float(closeness[c]), duplicate)
            verdicts = _verdicts(of_class, accepted, room_left, limits)
            drawn[c] += len(verdicts)
            for name, counts in refused.items():
                counts[c] += verdicts.count(name)
            good = np.array([i for i, verdict in enumerate(verdicts) if not verdict], np.int64)
            kept = _append(kept, _rows(of_class, good))


Columns = dict[str, np.ndarray]


def _nothing(train: Images) -> Columns:
    whole, real = np.zeros(0, np.int32), np.zeros(0, np.float32)
    return {
        "images": train[:0],
        "labels": whole,
        "address": whole,
        "label_probability": real,
        "nearest_train": real,
        "nearest_train_row": whole,
    }


def _rows(columns: Columns, rows: np.ndarray) -> Columns:
    return {name: column[rows] for name, column in columns.items()}


def _append(columns: Columns, more: Columns) -> Columns:
    return {name: np.concatenate([column, more[name]]) for name, column in columns.items()}


def _measure(
    sampler: Sampler,
    key: jax.Array,
    index: np.ndarray,
    labels: np.ndarray,
    judge: Judge,
    train_pixels: np.ndarray,
) -> Columns:
    """Samples, and all that the checks need to know of them."""
    require_labels(sampler.reads)
    rows = sampler(key, {"index": index, "label": labels})
    near = nearest(flat(rows["image"]), train_pixels, k=1)
    return {
        "images": rows["image"],
        "labels": labels,
        "address": index,
        "label_probability": judge(rows["image"])[np.arange(len(labels)), labels],
        "nearest_train": near.distance[:, 0].astype(np.float32),
        "nearest_train_row": near.index[:, 0].astype(np.int32),
    }


class _Limits(NamedTuple):
    label: float | None
    closeness: float
    duplicate: float


def _verdicts(
    candidates: Columns,
    accepted: Images,
    room: int,
    limits: _Limits,
) -> list[str]:
    """For one class's candidates in order: why each is refused, "" if accepted; ends when full."""
    verdicts: list[str] = []
    others = list(flat(accepted))
    for pixels, probability, distance in zip(
        flat(candidates["images"]),
        candidates["label_probability"],
        candidates["nearest_train"],
        strict=True,
    ):
        if len(verdicts) - sum(map(bool, verdicts)) == room:
            break
        if limits.label is not None and probability < limits.label:
            verdicts.append("label")
        elif distance <= limits.closeness:
            verdicts.append("closeness")
        elif (
            others and np.min(np.linalg.norm(np.stack(others) - pixels, axis=1)) <= limits.duplicate
        ):
            verdicts.append("duplicate")
        else:
            verdicts.append("")
            others.append(pixels)
    return verdicts
