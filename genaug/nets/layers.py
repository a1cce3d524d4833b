"""Layers in the form that is fast on the platform at hand; parameters shaped as Flax's."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float, Int

from genaug.nets.convolution import conv, conv_transpose
from genaug.types import row_keys

Initializer = Callable[..., Array]


def space_to_depth(
    x: Float[Array, "n h w c"], block: tuple[int, int]
) -> Float[Array, "n rows columns d"]:
    """Blocks of pixels as channels: d = bh * bw * c, a block row by row, channels innermost."""
    (n, h, w, c), (bh, bw) = x.shape, block
    x = x.reshape(n, h // bh, bh, w // bw, bw, c).transpose(0, 1, 3, 2, 4, 5)
    return x.reshape(n, h // bh, w // bw, bh * bw * c)


def depth_to_space(
    x: Float[Array, "n rows columns d"], block: tuple[int, int]
) -> Float[Array, "n h w c"]:
    """The inverse of `space_to_depth`."""
    (n, rows, columns, _), (bh, bw) = x.shape, block
    x = x.reshape(n, rows, columns, bh, bw, -1).transpose(0, 1, 3, 2, 4, 5)
    return x.reshape(n, rows * bh, columns * bw, -1)


class Conv(nn.Module):
    """`flax.linen.Conv` for images with 'SAME' padding: same parameters, same values."""

    features: int
    kernel_size: Sequence[int] = (3, 3)
    strides: Sequence[int] = (1, 1)
    use_bias: bool = True
    kernel_init: Initializer = nn.initializers.lecun_normal()

    @nn.compact
    def __call__(self, x: Float[Array, "n h w c"]) -> Float[Array, "n oh ow f"]:
        """Convolve a batch of images."""
        shape = (*self.kernel_size, x.shape[-1], self.features)
        kernel = self.param("kernel", self.kernel_init, shape)
        y = conv(x, kernel.astype(x.dtype), (self.strides[0], self.strides[1]))
        return _add_bias(self, y) if self.use_bias else y


class ConvTranspose(nn.Module):
    """`flax.linen.ConvTranspose` for images with 'SAME' padding: same parameters, same values."""

    features: int
    kernel_size: Sequence[int] = (4, 4)
    strides: Sequence[int] = (2, 2)
    use_bias: bool = True
    kernel_init: Initializer = nn.initializers.lecun_normal()

    @nn.compact
    def __call__(self, x: Float[Array, "n h w c"]) -> Float[Array, "n oh ow f"]:
        """Convolve and enlarge a batch of images."""
        shape = (*self.kernel_size, x.shape[-1], self.features)
        kernel = self.param("kernel", self.kernel_init, shape)
        y = conv_transpose(x, kernel.astype(x.dtype), (self.strides[0], self.strides[1]))
        return _add_bias(self, y) if self.use_bias else y


class Dense(nn.Module):
    """`flax.linen.Dense` on the last axis: same parameters, same values, computed in x's dtype."""

    features: int
    use_bias: bool = True
    kernel_init: Initializer = nn.initializers.lecun_normal()

    @nn.compact
    def __call__(self, x: Float[Array, "*n d"]) -> Float[Array, "*n f"]:
        """Multiply and shift every vector."""
        shape = (x.shape[-1], self.features)
        kernel = self.param("kernel", self.kernel_init, shape)
        y = _matmul(x, kernel.astype(x.dtype))
        return _add_bias(self, y) if self.use_bias else y


class Dropout(nn.Module):
    """`flax.linen.Dropout` (Srivastava et al. 2014), each row's mask by a key of its own.

    So it is the same mask on any devices, and in however many parts a batch is taken.
    """

    rate: float

    @nn.compact
    def __call__(
        self, x: Float[Array, "n ..."], index: Int[Array, " n"] | None
    ) -> Float[Array, "n ..."]:
        """x with a share of its values 0 and the others larger; as it is without addresses.

        index: the rows' addresses (`types.row_index`), in training. Masks are of the "dropout" key.
        """
        if index is None or self.rate == 0.0:
            return x
        keys = row_keys(self.make_rng("dropout"), {"index": index})
        keep = jax.vmap(lambda key: jax.random.bernoulli(key, 1.0 - self.rate, x.shape[1:]))(keys)
        return jnp.where(keep, x / (1.0 - self.rate), 0.0)


class GroupNorm(nn.Module):
    """`flax.linen.GroupNorm` for images (Wu & He 2018, eq. 1-3): same parameters, same values.

    Only vectors of one value per channel are ever regrouped, never the image: on CPU that takes
    two thirds of the time of Flax's. The statistics are float32, and the variance is a mean of
    centred squares: under a large mean no more is lost than the mean's own rounding.
    """

    num_groups: int
    epsilon: float = 1e-6

    @nn.compact
    def __call__(self, x: Float[Array, "n h w c"]) -> Float[Array, "n h w c"]:
        """Normalise each group of channels of each image, then scale and shift each channel."""
        n, _, _, channels = x.shape
        scale = self.param("scale", nn.initializers.ones_init(), (channels,))
        bias = self.param("bias", nn.initializers.zeros_init(), (channels,))

        def group_mean(y: Array) -> Array:
            per_channel = jnp.mean(y, axis=(1, 2)).reshape(n, self.num_groups, -1)
            mean = jnp.mean(per_channel, axis=2, keepdims=True)
            return jnp.broadcast_to(mean, per_channel.shape).reshape(n, channels)

        mean = group_mean(x.astype(jnp.float32))
        pivot = lax.stop_gradient(mean)
        centred = x.astype(jnp.float32) - jnp.expand_dims(pivot, (1, 2))
        # Zero, but its derivatives are not: they are those of the mean around the fixed pivot.
        shift = mean - pivot
        variance = group_mean(centred**2) - shift**2
        scale = lax.rsqrt(variance + self.epsilon) * jnp.expand_dims(scale, 0)
        bias = jnp.expand_dims(bias, 0) - shift * scale
        y = centred * jnp.expand_dims(scale, (1, 2)) + jnp.expand_dims(bias, (1, 2))
        return y.astype(x.dtype)


def sinusoidal(
    level: Float[Array, " n"], dim: int, max_period: float = 10_000.0
) -> Float[Array, "n {dim}"]:
    """Sines, then cosines, of `level` at m = dim // 2 frequencies, from 1 towards 1 / max_period.

    Frequency i is max_period^(-i/m) (Vaswani et al. 2017, section 3.5; for noise levels, Ho et al.
    2020, app. B). float32; an odd `dim` ends in a zero.
    """
    half = dim // 2
    frequency = jnp.exp(-math.log(max_period) / max(half, 1) * jnp.arange(half, dtype=jnp.float32))
    angle = jnp.expand_dims(level.astype(jnp.float32), 1) * jnp.expand_dims(frequency, 0)
    waves = jnp.concatenate([jnp.sin(angle), jnp.cos(angle)], axis=1)
    return jnp.pad(waves, ((0, 0), (0, dim % 2)))


class Conditioning(nn.Module):
    """What a denoiser is told beside the noisy image, as one vector per example.

    The noise level through a two-layer perceptron of its sinusoids (Ho et al. 2020, app. B), plus a
    row of a table for the label (Dhariwal & Nichol 2021; row `num_classes` says "no label", Ho &
    Salimans 2022), plus a linear map of the augmentation (Karras et al. 2022, app. F.2).
    """

    dim: int
    sinusoid_dim: int
    num_classes: int = 0
    augment_dim: int = 0

    @nn.compact
    def __call__(
        self,
        level: Float[Array, " n"],
        label: Int[Array, " n"] | None,
        augment: Float[Array, "n a"] | None,
    ) -> Float[Array, "n {self.dim}"]:
        """Embed and add, in float32. No `augment` is an image as it is: the zero vector."""
        h = Dense(self.dim, name="level_in")(sinusoidal(level, self.sinusoid_dim))
        h = Dense(self.dim, name="level_out")(nn.silu(h))
        if self.num_classes:
            init = nn.initializers.normal(1.0)
            table = nn.Embed(self.num_classes + 1, self.dim, embedding_init=init, name="label")
            h = h + table(label)
        if self.augment_dim and augment is not None:
            h = h + Dense(self.dim, use_bias=False, name="augment")(augment)
        return h


def _matmul(x: Array, kernel: Array) -> Array:
    """Every vector [*n, d] of x times a matrix [d, f].

    On a CPU the leading axes are flattened to one: with more, XLA transposes the cotangent inside a
    fusion, and a perceptron's training step takes a fifth more time. For a TPU that would keep XLA
    from fusing the product with what is done to it: GPT-2, 60 rows a chip, moved a quarter more.
    """

    def flat(x: Array, kernel: Array) -> Array:
        return (x.reshape(-1, x.shape[-1]) @ kernel).reshape(*x.shape[:-1], -1)

    if x.ndim == 2:
        return x @ kernel
    return lax.platform_dependent(x, kernel, cpu=flat, default=jnp.matmul)


def _add_bias(module: nn.Module, y: Array) -> Array:
    bias = module.param("bias", nn.initializers.zeros_init(), (y.shape[-1],))
    return y + jnp.expand_dims(bias.astype(y.dtype), range(y.ndim - 1))
