"""How varied a set is, without a reference: the Vendi score and the classifier score."""

from __future__ import annotations

import itertools
from typing import Literal, NamedTuple

import numpy as np
import scipy.linalg
import scipy.special
from jaxtyping import Float, Float64

from genaug.evaluation.distances import require_rows
from genaug.evaluation.intervals import normal_quantile
from genaug.evaluation.kernels import unit_rows
from genaug.types import UserError

# Rows per product of the d x d second moment: bounds the float64 copy of the features.
_ROWS = 4096


class ClassifierScore(NamedTuple):
    """The mean over splits, its interval, and the spread of the splits that papers print as ±.

    `std` (ddof 0) is that of the score of one split at a tenth of the examples. It is no error of
    `value`: the interval is.
    """

    value: float
    low: float
    high: float
    std: float


def vendi_score(x: Float[np.ndarray, "n d"], q: float = 1.0) -> float:
    """The effective number of distinct examples in `x`, 1 to n (Friedman & Dieng 2023).

    exp of the entropy of the eigenvalues of K / n, K the cosine similarities. Of order `q` it is
    (sum of l^q)^(1 / (1 - q)) (Pasarkar & Dieng 2024, Rényi's entropy): q = 1 the above, q = 2
    1 / |K / n|^2, infinity 1 / the largest eigenvalue; larger q looks at the commonest kinds.

    K = U U^T has the eigenvalues of U^T U, so the cost is that of a min(n, d)^2 problem, and exact.
    The score knows nothing of quality, and rises with n: compare at equal n, beside real data.

    Args:
        x: float [n, d]; each row is scaled to length 1. Not centred, as in the paper.
        q: order, above 0, may be infinite.

    Raises:
        UserError: no rows, a row of zeros, q not positive, NaN or infinity.
    """
    require_rows(x, "the features", 1)
    if not q > 0:
        raise UserError(f"q is {q}: give a positive order")
    n, d = x.shape
    if n <= d:
        units = unit_rows(x, "the set")
        second = units @ units.T
    else:
        second = np.zeros((d, d))
        for start in range(0, n, _ROWS):
            units = unit_rows(x[start : start + _ROWS], "the set")
            second += units.T @ units
    values = np.maximum(scipy.linalg.eigvalsh(second), 0) / n
    values /= values.sum()
    if q == 1:
        return float(np.exp(scipy.special.entr(values).sum()))
    if np.isinf(q):
        return float(1 / values.max())
    return float(np.exp(scipy.special.logsumexp(q * np.log(values[values > 0])) / (1 - q)))


def classifier_score(
    outputs: Float[np.ndarray, "n c"],
    *,
    outputs_are: Literal["logits", "probabilities"] = "logits",
    splits: int = 10,
    shuffle: bool = True,
    seed: int = 2020,
    level: float = 0.95,
) -> ClassifierScore:
    """exp of the mean KL divergence of p(class | example) from its mean (Salimans et al. 2016).

    From 1 to c: high where each example is of a clear class and all classes occur. It is the
    Inception Score only on the logits, without bias, of torch-fidelity's Inception network, and
    then in its recipe: a shuffle by NumPy's legacy `RandomState(seed)`, `splits` parts, their mean.
    It does not compare with real data: a set of one perfect example per class scores c. Smaller
    splits score lower (by about (c - 1) / (2 n) in the logarithm): compare at equal n and splits.

    The interval is a delete-one jackknife of each part, whose log score is an entropy less a mean:
    leaving out one example costs O(c). Parts are independent, so their variances add.

    Args:
        outputs: float [n, c], one row per example.
        outputs_are: "logits", or "probabilities" whose rows sum to 1.
        splits: parts, of at least 2 examples each.
        shuffle: whether the rows come in a meaningful order (by class, say).
        seed: of the shuffle.
        level: confidence.

    Raises:
        UserError: too few rows for the splits, rows that are no probabilities, NaN or infinity.
    """
    require_rows(outputs, "the classifier's outputs", 1)
    n = len(outputs)
    if splits < 1 or n < 2 * splits:
        raise UserError(
            f"{n} examples in {splits} splits: give at least 2 examples to each split, or take "
            "fewer splits"
        )
    if shuffle:
        outputs = outputs[np.random.RandomState(seed).permutation(n)]
    p, log_p = _probabilities(np.asarray(outputs, np.float64), outputs_are)
    edges = [i * n // splits for i in range(splits + 1)]
    parts = [slice(start, stop) for start, stop in itertools.pairwise(edges)]
    found = [_score_of_part(p[part], log_p[part]) for part in parts]
    scores = np.array([score for score, _ in found])
    error = float(np.sqrt(sum(variance for _, variance in found))) / splits
    half = normal_quantile(level) * error
    value = float(scores.mean())
    return ClassifierScore(value, value - half, value + half, float(scores.std()))


def _probabilities(
    outputs: Float64[np.ndarray, "n c"], outputs_are: str
) -> tuple[Float64[np.ndarray, "n c"], Float64[np.ndarray, "n c"]]:
    """Probabilities and their logarithms, which are 0 where the probability is."""
    if outputs_are == "logits":
        log_p = scipy.special.log_softmax(outputs, axis=1)
        return np.exp(log_p), log_p
    if (outputs < 0).any() or not np.allclose(outputs.sum(axis=1), 1, atol=1e-3):
        raise UserError("rows of probabilities must be >= 0 and sum to 1: are these logits?")
    p = outputs / outputs.sum(axis=1, keepdims=True)
    return p, np.log(np.where(p > 0, p, 1))


def _score_of_part(p: np.ndarray, log_p: np.ndarray) -> tuple[float, float]:
    """The score of one part and its jackknife variance."""
    n = len(p)
    negative_entropy = (p * log_p).sum(axis=1)
    total = p.sum(axis=0)
    score = np.exp(negative_entropy.mean() + scipy.special.entr(total / n).sum())
    without = (total[None, :] - p) / (n - 1)
    marginal = scipy.special.entr(np.maximum(without, 0)).sum(axis=1)
    left = np.exp((negative_entropy.sum() - negative_entropy) / (n - 1) + marginal)
    return float(score), float((n - 1) * np.var(left))
