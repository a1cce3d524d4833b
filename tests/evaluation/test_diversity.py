import sys

import numpy as np
import pytest
import scipy.special
from peers import torch_fidelity
from sklearn.metrics.pairwise import cosine_similarity

from genaug.evaluation import classifier_score, vendi_score
from genaug.types import UserError


def naive_vendi(x, q):
    values = np.linalg.eigvalsh(cosine_similarity(x) / len(x))
    values = values[values > 1e-12]
    if q == 1:
        return np.exp(-(values * np.log(values)).sum())
    if np.isinf(q):
        return 1 / values.max()
    return (values**q).sum() ** (1 / (1 - q))


@pytest.mark.parametrize("q", [0.5, 1.0, 2.0, float("inf")])
@pytest.mark.parametrize("n,d", [(30, 80), (200, 12), (5000, 4)])
def test_vendi_agrees_with_the_gram_matrix(n, d, q):
    x = np.random.default_rng(0).normal(size=(n, d)).astype(np.float32) + np.float32(0.5)
    some = x[:: max(1, n // 200)] if n > 1000 else x
    assert vendi_score(some, q) == pytest.approx(naive_vendi(some.astype(float), q), rel=1e-6)
    if n > 1000:  # More than one block: repeating every row changes nothing.
        repeated = np.repeat(some, n // len(some), axis=0)
        assert vendi_score(repeated, q) == pytest.approx(vendi_score(some, q), rel=1e-9)


def test_vendi_of_known_sets():
    for q in (1.0, 2.0, float("inf")):
        assert vendi_score(np.ones((9, 3)), q) == pytest.approx(1)
        assert vendi_score(np.repeat(3 * np.eye(5), 4, axis=0), q) == pytest.approx(5)
        assert vendi_score(np.eye(5)[:3], q) == pytest.approx(3)


def logits(n, c=10, seed=1):
    return (3 * np.random.default_rng(seed).normal(size=(n, c))).astype(np.float32)


def naive_score(p):
    marginal = p.mean(axis=0, keepdims=True)
    return np.exp(np.mean(np.sum(scipy.special.rel_entr(p, marginal), axis=1)))


def test_classifier_score_of_one_split():
    x = logits(300)
    p = scipy.special.softmax(x.astype(np.float64), axis=1)
    found = classifier_score(x, splits=1, shuffle=False)
    assert found.value == pytest.approx(naive_score(p), rel=1e-9)
    assert found.std == 0
    same = classifier_score(p, outputs_are="probabilities", splits=1, shuffle=False)
    np.testing.assert_allclose(same, found, rtol=1e-9)
    left = [naive_score(np.delete(p, i, axis=0)) for i in range(len(p))]
    half = 1.959964 * np.sqrt((len(p) - 1) * np.var(left))
    assert (found.low, found.high) == pytest.approx((found.value - half, found.value + half))


def test_classifier_score_agrees_with_torch_fidelity(monkeypatch):
    peer = torch_fidelity(monkeypatch, "metric_isc")
    torch = sys.modules["torch"]
    x = logits(1003)
    expected = peer.isc_features_to_metric(torch.tensor(x))
    found = classifier_score(x)
    assert found.value == pytest.approx(expected["inception_score_mean"], rel=1e-9)
    assert found.std == pytest.approx(expected["inception_score_std"], rel=1e-9)


def test_classifier_score_of_known_outputs():
    certain = np.repeat(np.eye(4), 25, axis=0)
    assert classifier_score(certain, outputs_are="probabilities", splits=1).value == pytest.approx(
        4
    )
    flat = classifier_score(np.zeros((100, 4)))
    assert flat[:4] == pytest.approx((1, 1, 1, 0))


def test_the_interval_covers_and_the_std_over_splits_does_not_tell():
    expected = np.mean([classifier_score(logits(400, seed=s)).value for s in range(100, 200)])
    found = [classifier_score(logits(400, seed=s)) for s in range(100)]
    assert 0.86 <= np.mean([each.low <= expected <= each.high for each in found]) <= 1
    spread = np.std([each.value for each in found])
    assert np.mean([each.high - each.low for each in found]) / 3.92 == pytest.approx(
        spread, rel=0.3
    )
    assert np.mean([each.std for each in found]) > 2 * spread


def test_refusals():
    with pytest.raises(UserError, match="9 examples in 10 splits"):
        classifier_score(logits(9))
    with pytest.raises(UserError, match="are these logits"):
        classifier_score(logits(50), outputs_are="probabilities")
    with pytest.raises(UserError, match="row of zeros"):
        vendi_score(np.zeros((3, 2)))
    with pytest.raises(UserError, match="positive order"):
        vendi_score(np.ones((3, 2)), 0.0)
