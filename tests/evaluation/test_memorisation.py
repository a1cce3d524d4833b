import numpy as np
import pytest

from genaug.devices import Mesh, make_mesh
from genaug.evaluation import authenticity, closer_to_train, copies, near_copy_threshold
from genaug.types import UserError


def images(n, seed, d=12):
    return np.random.default_rng(seed).normal(size=(n, d)).astype(np.float32)


TRAIN, HOLDOUT = images(400, 0), images(200, 1)


def test_a_copyist_is_flagged():
    copyist = TRAIN[:200]
    closer = closer_to_train(copyist, TRAIN, HOLDOUT, seed=0)
    assert closer.low > 0.6  # Half the originals were subsampled away: 0.75 is expected.
    assert closer_to_train(copyist, TRAIN[:200], HOLDOUT, seed=0).value == 1
    threshold = near_copy_threshold(TRAIN, HOLDOUT)
    assert copies(copyist, TRAIN, threshold).exact.value == 1
    noisy = copyist + np.float32(1e-3) * images(200, 5)
    found = copies(noisy, TRAIN, threshold)
    assert found.exact.value == 0
    assert found.near.value == 1
    assert authenticity(copyist, TRAIN).value == 0
    assert authenticity(noisy, TRAIN).value == 0


def test_an_honest_generator_is_not():
    honest = images(300, 2)
    closer = closer_to_train(honest, TRAIN, HOLDOUT, seed=0)
    assert closer.low < 0.5 < closer.high
    found = copies(honest, TRAIN, near_copy_threshold(TRAIN, HOLDOUT))
    assert found.exact.value == 0
    assert found.near.low < 0.01
    assert authenticity(honest, TRAIN).value > 0.4
    assert closer.n == found.near.n == 300


def test_the_threshold_leaves_its_quantile_of_held_out_data_below():
    threshold = near_copy_threshold(TRAIN, HOLDOUT, 0.1)
    assert copies(HOLDOUT, TRAIN, threshold).near.value == pytest.approx(0.1, abs=0.006)


def test_ties_count_half():
    both = closer_to_train(TRAIN, TRAIN, TRAIN, seed=0)
    assert both.value == 0.5


def test_the_interval_of_an_honest_share_covers_one_half():
    # Many synthetic examples, few real ones: votes are not independent, and plain Wilson intervals
    # of 2000 votes would cover about half the time.
    covered = 0
    for trial in range(60):
        train, holdout = images(40, 3 * trial, 4), images(40, 3 * trial + 1, 4)
        share = closer_to_train(images(2000, 3 * trial + 2, 4), train, holdout, seed=0)
        covered += share.low <= 0.5 <= share.high
    assert covered / 60 > 0.88


def test_authenticity_by_hand():
    train = np.array([[0.0], [1.0], [10.0]])
    # 10 has its neighbour at 9: the first two are nearer, the last is not. 0 has its own at 1.
    synthetic = np.array([[12.0], [13.0], [-0.4], [19.5]])
    assert authenticity(synthetic, train).value == 0.25


@pytest.mark.parametrize("devices", [2, 8])
def test_the_mesh_changes_nothing(devices):
    train, holdout = images(61, 0), images(50, 1)
    synthetic = np.concatenate([images(30, 2), train[:7]])
    mesh = make_mesh(Mesh(data=devices))

    def measured(**options):
        threshold = near_copy_threshold(train, holdout, 0.1, **options)
        return (
            threshold,
            copies(synthetic, train, threshold, **options),
            closer_to_train(synthetic, train, holdout, 0, **options),
            authenticity(synthetic, train, **options),
        )

    assert measured(mesh=mesh) == measured()


def test_refusals():
    with pytest.raises(UserError, match="quantile"):
        near_copy_threshold(TRAIN, HOLDOUT, 2.0)
    with pytest.raises(UserError, match="held-out set has 0"):
        closer_to_train(TRAIN, TRAIN, HOLDOUT[:0], seed=0)
