import numpy as np
import pytest
from scipy.spatial.distance import cdist

from genaug.devices import Mesh, make_mesh
from genaug.evaluation import clipped_scores, distances, manifold_scores
from genaug.types import UserError


def naive(real, synthetic, k):
    cross = cdist(synthetic, real)
    real_radius = np.sort(cdist(real, real), axis=1)[:, k]
    synthetic_radius = np.sort(cdist(synthetic, synthetic), axis=1)[:, k]
    return (
        (cross <= real_radius[None, :]).any(axis=1).mean(),
        (cross <= synthetic_radius[:, None]).any(axis=0).mean(),
        (cross < real_radius[None, :]).sum() / (k * len(synthetic)),
        (cross < real_radius[None, :]).any(axis=0).mean(),
    )


@pytest.mark.parametrize("n,m,d,k", [(200, 150, 3, 5), (90, 300, 30, 3), (50, 50, 2, 1)])
def test_agrees_with_the_naive_version(n, m, d, k):
    generator = np.random.default_rng(0)
    real, synthetic = generator.normal(size=(n, d)), 0.8 * generator.normal(size=(m, d)) + 0.3
    np.testing.assert_allclose(manifold_scores(real, synthetic, k)[:4], naive(real, synthetic, k))


def test_ties_at_the_radius():
    # On a grid every radius is met exactly by other points: `<=` and `<` differ everywhere.
    grid = np.stack(np.meshgrid(np.arange(8.0), np.arange(8.0)), axis=-1).reshape(-1, 2) + 100
    shifted = grid + np.array([1.0, 0.0])
    scores = manifold_scores(grid, shifted, 2)
    np.testing.assert_allclose(scores[:4], naive(grid, shifted, 2))
    assert scores.precision == 1
    assert scores.coverage < 1


def test_agrees_with_prdc(capsys):
    prdc = pytest.importorskip("prdc", reason="the reference implementation is not installed")
    generator = np.random.default_rng(1)
    real = generator.normal(size=(600, 64)).astype(np.float32)
    synthetic = generator.normal(size=(500, 64)).astype(np.float32) * np.float32(0.9)
    expected = prdc.compute_prdc(real, synthetic, nearest_k=5)
    found = manifold_scores(real, synthetic, 5)._asdict()
    for name, value in expected.items():
        assert found[name] == pytest.approx(float(value), abs=1e-9)
    capsys.readouterr()


def test_identical_gaussians_and_a_far_set():
    generator = np.random.default_rng(2)
    a, b = generator.normal(size=(2, 1500, 16))
    same = manifold_scores(a, b)
    assert 0.6 < same.precision < 0.95
    assert same.density == pytest.approx(1, abs=0.06)
    assert same.coverage > 0.94
    assert manifold_scores(a, b + 50)[:4] == (0, 0, 0, 0)


def test_a_collapsed_generator_keeps_precision_and_loses_recall():
    generator = np.random.default_rng(3)
    real = generator.normal(size=(400, 4))
    collapsed = 0.05 * generator.normal(size=(400, 4))
    scores = manifold_scores(real, collapsed)
    assert scores.precision > 0.95
    assert scores.recall < 0.1
    assert scores.coverage < 0.5


def test_duplicates_are_reported():
    x = np.random.default_rng(4).normal(size=(40, 5))
    repeated = np.repeat(x, 6, axis=0)
    scores = manifold_scores(repeated, x)
    assert scores.empty_real == 1
    assert scores.empty_synthetic == 0
    assert scores.density == 0
    # Exact copies still lie in a ball of radius 0, whatever float32 says of their distance.
    assert scores.precision == 1


def test_an_identical_set():
    x = np.random.default_rng(5).normal(size=(100, 5))
    scores = manifold_scores(x, x.copy())
    assert scores[:4] == (1, 1, 1, 1)


def test_refusals():
    x = np.zeros((5, 2))
    with pytest.raises(UserError, match="real set has 5 rows: give at least 6"):
        manifold_scores(x, np.zeros((9, 2)))
    with pytest.raises(UserError, match="synthetic set"):
        manifold_scores(np.zeros((9, 2)), x)
    with pytest.raises(UserError, match="k is 0"):
        manifold_scores(x, x, 0)


@pytest.mark.parametrize("devices", [1, 2, 8])
def test_the_mesh_changes_no_score(devices, monkeypatch):
    # A grid: every radius is met exactly, so one pair decided by its rounding would show.
    grid = np.stack(np.meshgrid(np.arange(9.0), np.arange(9.0)), axis=-1).reshape(-1, 2) / 3 + 100
    shifted = (grid + np.array([1 / 3, 0.0]))[:-4]
    want = manifold_scores(grid, shifted, 2), clipped_scores(grid, shifted, 2)
    monkeypatch.setattr(distances, "_BLOCK_ENTRIES", 20 * len(grid))
    mesh = make_mesh(Mesh(data=devices))
    assert manifold_scores(grid, shifted, 2, mesh=mesh) == want[0]
    assert clipped_scores(grid, shifted, 2, mesh=mesh) == want[1]
