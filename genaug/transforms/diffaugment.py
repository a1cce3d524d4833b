"""Differentiable augmentation of what a discriminator sees (Zhao et al. 2020, DiffAugment).

Real and generated images go through random changes of the same distribution, in the updates of
both networks (their eq. 2 and 3), so that a discriminator cannot learn a small dataset by heart
and a generator has nothing to gain from imitating the changes. Images are float32 in [-1, 1]; what
a shift or a cutout uncovers is 0, mid gray, which shows the discriminator that it was uncovered.
"""

from __future__ import annotations

from dataclasses import dataclass, fields

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float

from genaug.types import UserError

Image = Float[Array, "h w c"]
Offset = Float[Array, ""]


@dataclass(frozen=True, kw_only=True)
class DiffAugment:
    """How strongly each part changes an image; 0 turns it off."""

    brightness: float = 0.0  # added to all values: uniform in +- this
    saturation: float = 0.0  # distances from the pixel's mean times 1 +- this
    contrast: float = 0.0  # distances from the image's mean times 1 +- this
    translation: float = 0.0  # whole pixels up to this share of the side
    cutout: float = 0.0  # side of the square taken out, as a share of the image's


PAPER = DiffAugment(brightness=0.5, saturation=1.0, contrast=0.5, translation=0.125, cutout=0.5)
"""The strengths of Zhao et al. 2020 (their code); they turn off colour for some small sets."""


def check(policy: DiffAugment) -> None:
    """Refuse strengths outside of 0 to 1."""
    for entry in fields(policy):
        value = getattr(policy, entry.name)
        if not 0.0 <= value <= 1.0:
            raise UserError(f"model.augment.{entry.name} is {value}; it must be from 0 to 1.")


def shifted(image: Image, down: int | Array, right: int | Array, most: tuple[int, int]) -> Image:
    """The image moved by whole pixels, at most `most` along each axis; uncovered pixels are 0."""
    (high, wide), (height, width, channels) = most, image.shape
    padded = jnp.pad(image, ((high, high), (wide, wide), (0, 0)))
    return lax.dynamic_slice(padded, (high - down, wide - right, 0), (height, width, channels))


def cut(image: Image, row: int | Array, column: int | Array, size: tuple[int, int]) -> Image:
    """The image with 0 in a rectangle of `size` whose first row and column may lie outside it."""
    rows = jnp.arange(image.shape[0]) - row
    columns = jnp.arange(image.shape[1]) - column
    inside_rows = (rows >= 0) & (rows < size[0])
    inside_columns = (columns >= 0) & (columns < size[1])
    inside = jnp.expand_dims(inside_rows, 1) & jnp.expand_dims(inside_columns, 0)
    return jnp.where(jnp.expand_dims(inside, 2), 0.0, image)


def augment(image: Image, key: jax.Array, policy: DiffAugment) -> Image:
    """One image, changed by one draw."""
    keys = jax.random.split(key, 5)

    def spread(key: jax.Array, strength: float) -> Offset:
        return jax.random.uniform(key, (), minval=-strength, maxval=strength)

    def pixels(share: float) -> tuple[int, int]:
        return int(image.shape[0] * share + 0.5), int(image.shape[1] * share + 0.5)

    if policy.brightness:
        image = image + spread(keys[0], policy.brightness)
    if policy.saturation:
        mean = jnp.mean(image, axis=2, keepdims=True)
        image = (1.0 + spread(keys[1], policy.saturation)) * (image - mean) + mean
    if policy.contrast:
        mean = jnp.mean(image, keepdims=True)
        image = (1.0 + spread(keys[2], policy.contrast)) * (image - mean) + mean
    if policy.translation:
        most = pixels(policy.translation)
        bound = jnp.array(most)
        down, right = jax.random.randint(keys[3], (2,), -bound, bound + 1)
        image = shifted(image, down, right, most)
    if policy.cutout:
        size = pixels(policy.cutout)
        # Centres are uniform over the image, so that corners are cut out as often as its middle.
        centres = jnp.array([side + 1 - s % 2 for side, s in zip(image.shape, size, strict=False)])
        row, column = jax.random.randint(keys[4], (2,), 0, centres)
        image = cut(image, row - size[0] // 2, column - size[1] // 2, size)
    return image


def augment_batch(
    images: Float[Array, "n h w c"], keys: jax.Array, policy: DiffAugment
) -> Float[Array, "n h w c"]:
    """A batch, each image by its own key of `keys` [n]."""
    return jax.vmap(lambda image, key: augment(image, key, policy))(images, keys)
