"""The same models in plain Flax layers: what genaug's own layers are raced against."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any
from unittest import mock

import flax.linen as nn
import jax
import jax.numpy as jnp

from genaug.nets import attention, transformer, unet

_LECUN = nn.initializers.lecun_normal()
_LAYERS = "genaug.nets.layers"


def _conv(
    features: int,
    kernel_size: Sequence[int] = (3, 3),
    strides: Sequence[int] = (1, 1),
    use_bias: bool = True,
    kernel_init: Any = _LECUN,
    name: str | None = None,
) -> nn.Conv:
    return nn.Conv(features, kernel_size, strides, use_bias=use_bias, kernel_init=kernel_init,
                   name=name)  # fmt: skip


def _conv_transpose(
    features: int,
    kernel_size: Sequence[int] = (4, 4),
    strides: Sequence[int] = (2, 2),
    use_bias: bool = True,
    kernel_init: Any = _LECUN,
    name: str | None = None,
) -> nn.ConvTranspose:
    return nn.ConvTranspose(features, kernel_size, strides, use_bias=use_bias,
                            kernel_init=kernel_init, name=name)  # fmt: skip


def _dense(
    features: int, use_bias: bool = True, kernel_init: Any = _LECUN, name: str | None = None
) -> nn.Dense:
    return nn.Dense(features, use_bias, kernel_init=kernel_init, name=name)


def _group_norm(num_groups: int, epsilon: float = 1e-6, name: str | None = None) -> nn.GroupNorm:
    return nn.GroupNorm(num_groups, epsilon=epsilon, name=name)


class _Upsample(nn.Module):
    """Nearest neighbours, then a convolution, as it is usually written; `unet`'s parameters."""

    features: int

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Double the sides."""
        kernel = self.param("kernel", _LECUN, (3, 3, x.shape[-1], self.features))
        bias = self.param("bias", nn.initializers.zeros_init(), (self.features,))
        x = jnp.repeat(jnp.repeat(x, 2, axis=1), 2, axis=2)
        y = jax.lax.conv_general_dilated(
            x, kernel, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")
        )
        return y + bias


def _attend(q: jax.Array, k: jax.Array, v: jax.Array, mask: jax.Array) -> jax.Array:
    if mask.ndim == 2:
        mask = transformer.document_mask(mask)
    return nn.dot_product_attention(q, k, v, mask=mask)


@contextlib.contextmanager
def layers() -> Iterator[None]:
    """While a model is traced here, its layers are Flax's."""
    with contextlib.ExitStack() as stack:
        for target, plain in (
            (f"{_LAYERS}.Conv", _conv),
            (f"{_LAYERS}.ConvTranspose", _conv_transpose),
            (f"{_LAYERS}.Dense", _dense),
            (f"{_LAYERS}.GroupNorm", _group_norm),
            (f"{unet.__name__}._Upsample", _Upsample),
            (f"{attention.__name__}.attention", nn.dot_product_attention),
            (f"{transformer.__name__}.attend", _attend),
        ):
            stack.enter_context(mock.patch(target, plain))
        yield


class _Layer(nn.Module):
    """One layer with Flax's own attention and its cache."""

    num_heads: int

    @nn.compact
    def __call__(self, x: jax.Array, _: None = None) -> tuple[jax.Array, None]:
        dim = x.shape[-1]
        attend = nn.MultiHeadDotProductAttention(
            self.num_heads, use_bias=False, decode=True, name="attention"
        )
        x = x + attend(_norm("attention_norm")(x))
        h = nn.Dense(4 * dim, use_bias=False, name="mlp_in")(_norm("mlp_norm")(x))
        return x + nn.Dense(dim, use_bias=False, name="mlp_out")(nn.gelu(h)), None


def _norm(name: str) -> nn.LayerNorm:
    return nn.LayerNorm(1e-5, use_bias=False, name=name)


class Decoder(nn.Module):
    """The language model in Flax's layers, one by another or as one that is scanned."""

    num_layers: int
    num_heads: int
    scanned: bool

    @nn.compact
    def __call__(self, tokens: jax.Array, position: jax.Array, table: Any) -> jax.Array:
        """Logits of the next token, of [n, t]; `table` holds both embeddings."""
        x = table["tokens"][tokens] + table["positions"][position]
        if self.scanned:
            axes: dict[Any, Any] = {"params": 0, "cache": 0}
            keys: dict[Any, bool] = {"params": True}
            stack = nn.scan(_Layer, variable_axes=axes, split_rngs=keys, length=self.num_layers)
            x, _ = stack(self.num_heads, name="layers")(x, None)
        else:
            for i in range(self.num_layers):
                x, _ = _Layer(self.num_heads, name=f"layer_{i}")(x)
        return _norm("norm")(x) @ table["tokens"].T


def decoder(
    params: Any, num_heads: int, rows: int, length: int, scanned: bool = False
) -> Callable[[Any], jax.Array]:
    """`start [n] -> the likeliest tokens [n, length]`, genaug's weights in `Decoder`, in a scan."""
    names = [name for name in params if name.startswith("layer_")]
    table = {name: params[name]["embedding"] for name in ("tokens", "positions")}
    dim = table["tokens"].shape[1]

    def of_flax(layer: Any) -> dict[str, Any]:
        by_head = layer["qkv"]["kernel"].reshape(dim, num_heads, 3, -1)
        attention: dict[str, Any] = {
            name: {"kernel": by_head[:, :, j]} for j, name in enumerate(("query", "key", "value"))
        }
        attention["out"] = {"kernel": layer["out"]["kernel"].reshape(num_heads, -1, dim)}
        same = ("attention_norm", "mlp_norm", "mlp_in", "mlp_out")
        return {"attention": attention, **{name: layer[name] for name in same}}

    layers = {name: of_flax(params[name]) for name in names}
    if scanned:
        layers = {"layers": jax.tree.map(lambda *leaves: jnp.stack(leaves), *layers.values())}
    own = {"norm": params["norm"], **layers}
    net = Decoder(len(names), num_heads, scanned)
    whole = jnp.zeros((rows, length - 1), jnp.int32)
    shapes = jax.eval_shape(net.init, jax.random.key(0), whole, 0, table)["cache"]
    empty = jax.tree.map(lambda one: jnp.zeros(one.shape, one.dtype), shapes)

    @jax.jit
    def run(own: Any, table: Any, start: jax.Array) -> jax.Array:
        def write(carry: tuple[Any, jax.Array], position: jax.Array) -> Any:
            cache, token = carry
            logits, left = net.apply(
                {"params": own, "cache": cache}, token[:, None], position, table, mutable=["cache"]
            )
            token = jnp.argmax(logits[:, 0], axis=1).astype(jnp.int32)
            return (left["cache"], token), token

        begun = (empty, start)
        _, written = jax.lax.scan(write, begun, jnp.arange(length - 1))
        return jnp.concatenate([start[:, None], written.T], axis=1)

    return lambda start: run(own, table, jnp.asarray(start, jnp.int32))
