"""The U-Net of diffusion models (Ho et al. 2020, app. B), with the scale-shift residual blocks of
Nichol & Dhariwal 2021, section 3.1.

Down: `num_blocks` residual blocks per resolution, then a strided convolution halves the image. Up:
one block more per resolution, each beside the matching output on the way down, then nearest
neighbours and a convolution double it. Self-attention in the middle and at chosen resolutions.
With patches the net works on squares of pixels as channels (as in Hoogeboom et al. 2023), which
leaves out the resolutions with the most pixels.
"""

from __future__ import annotations

from dataclasses import dataclass

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from genaug.nets import layers
from genaug.nets.attention import SelfAttention
from genaug.types import UserError

Shape = tuple[int, int, int]
_ZEROS = nn.initializers.zeros_init()


@dataclass(frozen=True, kw_only=True)
class UNet:
    """Hyper-parameters of a U-Net."""

    patch_size: int = 1  # side of the squares of pixels that the finest resolution consists of
    features: tuple[int, ...] = (32, 64, 64)  # channels per resolution, finest first
    num_blocks: int = 2  # residual blocks per resolution
    attention: tuple[int, ...] = (7,)  # resolutions (longer side, squares) with self-attention
    num_heads: int = 1  # of the self-attention
    groups: int = 8  # of group norm, at most: the largest number that divides the channels
    dropout: float = 0.0

    def net(
        self, shape: Shape, num_classes: int, augment_dim: int, outputs_per_value: int
    ) -> nn.Module:
        """The net for images of `shape` [h, w, c]. UserError where it does not fit them."""
        self._check(shape)
        return UNetModule(self, num_classes, augment_dim, shape[2] * outputs_per_value)

    def _check(self, shape: Shape) -> None:
        least = min(self.patch_size, *self.features, self.num_blocks, self.groups)
        if not self.features or least < 1:
            raise UserError(
                f"model.net has patch-size {self.patch_size}, features {self.features}, num-blocks "
                f"{self.num_blocks} and groups {self.groups}; give at least one resolution, and 1 "
                "or more of each."
            )
        check_dropout(self.dropout)
        for side in shape[:2]:
            _check_side(side, self.patch_size, len(self.features))
        longer = max(shape[:2]) // self.patch_size
        sides = [longer // 2**i for i in range(len(self.features))]
        if missing := [side for side in self.attention if side not in sides]:
            raise UserError(
                f"model.net.attention names {missing[0]}, but the U-Net of {shape[0]}x{shape[1]} "
                f"images has the resolutions {', '.join(map(str, sides))}: choose among them."
            )
        attended = [f for f, s in zip(self.features, sides, strict=True) if s in self.attention]
        for channels in (*attended, self.features[-1]):
            check_heads(self.num_heads, channels, "model.net.features has")


def _check_side(side: int, patch_size: int, num_resolutions: int) -> None:
    unit = patch_size * 2 ** (num_resolutions - 1)
    larger = -(-side // unit) * unit
    if side == larger:
        return
    if patch_size > 1:
        raise UserError(
            f"An image side of {side} is no multiple of {unit}, --model.net.patch-size "
            f"{patch_size} halved {num_resolutions - 1} times: use fewer entries in "
            f"--model.net.features, another patch, or --data.image-size {larger}."
        )
    fits = max(i for i in range(num_resolutions - 1) if side % 2**i == 0)
    raise UserError(
        f"An image side of {side} is divisible by {2**fits} but not {2 ** (fits + 1)}: use at most "
        f"{fits + 1} entries in --model.net.features, or --data.image-size {larger}."
    )


def check_dropout(rate: float) -> None:
    """Refuse a dropout that leaves nothing."""
    if not 0.0 <= rate < 1.0:
        raise UserError(f"model.net.dropout is {rate}; it must be from 0 to below 1.")


def check_heads(num_heads: int, channels: int, where: str) -> None:
    """Refuse heads that do not share `channels` evenly."""
    if num_heads < 1 or channels % num_heads:
        raise UserError(
            f"model.net.num-heads is {num_heads}, which does not divide the {channels} channels "
            f"that {where}: change one of them."
        )


class UNetModule(nn.Module):
    """Noisy images and their noise level to `outputs` channels per pixel, zero at first."""

    config: UNet
    num_classes: int
    augment_dim: int
    outputs: int

    @nn.compact
    def __call__(
        self,
        x: Float[Array, "n h w c"],
        level: Float[Array, " n"],
        label: Int[Array, " n"] | None = None,
        augment: Float[Array, "n a"] | None = None,
        index: Int[Array, " n"] | None = None,
    ) -> Float[Array, "n h w o"]:
        """Denoise, in the dtype of x. `index`, the rows' addresses, is for dropout in training."""
        config, patch = self.config, (self.config.patch_size, self.config.patch_size)
        width = config.features[0]
        condition = nn.silu(
            layers.Conditioning(
                4 * width, width, self.num_classes, self.augment_dim, name="condition"
            )(level, label, augment)
        ).astype(x.dtype)

        def block(name: str, h: Array, features: int) -> Array:
            block = _Residual(features, config.groups, config.dropout, name=name)
            return block(h, condition, index)

        def attend(name: str, h: Array) -> Array:
            return _Attention(config.num_heads, config.groups, name=f"{name}_attention")(h)

        h = layers.Conv(width, name="in")(layers.space_to_depth(x, patch))
        skips = [h]
        for i, features in enumerate(config.features):
            if i:
                h = layers.Conv(config.features[i - 1], (3, 3), (2, 2), name=f"down{i}")(h)
                skips.append(h)
            for j in range(config.num_blocks):
                h = block(f"down{i}_{j}", h, features)
                if max(h.shape[1:3]) in config.attention:
                    h = attend(f"down{i}_{j}", h)
                skips.append(h)
        h = block("middle_0", h, config.features[-1])
        h = block("middle_1", attend("middle_0", h), config.features[-1])
        for i, features in reversed(list(enumerate(config.features))):
            for j in range(config.num_blocks + 1):
                h = block(f"up{i}_{j}", jnp.concatenate([h, skips.pop()], axis=-1), features)
                if max(h.shape[1:3]) in config.attention:
                    h = attend(f"up{i}_{j}", h)
            if i:
                h = _Upsample(features, name=f"up{i}")(h)
        h = nn.silu(_group_norm(width, config.groups, "out_norm")(h))
        channels = self.outputs * config.patch_size**2
        h = layers.Conv(channels, kernel_init=_ZEROS, name="out")(h)
        return layers.depth_to_space(h, patch)


def _group_norm(channels: int, groups: int, name: str) -> nn.Module:
    num_groups = max(g for g in range(1, groups + 1) if channels % g == 0)
    return layers.GroupNorm(num_groups, name=name)


class _Residual(nn.Module):
    """Norm, SiLU, convolution, twice; the condition scales and shifts after the second norm."""

    features: int
    groups: int
    dropout: float

    @nn.compact
    def __call__(self, x: Array, condition: Array, index: Array | None) -> Array:
        h = nn.silu(_group_norm(x.shape[-1], self.groups, "norm_0")(x))
        h = layers.Conv(self.features, name="conv_0")(h)
        film = layers.Dense(2 * self.features, name="condition")(condition)
        scale, shift = jnp.split(jnp.expand_dims(film, (1, 2)), 2, axis=-1)
        h = nn.silu(_group_norm(self.features, self.groups, "norm_1")(h) * (1.0 + scale) + shift)
        h = layers.Dropout(self.dropout)(h, index)
        h = layers.Conv(self.features, kernel_init=_ZEROS, name="conv_1")(h)
        if x.shape[-1] != self.features:
            x = layers.Conv(self.features, (1, 1), name="skip")(x)
        return x + h


class _Attention(nn.Module):
    """Self-attention between the pixels of the normalised image, added to it."""

    num_heads: int
    groups: int

    @nn.compact
    def __call__(self, x: Array) -> Array:
        n, height, width, channels = x.shape
        h = _group_norm(channels, self.groups, "norm")(x).reshape(n, height * width, channels)
        h = SelfAttention(self.num_heads, out_init=_ZEROS, name="attention")(h)
        return x + h.reshape(x.shape)


class _Upsample(nn.Module):
    """Nearest neighbours to twice the side, then a 3x3 convolution; in one transposed convolution.

    Each output pixel's three taps on an axis meet only two input pixels. The four taps of a
    transposed convolution hold the sums: [a, a + b, b + c, c]. 4/9 of the multiplications.
    """

    features: int

    @nn.compact
    def __call__(self, x: Array) -> Array:
        init = nn.initializers.lecun_normal()
        kernel = self.param("kernel", init, (3, 3, x.shape[-1], self.features))
        bias = self.param("bias", nn.initializers.zeros_init(), (self.features,))
        for axis in range(2):
            before, after = [[(0, 0)] * 4 for _ in range(2)]
            before[axis], after[axis] = (1, 0), (0, 1)
            kernel = jnp.pad(kernel, before) + jnp.pad(kernel, after)
        y = layers.conv_transpose(x, kernel.astype(x.dtype))
        return y + jnp.expand_dims(bias.astype(x.dtype), (0, 1, 2))
