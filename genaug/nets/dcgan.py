"""Generator and discriminator of Radford et al. 2016, plain or class-conditional.

Both double or halve the image once a level with 4x4 kernels of stride 2 (the paper's figure shows
5x5, whose taps fall unevenly on the pixels: Odena et al. 2016). Images are float32 in [-1, 1].
Spectral normalisation is a function of parameters, not a layer: it is applied once an update, and
every forward pass of that update reads the same normalised weights.
"""

from __future__ import annotations

import math
from typing import Any, Literal

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax.traverse_util import flatten_dict, unflatten_dict
from jax import lax
from jaxtyping import Array, Float, Int

from genaug.nets import layers, rows

Images = Float[Array, "n h w c"]
Label = Int[Array, " n"]
Norm = Literal["batch", "spectral", "layer", "none"]

_normal = nn.initializers.normal(0.02)  # every weight at the start (Radford et al. 2016, 4)


def _around_one(key: jax.Array, shape: tuple[int, ...]) -> Array:
    """Gains at the start: N(1, 0.02), as in the authors' code."""
    return 1.0 + _normal(key, shape)


class BatchNorm(nn.Module):
    """Batch norm (Ioffe & Szegedy 2015) with a gain and a bias per class (Dumoulin et al. 2017).

    In training its "batch_stats" become the moments of the batch at hand: averaging them over
    batches is left to whoever keeps them.
    """

    num_classes: int | None = None  # None = one gain and bias for all

    @nn.compact
    def __call__(self, x: Images, label: Label | None = None, *, train: bool = True) -> Images:
        """Normalise every channel over the batch and its pixels; at `train=False` by statistics."""
        y = nn.BatchNorm(
            not train, momentum=0.0, use_scale=False, use_bias=False, axis_name=rows.axes()
        )(x)
        shape = (self.num_classes or 1, x.shape[-1])
        gain = self.param("gain", _around_one, shape)
        bias = self.param("bias", nn.initializers.zeros_init(), shape)
        if self.num_classes is not None:
            gain, bias = gain[label], bias[label]
        return jnp.expand_dims(gain, (1, 2)) * y + jnp.expand_dims(bias, (1, 2))


class Generator(nn.Module):
    """Latent vectors (and classes) to images."""

    features: tuple[int, ...]  # channels from the base grid up
    shape: tuple[int, int, int]
    num_classes: int | None = None

    @nn.compact
    def __call__(
        self, z: Float[Array, "n z"], label: Label | None = None, *, train: bool
    ) -> Images:
        """Images in [-1, 1]; at `train=False` row i depends on row i alone."""
        height, width, channels = self.shape
        levels = len(self.features)
        base = (height >> levels, width >> levels, self.features[0])
        if self.num_classes is not None:
            # A gain and a bias per channel say nothing of places; these rows are a class's layout.
            z = jnp.concatenate([z, jax.nn.one_hot(label, self.num_classes)], axis=1)
        # What batch norm subtracts would leave a bias before it without a gradient.
        x = nn.Dense(math.prod(base), use_bias=False, kernel_init=_normal, name="project")(z)
        x = x.reshape(-1, *base)
        for level in range(levels):
            x = nn.relu(BatchNorm(self.num_classes, name=f"norm_{level}")(x, label, train=train))
            last = level == levels - 1
            features = channels if last else self.features[level + 1]
            x = layers.ConvTranspose(
                features, use_bias=last, kernel_init=_normal, name=f"conv_{level}"
            )(x)
        return jnp.tanh(x)


class Discriminator(nn.Module):
    """Images (and classes) to logits: high for real ones.

    With classes it is the projection discriminator (Miyato & Koyama 2018, eq. 3):

        f(x, y) = psi(phi(x)) + y^T V phi(x),   psi affine, phi the last level, flat.
    """

    features: tuple[int, ...]  # channels of the levels, from the image down
    norm: Norm = "batch"  # between the levels; "spectral" is applied to the parameters instead
    num_classes: int | None = None

    @nn.compact
    def __call__(self, x: Images, label: Label | None = None) -> Float[Array, " n"]:
        """One logit an image."""
        for level, features in enumerate(self.features):
            plain = level == 0 or self.norm in ("spectral", "none")
            x = layers.Conv(
                features, (4, 4), (2, 2), plain, kernel_init=_normal, name=f"conv_{level}"
            )(x)
            if not plain and self.norm == "batch":
                x = BatchNorm(name=f"norm_{level}")(x)
            elif not plain:  # over all that one example has (Gulrajani et al. 2017, 4)
                x = layers.GroupNorm(1, name=f"norm_{level}")(x)
            x = nn.leaky_relu(x, 0.2)
        phi = x.reshape(x.shape[0], -1)
        logits = nn.Dense(1, kernel_init=_normal, name="psi")(phi)[:, 0]
        if self.num_classes is None:
            return logits
        v = self.param("projection", _normal, (self.num_classes, phi.shape[1]))
        return logits + jnp.sum(v[label] * phi, axis=1)


def _unit(x: Float[Array, " d"]) -> Float[Array, " d"]:
    return x / (jnp.linalg.norm(x) + 1e-12)


def spectral_vectors(params: Any, key: jax.Array) -> Any:
    """Random unit vectors, one [outputs] for every matrix or kernel among the parameters."""
    flat = flatten_dict(params)
    matrices = [path for path in sorted(flat) if flat[path].ndim > 1]
    keys = jax.random.split(key, len(matrices))
    return unflatten_dict(
        {
            path: _unit(jax.random.normal(key, flat[path].shape[-1:]))
            for path, key in zip(matrices, keys, strict=True)
        }
    )


def spectral_normalise(params: Any, vectors: Any) -> tuple[Any, Any]:
    """Every matrix over its largest singular value, and the vectors one power iteration on.

    Miyato et al. 2018, Algorithm 1: a kernel is the matrix [inputs and taps, outputs], and the
    gradient takes the singular vectors as constants. `vectors` are `spectral_vectors`', or what
    the last update returned.
    """
    flat, left = flatten_dict(params), flatten_dict(vectors)
    for path, u in left.items():
        matrix = flat[path].reshape(-1, flat[path].shape[-1])
        constant = lax.stop_gradient(matrix)
        v = _unit(constant @ u)
        left[path] = _unit(v @ constant)
        flat[path] = flat[path] / (v @ matrix @ left[path])
    return unflatten_dict(flat), unflatten_dict(left)
