"""What a discriminator sees: examples made by hand, the ranges of the draws, the gradients."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from genaug.transforms.diffaugment import (
    PAPER,
    DiffAugment,
    augment,
    augment_batch,
    check,
    cut,
    shifted,
)
from genaug.types import UserError


def numbered(height, width, channels=1):
    """1, 2, 3, ... in reading order."""
    count = height * width * channels
    return jnp.arange(1.0, count + 1).reshape(height, width, channels)


@pytest.mark.parametrize(
    "down, right, want",
    [
        (0, 0, [[1, 2, 3], [4, 5, 6], [7, 8, 9]]),
        (1, 0, [[0, 0, 0], [1, 2, 3], [4, 5, 6]]),
        (-1, 1, [[0, 4, 5], [0, 7, 8], [0, 0, 0]]),
        (2, -2, [[0, 0, 0], [0, 0, 0], [3, 0, 0]]),
    ],
)
def test_translation_moves_whole_pixels_and_uncovers_zeros(down, right, want):
    found = jax.jit(shifted, static_argnums=3)(numbered(3, 3), down, right, (2, 2))
    np.testing.assert_array_equal(found[..., 0], want)


@pytest.mark.parametrize(
    "row, column, want",
    [
        (0, 1, [[1, 0, 0, 4], [5, 0, 0, 8], [9, 10, 11, 12]]),
        (-1, 3, [[1, 2, 3, 0], [5, 6, 7, 8], [9, 10, 11, 12]]),
        (2, -1, [[1, 2, 3, 4], [5, 6, 7, 8], [0, 10, 11, 12]]),
    ],
)
def test_cutout_blanks_a_rectangle_that_may_lie_half_outside(row, column, want):
    np.testing.assert_array_equal(cut(numbered(3, 4), row, column, (2, 2))[..., 0], want)


def draws(policy, image, count=400):
    images = jnp.broadcast_to(image, (count, *image.shape))
    keys = jax.random.split(jax.random.key(1), count)
    return np.asarray(jax.jit(augment_batch, static_argnums=2)(images, keys, policy))


def assert_uniform(values, low, high):
    """Within the bounds, and near both of them; the mean in the middle."""
    span = high - low
    assert values.min() >= low - 1e-5
    assert values.max() <= high + 1e-5
    assert values.min() < low + 0.05 * span
    assert values.max() > high - 0.05 * span
    assert abs(values.mean() - (low + high) / 2) < 5 * span / np.sqrt(12 * len(values))


def test_brightness_adds_one_number_to_an_image(key):
    image = jax.random.normal(key, (4, 5, 3))
    added = draws(DiffAugment(brightness=0.5), image) - np.asarray(image)
    np.testing.assert_allclose(np.ptp(added, axis=(1, 2, 3)), 0, atol=1e-6)
    assert_uniform(added[:, 0, 0, 0], -0.5, 0.5)


def test_saturation_scales_distances_from_each_pixel_s_mean(key):
    image = np.asarray(jax.random.normal(key, (4, 5, 3)))
    found, gray = draws(DiffAugment(saturation=1.0), image), image.mean(-1, keepdims=True)
    np.testing.assert_allclose(
        found.mean(-1), np.broadcast_to(gray[..., 0], (400, 4, 5)), atol=1e-6
    )
    factors = np.einsum("nhwc,hwc->n", found - gray, image - gray) / ((image - gray) ** 2).sum()
    np.testing.assert_allclose(
        found - gray, factors.reshape(-1, 1, 1, 1) * (image - gray), atol=1e-5
    )
    assert_uniform(factors, 0.0, 2.0)


def test_contrast_scales_distances_from_the_image_s_mean(key):
    image = np.asarray(jax.random.normal(key, (4, 5, 3)))
    found, mean = draws(DiffAugment(contrast=0.5), image), image.mean()
    factors = (found[:, 0, 0, 0] - mean) / (image[0, 0, 0] - mean)
    np.testing.assert_allclose(
        found - mean, factors.reshape(-1, 1, 1, 1) * (image - mean), atol=1e-5
    )
    assert_uniform(factors, 0.5, 1.5)


def test_saturation_leaves_gray_images_alone(key):
    image = jax.random.normal(key, (4, 5, 1))
    found = draws(DiffAugment(saturation=1.0), image)
    np.testing.assert_array_equal(found, np.broadcast_to(image, found.shape))


def test_translation_draws_every_shift_of_an_eighth_equally_often():
    """12x8 pixels: two rows up or down, one column left or right, 15 places for a bright pixel."""
    image = jnp.zeros((12, 8, 1)).at[6, 4].set(1.0)
    found = draws(DiffAugment(translation=0.125), image, count=3000)[..., 0]
    assert (found.sum((1, 2)) == 1).all()
    _, rows, columns = np.nonzero(found)
    counts = np.histogram2d(rows, columns, [np.arange(4, 10), np.arange(3, 7)])[0]
    assert counts.sum() == 3000
    assert np.abs(counts - 200).max() < 5 * np.sqrt(200)


@pytest.mark.parametrize("side, size", [(8, 4), (10, 5)])
def test_cutout_takes_out_half_the_side_around_every_place_equally_often(side, size):
    """With a centre anywhere every row has its own share, which can be counted."""
    found = draws(DiffAugment(cutout=0.5), jnp.ones((side, side, 1)), count=4000)[..., 0]
    gone = 1 - found
    assert gone.sum((1, 2)).max() == size**2
    starts = np.arange(side + 1 - size % 2) - size // 2
    covered = np.array([[s <= row < s + size for row in range(side)] for s in starts]).mean(0)
    want = np.outer(covered, covered)
    assert np.abs(gone.mean(0) - want).max() < 5 * np.sqrt(0.25 / 4000)


def test_without_parts_nothing_changes(key):
    image = jax.random.normal(key, (4, 5, 3))
    np.testing.assert_array_equal(augment(image, key, DiffAugment()), image)


def test_gradients_reach_the_pixels_that_are_seen(key):
    """Shifted and cut out, the sum over the output counts every pixel that is still in it."""
    policy = DiffAugment(translation=0.25, cutout=0.5)
    image = 1.0 + jax.random.uniform(key, (8, 8, 2))
    for seed in range(5):
        draw = jax.random.key(seed)
        seen = np.isin(np.asarray(image), np.asarray(augment(image, draw, policy)))
        gradient = jax.grad(lambda x, k=draw: augment(x, k, policy).sum())(image)
        np.testing.assert_array_equal(gradient, seen.astype(np.float32))
        assert 0 < seen.sum() < seen.size


def test_the_whole_policy_is_linear_in_the_image_up_to_brightness(key):
    """Every part is affine: the gradient is the matrix between image and output."""
    image, other = jax.random.normal(key, (2, 8, 8, 3))
    out, tangent = jax.jvp(lambda x: augment(x, key, PAPER), (image,), (other - image,))
    np.testing.assert_allclose(out + tangent, augment(other, key, PAPER), atol=1e-5)
    assert np.abs(tangent).max() > 0.1


def test_images_of_a_batch_do_not_influence_each_other(key):
    batch, other = jax.random.normal(key, (2, 4, 8, 8, 3))
    mixed, keys = other.at[2].set(batch[2]), jax.random.split(key, 4)
    found, changed = (augment_batch(images, keys, PAPER) for images in (batch, mixed))
    np.testing.assert_array_equal(found[2], changed[2])
    assert (
        (np.asarray(found)[[0, 1, 3]] != np.asarray(changed)[[0, 1, 3]]).any(axis=(1, 2, 3)).all()
    )
    same = augment_batch(jnp.broadcast_to(batch[0], batch.shape), keys, PAPER)
    assert len(np.unique(np.asarray(same).reshape(4, -1), axis=0)) == 4


@pytest.mark.parametrize("strength", [-0.1, 1.5])
def test_strengths_outside_their_range_are_refused(strength):
    with pytest.raises(UserError, match=r"model\.augment\.cutout is .*from 0 to 1"):
        check(DiffAugment(cutout=strength))
