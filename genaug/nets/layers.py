"""Layers in the form that is fast on the platform at hand; parameters shaped as Flax's.

A convolution's forward pass is XLA's own everywhere. What differs is the gradient on CPU: inside a
`lax.scan` XLA:CPU folds the transposes of a weight gradient into the convolution's dimension
numbers and leaves its fast path: four gradient steps then take 12 to 33 times as long
(benchmarks/CHOICES.md). Here those transposes stand behind `lax.optimization_barrier`, so the
gradient is again a plain NHWC convolution. A transposed convolution is written as one small
convolution per output phase (sub-pixel convolution, Shi et al. 2016, section 3.2), which is the
same sum without the zeros. Reverse mode only, any order.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import partial

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float, Int

Initializer = Callable[..., Array]
Padding = tuple[tuple[int, int], tuple[int, int]]
_NHWC = ("NHWC", "HWIO", "NHWC")
# From here on matrix products beat a convolution whose kernel is as large as an image.
_FEW_TAPS, _MANY_CHANNELS = 4, 256


def _plain_conv(x: Array, kernel: Array, padding: Padding) -> Array:
    return lax.conv_general_dilated(x, kernel, (1, 1), padding, dimension_numbers=_NHWC)


def _fenced(x: Array, axes: tuple[int, ...]) -> Array:
    """The transpose as an array of its own: XLA may not fold it into what follows."""
    return lax.optimization_barrier(x.transpose(axes))


@partial(jax.custom_vjp, nondiff_argnums=(2,))
def _unit_conv(x: Array, kernel: Array, padding: Padding) -> Array:
    """Stride-1 convolution whose gradient is fast on CPU inside loops too."""
    return _plain_conv(x, kernel, padding)


def _unit_conv_fwd(x: Array, kernel: Array, padding: Padding) -> tuple[Array, tuple[Array, Array]]:
    return _plain_conv(x, kernel, padding), (x, kernel)


def _unit_conv_bwd(
    padding: Padding, residuals: tuple[Array, Array], dy: Array
) -> tuple[Array, Array]:
    def on_cpu(x: Array, kernel: Array, dy: Array) -> tuple[Array, Array]:
        (top, bottom), (left, right) = padding
        kh, kw = kernel.shape[:2]
        flipped = _fenced(kernel[::-1, ::-1], (0, 1, 3, 2))
        back = ((kh - 1 - top, kh - 1 - bottom), (kw - 1 - left, kw - 1 - right))
        dx = _unit_conv(dy, flipped, back)
        if kh * kw <= _FEW_TAPS and x.shape[3] >= _MANY_CHANNELS:
            return dx, _by_taps(x, dy, (kh, kw), padding)
        # Channels play the batch, the batch plays the channels: dW is a convolution of x by dy.
        dw = _unit_conv(_fenced(x, (3, 1, 2, 0)), _fenced(dy, (1, 2, 0, 3)), padding)
        return dx, _fenced(dw, (1, 2, 0, 3))

    def elsewhere(x: Array, kernel: Array, dy: Array) -> tuple[Array, Array]:
        return jax.vjp(lambda x, kernel: _plain_conv(x, kernel, padding), x, kernel)[1](dy)

    return lax.platform_dependent(*residuals, dy, cpu=on_cpu, default=elsewhere)


_unit_conv.defvjp(_unit_conv_fwd, _unit_conv_bwd)


def _by_taps(x: Array, dy: Array, kernel: tuple[int, int], padding: Padding) -> Array:
    """The gradient of a kernel as a matrix product for each of its taps."""
    (channels, features), (height, width) = (x.shape[3], dy.shape[3]), dy.shape[1:3]
    x = jnp.pad(x, ((0, 0), *padding, (0, 0)))
    flat = dy.reshape(-1, features)
    taps = [
        lax.optimization_barrier(
            x[:, row : row + height, column : column + width].reshape(-1, channels)
        ).T
        @ flat
        for row in range(kernel[0])
        for column in range(kernel[1])
    ]
    return jnp.stack(taps).reshape(*kernel, channels, features)


def _same_padding(size: int, kernel: int, stride: int) -> tuple[int, int]:
    total = max((-(-size // stride) - 1) * stride + kernel - size, 0)
    return total // 2, total - total // 2


def conv(
    x: Float[Array, "n h w c"],
    kernel: Float[Array, "kh kw c f"],
    strides: tuple[int, int] = (1, 1),
) -> Float[Array, "n oh ow f"]:
    """Convolution with 'SAME' padding: `oh = ceil(h / stride)`, equal to `lax`'s.

    A strided convolution is computed as a stride-1 one over blocks of `stride` pixels
    (space to depth), so that its gradient is stride-1 too.
    """
    (_, height, width, channels), (kh, kw, _, features) = x.shape, kernel.shape
    padding = (
        _same_padding(height, kh, strides[0]),
        _same_padding(width, kw, strides[1]),
    )
    if (kh, kw) == (1, 1):
        x = x[:, :: strides[0], :: strides[1]]
        flat = x.reshape(-1, channels) @ kernel.reshape(channels, features)
        return flat.reshape(*x.shape[:3], features)
    if strides == (1, 1):
        return _unit_conv(x, kernel, padding)
    out = [-(-height // strides[0]), -(-width // strides[1])]
    blocks = [-(-kh // strides[0]), -(-kw // strides[1])]
    # Pad (or crop) the image to the pixels that the blocked kernel reads.
    read = [(o + b - 1) * s for o, b, s in zip(out, blocks, strides, strict=True)]
    x = lax.pad(
        x,
        jnp.zeros((), x.dtype),
        [
            (0, 0, 0),
            (padding[0][0], read[0] - height - padding[0][0], 0),
            (padding[1][0], read[1] - width - padding[1][0], 0),
            (0, 0, 0),
        ],
    )
    grown = [b * s - k for b, s, k in zip(blocks, strides, (kh, kw), strict=True)]
    kernel = jnp.pad(kernel, ((0, grown[0]), (0, grown[1]), (0, 0), (0, 0)))
    return _unit_conv(
        space_to_depth(x, strides),
        space_to_depth(kernel.transpose(3, 0, 1, 2), strides).transpose(1, 2, 3, 0),
        ((0, 0), (0, 0)),
    )


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


def _phase(kernel: int, stride: int, phase: int) -> tuple[slice, tuple[int, int]]:
    """Taps of a transposed convolution that reach output `phase`, and their padding, one axis.

    `lax.conv_transpose(..., 'SAME')` pads the dilated input by `before`; of its `kernel` taps only
    those at distance `stride` from each other meet a real pixel.
    """
    before = kernel - 1 if stride > kernel - 1 else -(-(kernel + stride - 2) // 2)
    first = (before - phase) % stride
    num_taps = len(range(first, kernel, stride))
    low = -((phase + first - before) // stride)
    return slice(first, None, stride), (low, num_taps - 1 - low)


def conv_transpose(
    x: Float[Array, "n h w c"],
    kernel: Float[Array, "kh kw c f"],
    strides: tuple[int, int] = (2, 2),
) -> Float[Array, "n oh ow f"]:
    """Transposed convolution with 'SAME' padding: `oh = h * stride`, equal to `lax`'s."""
    (n, height, width, _), (kh, kw, _, features) = x.shape, kernel.shape
    rows = []
    for row in range(strides[0]):
        taps_h, pad_h = _phase(kh, strides[0], row)
        columns = []
        for column in range(strides[1]):
            taps_w, pad_w = _phase(kw, strides[1], column)
            taps = kernel[taps_h, taps_w]
            if 0 in taps.shape:
                columns.append(jnp.zeros((n, height, width, features), x.dtype))
            else:
                columns.append(_unit_conv(x, taps, (pad_h, pad_w)))
        rows.append(jnp.stack(columns, axis=3))
    phases = jnp.stack(rows, axis=2)  # n h sh w sw f
    return phases.reshape(n, height * strides[0], width * strides[1], features)


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
    """`flax.linen.Dense` on the last axis: same parameters, same values, computed in x's dtype.

    The leading axes are flattened to one: with more, XLA:CPU transposes the cotangent inside a
    fusion, and a perceptron's training step takes a fifth more time.
    """

    features: int
    use_bias: bool = True
    kernel_init: Initializer = nn.initializers.lecun_normal()

    @nn.compact
    def __call__(self, x: Float[Array, "*n d"]) -> Float[Array, "*n f"]:
        """Multiply and shift every vector."""
        shape = (x.shape[-1], self.features)
        kernel = self.param("kernel", self.kernel_init, shape)
        y = x.reshape(-1, x.shape[-1]) @ kernel.astype(x.dtype)
        y = _add_bias(self, y) if self.use_bias else y
        return y.reshape(*x.shape[:-1], self.features)


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


def _add_bias(module: nn.Module, y: Array) -> Array:
    bias = module.param("bias", nn.initializers.zeros_init(), (y.shape[-1],))
    return y + jnp.expand_dims(bias.astype(y.dtype), range(y.ndim - 1))
