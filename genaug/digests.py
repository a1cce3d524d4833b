"""Digests of arrays, that do not depend on where the arrays lie.

An array's digest is a sum, modulo 2^32, over its elements: of each the bits, mixed with the place
of the element in the array. Integer sums have no order, so an array has one digest on any devices
and in any sharding, and each device sums what it holds: one number crosses between them. The mixing
is a bijection of 32 bits for every place (the finaliser of MurmurHash3, Appleby 2011), so a change
of one element always shows; of changes of several at once 1 in 2^32 is missed. It guards against
damage, not against forgery.
"""

from __future__ import annotations

import math
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Bool, UInt32


def leaves(tree: Any) -> dict[str, Any]:
    """A tree as one flat dictionary: keys, fields and positions joined by dots."""
    flat = jax.tree_util.tree_flatten_with_path(tree)[0]

    def word(key: Any) -> str:
        return str(getattr(key, "key", getattr(key, "name", getattr(key, "idx", key))))

    return {".".join(map(word, path)): leaf for path, leaf in flat}


def arrays(tree: Any) -> dict[str, str]:
    """The digest of every array of a tree, by name: 8 hexadecimal digits."""
    # An array at a time: those of one shape share a program, and most of a state's do. And each is
    # waited for: programs that talk over many devices of one CPU can lock each other out.
    return {name: f"{int(_sum(leaf)):08x}" for name, leaf in leaves(tree).items()}


def not_finite(tree: Any) -> list[str]:
    """The names of the arrays that hold a value that is not finite."""
    return [name for name, leaf in leaves(tree).items() if bool(_any_bad(leaf))]


@jax.jit
def _any_bad(x: Array) -> Bool[Array, ""]:
    return ~jnp.all(jnp.isfinite(x))


@jax.jit
def _sum(x: Array) -> UInt32[Array, ""]:
    return jnp.sum(_mixed(_bits(x) ^ _mixed(_places(x.shape) + jnp.uint32(1))), dtype=jnp.uint32)


def _bits(x: Array) -> UInt32[Array, ...]:
    if x.dtype == jnp.bool_:
        return x.astype(jnp.uint32)
    if jnp.issubdtype(x.dtype, jnp.complexfloating):
        return _bits(x.real) ^ _mixed(_bits(x.imag) + jnp.uint32(1))
    if x.dtype.itemsize == 8:
        words = lax.bitcast_convert_type(x, jnp.uint32)
        return words[..., 0] ^ _mixed(words[..., 1] + jnp.uint32(1))
    unsigned = {1: jnp.uint8, 2: jnp.uint16, 4: jnp.uint32}[x.dtype.itemsize]
    return lax.bitcast_convert_type(x, unsigned).astype(jnp.uint32)


def _places(shape: tuple[int, ...]) -> UInt32[Array, ...]:
    """The position of every element in row-major order, modulo 2^32.

    From the indices along each axis: a reshape would gather what is split over devices.
    """
    place = jnp.zeros(shape, jnp.uint32)
    for axis in range(len(shape)):
        stride = jnp.uint32(math.prod(shape[axis + 1 :]) % 2**32)
        place = place + stride * lax.broadcasted_iota(jnp.uint32, shape, axis)
    return place


def _mixed(x: UInt32[Array, ...]) -> UInt32[Array, ...]:
    x = (x ^ (x >> 16)) * jnp.uint32(0x85EBCA6B)
    x = (x ^ (x >> 13)) * jnp.uint32(0xC2B2AE35)
    return x ^ (x >> 16)
