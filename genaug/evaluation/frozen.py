"""Layers of a trained network that is only read: float32 proper on every device, no gradients.

Batch norms are folded into their convolutions when weights are read.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Float32

from genaug.types import DataError

Padding = Literal["SAME", "VALID"]


class Conv(nn.Module):
    """`flax.linen.Conv` with a bias, at the highest precision that the device has."""

    features: int
    kernel: tuple[int, int] = (1, 1)
    stride: int = 1
    padding: Padding = "SAME"

    @nn.compact
    def __call__(self, x: Float32[Array, "n h w c"]) -> Float32[Array, "n oh ow f"]:
        """Convolve a batch of images."""
        shape = (*self.kernel, x.shape[-1], self.features)
        kernel, bias = _parameters(self, shape)
        if self.kernel == (1, 1) and self.stride == 1:
            # The same product; XLA's CPU backend takes two thirds of the time for it in this form.
            y = jnp.matmul(x.reshape(-1, shape[2]), kernel[0, 0], precision="highest")
            return y.reshape(*x.shape[:3], self.features) + bias
        strides, layout = (self.stride, self.stride), ("NHWC", "HWIO", "NHWC")
        y = lax.conv_general_dilated(
            x, kernel, strides, self.padding, dimension_numbers=layout, precision="highest"
        )
        return y + bias


class Depthwise(nn.Module):
    """A convolution of each channel by itself, with a bias and 'SAME' padding.

    As a sum of shifted images, one for each number of the kernel: XLA's CPU backend takes 6 to 37
    times as long for a grouped convolution.
    """

    kernel: int
    stride: int = 1

    @nn.compact
    def __call__(self, x: Float32[Array, "n h w c"]) -> Float32[Array, "n oh ow c"]:
        """Convolve a batch of images."""
        n, height, width, channels = x.shape
        kernel, bias = _parameters(self, (self.kernel, self.kernel, 1, channels))
        strides = (self.stride, self.stride)
        padding = lax.padtype_to_pads((height, width), (self.kernel, self.kernel), strides, "SAME")
        # A barrier, or every read below would ask whether it falls into the padding.
        x = lax.optimization_barrier(jnp.pad(x, ((0, 0), *padding, (0, 0))))
        out = [-(-size // self.stride) for size in (height, width)]
        reach = [(size - 1) * self.stride + 1 for size in out]

        def shifted(i: int, j: int) -> Array:
            end = (n, i + reach[0], j + reach[1], channels)
            return lax.slice(x, (0, i, j, 0), end, (1, *strides, 1))

        y = jnp.zeros((n, *out, channels))
        for i, j in np.ndindex(self.kernel, self.kernel):
            y = y + shifted(i, j) * jnp.expand_dims(kernel[i, j], (0, 1))
        return y + bias


def _parameters(module: nn.Module, shape: tuple[int, ...]) -> tuple[Array, Array]:
    kernel = module.param("kernel", nn.initializers.lecun_normal(), shape)
    bias = module.param("bias", nn.initializers.zeros_init(), shape[-1:])
    return kernel, jnp.expand_dims(bias, (0, 1, 2))


def folded(
    arrays: Mapping[str, np.ndarray], conv: str, norm: str, epsilon: float
) -> dict[str, np.ndarray]:
    """A convolution and the batch norm after it as one convolution with a bias, in Flax's layout.

    gain * (w * x - mean) / sqrt(variance + epsilon) + bias (Ioffe & Szegedy 2015, alg. 2): its
    factor of each output channel goes into the kernel. Computed in float64, rounded once.

    Args:
        arrays: of a state dict.
        conv: name of the convolution, whose weight is [out, in, height, width].
        norm: name of its batch norm.
        epsilon: of the batch norm.

    Returns:
        `kernel` float32 [height, width, in, out] and `bias` float32 [out].
    """
    kernel = arrays[f"{conv}.weight"].astype(np.float64).transpose(2, 3, 1, 0)
    gain, bias, mean, variance = (
        arrays[f"{norm}.{name}"].astype(np.float64)
        for name in ("weight", "bias", "running_mean", "running_var")
    )
    scale = gain / np.sqrt(variance + epsilon)
    folded = {"kernel": kernel * scale, "bias": bias - mean * scale}
    return {name: value.astype(np.float32) for name, value in folded.items()}


def require_sound(params: Mapping[str, Any], shapes: Mapping[str, Any], network: str) -> None:
    """Raise `DataError` unless parameters have their network's shapes and are finite.

    Not left to the features: XLA's CPU backend may make zeros of NaN in a ReLU.
    """
    wanted = jax.tree_util.tree_leaves_with_path(shapes)
    for (path, shape), array in zip(wanted, jax.tree.leaves(params), strict=True):
        name = jax.tree_util.keystr(path, simple=True, separator=".")
        if shape.shape != array.shape:
            raise DataError(f"no {network}: {name} is {array.shape}, not {shape.shape}")
        if not np.isfinite(array).all():
            raise DataError(f"damaged weights of {network}: {name} is NaN or infinite")
