"""Tests for data copying that compare distances: C_T, MiFID, the calibrated neighbour ratio.

Like `memorisation`, they say nothing of themselves: measure real unseen data beside.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Float64, Int

from genaug.devices import DeviceMesh
from genaug.evaluation.distances import nearest, require_rows
from genaug.evaluation.frechet import frechet_distance
from genaug.evaluation.intervals import normal_quantile
from genaug.evaluation.kernels import unit_rows
from genaug.types import UserError

# Added to a memorisation distance before dividing by it, as by the competition that defined MiFID.
_TINY = 1e-14

RATIO_NEIGHBOURS = 50
"""Training examples whose mean distance the neighbour ratio is over (Carlini et al. 2023)."""


class CopyingTest(NamedTuple):
    """The statistic C_T: below 0 synthetic examples lie nearer to the training set than unseen
    real ones (copying), above 0 they lie further away (underfitting).

    value: in standard deviations of one cell's rank statistic.
    low, high: its interval, by the variance it has if nothing is copied.
    cells: how many cells were compared.
    dropped: how many were not, for want of examples.
    dropped_share: share of the held-out examples that lie in those.
    """

    value: float
    low: float
    high: float
    cells: int
    dropped: int
    dropped_share: float


class Mifid(NamedTuple):
    """MiFID and its parts: the Fréchet distance, and the mean minimum cosine distance in [0, 2]."""

    value: float
    frechet: float
    cosine_distance: float


class _Placed(NamedTuple):
    rows: Float64[np.ndarray, "n d"]
    cell: Int[np.ndarray, " n"]


def copying_test(
    synthetic: Float[np.ndarray, "n d"],
    train: Float[np.ndarray, "t d"],
    holdout: Float[np.ndarray, "h d"],
    *,
    cells: int = 3,
    dim: int = 64,
    least: int = 20,
    seed: int,
    level: float = 0.95,
    mesh: DeviceMesh | None = None,
) -> CopyingTest:
    """C_T, the three-sample test for data copying (Meehan, Chaudhuri & Dasgupta 2020).

    The training set is reduced to `dim` principal components and cut into `cells` by k-means. In
    every cell the distances of synthetic and of held-out examples to the nearest training example
    of that cell are compared by the Mann-Whitney statistic U, as z = (U - mean) / sd with the sd
    corrected for ties; C_T is the mean of z weighted by the cell's share of held-out examples.

    A cell with fewer than `least` synthetic or held-out examples has no normal U: it is dropped,
    and the result says how much was. Copies in a dropped cell go unseen.

    Args:
        synthetic: float [n, d].
        train: float [t, d], t >= cells.
        holdout: float [h, d], real and unseen.
        cells: of the k-means, 1 compares all at once.
        dim: principal components; no reduction where d is not larger.
        least: examples of each kind that a cell needs.
        seed: of the k-means.
        level: confidence.
        mesh: the devices that search for neighbours; None is JAX's default device.

    Raises:
        UserError: too few rows, no cell with enough of them, NaN or infinity.
    """
    require_rows(synthetic, "the synthetic set", 1)
    require_rows(train, "the training set", max(cells, 2))
    require_rows(holdout, "the held-out set", 1)
    if cells < 1 or dim < 1 or least < 1:
        raise UserError(f"cells {cells}, dim {dim}, least {least}: each must be at least 1")
    generated, seen, unseen = _in_cells((synthetic, train, holdout), cells, dim, seed)
    near, usual = (_nearest_in_cell(x, seen, cells, mesh) for x in (generated, unseen))

    scores, sizes = [], []
    for cell in range(cells):
        drawn, real = near[generated.cell == cell], usual[unseen.cell == cell]
        if min(len(drawn), len(real)) >= least:
            scores.append(_rank_score(drawn, real))
            sizes.append(len(real))
    if not scores:
        raise UserError(
            f"no cell holds {least} synthetic and {least} held-out examples: "
            "give more examples or ask for fewer cells"
        )
    weights = np.array(sizes) / sum(sizes)
    value = float(weights @ np.array(scores))
    half = normal_quantile(level) * float(np.sqrt(np.square(weights).sum()))
    dropped_share = 1 - sum(sizes) / len(holdout)
    return CopyingTest(
        value, value - half, value + half, len(scores), cells - len(scores), dropped_share
    )


def mifid(
    synthetic: Float[np.ndarray, "n d"],
    train: Float[np.ndarray, "t d"],
    threshold: float = 0.1,
) -> Mifid:
    """The Fréchet distance to the training set, made worse for copying (Bai et al. 2021, MiFID).

    The memorisation distance is the mean over synthetic examples of the smallest cosine distance
    1 - cos to a training example, in the same features. (The paper's is 1 - |cos|, the same for
    features from 0 up, as Inception's are; torchmetrics takes the mean over training examples.)
    Where it is below `threshold` the Fréchet distance is divided by it. The threshold belongs to a
    feature net: 0.1 was set for Inception's pooled features, and real unseen data must lie above.

    Raises:
        UserError: fewer than 2 rows, a row of zeros, NaN or infinity.
    """
    distance = frechet_distance(train, synthetic)
    cosine = float(cosine_distances(synthetic, train).mean())
    return Mifid(penalised(distance, cosine, threshold), distance, cosine)


def cosine_distances(
    synthetic: Float[np.ndarray, "n d"],
    train: Float[np.ndarray, "t d"],
    *,
    mesh: DeviceMesh | None = None,
) -> Float64[np.ndarray, " n"]:
    """The smallest cosine distance of each synthetic row to a training row, in [0, 2].

    Half the squared distance of unit rows is 1 - cos without cancellation, so copies are at 0.

    Raises:
        UserError: a row of zeros, NaN or infinity.
    """
    units = unit_rows(synthetic, "the synthetic set"), unit_rows(train, "the training set")
    return np.square(nearest(*units, mesh=mesh).distance[:, 0]) / 2


def penalised(distance: float, cosine_distance: float, threshold: float) -> float:
    """A Fréchet distance divided by the memorisation distance where that is below `threshold`."""
    return distance / (cosine_distance + _TINY) if cosine_distance < threshold else distance


def neighbour_ratio(
    synthetic: Float[np.ndarray, "n d"],
    train: Float[np.ndarray, "t d"],
    k: int = RATIO_NEIGHBOURS,
    *,
    mesh: DeviceMesh | None = None,
) -> Float64[np.ndarray, " n"]:
    """How much nearer the nearest training example is than training examples nearby are, [n].

    The distance to the nearest over the mean distance to the `k` nearest, itself among them
    (Carlini et al. 2023, arXiv 2301.13188, less a constant 1/alpha = 2): 0 for a copy, near 1 where
    no training example stands out. A plain distance flags flat images, which are near to many.
    0 also where all `k` are copies. `mesh` is as for `nearest`.

    Raises:
        UserError: fewer than `k` training examples, NaN or infinity.
    """
    return ratio_at(nearest(synthetic, train, k, mesh=mesh).distance)


def ratio_at(distance: Float64[np.ndarray, "n k"]) -> Float64[np.ndarray, " n"]:
    """`neighbour_ratio`, from the ascending distances to the `k` nearest training examples."""
    mean = distance.mean(axis=1)
    return np.divide(distance[:, 0], mean, out=np.zeros(len(mean)), where=mean > 0)


def _in_cells(
    sets: tuple[np.ndarray, np.ndarray, np.ndarray], cells: int, dim: int, seed: int
) -> list[_Placed]:
    """The sets in the principal components of the second, and the cell of each row."""
    # Slow to import, and little of the package needs it.
    from sklearn.cluster import KMeans
    from sklearn.decomposition import PCA

    train = sets[1]
    if train.shape[1] > dim:
        reduction = PCA(min(dim, len(train)), svd_solver="full").fit(train)
        rows = [reduction.transform(x) for x in sets]
    else:
        rows = [np.asarray(x, np.float64) for x in sets]
    partition = KMeans(cells, n_init=5, random_state=seed).fit(rows[1])
    return [_Placed(x, partition.predict(x)) for x in rows]


def _nearest_in_cell(
    some: _Placed, train: _Placed, cells: int, mesh: DeviceMesh | None
) -> Float64[np.ndarray, " n"]:
    """The distance of each row to the nearest training row of its own cell.

    One search serves all cells: a coordinate per cell sets them further apart than any row lies
    from a training row, and adds exactly 0 within a cell.
    """
    centre = train.rows.mean(axis=0)
    reach = max(float(np.linalg.norm(x.rows - centre, axis=1).max()) for x in (some, train))
    query, reference = (
        np.concatenate([x.rows, 2 * reach * np.eye(cells)[x.cell]], axis=1) for x in (some, train)
    )
    return nearest(query, reference, mesh=mesh).distance[:, 0]


def _rank_score(near: np.ndarray, usual: np.ndarray) -> float:
    """(U - mean) / sd of the pairs in which `near` is the larger; 0 where all values are one."""
    n, m = len(near), len(usual)
    total = n + m
    pooled = np.concatenate([near, usual])
    ordered = np.sort(pooled)
    # The ranks of equal values are their mean.
    ranks = (np.searchsorted(ordered, pooled) + np.searchsorted(ordered, pooled, "right") + 1) / 2
    larger = ranks[:n].sum() - n * (n + 1) / 2
    ties = np.unique(pooled, return_counts=True)[1].astype(np.float64)
    tied = (ties**3 - ties).sum() / (total * (total - 1))
    variance = n * m / 12 * (total + 1 - tied)
    return float((larger - n * m / 2) / np.sqrt(variance)) if variance > 0 else 0.0
