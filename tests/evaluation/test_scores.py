import numpy as np
import pytest
from sklearn import metrics

from genaug.evaluation import classification_scores, scores, statistics_of
from genaug.types import UserError


def arms(s=3, n=200, c=6, seed=0):
    generator = np.random.default_rng(seed)
    labels = generator.choice(c, p=np.arange(1, c + 1) / (c * (c + 1) / 2), size=n)
    logits = generator.normal(size=(s, n, c)) + 2 * np.eye(c)[labels]
    return np.exp(logits) / np.exp(logits).sum(axis=-1, keepdims=True), labels


def naive_ece(probabilities, labels):
    total = 0.0
    for b in range(15):
        inside = [
            (row.max(), row.argmax() == label)
            for row, label in zip(probabilities, labels, strict=True)
            if b / 15 < row.max() <= (b + 1) / 15
        ]
        if inside:
            confidence, right = np.mean(inside, axis=0)
            total += len(inside) / len(labels) * abs(confidence - right)
    return total


def test_agrees_with_scikit_learn():
    probabilities, labels = arms()
    found = classification_scores(probabilities, labels, [0, 2])
    for s, p in enumerate(probabilities):
        predicted = p.argmax(axis=-1)
        recall = metrics.recall_score(labels, predicted, average=None)
        expected = {
            "accuracy": metrics.accuracy_score(labels, predicted),
            "balanced_accuracy": metrics.balanced_accuracy_score(labels, predicted),
            "macro_f1": metrics.f1_score(labels, predicted, average="macro"),
            "rare_recall": recall[[0, 2]].mean(),
            "ece": naive_ece(p, labels),
        }
        for name, value in expected.items():
            assert found[name][s] == pytest.approx(value, rel=1e-12), name
        np.testing.assert_allclose(found["recall"][s], recall)


def test_calibration_error_where_bins_differ_in_sign():
    # Right in every other bin only: neighbouring bins err in opposite directions.
    confidence = np.random.default_rng(2).uniform(0.5, 1, size=200)
    labels = np.ceil(confidence * 15).astype(int) % 2
    p = np.stack([confidence, 1 - confidence], axis=-1)[None]
    found = classification_scores(p, labels)["ece"]
    np.testing.assert_allclose(found, [naive_ece(p[0], labels)])


def test_float32_probabilities():
    probabilities, labels = arms()
    a = classification_scores(probabilities, labels, [1])
    b = classification_scores(probabilities.astype(np.float32), labels, [1])
    for name in a:
        np.testing.assert_allclose(a[name], b[name], atol=1e-2 if name == "ece" else 1e-12)


def test_a_class_that_does_not_occur():
    probabilities, labels = arms(s=1)
    keep = labels != 1
    found = classification_scores(probabilities[:, keep], labels[keep])
    predicted = probabilities[0, keep].argmax(axis=-1)
    assert np.isnan(found["recall"][0, 1])
    assert found["macro_f1"][0] == pytest.approx(
        metrics.f1_score(labels[keep], predicted, average="macro", zero_division=0)
    )
    assert np.isfinite(found["balanced_accuracy"]).all()
    assert "rare_recall" not in found


def test_weights_count_as_repetitions():
    probabilities, labels = arms(s=2)
    weights = np.random.default_rng(1).integers(0, 4, size=len(labels))
    rows = np.repeat(np.arange(len(labels)), weights)
    weighted = np.einsum("n,snf->sf", weights, statistics_of(probabilities, labels))
    repeated = classification_scores(probabilities[:, rows], labels[rows], [0])
    for name, value in scores(weighted, [0]).items():
        np.testing.assert_allclose(value, repeated[name], err_msg=name)


def test_refusals():
    probabilities, labels = arms()
    with pytest.raises(UserError, match="softmax"):
        classification_scores(np.log(probabilities), labels)
    with pytest.raises(UserError, match=r"\[0, 6\)"):
        classification_scores(probabilities, labels + 1)
    with pytest.raises(UserError, match="rare"):
        classification_scores(probabilities, labels, [6])
