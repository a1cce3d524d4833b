"""Affine and elastic warps of images, one random draw per example.

Both displace the sampling grid, so together they cost one bilinear interpolation. The elastic field
is Simard et al. 2003, section 2: independent uniform displacements, smoothed by a Gaussian and
scaled; here to a stated root-mean-square displacement rather than by their alpha, so that the
strength does not depend on the smoothing.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.scipy.ndimage import map_coordinates
from jaxtyping import Array, Float, UInt8

Image = Float[Array, "h w c"]
Grid = Float[Array, "2 h w"]
Scalar = float | Float[Array, ""]


class Strength(NamedTuple):
    """How far images are warped; all zero leaves them as they are. Leaves may be arrays."""

    rotation_degrees: Scalar = 0.0  # uniform in +- this
    scale: Scalar = 0.0  # each axis scaled by 1 +- this
    shear: Scalar = 0.0  # tangent of the shear angle, uniform in +- this
    shift: Scalar = 0.0  # uniform in +- this share of the side
    elastic: Scalar = 0.0  # root-mean-square elastic displacement, share of the side

    def as_arrays(self) -> Strength:
        """float32 leaves: data to a compiled program, not constants of it."""
        return Strength(*(jnp.float32(value) for value in self))


@dataclass(frozen=True, kw_only=True)
class Warp:
    """The classical baselines' strengths."""

    rotation_degrees: float = 15.0
    scale: float = 0.15
    shear: float = 0.2
    shift: float = 0.1
    elastic: float = 0.04
    smoothing: float = 0.14  # standard deviation of the elastic field's Gaussian, share of the side

    def none(self) -> Strength:
        """No warp."""
        return Strength()

    def affine(self) -> Strength:
        """Rotation, scale, shear and shift."""
        return Strength(self.rotation_degrees, self.scale, self.shear, self.shift)

    def elastic_only(self) -> Strength:
        """An elastic deformation."""
        return Strength(elastic=self.elastic)

    def affine_elastic(self) -> Strength:
        """Affine, and an elastic deformation."""
        return self.affine()._replace(elastic=self.elastic)

    def scaled(self, factor: float) -> Strength:
        """Affine and elastic, `factor` times as strong."""
        return Strength(*(factor * float(value) for value in self.affine_elastic()))


def centred_grid(height: int, width: int) -> Grid:
    """Row and column of every pixel, measured from the image's centre, in pixels."""
    rows = jnp.arange(height) - (height - 1) / 2
    columns = jnp.arange(width) - (width - 1) / 2
    return jnp.stack(jnp.meshgrid(rows, columns, indexing="ij"))


def affine_matrix(key: jax.Array, strength: Strength) -> Float[Array, "2 2"]:
    """A random rotation times shear times scale."""
    angle, shear, scale_h, scale_w = jax.random.uniform(key, (4,), minval=-1.0, maxval=1.0)
    angle = angle * jnp.deg2rad(strength.rotation_degrees)
    cos, sin = jnp.cos(angle), jnp.sin(angle)
    rotation = jnp.array([[cos, -sin], [sin, cos]])
    sheared = jnp.array([[1.0, 0.0], [shear * strength.shear, 1.0]])
    scales = 1.0 + strength.scale * jnp.stack([scale_h, scale_w])
    return rotation @ sheared @ jnp.diag(scales)


def gaussian_filter_matrix(size: int, sigma: float) -> np.ndarray:
    """[size, size]: row i averages its neighbours with Gaussian weights that sum to one."""
    distance = np.subtract.outer(np.arange(size), np.arange(size))
    weights = np.exp(-0.5 * (distance / sigma) ** 2)
    return (weights / weights.sum(axis=1, keepdims=True)).astype(np.float32)


def elastic_field(key: jax.Array, height: int, width: int, smoothing: float) -> Grid:
    """A smooth random displacement whose root mean square over the image is 1, in pixels."""
    noise = jax.random.uniform(key, (2, height, width), minval=-1.0, maxval=1.0)
    over_rows = gaussian_filter_matrix(height, smoothing * height)
    over_columns = gaussian_filter_matrix(width, smoothing * width)
    field = jnp.einsum("ij,ajk,lk->ail", over_rows, noise, over_columns)
    return field / jnp.sqrt(jnp.mean(jnp.sum(field**2, axis=0)))


class Draw(NamedTuple):
    """One image's warp: what of it can be said in a few numbers, and the elastic field."""

    matrix: Float[Array, "2 2"]
    shift: Float[Array, 2]  # share of the side
    elastic: Scalar  # amount of `field`, share of the side
    field: Grid


def draw_warp(key: jax.Array, shape: tuple[int, int], strength: Strength, smoothing: float) -> Draw:
    """A random warp of an image of that height and width."""
    key_affine, key_shift, key_elastic = jax.random.split(key, 3)
    shift = strength.shift * jax.random.uniform(key_shift, (2,), minval=-1.0, maxval=1.0)
    field = elastic_field(key_elastic, *shape, smoothing)
    return Draw(affine_matrix(key_affine, strength), shift, strength.elastic, field)


def apply_warp(image: Image, draw: Draw) -> Image:
    """The image as the warp sees it; pixels from outside it are zero."""
    height, width, _ = image.shape
    side = jnp.array([height, width], jnp.float32)
    source = jnp.einsum("ij,jhw->ihw", draw.matrix, centred_grid(height, width))
    centre = (side - 1.0) / 2.0
    source = source + jnp.expand_dims(centre + side * draw.shift, (1, 2))
    source = source + draw.elastic * jnp.sqrt(side[0] * side[1]) * draw.field

    def channel(plane: Array) -> Array:
        return map_coordinates(plane, [source[0], source[1]], order=1, mode="constant", cval=0.0)

    return jax.vmap(channel, in_axes=2, out_axes=2)(image)


def warp(image: Image, key: jax.Array, strength: Strength, smoothing: float) -> Image:
    """One image, warped by one draw; pixels from outside it are zero."""
    height, width, _ = image.shape
    return apply_warp(image, draw_warp(key, (height, width), strength, smoothing))


DESCRIPTION_DIM = 7
"""Length of a warp's description."""


def warp_described(
    images: Float[Array, "n h w c"],
    keys: jax.Array,
    strength: Strength,
    smoothing: float,
    probability: float,
) -> tuple[Float[Array, "n h w c"], Float[Array, "n a"]]:
    """Warp a share of the images, and say how each was: zeros where it was not.

    The description goes to a generator as a condition, so that its samples, drawn with zeros, are
    not warped (Karras et al. 2022, app. F.2): the matrix less the identity, the shift, and the
    elastic amount, each in units of a full-strength warp. Only the elastic field's shape is not
    in it.
    """
    height, width, _ = images.shape[1:]

    def one(image: Image, key: jax.Array) -> tuple[Image, Float[Array, " a"]]:
        key_chosen, key_warp = jax.random.split(key)
        chosen = jax.random.bernoulli(key_chosen, probability).astype(jnp.float32)
        # Strength zero is the identity, elastic or not: one path for both.
        scaled = Strength(*(chosen * jnp.asarray(value) for value in strength))
        draw = draw_warp(key_warp, (height, width), scaled, smoothing)
        full = Warp()
        description = jnp.concatenate(
            [
                (draw.matrix - jnp.eye(2)).ravel() / full.scale,
                draw.shift / full.shift,
                jnp.reshape(draw.elastic / full.elastic, (1,)),
            ]
        )
        return apply_warp(image, draw), description

    return jax.vmap(one)(images, keys)


def warp_batch(
    images: Float[Array, "n h w c"], keys: jax.Array, strength: Strength, smoothing: float
) -> Float[Array, "n h w c"]:
    """A batch, each image by its own key of `keys` [n]."""
    return jax.vmap(lambda image, key: warp(image, key, strength, smoothing))(images, keys)


def warp_bytes(
    images: UInt8[Array, "n h w c"], keys: jax.Array, strength: Strength, smoothing: float
) -> UInt8[Array, "n h w c"]:
    """`warp_batch` of byte images, rounded to bytes."""
    warped = warp_batch(images.astype(jnp.float32), keys, strength, smoothing)
    return jnp.round(jnp.clip(warped, 0.0, 255.0)).astype(jnp.uint8)
