"""The metrics of an audit that take longer, or that only some sets allow: `audit(every=True)`."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import NamedTuple

import numpy as np
from jaxtyping import Float

from genaug.devices import DeviceMesh
from genaug.evaluation.clipped import clipped_scores
from genaug.evaluation.copying import cosine_distances, penalised
from genaug.evaluation.diversity import classifier_score
from genaug.evaluation.extrapolation import frechet_infinity
from genaug.evaluation.features import FeatureNet, is_inception_score
from genaug.evaluation.frechet import frechet_distance
from genaug.evaluation.intervals import Interval, half_sampling
from genaug.evaluation.kernels import rbf_mmd
from genaug.evaluation.matching import Sets
from genaug.evaluation.meanings import FURTHER, metric_name
from genaug.evaluation.results import Result
from genaug.types import UserError

# Rows of the reference whose distances say how wide the Gaussian kernel is.
_WIDTH_ROWS = 1000
# Of Inception's pooled features: where the competition that defined MiFID began to penalise.
_MIFID_THRESHOLD = 0.1


class Seen(NamedTuple):
    """What MiFID asks of the training set: all its features, and rows of the classes compared."""

    features: Float[np.ndarray, "t d"]
    matched: Float[np.ndarray, "m d"]


class Judged(NamedTuple):
    """What a classifier says of the examples that are compared: one row of logits each."""

    scorer: FeatureNet
    second: Float[np.ndarray, "n c"]
    synthetic: Float[np.ndarray, "n c"]


class _Measured(NamedTuple):
    name: str
    interval: Interval
    floor: float
    how: Mapping[str, str] = {}


def further(
    features: Sets,
    seen: Seen,
    net: FeatureNet,
    judged: Judged | None,
    *,
    k: int,
    draws: int,
    seed: int,
    mesh: DeviceMesh | None = None,
) -> tuple[list[Result], tuple[str, ...]]:
    """FD∞, Gaussian MMD, clipped density and coverage, MiFID and the classifier score.

    Args:
        features: of the sets that are compared, [n, d] each, `train` the second real one.
        seen: of the training set.
        net: what made the features.
        judged: for the classifier score, which is left out without.
        k, draws, seed, mesh: as for `audit`.

    Returns:
        Results without provenance but for what is their own, and a sentence on each metric that
        these sets do not allow.
    """
    second, holdout, synthetic = features

    def extrapolated() -> list[_Measured]:
        found = frechet_infinity(holdout, synthetic, both=True, seed=seed)
        real = frechet_infinity(holdout, second, both=True, seed=seed)
        interval = Interval(found.estimate, found.low, found.high)
        return [_Measured("frechet_infinity", interval, real.estimate)]

    def gaussian() -> list[_Measured]:
        sigma = median_distance(holdout)
        found, real = (
            rbf_mmd(holdout, each, sigma=sigma, mesh=mesh) for each in (synthetic, second)
        )
        return [_Measured("mmd", found, real.estimate, {"sigma": f"{sigma:.9g}"})]

    def clipped() -> list[_Measured]:
        def measure(real: np.ndarray, other: np.ndarray) -> dict[str, float]:
            found = clipped_scores(real, other, k, mesh=mesh)
            return {"clipped_density": found.density, "clipped_coverage": found.coverage}

        found = half_sampling(measure, holdout, synthetic, draws=draws, seed=seed)
        real = measure(holdout, second)
        return [_Measured(name, _within(found[name]), real[name]) for name in real]

    def memorising() -> list[_Measured]:
        return [_mifid(features, seen, net, draws=draws, seed=seed, mesh=mesh)]

    def scored() -> list[_Measured]:
        if judged is None:
            raise UserError("it needs a classifier: take its features, or Inception's")
        splits = min(10, len(synthetic) // 2)
        found, real = (
            classifier_score(each, splits=splits) for each in (judged.synthetic, judged.second)
        )
        scorer = judged.scorer
        how = {"scored_by": scorer.name, "splits": str(splits), **scorer.provenance}
        name = "inception_score" if is_inception_score(scorer) else "classifier_score"
        return [_Measured(name, Interval(*found[:3]), real.value, how)]

    ways: dict[str, Callable[[], list[_Measured]]] = {
        "frechet_infinity": extrapolated,
        "mmd": gaussian,
        "clipped_density, clipped_coverage": clipped,
        "mifid": memorising,
        "classifier_score": scored,
    }
    measured, left_out = [], []
    for names, measure in ways.items():
        try:
            measured += measure()
        except UserError as error:  # These sets do not allow it: the others stand without it.
            left_out.append(f"No {metric_name(names, net)}: {error}.")
    return [_result(each, net, len(synthetic)) for each in measured], tuple(left_out)


def median_distance(x: Float[np.ndarray, "n d"]) -> float:
    """The median distance of two rows, by up to 1000 of them: a width for a Gaussian kernel.

    A usual choice (Gretton et al. 2012, sec. 8), there of both samples together; here of the
    reference alone, so that it does not depend on what is judged.
    """
    from scipy.spatial.distance import pdist  # slow to import, and for `every` metric alone

    some = x[np.linspace(0, len(x) - 1, min(len(x), _WIDTH_ROWS)).astype(np.int64)]
    return float(np.median(pdist(some.astype(np.float64))))


def _mifid(
    features: Sets,
    seen: Seen,
    net: FeatureNet,
    *,
    draws: int,
    seed: int,
    mesh: DeviceMesh | None,
) -> _Measured:
    """MiFID, its interval over halves of which every example keeps its distance to all of `seen`.

    Half of the training set would lie further away, and the penalty with it.
    """
    _, unseen, synthetic = features
    usual, near = (cosine_distances(each, seen.features, mesh=mesh) for each in (unseen, synthetic))
    # Other nets set other distances between honest examples: half of those is close there.
    threshold = _MIFID_THRESHOLD if net.is_fid else float(usual.mean()) / 2

    def measure(real: np.ndarray, rows: np.ndarray) -> dict[str, float]:
        distance = frechet_distance(real, rows[:, :-1])
        return {"mifid": penalised(distance, float(rows[:, -1].mean()), threshold)}

    found = half_sampling(
        measure, seen.matched, np.column_stack([synthetic, near]), draws=draws, seed=seed
    )
    floor = measure(seen.matched, np.column_stack([unseen, usual]))
    interval = found["mifid"]._replace(low=max(found["mifid"].low, 0.0))
    return _Measured("mifid", interval, floor["mifid"], {"threshold": f"{threshold:.9g}"})


def _within(share: Interval) -> Interval:
    return share._replace(low=max(share.low, 0.0), high=min(share.high, 1.0))


def _result(measured: _Measured, net: FeatureNet, n: int) -> Result:
    name = measured.name
    meaning = FURTHER["classifier_score" if name == "inception_score" else name]
    return Result(
        name=metric_name(name, net),
        value=measured.interval.estimate,
        low=measured.interval.low,
        high=measured.interval.high,
        floor=measured.floor,
        better=meaning.better,
        n=n,
        share=meaning.share,
        meaning=meaning.text,
        provenance=measured.how,
    )
