"""Encoders and decoders between images and latent vectors, with an optional condition.

Images enter as float32 in [-1, 1]; a decoder returns `outputs_per_value` raw outputs for every
value of the image, which a likelihood (`nets/likelihoods.py`) interprets.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Float

from genaug.nets import layers

Shape = tuple[int, int, int]
Condition = Float[Array, "n k"]


@dataclass(frozen=True, kw_only=True)
class MLP:
    """Fully connected nets: fast, and enough for small images."""

    hidden: tuple[int, ...] = (400, 200)  # units of the encoder's layers; the decoder mirrors them

    def encoder(self, latent_dim: int) -> nn.Module:
        """The net of q(z | x)."""
        return MLPEncoder(self.hidden, latent_dim)

    def decoder(self, shape: Shape, outputs_per_value: int) -> nn.Module:
        """The net of p(x | z)."""
        return MLPDecoder(self.hidden[::-1], shape, outputs_per_value)


@dataclass(frozen=True, kw_only=True)
class ConvNet:
    """Convolutional nets; every level halves the image."""

    features: tuple[int, ...] = (32, 64)  # channels of the encoder's levels; the decoder mirrors
    hidden: int = 128  # units of the dense layer beside the latent vector

    def encoder(self, latent_dim: int) -> nn.Module:
        """The net of q(z | x)."""
        return ConvEncoder(self.features, self.hidden, latent_dim)

    def decoder(self, shape: Shape, outputs_per_value: int) -> nn.Module:
        """The net of p(x | z)."""
        return ConvDecoder(self.features[::-1], self.hidden, shape, outputs_per_value)


def _join(x: Float[Array, "n d"], condition: Condition | None) -> Float[Array, "n e"]:
    return x if condition is None else jnp.concatenate([x, condition], axis=-1)


class _Gaussian(nn.Module):
    """Mean and log-variance heads."""

    latent_dim: int

    @nn.compact
    def __call__(self, h: Array) -> tuple[Array, Array]:
        mean = nn.Dense(self.latent_dim, name="mean")(h)
        logvar = nn.Dense(self.latent_dim, name="logvar")(h)
        return mean, logvar


class MLPEncoder(nn.Module):
    """Images (and a condition) to the mean and log-variance of q(z | x)."""

    hidden: tuple[int, ...]
    latent_dim: int

    @nn.compact
    def __call__(
        self, x: Float[Array, "n h w c"], condition: Condition | None = None
    ) -> tuple[Float[Array, "n z"], Float[Array, "n z"]]:
        """Encode."""
        h = _join(x.reshape(x.shape[0], -1), condition)
        for units in self.hidden:
            h = nn.silu(nn.Dense(units)(h))
        return _Gaussian(self.latent_dim, name="posterior")(h)


class MLPDecoder(nn.Module):
    """Latent vectors (and a condition) to the raw outputs of a likelihood."""

    hidden: tuple[int, ...]
    shape: Shape
    outputs_per_value: int

    @nn.compact
    def __call__(
        self, z: Float[Array, "n z"], condition: Condition | None = None
    ) -> Float[Array, "n h w c m"]:
        """Decode."""
        h = z
        for units in self.hidden:  # said at every layer, a label is not lost among latents
            h = nn.silu(nn.Dense(units)(_join(h, condition)))
        h = nn.Dense(math.prod(self.shape) * self.outputs_per_value)(h)
        return h.reshape(-1, *self.shape, self.outputs_per_value)


class ConvEncoder(nn.Module):
    """Images (and a condition, as constant planes) to the mean and log-variance of q(z | x)."""

    features: tuple[int, ...]
    hidden: int
    latent_dim: int

    @nn.compact
    def __call__(
        self, x: Float[Array, "n h w c"], condition: Condition | None = None
    ) -> tuple[Float[Array, "n z"], Float[Array, "n z"]]:
        """Encode."""
        if condition is not None:
            planes = jnp.expand_dims(condition, (1, 2))
            planes = jnp.broadcast_to(planes, (*x.shape[:3], condition.shape[-1]))
            x = jnp.concatenate([x, planes], axis=-1)
        for features in self.features:
            x = nn.silu(layers.Conv(features, (3, 3), (2, 2))(x))
        h = nn.silu(nn.Dense(self.hidden)(_join(x.reshape(x.shape[0], -1), condition)))
        return _Gaussian(self.latent_dim, name="posterior")(h)


class ConvDecoder(nn.Module):
    """Latent vectors (and a condition) to the raw outputs of a likelihood."""

    features: tuple[int, ...]
    hidden: int
    shape: Shape
    outputs_per_value: int

    @nn.compact
    def __call__(
        self, z: Float[Array, "n z"], condition: Condition | None = None
    ) -> Float[Array, "n h w c m"]:
        """Decode. Sizes that are no power-of-two multiple are cropped from the next one."""
        height, width, channels = self.shape
        scale = 2 ** len(self.features)
        small = (-(-height // scale), -(-width // scale), self.features[0])
        h = nn.silu(nn.Dense(self.hidden)(_join(z, condition)))
        h = nn.silu(nn.Dense(math.prod(small))(_join(h, condition)))
        x = h.reshape(-1, *small)
        for features in (*self.features[1:], self.features[-1]):
            x = nn.silu(layers.ConvTranspose(features, (4, 4), (2, 2))(x))
        x = layers.Conv(channels * self.outputs_per_value, (3, 3))(x[:, :height, :width])
        return x.reshape(*x.shape[:3], channels, self.outputs_per_value)
