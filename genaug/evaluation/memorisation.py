"""Does the generator hand its training data back? Distances to training and to held-out data.

Measure in a space the training data did not shape (pixels): a network fitted to the training set
sees training and held-out images differently, and then 0.5 is no longer what an honest set scores.

`mesh` is the devices that share the search for neighbours; None is JAX's default device. It changes
no number.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Int

from genaug.devices import DeviceMesh
from genaug.evaluation.distances import Neighbours, nearest, require_rows
from genaug.evaluation.intervals import wilson
from genaug.types import UserError


class Share(NamedTuple):
    """A share of `n` examples with its 95 % Wilson interval."""

    value: float
    low: float
    high: float
    n: int


class Copies(NamedTuple):
    """Synthetic examples that equal a training example, and those nearly so (equal ones too)."""

    exact: Share
    near: Share


def closer_to_train(
    synthetic: Float[np.ndarray, "n d"],
    train: Float[np.ndarray, "t d"],
    holdout: Float[np.ndarray, "h d"],
    seed: int,
    *,
    mesh: DeviceMesh | None = None,
) -> Share:
    """The share of synthetic examples nearer to the training than to the held-out data.

    The longer of `train` and `holdout` is subsampled to the length of the other, so 0.5 is what
    data scores that knows neither; ties count half. Copies of training examples left out by the
    subsampling score 0.5 too: a full copyist reaches 1 only where `holdout` is as long as `train`.
    Synthetic examples that share their nearest real example are no independent votes (under the
    null their verdicts flip together): the interval is that of `share_of_votes`.

    Raises:
        UserError: an empty set, NaN or infinity.
    """
    for rows, name in ((train, "the training set"), (holdout, "the held-out set")):
        require_rows(rows, name, 1)
    size = min(len(train), len(holdout))
    generator = np.random.Generator(np.random.PCG64(seed))
    train, holdout = (
        rows[np.sort(generator.permutation(len(rows))[:size])] for rows in (train, holdout)
    )
    to_train, to_holdout = (nearest(synthetic, real, mesh=mesh) for real in (train, holdout))
    near, far = to_train.distance[:, 0], to_holdout.distance[:, 0]
    votes = (near < far) + 0.5 * (near == far)
    return share_of_votes(
        votes, np.where(near <= far, to_train.index[:, 0], size + to_holdout.index[:, 0])
    )


def share_of_votes(votes: Float[np.ndarray, " n"], voters: Int[np.ndarray, " n"]) -> Share:
    """The mean of `votes` in [0, 1]; those given through one real example are not independent.

    The Wilson interval is that of Kish's effective number n^2 / sum c_i^2, c_i the votes that real
    example i (`voters`) received.
    """
    effective = len(votes) ** 2 / float(np.square(np.bincount(voters)).sum())
    share = float(votes.mean())
    interval = wilson(share * effective, effective)
    return Share(share, interval.low, interval.high, len(votes))


def near_copy_threshold(
    train: Float[np.ndarray, "t d"],
    holdout: Float[np.ndarray, "h d"],
    quantile: float = 0.01,
    *,
    mesh: DeviceMesh | None = None,
) -> float:
    """The distance to `train` that only a share `quantile` of real unseen examples falls below.

    By construction `copies(holdout, train, threshold).near` is about `quantile`: report it beside.
    """
    if not 0 <= quantile <= 1:
        raise UserError(f"quantile {quantile} is not a share: give a number from 0 to 1")
    return lower_end(nearest(holdout, train, mesh=mesh).distance[:, 0], quantile)


def lower_end(values: Float[np.ndarray, " n"], quantile: float = 0.01) -> float:
    """What only a share `quantile` of `values` falls below."""
    return float(np.quantile(values, quantile))


def copies(
    synthetic: Float[np.ndarray, "n d"],
    train: Float[np.ndarray, "t d"],
    threshold: float,
    *,
    mesh: DeviceMesh | None = None,
) -> Copies:
    """The shares of synthetic examples at distance 0 from a training example, and nearer than
    `threshold` (which includes the former)."""
    return copies_at(nearest(synthetic, train, mesh=mesh).distance[:, 0], threshold)


def copies_at(distance: Float[np.ndarray, " n"], threshold: float) -> Copies:
    """`copies`, from the distance of each synthetic example to its nearest training example."""
    exact = distance == 0
    return Copies(share_of(exact), share_of(exact | (distance < threshold)))


def authenticity(
    synthetic: Float[np.ndarray, "n d"],
    train: Float[np.ndarray, "t d"],
    *,
    mesh: DeviceMesh | None = None,
) -> Share:
    """The share of synthetic examples that are no closer to a training example than data is.

    With t the training example nearest to s, s is authentic if t has another training example
    nearer than s (Alaa et al. 2022). Real unseen data does not score 1: measure it beside.

    Raises:
        UserError: fewer than 2 training examples, NaN or infinity.
    """
    require_rows(train, "the training set", 2)
    within = nearest(train, train, exclude_self=True, mesh=mesh).distance[:, 0]
    return authenticity_at(nearest(synthetic, train, mesh=mesh), within)


def authenticity_at(to_train: Neighbours, within: Float[np.ndarray, " t"]) -> Share:
    """`authenticity`, from the nearest training example of each synthetic one, and the distance of
    each training example to the nearest other one."""
    # Indexed by the training neighbour, not by the synthetic row: the slip of several toolkits.
    return share_of(within[to_train.index[:, 0]] < to_train.distance[:, 0])


def share_of(mask: Bool[np.ndarray, " n"]) -> Share:
    """How many of `mask` [n] are true, as a share."""
    interval = wilson(int(mask.sum()), len(mask))
    return Share(*interval, n=len(mask))
