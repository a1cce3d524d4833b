"""Attention between the tokens of an example, in the form that is fast on the platform at hand."""

from __future__ import annotations

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float

from genaug.nets import flash, layers


def attention(
    q: Float[Array, "n t heads d"], k: Float[Array, "n s heads d"], v: Float[Array, "n s heads d"]
) -> Float[Array, "n t heads d"]:
    """softmax(q k^T / sqrt(d)) v, every head by itself (Vaswani et al. 2017, eq. 1).

    `jax.nn.dot_product_attention`, but on CPU over contiguous heads, and of long rows on TPUs the
    kernel of `flash`. Softmax in float32.
    """
    if q.shape[1] == k.shape[1] and flash.applies(q.shape, k.shape[2]):
        return flash.attend(q, k, v)

    def on_cpu(q: Array, k: Array, v: Array) -> Array:
        q, k, v = (x.transpose(0, 2, 1, 3) for x in (q, k, v))
        logits = jnp.einsum("nhtd,nhsd->nhts", q, k, preferred_element_type=jnp.float32)
        share = jax.nn.softmax(logits * q.shape[-1] ** -0.5).astype(v.dtype)
        return jnp.einsum("nhts,nhsd->nhtd", share, v).transpose(0, 2, 1, 3)

    return lax.platform_dependent(q, k, v, cpu=on_cpu, default=jax.nn.dot_product_attention)


class SelfAttention(nn.Module):
    """Multi-head self-attention (Vaswani et al. 2017, section 3.2.2); `num_heads` divides d.

    Parameters: "qkv" (d to 3d: all queries, all keys, all values) and "out" (d to d).
    """

    num_heads: int
    out_init: layers.Initializer = nn.initializers.lecun_normal()

    @nn.compact
    def __call__(self, x: Float[Array, "n t d"]) -> Float[Array, "n t d"]:
        """Let every token read every token of its example."""
        qkv = layers.Dense(3 * x.shape[-1], name="qkv")(x)
        heads = qkv.reshape(*x.shape[:2], 3, self.num_heads, -1)
        y = attention(heads[:, :, 0], heads[:, :, 1], heads[:, :, 2])
        return layers.Dense(x.shape[-1], kernel_init=self.out_init, name="out")(y.reshape(x.shape))
