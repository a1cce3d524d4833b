import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from genaug.evaluation import StreamedMoments, frechet_from_moments
from genaug.types import UserError


def features(n=1200, d=24, seed=0):
    generator = np.random.default_rng(seed)
    mix = generator.normal(size=(d, d)) / d**0.5
    return (np.maximum(generator.normal(size=(n, d)) @ mix, 0) + 3).astype(np.float32)


def stream(x, size, on_device, pilot=None):
    array = jnp.asarray if on_device else np.asarray
    add = jax.jit(StreamedMoments.add) if on_device else StreamedMoments.add
    state = StreamedMoments.start(array(x[:size].mean(axis=0) if pilot is None else pilot))
    for start in range(0, len(x), size):
        state = add(state, array(x[start : start + size]))
    return state


def assert_moments(found, x, tolerance):
    expected = np.cov(x.astype(np.float64).T)
    assert found.n == len(x)
    assert found.mean.dtype == found.cov.dtype == np.float64
    np.testing.assert_allclose(found.mean, x.mean(axis=0, dtype=np.float64), rtol=tolerance)
    np.testing.assert_allclose(found.cov, expected, atol=tolerance * np.abs(expected).max())


@pytest.mark.parametrize("size", [1, 100, 1200])
def test_on_the_host_it_is_numpys_covariance_in_any_partition(size):
    x = features()
    assert_moments(stream(x, size, on_device=False).finish(), x, 1e-12)


@pytest.mark.parametrize("size", [30, 400])
def test_on_the_device_it_is_that_to_float32(size):
    x = features()
    found = stream(x, size, on_device=True).finish()
    assert_moments(found, x, 2e-6)
    other = stream(x[:, ::-1], 400, on_device=False).finish()
    exact = stream(x, 400, on_device=False).finish()
    assert frechet_from_moments(found, other) == pytest.approx(
        frechet_from_moments(exact, other), rel=2e-6
    )


@pytest.mark.parametrize(("on_device", "tolerance"), [(False, 1e-12), (True, 5e-6)])
def test_merging_hosts_is_merging_batches(on_device, tolerance):
    x = features()
    for pilots in ((None, None), (x[0], x[1]), (x[2], x[2])):
        a = stream(x[:500], 100, on_device, pilots[0])
        b = stream(x[500:], 70, on_device, pilots[1])
        merge = jax.jit(StreamedMoments.merge) if on_device else StreamedMoments.merge
        assert_moments(merge(a, b).finish(), x, tolerance)
        assert_moments(merge(b, a).finish(), x, tolerance)


def test_summed_over_a_mapped_axis():
    x = features()
    start = StreamedMoments.start(jnp.asarray(x[0]))

    @functools.partial(jax.vmap, axis_name="hosts")
    def summed(part):
        return start.add(part).across("hosts")

    every = summed(jnp.asarray(x.reshape(4, 300, -1)))
    for host in range(4):
        assert_moments(jax.tree.map(lambda leaf, h=host: leaf[h], every).finish(), x, 5e-6)


@pytest.mark.parametrize("on_device", [False, True])
def test_padding_is_not_counted(on_device):
    x = features(50)
    array = jnp.asarray if on_device else np.asarray
    padded = np.pad(x, ((0, 14), (0, 0)), constant_values=np.nan)
    state = StreamedMoments.start(array(x[0])).add(array(padded), array(np.arange(64) < 50))
    assert_moments(state.finish(), x, 5e-6)


def test_the_pilot_saves_the_digits():
    # About 0, float32 sums of squares near 10^6 would leave no digit of a variance near 1.
    x = features() + np.float32(1000)
    assert_moments(stream(x, 100, on_device=True).finish(), x, 1e-5)


def test_refusals():
    start = StreamedMoments.start(np.zeros(3))
    with pytest.raises(UserError, match="seen 1 rows"):
        start.add(np.zeros((1, 3))).finish()
    with pytest.raises(UserError, match="NaN"):
        start.add(np.full((4, 3), np.nan)).finish()
