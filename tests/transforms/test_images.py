"""Warps, against SciPy's interpolation with the same matrix."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.ndimage
import scipy.stats

from genaug.transforms import images
from genaug.transforms.images import (
    Strength,
    Warp,
    affine_matrix,
    centred_grid,
    elastic_field,
    gaussian_filter_matrix,
)

warp = jax.jit(images.warp, static_argnums=3)
warp_batch = jax.jit(images.warp_batch, static_argnums=3)
warp_bytes = jax.jit(images.warp_bytes, static_argnums=3)

SHAPE = (9, 12, 2)
SIDE = np.array(SHAPE[:2])
SMOOTHING = 0.14


def image(seed=0):
    return np.random.default_rng(seed).uniform(size=SHAPE).astype(np.float32)


def scipys(matrix, shift):
    """SciPy's bilinear warp about the centre: output(x) = image(matrix (x - centre) + ...)."""
    centre = (SIDE - 1) / 2
    offset = centre + shift - matrix @ centre
    return np.stack(
        [
            scipy.ndimage.affine_transform(
                image()[..., c].astype(np.float64), matrix, offset, order=1, mode="grid-constant"
            )
            for c in range(SHAPE[2])
        ],
        axis=-1,
    )


@pytest.mark.parametrize("strength", [Strength(), Warp().none(), Warp().scaled(0.0)])
def test_no_strength_is_the_identity(strength, key):
    np.testing.assert_allclose(
        warp(jnp.asarray(image()), key, strength, SMOOTHING), image(), atol=1e-5
    )


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize(
    "strength",
    [
        Strength(rotation_degrees=40.0),
        Strength(scale=0.3),
        Strength(shear=0.4),
        Strength(shift=0.3),
        Warp().affine(),
    ],
)
def test_affine_warps_equal_scipys(strength, seed):
    key = jax.random.key(seed)
    key_affine, key_shift, _ = jax.random.split(key, 3)
    matrix = np.asarray(affine_matrix(key_affine, strength), np.float64)
    share = np.asarray(jax.random.uniform(key_shift, (2,), minval=-1.0, maxval=1.0), np.float64)
    want = scipys(matrix, strength.shift * SIDE * share)
    np.testing.assert_allclose(
        warp(jnp.asarray(image()), key, strength, SMOOTHING), want, atol=2e-5
    )
    assert np.abs(want - image()).max() > 0.05


def test_elastic_warps_equal_scipys_interpolation_of_the_displaced_grid(key):
    _, _, key_elastic = jax.random.split(key, 3)
    field = np.asarray(elastic_field(key_elastic, *SHAPE[:2], SMOOTHING), np.float64)
    at = np.asarray(centred_grid(*SHAPE[:2])) + ((SIDE - 1) / 2)[:, None, None]
    at = at + 0.1 * np.sqrt(SIDE.prod()) * field
    want = scipy.ndimage.map_coordinates(image()[..., 1], at, order=1, mode="grid-constant")
    got = warp(jnp.asarray(image()), key, Strength(elastic=0.1), SMOOTHING)
    np.testing.assert_allclose(got[..., 1], want, atol=2e-5)


@pytest.mark.parametrize("seed", range(5))
def test_affine_matrices_are_a_bounded_rotation_shear_and_scale(seed):
    key = jax.random.key(seed)
    rotation = np.asarray(affine_matrix(key, Strength(rotation_degrees=20.0)))
    np.testing.assert_allclose(rotation @ rotation.T, np.eye(2), atol=1e-6)
    assert abs(np.degrees(np.arctan2(rotation[1, 0], rotation[0, 0]))) <= 20
    scale = np.asarray(affine_matrix(key, Strength(scale=0.2)))
    np.testing.assert_allclose(scale, np.diag(np.diag(scale)))
    assert (np.abs(np.diag(scale) - 1) <= 0.2).all()
    shear = np.asarray(affine_matrix(key, Strength(shear=0.3)))
    np.testing.assert_allclose([shear[0, 0], shear[0, 1], shear[1, 1]], [1, 0, 1])
    assert abs(shear[1, 0]) <= 0.3


def test_draws_fill_the_range_evenly():
    keys = jax.random.split(jax.random.key(0), 2000)
    matrices = jax.vmap(lambda key: affine_matrix(key, Strength(rotation_degrees=10.0)))(keys)
    degrees = np.degrees(np.arctan2(matrices[:, 1, 0], matrices[:, 0, 0]))
    assert scipy.stats.kstest(degrees, "uniform", args=(-10, 20)).pvalue > 1e-3


@pytest.mark.parametrize("sigma", [0.8, 2.0])
def test_the_filter_is_scipys_away_from_the_edge(sigma):
    noise = np.random.default_rng(0).normal(size=60)
    want = scipy.ndimage.gaussian_filter1d(noise, sigma, truncate=8)
    got = gaussian_filter_matrix(60, sigma) @ noise
    np.testing.assert_allclose(got[20:40], want[20:40], atol=1e-6)
    np.testing.assert_allclose(gaussian_filter_matrix(60, sigma).sum(1), 1, rtol=1e-6)


@pytest.mark.parametrize("height, width", [(8, 8), (9, 20)])
def test_the_elastic_field_has_root_mean_square_one(height, width):
    keys = jax.random.split(jax.random.key(0), 20)
    fields = jax.vmap(lambda key: elastic_field(key, height, width, SMOOTHING))(keys)
    rms = np.sqrt(np.mean(np.sum(np.square(fields), axis=1), axis=(1, 2)))
    np.testing.assert_allclose(rms, 1.0, rtol=1e-5)


def test_the_elastic_field_is_as_smooth_as_its_gaussian():
    """Noise smoothed by sigma correlates by exp(-1 / (4 sigma^2)) from pixel to pixel."""
    side, sigma = 40, 0.1 * 40
    keys = jax.random.split(jax.random.key(0), 200)
    fields = np.asarray(jax.vmap(lambda key: elastic_field(key, side, side, 0.1))(keys))
    inner = fields[:, :, 12:-12, 12:-12]
    correlation = np.mean(inner[..., 1:] * inner[..., :-1]) / np.mean(inner**2)
    np.testing.assert_allclose(correlation, np.exp(-1 / (4 * sigma**2)), atol=0.005)


def test_every_example_of_a_batch_is_warped_by_its_own_draw(key):
    batch = jnp.repeat(image()[None], 4, axis=0)
    keys = jax.random.split(key, 4)
    warped = np.asarray(warp_batch(batch, keys, Warp().affine_elastic(), SMOOTHING))
    for i in range(4):
        for j in range(i):
            assert np.abs(warped[i] - warped[j]).max() > 0.05
    again = warp_batch(batch, keys, Warp().affine_elastic(), SMOOTHING)
    np.testing.assert_array_equal(warped, again)


def test_bytes_stay_bytes(key):
    batch = np.random.default_rng(0).integers(0, 256, (3, *SHAPE)).astype(np.uint8)
    strength, keys = Warp().affine_elastic(), jax.random.split(key, 3)
    got = warp_bytes(jnp.asarray(batch), keys, strength, SMOOTHING)
    assert got.dtype == np.uint8
    want = warp_batch(jnp.asarray(batch, jnp.float32), keys, strength, SMOOTHING)
    np.testing.assert_array_equal(got, np.rint(want))
    plain = warp_bytes(jnp.asarray(batch), keys, Strength(), SMOOTHING)
    np.testing.assert_array_equal(plain, batch)


def test_strengths_scale_and_become_arrays():
    twice = Warp().scaled(2.0)
    assert twice == tuple(2.0 * value for value in Warp().affine_elastic())
    arrays = twice.as_arrays()
    assert isinstance(arrays, Strength)
    assert all(value.dtype == np.float32 for value in arrays)
    assert Warp().affine().elastic == 0
