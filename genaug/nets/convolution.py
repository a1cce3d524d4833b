"""Convolutions and their gradients in the form that is fast on the platform at hand.

On a CPU, XLA has fast kernels (YNNPACK's) for a convolution whose operands lie as NHWC and HWIO
and whose output is no larger than its input, and for a matrix product of matrices that lie as they
are read. Of the gradients that `lax` derives few are either, and inside a `lax.scan` none: four
gradient steps then take about 30 times as long (benchmarks/CHOICES.md). So the gradients are
written here as such operations, each operand behind `lax.optimization_barrier`, lest XLA fold its
transpose into what follows. Elsewhere they are XLA's own. Reverse mode only, any order.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float

_NHWC = ("NHWC", "HWIO", "NHWC")
# With fewer channels than this a matrix product per tap of a kernel is too thin to be fast.
_FEW_CHANNELS = 16
# Of fewer than twice these, XLA:CPU's fast kernels want a multiple of the channels (or one channel)
# and at least the features.
_LEAST_CHANNELS, _LEAST_FEATURES = 4, 32


class _Window(NamedTuple):
    """How a kernel slides over an image; every field is (rows, columns).

    size:   of the image.
    kernel: taps.
    before: zeros before the first pixel.
    steps:  the positions that it takes, `strides` pixels apart.
    """

    size: tuple[int, int]
    kernel: tuple[int, int]
    strides: tuple[int, int]
    before: tuple[int, int]
    steps: tuple[int, int]

    @property
    def padding(self) -> tuple[tuple[int, int], tuple[int, int]]:
        """Zeros before and after the image."""
        return self._axis(0), self._axis(1)

    def _axis(self, i: int) -> tuple[int, int]:
        read = self.strides[i] * (self.steps[i] - 1) + self.kernel[i]
        return self.before[i], max(read - self.size[i] - self.before[i], 0)


def _fenced(x: Array, axes: tuple[int, ...]) -> Array:
    """The transpose as an array of its own: XLA may not fold it into what follows."""
    return lax.optimization_barrier(x.transpose(axes))


# A convolution y = K x is linear in the image and in the kernel, so <dy, K x> is linear in three
# arrays. Its derivatives by dy, x and the kernel are `_convolve`, `_to_image` and `_to_kernel`, and
# the derivatives of each of them are the other two.


def _plain(x: Array, kernel: Array, window: _Window) -> Array:
    return lax.conv_general_dilated(
        x, kernel, window.strides, window.padding, dimension_numbers=_NHWC
    )


@partial(jax.custom_vjp, nondiff_argnums=(2,))
def _convolve(x: Array, kernel: Array, window: _Window) -> Array:
    """Image and kernel to output: XLA's own; on a CPU, thin ones in the company of zeros."""
    channels, features = kernel.shape[2:]
    lacking = max(_LEAST_FEATURES - features, 0)
    odd = -channels % _LEAST_CHANNELS if channels > 1 else 0
    if channels >= 2 * _LEAST_CHANNELS or features >= 2 * _LEAST_FEATURES or not odd + lacking:
        return _plain(x, kernel, window)

    def on_cpu(x: Array, kernel: Array) -> Array:
        wide = jnp.pad(kernel, ((0, 0), (0, 0), (0, odd), (0, lacking)))
        x = jnp.pad(x, ((0, 0), (0, 0), (0, 0), (0, odd)))
        return _plain(x, wide, window)[..., :features]

    return lax.platform_dependent(
        x, kernel, cpu=on_cpu, default=lambda x, kernel: _plain(x, kernel, window)
    )


@partial(jax.custom_vjp, nondiff_argnums=(2,))
def _to_image(dy: Array, kernel: Array, window: _Window) -> Array:
    """Output and kernel to image: the gradient by the image, and a transposed convolution."""

    def on_cpu(dy: Array, kernel: Array) -> Array:
        if window.strides == (1, 1):
            turned = _fenced(kernel[::-1, ::-1], (0, 1, 3, 2))
            (kh, kw), ((top, bottom), (left, right)) = window.kernel, window.padding
            back = ((kh - 1 - top, kh - 1 - bottom), (kw - 1 - left, kw - 1 - right))
            return lax.conv_general_dilated(dy, turned, (1, 1), back, dimension_numbers=_NHWC)
        return _overlapped(dy, kernel, window)

    def elsewhere(dy: Array, kernel: Array) -> Array:
        shape = (dy.shape[0], *window.size, kernel.shape[2])
        image = jax.ShapeDtypeStruct(shape, dy.dtype)
        return jax.linear_transpose(lambda x: _plain(x, kernel, window), image)(dy)[0]

    return lax.platform_dependent(dy, kernel, cpu=on_cpu, default=elsewhere)


@partial(jax.custom_vjp, nondiff_argnums=(2,))
def _to_kernel(x: Array, dy: Array, window: _Window) -> Array:
    """Image and output to kernel: the gradient by the kernel."""

    def on_cpu(x: Array, dy: Array) -> Array:
        if window.strides != (1, 1) and x.shape[3] >= _FEW_CHANNELS:
            return _by_taps(x, dy, window)
        # Channels play the batch, the batch plays the channels: a convolution of x by dy.
        dw = lax.conv_general_dilated(
            _fenced(x, (3, 1, 2, 0)),
            _fenced(dy, (1, 2, 0, 3)),
            (1, 1),
            window.padding,
            rhs_dilation=window.strides,
            dimension_numbers=_NHWC,
        )
        # Pixels after the last that a tap meets would be one more tap.
        return _fenced(dw[:, : window.kernel[0], : window.kernel[1]], (1, 2, 0, 3))

    def elsewhere(x: Array, dy: Array) -> Array:
        shape = (*window.kernel, x.shape[3], dy.shape[3])
        kernel = jax.ShapeDtypeStruct(shape, dy.dtype)
        return jax.linear_transpose(lambda kernel: _plain(x, kernel, window), kernel)(dy)[0]

    return lax.platform_dependent(x, dy, cpu=on_cpu, default=elsewhere)


def _kept(function: Callable[..., Array]) -> Callable[..., tuple[Array, tuple[Array, Array]]]:
    return lambda a, b, window: (function(a, b, window), (a, b))


_convolve.defvjp(
    _kept(_convolve),
    lambda window, kept, dy: (_to_image(dy, kept[1], window), _to_kernel(kept[0], dy, window)),
)
_to_image.defvjp(
    _kept(_to_image),
    lambda window, kept, dx: (_convolve(dx, kept[1], window), _to_kernel(dx, kept[0], window)),
)
_to_kernel.defvjp(
    _kept(_to_kernel),
    lambda window, kept, dw: (_to_image(kept[1], dw, window), _convolve(kept[0], dw, window)),
)


def _overlapped(dy: Array, kernel: Array, window: _Window) -> Array:
    """What every output pixel gives to all its taps, in one matrix product, summed where it falls.

    The sums are taken one phase of the stride after another (Shi et al. 2016, section 3.2), on the
    grid of the outputs, whose pixels lie side by side.
    """
    (kh, kw), (sh, sw), channels = window.kernel, window.strides, kernel.shape[2]
    rows, columns = -(-window.size[0] // sh), -(-window.size[1] // sw)
    matrix = _fenced(kernel.reshape(-1, kernel.shape[3]), (1, 0))
    given = (dy.reshape(-1, dy.shape[3]) @ matrix).reshape(*dy.shape[:3], kh, kw, channels)
    zero = jnp.zeros((), dy.dtype)

    def phase(row: int, column: int) -> Array:
        total = jnp.zeros((dy.shape[0], rows, columns, channels), dy.dtype)
        for i in range((row + window.before[0]) % sh, kh, sh):
            for j in range((column + window.before[1]) % sw, kw, sw):
                down = (i - window.before[0] - row) // sh
                right = (j - window.before[1] - column) // sw
                places = [
                    (0, 0, 0),
                    (down, rows - window.steps[0] - down, 0),
                    (right, columns - window.steps[1] - right, 0),
                    (0, 0, 0),
                ]
                total += lax.pad(given[:, :, :, i, j], zero, places)
        return total

    phases = jnp.stack([jnp.stack([phase(i, j) for j in range(sw)], 3) for i in range(sh)], 2)
    image = phases.reshape(dy.shape[0], rows * sh, columns * sw, channels)
    return image[:, : window.size[0], : window.size[1]]


def _by_taps(x: Array, dy: Array, window: _Window) -> Array:
    """The gradient of a kernel as a matrix product for each of its taps."""
    (kh, kw), (sh, sw), (rows, columns) = window.kernel, window.strides, window.steps
    features = dy.shape[3]
    x = jnp.pad(x, ((0, 0), *window.padding, (0, 0)))
    turned = _fenced(dy.reshape(-1, features), (1, 0))
    taps = [
        turned
        @ lax.optimization_barrier(
            x[:, i : i + sh * (rows - 1) + 1 : sh, j : j + sw * (columns - 1) + 1 : sw]
        ).reshape(-1, x.shape[3])
        for i in range(kh)
        for j in range(kw)
    ]
    return jnp.stack(taps).transpose(0, 2, 1).reshape(kh, kw, x.shape[3], features)


def _same(size: tuple[int, int], kernel: tuple[int, ...], strides: tuple[int, int]) -> _Window:
    """The window of 'SAME' padding: it takes ceil(size / stride) steps."""

    def axis(i: int) -> tuple[int, int]:
        steps = -(-size[i] // strides[i])
        lacking = max((steps - 1) * strides[i] + kernel[i] - size[i], 0)
        return lacking // 2, steps

    (top, rows), (left, columns) = axis(0), axis(1)
    return _Window(size, (kernel[0], kernel[1]), strides, (top, left), (rows, columns))


def conv(
    x: Float[Array, "n h w c"],
    kernel: Float[Array, "kh kw c f"],
    strides: tuple[int, int] = (1, 1),
) -> Float[Array, "n oh ow f"]:
    """Convolution with 'SAME' padding: `oh = ceil(h / stride)`, equal to `lax`'s."""
    _, height, width, channels = x.shape
    if kernel.shape[:2] == (1, 1):
        x = x[:, :: strides[0], :: strides[1]]
        flat = x.reshape(-1, channels) @ kernel.reshape(channels, -1)
        return flat.reshape(*x.shape[:3], -1)
    return _convolve(x, kernel, _same((height, width), kernel.shape, strides))


def conv_transpose(
    x: Float[Array, "n h w c"],
    kernel: Float[Array, "kh kw c f"],
    strides: tuple[int, int] = (2, 2),
) -> Float[Array, "n oh ow f"]:
    """Transposed convolution with 'SAME' padding: `oh = h * stride`, equal to `lax`'s."""
    size = (x.shape[1] * strides[0], x.shape[2] * strides[1])
    turned = kernel[::-1, ::-1].transpose(0, 1, 3, 2)
    return _to_image(x, turned, _same(size, turned.shape, strides))
