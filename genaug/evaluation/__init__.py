"""Judging synthetic data: arrays in, numbers with intervals out. Knows no generator."""

from genaug.evaluation.audit import audit
from genaug.evaluation.clipped import ClippedScores, clipped_scores
from genaug.evaluation.copying import CopyingTest, Mifid, copying_test, mifid, neighbour_ratio
from genaug.evaluation.distances import Neighbours, nearest
from genaug.evaluation.diversity import ClassifierScore, classifier_score, vendi_score
from genaug.evaluation.extrapolation import Extrapolation, frechet_infinity
from genaug.evaluation.frechet import (
    Moments,
    distance_to,
    frechet_distance,
    frechet_from_moments,
    moments,
)
from genaug.evaluation.intervals import (
    Bootstrap,
    Interval,
    PairedT,
    Resampling,
    bootstrap_scores,
    difference,
    half_sampling,
    holm,
    paired_bootstrap,
    paired_t,
    resampling,
    wilson,
)
from genaug.evaluation.kernels import Subsets, kid, kid_subsets, rbf_mmd
from genaug.evaluation.manifold import ManifoldScores, manifold_scores
from genaug.evaluation.matching import Labels
from genaug.evaluation.memorisation import (
    Copies,
    Share,
    authenticity,
    closer_to_train,
    copies,
    near_copy_threshold,
    share_of_votes,
)
from genaug.evaluation.records import Closest, Table, closest_records, records_closer_to_train
from genaug.evaluation.results import Result, by_remark, change, from_json, to_json
from genaug.evaluation.scores import classification_scores, scores, statistics_of
from genaug.evaluation.sliced import Sliced, mind
from genaug.evaluation.streaming import StreamedMoments

__all__ = [
    "Bootstrap",
    "ClassifierScore",
    "ClippedScores",
    "Closest",
    "Copies",
    "CopyingTest",
    "Extrapolation",
    "Interval",
    "Labels",
    "ManifoldScores",
    "Mifid",
    "Moments",
    "Neighbours",
    "PairedT",
    "Resampling",
    "Result",
    "Share",
    "Sliced",
    "StreamedMoments",
    "Subsets",
    "Table",
    "audit",
    "authenticity",
    "bootstrap_scores",
    "by_remark",
    "change",
    "classification_scores",
    "classifier_score",
    "clipped_scores",
    "closer_to_train",
    "closest_records",
    "copies",
    "copying_test",
    "difference",
    "distance_to",
    "frechet_distance",
    "frechet_from_moments",
    "frechet_infinity",
    "from_json",
    "half_sampling",
    "holm",
    "kid",
    "kid_subsets",
    "manifold_scores",
    "mifid",
    "mind",
    "moments",
    "near_copy_threshold",
    "nearest",
    "neighbour_ratio",
    "paired_bootstrap",
    "paired_t",
    "rbf_mmd",
    "records_closer_to_train",
    "resampling",
    "scores",
    "share_of_votes",
    "statistics_of",
    "to_json",
    "vendi_score",
    "wilson",
]
