"""Classification scores as functions of sums over examples, so that resampling is a matrix product.

Every score here depends on the test set through 3 c + 15 sums: per class how many examples it has,
how many are predicted as it, how many rightly; per confidence bin the surplus of confidence.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from jaxtyping import Float, Float64, Int

from genaug.types import UserError

NUM_BINS = 15
"""Equal-width confidence bins of the calibration error (Guo et al. 2017)."""


def statistics_of(
    probabilities: Float[np.ndarray, "s n c"], labels: Int[np.ndarray, " n"]
) -> Float64[np.ndarray, "s n f"]:
    """What each example adds to the sums that `scores` reads, f = 3 c + 15.

    Args:
        probabilities: [s, n, c] for s seeds, n examples, c classes; rows sum to 1.
        labels: int [n] in [0, c).

    Returns:
        float64 [s, n, f]: one-hot label (c), one-hot prediction (c), their product (c), and
        confidence minus correctness in the column of the example's confidence bin (15).

    Raises:
        UserError: rows that are no probabilities, or a label out of range.
    """
    _, _, c = probabilities.shape
    if not np.allclose(probabilities.sum(axis=-1, dtype=np.float64), 1, atol=1e-3):
        raise UserError("rows of probabilities do not sum to 1: apply softmax to logits first")
    if len(labels) == 0 or labels.min() < 0 or labels.max() >= c:
        raise UserError(f"labels must lie in [0, {c}) and there must be some: check the test set")
    classes = np.arange(c)
    predicted = probabilities.argmax(axis=-1)[..., None] == classes
    true = np.broadcast_to(labels[:, None] == classes, predicted.shape)
    hit = predicted & true

    confidence = probabilities.max(axis=-1).astype(np.float64)
    # Bins are open below and closed above, ((b - 1) / 15, b / 15], as Guo et al. have them.
    bins = np.clip(np.ceil(confidence * NUM_BINS).astype(int) - 1, 0, NUM_BINS - 1)
    surplus = confidence - hit.any(axis=-1)
    binned = np.where(bins[..., None] == np.arange(NUM_BINS), surplus[..., None], 0.0)
    return np.concatenate([true, predicted, hit, binned], axis=-1, dtype=np.float64)


def scores(
    sums: Float64[np.ndarray, "*batch f"], rare_classes: Sequence[int] = ()
) -> dict[str, Float64[np.ndarray, " ..."]]:
    """Scores from sums of `statistics_of` over (weighted) examples.

    Args:
        sums: float64 [..., 3 c + 15].
        rare_classes: the classes of `rare_recall`; without any, that score is left out.

    Returns:
        Values in [0, 1] of shape [...], as scikit-learn defines them: `accuracy`,
        `balanced_accuracy` (mean recall of the classes that occur), `macro_f1` (over classes that
        occur or are predicted), `rare_recall` (mean recall of `rare_classes`), `ece` (expected
        calibration error, 15 bins, Guo et al. 2017, eq. 3); and `recall` [..., c], NaN for a class
        that does not occur.

    Raises:
        UserError: a rare class that is out of range.
    """
    c = (sums.shape[-1] - NUM_BINS) // 3
    true, predicted, hit, surplus = np.split(sums, [c, 2 * c, 3 * c], axis=-1)
    if any(not 0 <= label < c for label in rare_classes):
        raise UserError(f"rare classes {list(rare_classes)} must lie in [0, {c})")
    total = true.sum(axis=-1)
    recall = _ratio(hit, true)
    result = {
        "accuracy": hit.sum(axis=-1) / total,
        "balanced_accuracy": _mean_of_defined(recall),
        "macro_f1": _mean_of_defined(_ratio(2 * hit, true + predicted)),
        "ece": np.abs(surplus).sum(axis=-1) / total,
        "recall": recall,
    }
    if len(rare_classes):
        result["rare_recall"] = _mean_of_defined(recall[..., list(rare_classes)])
    return result


def classification_scores(
    probabilities: Float[np.ndarray, "s n c"],
    labels: Int[np.ndarray, " n"],
    rare_classes: Sequence[int] = (),
) -> dict[str, Float64[np.ndarray, " ..."]]:
    """The `scores` of s seeds on one test set: each [s], `recall` [s, c]. Raises as both do."""
    return scores(statistics_of(probabilities, labels).sum(axis=1), rare_classes)


def _ratio(part: np.ndarray, whole: np.ndarray) -> np.ndarray:
    """`part / whole`, NaN where there is nothing to divide by."""
    return np.divide(part, whole, out=np.full(part.shape, np.nan), where=whole > 0)


def _mean_of_defined(x: np.ndarray) -> np.ndarray:
    """The mean over the last axis of what is not NaN; NaN where nothing is."""
    defined = ~np.isnan(x)
    return _ratio(np.where(defined, x, 0).sum(axis=-1), defined.sum(axis=-1))
