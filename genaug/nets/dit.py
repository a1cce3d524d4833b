"""The diffusion transformer (Peebles & Xie 2023): patches as tokens, adaLN-Zero blocks."""

from __future__ import annotations

from dataclasses import dataclass

import flax.linen as nn
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float, Int

from genaug.nets import layers
from genaug.nets.attention import SelfAttention
from genaug.nets.looped import looped
from genaug.nets.unet import check_dropout, check_heads
from genaug.types import UserError

Shape = tuple[int, int, int]
_ZEROS = nn.initializers.zeros_init()
_LEVEL_DIM = 256  # sinusoids of the noise level, as published


@dataclass(frozen=True, kw_only=True)
class DiT:
    """Hyper-parameters of a diffusion transformer."""

    patch_size: int = 2  # pixels of a token's side
    embed_dim: int = 128
    depth: int = 4  # blocks
    num_heads: int = 4
    mlp_ratio: float = 4.0  # hidden units of a block's perceptron, per channel
    dropout: float = 0.0  # of what a block adds
    scan_blocks: bool = False  # one compiled block, looped: for accelerators and deep nets
    remat: bool = False  # a block's activations are computed twice rather than kept

    def net(
        self, shape: Shape, num_classes: int, augment_dim: int, outputs_per_value: int
    ) -> nn.Module:
        """The net for images of `shape` [h, w, c]. UserError where it does not fit them."""
        self._check(shape)
        return DiTModule(self, num_classes, augment_dim, shape[2] * outputs_per_value)

    def _check(self, shape: Shape) -> None:
        sizes = self.patch_size, self.embed_dim, self.depth, int(self.mlp_ratio * self.embed_dim)
        if min(sizes) < 1:
            raise UserError(
                f"model.net has patch-size {self.patch_size}, embed-dim {self.embed_dim}, depth "
                f"{self.depth} and mlp-ratio {self.mlp_ratio}; each must be positive."
            )
        check_dropout(self.dropout)
        for side in shape[:2]:
            if side % self.patch_size:
                fits = max(p for p in range(1, self.patch_size) if side % p == 0)
                raise UserError(
                    f"model.net.patch-size is {self.patch_size}, which does not divide an image "
                    f"side of {side}: use {fits}, or --data.image-size "
                    f"{-(-side // self.patch_size) * self.patch_size}."
                )
        if self.embed_dim % 4:
            raise UserError(
                f"model.net.embed-dim is {self.embed_dim}; it must be a multiple of 4, for a sine "
                f"and a cosine of a token's row and column."
            )
        check_heads(self.num_heads, self.embed_dim, "model.net.embed-dim gives")


def positions(height: int, width: int, dim: int) -> Float[Array, "t {dim}"]:
    """Sinusoids of the tokens' columns, then of their rows, in raster order (Peebles & Xie 2023).

    float32 [height * width, dim]; `dim` is a multiple of 4.
    """
    row, column = jnp.divmod(jnp.arange(height * width, dtype=jnp.float32), width)
    halves = [layers.sinusoidal(place, dim // 2) for place in (column, row)]
    return jnp.concatenate(halves, axis=1)


class DiTModule(nn.Module):
    """Noisy images and their noise level to `outputs` channels per pixel, zero at first.

    The blocks' parameters are "block_0", "block_1", ... or, scanned, "blocks" with a leading axis.
    """

    config: DiT
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
        config = self.config
        dim, patch = config.embed_dim, config.patch_size
        rows, columns = x.shape[1] // patch, x.shape[2] // patch
        condition = nn.silu(
            layers.Conditioning(
                dim, _LEVEL_DIM, self.num_classes, self.augment_dim, name="condition"
            )(level, label, augment)
        ).astype(x.dtype)
        place = positions(rows, columns, dim).astype(x.dtype)
        tokens = layers.space_to_depth(x, (patch, patch)).reshape(x.shape[0], rows * columns, -1)
        h = layers.Dense(dim, name="in")(tokens) + jnp.expand_dims(place, 0)
        if config.scan_blocks:
            stack = looped(_Block, "blocks", config.depth, config.remat)
            h, _ = stack(config)(h, condition, index)
        else:
            block = nn.remat(_Block) if config.remat else _Block
            for i in range(config.depth):
                h, _ = block(config, name=f"block_{i}")(h, condition, index)
        shift, scale = _modulations(condition, dim, 2)
        h = _layer_norm(h) * (1.0 + scale) + shift
        h = layers.Dense(patch * patch * self.outputs, kernel_init=_ZEROS, name="out")(h)
        return layers.depth_to_space(h.reshape(x.shape[0], rows, columns, -1), (patch, patch))


class _Block(nn.Module):
    """Attention, then a perceptron, each normalised, modulated and gated by the condition."""

    config: DiT

    @nn.compact
    def __call__(self, x: Array, condition: Array, index: Array | None) -> tuple[Array, None]:
        config, dim = self.config, x.shape[-1]
        shift_a, scale_a, gate_a, shift_m, scale_m, gate_m = _modulations(condition, dim, 6)

        def added(h: Array, gate: Array) -> Array:
            return gate * layers.Dropout(config.dropout)(h, index)

        h = _layer_norm(x) * (1.0 + scale_a) + shift_a
        x = x + added(SelfAttention(config.num_heads, name="attention")(h), gate_a)
        h = _layer_norm(x) * (1.0 + scale_m) + shift_m
        h = nn.gelu(layers.Dense(int(config.mlp_ratio * dim), name="mlp_in")(h))
        return x + added(layers.Dense(dim, name="mlp_out")(h), gate_m), None


def _modulations(condition: Array, dim: int, count: int) -> list[Array]:
    """`count` vectors [n, 1, dim] of the condition, zero at first (adaLN-Zero, section 3.2)."""
    modulation = layers.Dense(count * dim, kernel_init=_ZEROS, name="modulation")(condition)
    return jnp.split(jnp.expand_dims(modulation, 1), count, axis=-1)


def _layer_norm(x: Array) -> Array:
    """Every token to mean 0 and variance 1, in float32; the condition brings scale and shift."""
    centred = x.astype(jnp.float32)
    centred = centred - jnp.mean(centred, axis=-1, keepdims=True)
    variance = jnp.mean(centred**2, axis=-1, keepdims=True)
    return (centred * lax.rsqrt(variance + 1e-6)).astype(x.dtype)
