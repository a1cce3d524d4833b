"""Attention that keeps no scores in memory (Dao et al. 2022): JAX's Pallas kernel for TPUs.

XLA splits no such kernel over devices. Who knows the devices says, while a program is traced, how
one is spread over them (`kernels`); a program of which nobody says it has none.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from contextvars import ContextVar
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

import jax
from jaxtyping import Array, Float, Int

from genaug.nets.told import told

Axis = Literal["rows", "heads"] | None
Axes = tuple[Axis, ...]
"""What every axis of an array is: devices share rows and heads, of anything else each has all."""

Spread = Callable[[Callable[..., Any], tuple[Axes, ...], Axes], Callable[..., Any]]
"""`(kernel, axes of its operands, axes of its result)` to a function of the whole arrays."""

LEAST = 512
"""Positions of a row; the scores of fewer are small."""
_LANES, _MOST = 128, 1024  # sides of the kernel's blocks: multiples of the one up to the other
_PER_HEAD: Axes = ("rows", "heads", None, None)


@dataclass(frozen=True)
class Kernels:
    """How kernels run."""

    spread: Spread
    rows: int = 1  # devices that share rows
    heads: int = 1  # devices that share heads
    interpret: bool = False  # slowly, on any platform


_KERNELS: ContextVar[Kernels | None] = ContextVar("kernels", default=None)


def kernels(how: Kernels) -> AbstractContextManager[None]:
    """What is traced within may use kernels."""
    return told(_KERNELS, how)


def applies(shape: tuple[Any, ...], kv_heads: int) -> bool:
    """Whether the kernel attends, to queries of the shape [n, t, h, ...]; n may be symbolic."""
    rows, count, heads = shape[:3]
    how = _KERNELS.get()
    if how is None or count < LEAST or count % _LANES or rows % how.rows:
        return False
    return heads % how.heads == 0 and kv_heads % how.heads == 0


def attend(
    q: Float[Array, "n t h d"],
    k: Float[Array, "n t g d"],
    v: Float[Array, "n t g d"],
    document: Int[Array, "n t"] | None = None,
) -> Float[Array, "n t h d"]:
    """softmax(q k^T / sqrt(d)) v (Vaswani et al. 2017, eq. 1), where `applies` says yes.

    With `document`, each position attends to itself and those before it of its own document;
    without, to all. h / g neighbouring heads of q share one of k and v. Softmax in float32.
    """
    how = _KERNELS.get()
    assert how is not None
    operands = [x.transpose(0, 2, 1, 3) for x in (q * q.shape[-1] ** -0.5, k, v)]
    axes = [_PER_HEAD] * 3
    if document is not None:
        operands.append(document)
        axes.append(("rows", None))
    kernel = partial(_kernel, causal=document is not None, interpret=how.interpret)
    return how.spread(kernel, tuple(axes), _PER_HEAD)(*operands).transpose(0, 2, 1, 3)


def _kernel(q: Array, k: Array, v: Array, *document: Array, causal: bool, interpret: bool) -> Array:
    """On one device: its rows and its heads."""
    from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_kernel as splash
    from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_mask as masks

    heads, count = q.shape[1:3]
    block = max(b for b in range(_LANES, _MOST + 1, _LANES) if count % b == 0)
    inner = block // 2 if block % (2 * _LANES) == 0 else block
    # One kernel for all gradients writes those of q once for every block of keys.
    fused = block == count
    sizes = splash.BlockSizes(
        block_q=block,
        block_kv=block,
        block_kv_compute=inner,
        block_q_dkv=block,
        block_kv_dkv=block,
        block_kv_dkv_compute=inner,
        block_q_dq=None if fused else block,
        block_kv_dq=None if fused else block,
        use_fused_bwd_kernel=fused,
    )
    mask = (masks.CausalMask if causal else masks.FullMask)((count, count))
    run = splash.make_splash_mha(
        masks.MultiHeadMask([mask] * heads),
        block_sizes=sizes,
        head_shards=1,
        q_seq_shards=1,
        interpret=interpret,
    )
    segments = tuple(splash.SegmentIds(one, one) for one in document)
    return jax.vmap(run)(q, k, v, *segments)
