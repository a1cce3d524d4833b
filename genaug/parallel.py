"""Devices: the mesh, where arrays live on it, and functions compiled over it.

Nothing else in the house knows about devices. The mesh has one axis, "data": states and weights are
whole on every device, batches are split along it. Values do not depend on the number of devices,
up to the rounding of sums taken in another order.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from genaug.types import Batch, Metrics, State, UserError, Weights

DeviceMesh = jax.sharding.Mesh
"""The devices that share the work; the rest of the house hands it on without looking inside."""


@dataclass(frozen=True, kw_only=True)
class Mesh:
    """How many devices share the work."""

    data: int = -1  # devices over which a batch is split; -1 = all


def use_cpu_cores_as_devices() -> None:
    """Make every CPU core a device; call before JAX is first used.

    XLA runs one convolution on little more than one core, so two devices on two cores train a
    convolutional model 1.4 times as fast (benchmarks/RESULTS.md). `GENAUG_CPU_DEVICES=1` turns it
    off. On a machine with an accelerator it changes nothing that genaug uses.
    """
    wanted = os.environ.get("GENAUG_CPU_DEVICES") or str(len(os.sched_getaffinity(0)))
    if not wanted.isdigit() or int(wanted) < 1:
        raise UserError(f"GENAUG_CPU_DEVICES is {wanted!r}; it must be a whole number from 1 up.")
    jax.config.update("jax_num_cpu_devices", int(wanted))


def make_mesh(config: Mesh) -> DeviceMesh:
    """The mesh a config asks for; refused when the machine has fewer devices."""
    available = jax.device_count()
    num_devices = available if config.data == -1 else config.data
    if not 1 <= num_devices <= available:
        raise UserError(
            f"mesh.data is {config.data}, but this machine has {available} device(s): "
            f"use --mesh.data -1 for all of them, or a number from 1 to {available}."
        )
    devices = np.array(jax.devices()[:num_devices])
    return jax.sharding.Mesh(devices, ("data",), axis_types=(AxisType.Auto,))


def check_batch_size(batch_size: int, mesh: DeviceMesh) -> None:
    """Refuse a batch that the devices cannot share equally."""
    devices = mesh.size
    if batch_size < 1 or batch_size % devices:
        below = max(batch_size // devices, 1) * devices
        raise UserError(
            f"train.batch-size {batch_size} is not divisible by the {devices} devices of the mesh: "
            f"use {below} or {below + devices}, or --mesh.data with a divisor of it."
        )


def _replicated(mesh: DeviceMesh) -> NamedSharding:
    return NamedSharding(mesh, PartitionSpec())


def _split(mesh: DeviceMesh, axis: int = 0) -> NamedSharding:
    return NamedSharding(mesh, PartitionSpec(*[None] * axis, "data"))


def replicate(tree: Any, mesh: DeviceMesh) -> Any:
    """A copy of every array on every device."""
    return jax.device_put(tree, _replicated(mesh))


def split_rows(batch: Any, mesh: DeviceMesh, axis: int = 0) -> Any:
    """A batch (or, with axis 1, a stack of batches) with its examples split over the devices."""
    return jax.device_put(batch, _split(mesh, axis))


def abstract(init: Callable[[jax.Array], State], mesh: DeviceMesh) -> State:
    """The state's shapes, dtypes and places, without computing it: a template to restore into."""
    shapes = jax.eval_shape(init, jax.eval_shape(lambda: jax.random.key(0)))
    whole = _replicated(mesh)
    return jax.tree.map(lambda s: jax.ShapeDtypeStruct(s.shape, s.dtype, sharding=whole), shapes)


def compile_init(init: Callable[[jax.Array], State], mesh: DeviceMesh) -> Callable:
    """`init(key)`, its state made in place on every device."""
    return jax.jit(init, out_shardings=_replicated(mesh))


def compile_steps(
    step: Callable[[State, Batch, jax.Array], tuple[State, Metrics]], mesh: DeviceMesh
) -> Callable[[State, Batch, jax.Array, int], tuple[State, Metrics]]:
    """K steps as one program: `(state, stack of K batches, key, first step) -> (state, metrics)`.

    The state is donated. Step i draws its randomness from `fold_in(key, first + i)` and the
    metrics are means over the K steps.
    """

    def run(
        state: State, batches: Batch, key: jax.Array, first: int | jax.Array
    ) -> tuple[State, Metrics]:
        def one(state: State, step_and_batch: tuple[jax.Array, Batch]) -> tuple[State, Metrics]:
            index, batch = step_and_batch
            return step(state, batch, jax.random.fold_in(key, index))

        count = jax.tree.leaves(batches)[0].shape[0]
        state, metrics = lax.scan(one, state, (first + jnp.arange(count), batches))
        return state, jax.tree.map(lambda m: jnp.mean(m, axis=0), metrics)

    whole, split = _replicated(mesh), _split(mesh, axis=1)
    return jax.jit(
        run,
        donate_argnums=0,
        in_shardings=(whole, split, whole, whole),
        out_shardings=(whole, whole),
    )


def compile_rows(
    function: Callable[[Weights, jax.Array, Batch], Any], mesh: DeviceMesh
) -> Callable[..., Any]:
    """A function of rows, `(weights, key, rows) -> rows`, with its rows split over the devices."""
    whole, split = _replicated(mesh), _split(mesh)
    return jax.jit(function, in_shardings=(whole, whole, split), out_shardings=split)


def compile_replicas(
    function: Callable[[Any, Any], Any], mesh: DeviceMesh
) -> Callable[[Any, Any], Any]:
    """Independent runs of one function as one program: `(shared, rows) -> rows`.

    Every device takes its share of the rows one after another. (Under `vmap` the convolutions of
    runs with different weights become grouped ones: 3.2 times slower on XLA's CPU backend,
    benchmarks/RESULTS.md.) The number of rows must be a multiple of the number of devices.
    """

    def on_each_device(shared: Any, rows: Any) -> Any:
        return lax.map(lambda row: function(shared, row), rows)

    mapped = jax.shard_map(
        on_each_device,
        mesh=mesh,
        in_specs=(PartitionSpec(), PartitionSpec("data")),
        out_specs=PartitionSpec("data"),
        check_vma=False,
    )
    return jax.jit(mapped)
