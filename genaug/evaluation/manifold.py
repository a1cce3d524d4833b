"""Precision and recall (Kynkäänniemi et al. 2019), density and coverage (Naeem et al. 2020)."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from jaxtyping import Float

from genaug.devices import DeviceMesh
from genaug.evaluation.distances import Balls, inside_blocks, nearest, require_rows
from genaug.types import UserError

NEIGHBOURS = 5
"""k of Naeem et al. 2020; a set needs more rows than that."""


class ManifoldScores(NamedTuple):
    """How two sets overlap, each seen as a union of balls of k-nearest-neighbour radius.

    precision: share of synthetic examples inside a real ball (`<=`), in [0, 1].
    recall:    share of real examples inside a synthetic ball (`<=`), in [0, 1].
    density:   real balls around a synthetic example over k (`<`); about 1 for a good set, may pass.
    coverage:  share of real balls that hold a synthetic example (`<`), in [0, 1].
    empty_real, empty_synthetic: share of examples with k or more exact copies in their own set.
        Their balls have radius 0 and hold nothing but copies, so the four scores sink for a reason
        that is not quality: above a few percent, drop the duplicates and measure again.
    """

    precision: float
    recall: float
    density: float
    coverage: float
    empty_real: float
    empty_synthetic: float


def manifold_scores(
    real: Float[np.ndarray, "n d"],
    synthetic: Float[np.ndarray, "m d"],
    k: int = NEIGHBOURS,
    *,
    mesh: DeviceMesh | None = None,
) -> ManifoldScores:
    """Fidelity (precision, density) and variety (recall, coverage) of `synthetic`.

    The radius is the distance to the k-th neighbour in the same set, excluding the example itself
    (Kynkäänniemi et al. 2019, eq. 1-2; Naeem et al. 2020, whose k is `NEIGHBOURS`). All four
    depend on n, m and k: compare at equal sizes. For two sets of one Gaussian, 10k rows each in
    1000 dimensions, they are about .48, .47, 1.06 and .97: perfect is not 1.

    Every comparison is decided in float64: pairs too near a radius for float32 are measured again.
    So the scores are the same on any `mesh` (None is JAX's default device).

    Raises:
        UserError: `k` rows or fewer in a set, NaN or infinity.
    """
    if k < 1:
        raise UserError(f"k is {k}: ask for at least 1 neighbour")
    require_rows(real, "the real set", k + 1)
    require_rows(synthetic, "the synthetic set", k + 1)
    real_radius = nearest(real, real, k, exclude_self=True, mesh=mesh).distance[:, -1]
    synthetic_radius = nearest(synthetic, synthetic, k, exclude_self=True, mesh=mesh).distance[
        :, -1
    ]

    precise = dense = 0
    recalled = np.zeros(len(real), bool)
    covered = np.zeros(len(real), bool)
    balls = (
        Balls(real_radius, "reference", closed=True),
        Balls(synthetic_radius, "query", closed=True),
        Balls(real_radius, "reference", closed=False),
    )
    for _, (in_balls, in_own, strictly) in inside_blocks(synthetic, real, balls, mesh=mesh):
        precise += int(in_balls.any(axis=1).sum())
        recalled |= in_own.any(axis=0)
        dense += int(np.count_nonzero(strictly))
        covered |= strictly.any(axis=0)
    return ManifoldScores(
        precision=precise / len(synthetic),
        recall=float(recalled.mean()),
        density=dense / (k * len(synthetic)),
        coverage=float(covered.mean()),
        empty_real=float((real_radius == 0).mean()),
        empty_synthetic=float((synthetic_radius == 0).mean()),
    )
