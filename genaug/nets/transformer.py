"""A decoder-only transformer: pre-norm, rotary or learned positions, grouped-query attention.

One module computes whole rows (training, scoring, reading a prompt) and, given a cache of keys and
values, the next few tokens of each (generation).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Literal

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Bool, Float, Int

from genaug.nets import flash, layers
from genaug.nets.looped import looped

Activation = Literal["gelu", "swiglu"]
Norm = Literal["layer", "rms"]
Positions = Literal["learned", "rope"]
Dtype = Literal["bfloat16", "float32"]
Cache = list[tuple[Float[Array, "ng d s"], Float[Array, "ng s d"]]]
"""Keys and values of every layer, as `attend_heads` reads them: g heads of each of n rows.

One axis of both: of a single row XLA:CPU would drop the axis of rows, and copy what it writes.
"""

_LEAST_BLOCK = 64  # queries; smaller products take longer than what they leave out
_INIT = nn.initializers.normal(0.02)  # Radford et al. 2019, as published


@dataclass(frozen=True, kw_only=True)
class Layer:
    """Hyper-parameters of one layer."""

    num_heads: int
    num_kv_heads: int  # divides num_heads
    mlp_dim: int
    activation: Activation
    norm: Norm
    epsilon: float  # of the norms
    use_bias: bool
    dropout: float
    residual_scale: float  # of the initial weights of what a layer adds
    remat: bool  # compute activations again in the backward pass rather than keep them


def document_mask(segments: Int[Array, "n t"]) -> Bool[Array, "n 1 t t"]:
    """Which positions each may attend to: itself and those before it in its own document.

    A document's number is the absolute value of its segment.
    """
    document = jnp.abs(segments)
    same = jnp.expand_dims(document, 2) == jnp.expand_dims(document, 1)
    causal = jnp.tri(segments.shape[1], dtype=jnp.bool_)
    return jnp.expand_dims(same & jnp.expand_dims(causal, 0), 1)


def causal_mask(position: Int[Array, ""], count: int, length: int) -> Bool[Array, "1 1 t s"]:
    """Which of `length` positions each of `count` from `position` on may attend to."""
    rows = jnp.expand_dims(position + jnp.arange(count), 1)
    return jnp.expand_dims(jnp.expand_dims(jnp.arange(length), 0) <= rows, (0, 1))


def rotations(
    position: Int[Array, ""], count: int, head_dim: int, base: float
) -> tuple[Float[Array, "t d"], Float[Array, "t d"]]:
    """Cosines and signed sines of `count` positions' angles (Su et al. 2021, eq. 15).

    Frequency i is base^(-2i / head_dim); it turns the pair of features i and i + head_dim / 2.
    """
    frequency = base ** (-jnp.arange(0, head_dim, 2, dtype=jnp.float32) / head_dim)
    rows = (position + jnp.arange(count)).astype(jnp.float32)
    angle = jnp.expand_dims(rows, 1) * jnp.expand_dims(frequency, 0)
    cosine, sine = jnp.cos(angle), jnp.sin(angle)
    return jnp.concatenate([cosine, cosine], 1), jnp.concatenate([-sine, sine], 1)


def rotate(
    x: Float[Array, "n t h d"], by: tuple[Float[Array, "t d"], Float[Array, "t d"]]
) -> Float[Array, "n t h d"]:
    """Turn every pair of features by its position's angle (Su et al. 2021, eq. 34)."""
    cosine, sine = (jnp.expand_dims(part, (0, 2)) for part in by)
    swapped = jnp.concatenate(jnp.split(x, 2, axis=-1)[::-1], axis=-1)
    return (x * cosine + swapped * sine).astype(x.dtype)


def attend_heads(
    q: Float[Array, "*b r t d"],
    k: Float[Array, "*b d s"],
    v: Float[Array, "*b s d"],
    mask: Bool[Array, "*m t s"],
) -> Float[Array, "*b r t d"]:
    """`attend` of r heads to each of k and v, laid out as a CPU reads them without a copy.

    The mask may be any that broadcasts to the shares [*b, r, t, s].
    """
    *lead, heads, count, dim = q.shape
    rows = q.reshape(*lead, heads * count, dim) * dim**-0.5
    logits = jnp.matmul(rows, k, preferred_element_type=jnp.float32)
    logits = jnp.where(mask, logits.reshape(*lead, heads, count, -1), -jnp.inf)
    share = jnp.exp(logits - lax.stop_gradient(jnp.max(logits, axis=-1, keepdims=True)))
    y = jnp.matmul(share.reshape(*lead, heads * count, -1).astype(v.dtype), v)
    # Divided here rather than before: there are fewer features than positions.
    return y.reshape(q.shape) / jnp.sum(share, axis=-1, keepdims=True).astype(v.dtype)


def attend(
    q: Float[Array, "n t h d"],
    k: Float[Array, "n t g d"],
    v: Float[Array, "n t g d"],
    mask: Bool[Array, "m 1 t t"] | Int[Array, "n t"],
) -> Float[Array, "n t h d"]:
    """softmax(q k^T / sqrt(d)) v where `mask` allows it (Vaswani et al. 2017, eq. 1).

    h / g neighbouring heads of q share one of k and v (Ainslie et al. 2023). The mask must be
    causal: on CPU the keys after a block of queries are left out. Segments in its place stand for
    their `document_mask`, where `flash.applies`. Softmax in float32.
    """
    if mask.ndim == 2:
        return flash.attend(q, k, v, jnp.abs(mask))

    def on_cpu(q: Array, k: Array, v: Array, mask: Array) -> Array:
        n, count, heads, dim = q.shape
        q = q.transpose(0, 2, 1, 3).reshape(n, k.shape[2], -1, count, dim)
        k, v, mask = k.transpose(0, 2, 3, 1), v.transpose(0, 2, 1, 3), jnp.expand_dims(mask, 1)
        block = max(_LEAST_BLOCK, -(-count // 4))
        parts = []
        for first in range(0, count, block):
            stop = min(first + block, count)
            seen = mask[..., first:stop, :stop]
            parts.append(attend_heads(q[..., first:stop, :], k[..., :stop], v[..., :stop, :], seen))
        y = jnp.concatenate(parts, axis=3).reshape(n, heads, count, dim)
        return y.transpose(0, 2, 1, 3)

    def elsewhere(q: Array, k: Array, v: Array, mask: Array) -> Array:
        return jax.nn.dot_product_attention(q, k, v, mask=mask)

    return lax.platform_dependent(q, k, v, mask, cpu=on_cpu, default=elsewhere)


class Transformer(nn.Module):
    """Token ids to logits of the token that follows each.

    Parameters: "tokens" and, where learned, "positions" (embeddings), "layer_0", "layer_1", ...
    or, scanned, "layers" with a leading layer axis; "norm"; "head" unless tied to "tokens".
    """

    layer: Layer
    num_layers: int
    vocab_size: int
    context: int  # most positions
    embed_dim: int
    positions: Positions
    rope_base: float
    tie_embeddings: bool
    scan_layers: bool  # one compiled layer, looped: for accelerators and deep nets
    dtype: Dtype  # of the activations; parameters, norms' statistics and logits are float32

    @nn.compact
    def __call__(
        self,
        tokens: Int[Array, "n t"],
        mask: Bool[Array, "m 1 t s"] | Int[Array, "n t"],
        position: Int[Array, ""] | int = 0,
        cache: Cache | None = None,
        index: Int[Array, " n"] | None = None,
    ) -> tuple[Float[Array, "n t v"], Cache | None]:
        """Logits, and the cache with these tokens' keys and values in it.

        The tokens stand at `position` and after; `mask` says which of a row's s positions each
        attends to; without a cache s = t, segments may stand for their `document_mask`, and None is
        returned. `index`, the rows' addresses, is for dropout in training. A cache needs
        layers that are not scanned.
        """
        position, count = jnp.asarray(position), tokens.shape[1]
        queries = (*tokens.shape, self.layer.num_heads)
        if mask.ndim == 2 and not flash.applies(queries, self.layer.num_kv_heads):
            mask = document_mask(mask)
        embed = nn.Embed(self.vocab_size, self.embed_dim, embedding_init=_INIT, name="tokens")
        x = embed(tokens)
        rotation = None
        if self.positions == "learned":
            table = nn.Embed(self.context, self.embed_dim, embedding_init=_INIT, name="positions")
            rows = lax.dynamic_slice_in_dim(table.embedding, position, count)
            x = x + jnp.expand_dims(rows, 0)
        else:
            head_dim = self.embed_dim // self.layer.num_heads
            rotation = rotations(position, count, head_dim, self.rope_base)
        x = layers.Dropout(self.layer.dropout)(x.astype(self.dtype), index)
        if cache is not None:
            written: Cache = []
            for i, one in enumerate(cache):
                block = _Block(self.layer, name=f"layer_{i}")
                x, new = block(x, mask, rotation, index, position, one)
                written.append(new)
            cache = written
        elif self.scan_layers:
            stack = looped(_Block, "layers", self.num_layers, self.layer.remat)
            x, _ = stack(self.layer)(x, mask, rotation, index)
        else:
            one_layer = nn.remat(_Block) if self.layer.remat else _Block
            for i in range(self.num_layers):
                x, _ = one_layer(self.layer, name=f"layer_{i}")(x, mask, rotation, index)
        x = _norm(self.layer, "norm", x)
        if self.tie_embeddings:
            kernel = embed.embedding.T
        else:
            kernel = self.param("head", _INIT, (self.embed_dim, self.vocab_size))
        flat = x.reshape(-1, self.embed_dim)  # for TPUs too: XLA would keep such logits twice
        logits = jnp.matmul(flat, kernel.astype(x.dtype), preferred_element_type=jnp.float32)
        return logits.reshape(*tokens.shape, self.vocab_size), cache

    def empty_cache(self, tokens: Int[Array, "n t"]) -> Cache:
        """A cache for as many rows as `tokens` has, of `context` tokens each."""
        dim = self.embed_dim // self.layer.num_heads
        heads = tokens.shape[0] * self.layer.num_kv_heads
        k = jnp.zeros((heads, dim, self.context), self.dtype)
        v = jnp.zeros((heads, self.context, dim), self.dtype)
        return [(k, v)] * self.num_layers


def unrolled(params: dict[str, Any], num_layers: int) -> dict[str, Any]:
    """A scanned net's parameters as those of the same net with its layers unrolled."""
    if "layers" not in params:
        return params
    one = {
        f"layer_{i}": jax.tree.map(lambda leaf, i=i: leaf[i], params["layers"])
        for i in range(num_layers)
    }
    return {**{name: value for name, value in params.items() if name != "layers"}, **one}


class _Block(nn.Module):
    """Attention, then a perceptron, each of the normalised and added to what came in."""

    layer: Layer

    @nn.compact
    def __call__(
        self,
        x: Array,
        mask: Array,
        rotation: tuple[Array, Array] | None,
        index: Array | None,
        position: Array | int = 0,
        cache: tuple[Array, Array] | None = None,
    ) -> tuple[Array, Any]:
        layer, (n, count, dim) = self.layer, x.shape
        heads, groups = layer.num_heads, layer.num_kv_heads
        residual_init = nn.initializers.normal(0.02 * layer.residual_scale)

        def dense(features: int, name: str, init: layers.Initializer = _INIT) -> nn.Module:
            return layers.Dense(features, layer.use_bias, init, name=name)

        def dropped(h: Array) -> Array:
            return layers.Dropout(layer.dropout)(h, index)

        h = _norm(layer, "attention_norm", x)
        # Of each group its queries, its key, its value: a device's share of the columns is whole
        # groups, and nothing of them moves to another.
        qkv = dense((heads + 2 * groups) * (dim // heads), "qkv")(h)
        qkv = qkv.reshape(n, count, groups, heads // groups + 2, dim // heads)
        q = qkv[:, :, :, :-2].reshape(n, count, heads, dim // heads)
        k, v = qkv[:, :, :, -2], qkv[:, :, :, -1]
        if rotation is not None:
            q, k = rotate(q, rotation), rotate(k, rotation)
        if cache is None:
            y = attend(q, k, v, mask)
        else:
            q, k, v = q.transpose(0, 2, 1, 3), k.transpose(0, 2, 3, 1), v.transpose(0, 2, 1, 3)
            k, v = (h.reshape(n * groups, *h.shape[2:]) for h in (k, v))
            cache = (
                lax.dynamic_update_slice_in_dim(cache[0], k, position, axis=2),
                lax.dynamic_update_slice_in_dim(cache[1], v, position, axis=1),
            )
            q = q.reshape(n * groups, -1, *q.shape[2:])
            own = jnp.broadcast_to(mask, (n, groups, *mask.shape[2:]))
            y = attend_heads(q, *cache, own.reshape(n * groups, 1, *mask.shape[2:]))
            y = y.reshape(n, heads, count, -1).transpose(0, 2, 1, 3)
        x = x + dropped(dense(dim, "out", residual_init)(y.reshape(x.shape)))
        h = _norm(layer, "mlp_norm", x)
        if layer.activation == "swiglu":
            gate = dense(layer.mlp_dim, "mlp_gate")(h)
            h = nn.silu(gate) * dense(layer.mlp_dim, "mlp_in")(h)  # Shazeer 2020, eq. 6
        else:
            h = nn.gelu(dense(layer.mlp_dim, "mlp_in")(h))  # its tanh form, as GPT-2's
        return x + dropped(dense(dim, "mlp_out", residual_init)(h)), cache


def _norm(layer: Layer, name: str, x: Array) -> Array:
    """Layer norm (Ba et al. 2016) or RMS norm (Zhang & Sennrich 2019) in the dtype of x.

    Statistics are float32 all the same.
    """
    if layer.norm == "rms":
        return nn.RMSNorm(layer.epsilon, dtype=x.dtype, name=name)(x)
    norm = nn.LayerNorm(
        layer.epsilon, x.dtype, use_bias=layer.use_bias, use_fast_variance=False, name=name
    )
    return norm(x)


def residual_scale(num_layers: int) -> float:
    """1 / sqrt(2 L): a layer adds twice to the stream (Radford et al. 2019, section 2.3)."""
    return 1.0 / math.sqrt(2 * num_layers)
