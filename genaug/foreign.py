"""Samplers over a mesh of somebody else's, whatever its axes are called: inside their program or
by themselves.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import NamedSharding, PartitionSpec

from genaug.types import Batch, Weights


def over_rows(function: Callable[..., Any], mesh: jax.sharding.Mesh | None) -> Callable[..., Any]:
    """`(weights, key, rows) -> rows` over the devices of a program that is not ours, inside its
    `jax.jit` or not: each draws its share of the rows and needs nothing of the others.

    Rows that the devices do not divide are filled up with copies of the first.
    """
    if mesh is None:
        return function
    whole, split = _foreign(mesh)
    on_each = jax.shard_map(
        function,
        mesh=mesh,
        in_specs=(whole.spec, whole.spec, split.spec),
        out_specs=split.spec,
        check_vma=False,
    )

    def run(weights: Weights, key: jax.Array, rows: Batch) -> Any:
        count = len(jax.tree.leaves(rows)[0])
        missing = -count % mesh.size

        def filled(column: jax.Array) -> jax.Array:
            column = jnp.concatenate([column, jnp.repeat(column[:1], missing, axis=0)])
            return jax.device_put(column, split)

        weights, key = jax.device_put((weights, key), whole)
        drawn = on_each(weights, key, jax.tree.map(filled, rows))
        if not missing:
            return drawn
        return jax.tree.map(lambda column: column[:count], jax.device_put(drawn, whole))

    return run


def compile_over_rows(
    function: Callable[..., Any], mesh: jax.sharding.Mesh | None
) -> Callable[..., Any]:
    """A function of (weights, key, rows) as a program; each device gets its rows from the host."""
    if mesh is None:
        return jax.jit(function)
    whole, split = _foreign(mesh)
    program = jax.jit(function)
    return lambda weights, key, rows: program(weights, *jax.device_put((key, rows), (whole, split)))


def on_all(tree: Any, mesh: jax.sharding.Mesh | None) -> Any:
    """Arrays copied to every device of somebody's mesh; without one, to JAX's default device."""
    if mesh is None:
        return jax.tree.map(jnp.asarray, tree)
    return jax.device_put(tree, _foreign(mesh)[0])


def _foreign(mesh: jax.sharding.Mesh) -> tuple[NamedSharding, NamedSharding]:
    """A copy on every device, and rows split over all axes, whatever their names."""
    specs = PartitionSpec(), PartitionSpec(mesh.axis_names)
    return NamedSharding(mesh, specs[0]), NamedSharding(mesh, specs[1])
