import numpy as np
import pytest
import scipy.stats
from scipy.spatial.distance import cdist

from genaug.devices import Mesh, make_mesh
from genaug.evaluation import copying_test, frechet_distance, mifid, neighbour_ratio
from genaug.types import UserError


def rows(n, seed, d=6, groups=3):
    generator = np.random.default_rng(seed)
    return generator.normal(size=(n, d)) + 20 * generator.integers(groups, size=(n, 1))


TRAIN, HOLDOUT = rows(600, 0), rows(400, 1)


def test_one_cell_is_scipys_mann_whitney():
    synthetic = rows(300, 2) * 0.98
    found = copying_test(synthetic, TRAIN, HOLDOUT, cells=1, seed=0)
    near, usual = cdist(synthetic, TRAIN).min(axis=1), cdist(HOLDOUT, TRAIN).min(axis=1)
    expected = scipy.stats.mannwhitneyu(
        near, usual, alternative="less", use_continuity=False, method="asymptotic"
    )
    assert scipy.stats.norm.cdf(found.value) == pytest.approx(expected.pvalue, rel=1e-9)


def test_ties_are_corrected_as_scipy_does():
    # On a grid distances are 0 or 1, most of them tied.
    train = np.stack(np.meshgrid(np.arange(9.0), np.arange(9.0)), axis=-1).reshape(-1, 2) * 2
    generator = np.random.default_rng(3)
    synthetic, holdout = (
        train[generator.integers(81, size=60)] + [share, 0] * generator.integers(2, size=(60, 1))
        for share in (1.0, 0.5)
    )
    found = copying_test(synthetic, train, holdout, cells=1, seed=0)
    near, usual = cdist(synthetic, train).min(axis=1), cdist(holdout, train).min(axis=1)
    expected = scipy.stats.mannwhitneyu(
        near, usual, alternative="less", use_continuity=False, method="asymptotic"
    )
    assert scipy.stats.norm.cdf(found.value) == pytest.approx(expected.pvalue, rel=1e-9)


def test_cells_are_weighted_by_their_held_out_share():
    # Three far groups are the three cells, whatever the seed of the k-means.
    synthetic = rows(300, 4)
    scores, weights = [], []
    for low in (-10, 10, 30):
        s, t, h = (
            x[(x.mean(axis=1) > low) & (x.mean(axis=1) < low + 20)]
            for x in (synthetic, TRAIN, HOLDOUT)
        )
        near, usual = cdist(s, t).min(axis=1), cdist(h, t).min(axis=1)
        u = scipy.stats.mannwhitneyu(near, usual).statistic
        n, m = len(near), len(usual)
        scores.append((u - n * m / 2) / np.sqrt(n * m * (n + m + 1) / 12))
        weights.append(m / len(HOLDOUT))
    found = copying_test(synthetic, TRAIN, HOLDOUT, seed=0)
    assert found.value == pytest.approx(np.dot(scores, weights), rel=1e-9)
    assert found[3:] == (3, 0, 0)


def test_copying_underfitting_and_honesty():
    jitter = 0.01 * np.random.default_rng(5).normal(size=(300, 6))
    assert copying_test(TRAIN[:300] + jitter, TRAIN, HOLDOUT, seed=0).high < -5
    wide = np.random.default_rng(6).normal(size=(300, 6)) * 3 + 20
    assert copying_test(wide, TRAIN, HOLDOUT, seed=0).low > 5
    covered = 0
    for seed in range(10, 30):
        found = copying_test(rows(400, seed), TRAIN, rows(400, seed + 100), seed=0)
        covered += found.low <= 0 <= found.high
    assert covered >= 16


def test_a_cell_without_examples_is_dropped_and_reported():
    synthetic = rows(200, 7, groups=2)  # A mode is missing.
    found = copying_test(synthetic, TRAIN, HOLDOUT, seed=0)
    assert (found.cells, found.dropped) == (2, 1)
    assert found.dropped_share == pytest.approx((HOLDOUT.mean(axis=1) > 30).mean())


def test_many_features_are_reduced_first():
    generator = np.random.default_rng(8)
    train, holdout, synthetic = generator.normal(size=(3, 200, 12))
    turn = np.linalg.qr(generator.normal(size=(100, 100)))[0][:12]
    wide = copying_test(synthetic @ turn, train @ turn, holdout @ turn, cells=1, dim=12, seed=0)
    assert wide.value == pytest.approx(
        copying_test(synthetic, train, holdout, cells=1, dim=12, seed=0).value, rel=1e-9
    )


def test_mifid_by_hand():
    generator = np.random.default_rng(9)
    train = np.abs(generator.normal(size=(80, 5)))
    for spread in (0.5, 0.01):
        synthetic = train[:60] + spread * np.abs(generator.normal(size=(60, 5)))
        cosine = cdist(synthetic, train, "cosine").min(axis=1).mean()
        distance = frechet_distance(train, synthetic)
        found = mifid(synthetic, train, threshold=1e-3)
        assert found.cosine_distance == pytest.approx(cosine, rel=1e-9)
        assert found.frechet == distance
        expected = distance / cosine if cosine < 1e-3 else distance
        assert found.value == pytest.approx(expected, rel=1e-6)
    assert cosine < 1e-3  # The second was penalised.
    assert mifid(train[:40], train).cosine_distance == 0


def test_neighbour_ratio_by_hand():
    train, synthetic = rows(120, 10), rows(40, 11)
    ordered = np.sort(cdist(synthetic, train), axis=1)
    expected = ordered[:, 0] / ordered[:, :50].mean(axis=1)
    np.testing.assert_allclose(neighbour_ratio(synthetic, train), expected, rtol=1e-9)
    near = train[:5] + 1e-6
    assert (neighbour_ratio(near, train) < 1e-4).all()
    assert (neighbour_ratio(np.ones((3, 2)), np.ones((60, 2))) == 0).all()


def test_the_mesh_changes_nothing():
    train, unseen, synthetic = rows(90, 0), rows(75, 1), rows(77, 2)
    mesh = make_mesh(Mesh(data=8))
    test = copying_test(synthetic, train, unseen, seed=0, mesh=mesh, least=5)
    assert test == copying_test(synthetic, train, unseen, seed=0, least=5)
    ratios = neighbour_ratio(synthetic, train, 9, mesh=mesh)
    np.testing.assert_array_equal(ratios, neighbour_ratio(synthetic, train, 9))


def test_refusals():
    with pytest.raises(UserError, match="no cell holds 20"):
        copying_test(TRAIN[:10], TRAIN, HOLDOUT, seed=0)
    with pytest.raises(UserError, match="training set has 2 rows: give at least 3"):
        copying_test(TRAIN, TRAIN[:2], HOLDOUT, seed=0)
    with pytest.raises(UserError, match="row of zeros"):
        mifid(np.zeros((3, 6)), TRAIN)
    with pytest.raises(UserError, match="at least 50"):
        neighbour_ratio(TRAIN, TRAIN[:20])
