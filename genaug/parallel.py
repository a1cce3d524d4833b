"""Devices: the mesh, where arrays live on it, and functions compiled over it.

Nothing else in the house knows about devices. The mesh has two axes, "data" and "fsdp". The rows of
a batch are split over both. States are copied along "data", and along "fsdp" each large array is
split (fully sharded data parallelism, Rajbhandari et al. 2020, ZeRO stage 3): a layer's parameters
are gathered where they are used, and each device updates its share. Values do not depend on the
number of devices, up to the rounding of sums taken in another order.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from genaug.types import Batch, Metrics, State, UserError, Weights


@dataclass(frozen=True, kw_only=True)
class Mesh:
    """How the devices share the work: their number is data times fsdp."""

    data: int = -1  # groups of devices with a copy of the state each; -1 = as many as there are
    fsdp: int = 1  # devices over which a copy's large arrays are split
    min_split: int = 2**14  # elements; smaller arrays are whole on every device


class DeviceMesh(NamedTuple):
    """The devices that share the work, and how; the rest of the house hands it on."""

    mesh: jax.sharding.Mesh
    min_split: int

    @property
    def size(self) -> int:
        """How many devices there are: rows are split over all of them."""
        return self.mesh.size


ROWS = ("data", "fsdp")
"""The axes that the rows of a batch are split over."""


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
    if not 1 <= config.fsdp <= available:
        raise UserError(
            f"mesh.fsdp is {config.fsdp}, but this machine has {available} device(s): "
            f"use a number from 1 to {available}."
        )
    most = available // config.fsdp
    data = most if config.data == -1 else config.data
    if not 1 <= data <= most:
        each = f" and mesh.fsdp is {config.fsdp}" if config.fsdp > 1 else ""
        raise UserError(
            f"mesh.data is {config.data}, but this machine has {available} device(s){each}: "
            f"use --mesh.data -1 for all of them, or a number from 1 to {most}."
        )
    if config.data == -1 and available % config.fsdp:
        raise UserError(
            f"mesh.fsdp {config.fsdp} does not divide the machine's {available} devices: use a "
            f"divisor, or --mesh.data {data} to leave {available - data * config.fsdp} idle."
        )
    devices = np.array(jax.devices()[: data * config.fsdp]).reshape(data, config.fsdp)
    mesh = jax.sharding.Mesh(devices, ROWS, axis_types=(AxisType.Auto,) * 2)
    return DeviceMesh(mesh, config.min_split)


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
    return NamedSharding(mesh.mesh, PartitionSpec())


def _split(mesh: DeviceMesh, axis: int = 0) -> NamedSharding:
    return NamedSharding(mesh.mesh, PartitionSpec(*[None] * axis, ROWS))


def _place(shape: tuple[int, ...], mesh: DeviceMesh) -> NamedSharding:
    """Where an array of the state lives: split along its largest axis that "fsdp" divides.

    One that is small, or that "fsdp" does not divide, is whole on every device.
    """
    parts = mesh.mesh.shape["fsdp"]
    axes = [axis for axis, length in enumerate(shape) if length % parts == 0]
    if parts == 1 or not axes or math.prod(shape) < mesh.min_split:
        return _replicated(mesh)
    axis = max(axes, key=lambda axis: shape[axis])
    return NamedSharding(mesh.mesh, PartitionSpec(*[None] * axis, "fsdp"))


def place(state: State, mesh: DeviceMesh) -> State:
    """A state that lies elsewhere, on the devices as training wants it."""
    return jax.device_put(state, jax.tree.map(lambda leaf: _place(leaf.shape, mesh), state))


def split_rows(batch: Any, mesh: DeviceMesh, axis: int = 0) -> Any:
    """A batch (or, with axis 1, a stack of batches) with its examples split over the devices."""
    return jax.device_put(batch, _split(mesh, axis))


def abstract(init: Callable[[jax.Array], State], mesh: DeviceMesh) -> State:
    """The state's shapes, dtypes and places, without computing it: a template to restore into."""
    shapes = jax.eval_shape(init, jax.eval_shape(lambda: jax.random.key(0)))
    return jax.tree.map(
        lambda s: jax.ShapeDtypeStruct(s.shape, s.dtype, sharding=_place(s.shape, mesh)), shapes
    )


def _places(template: State) -> Any:
    return jax.tree.map(lambda leaf: leaf.sharding, template)


def compile_init(init: Callable[[jax.Array], State], mesh: DeviceMesh) -> Callable:
    """`init(key)`, its state made in place on the devices."""
    return jax.jit(init, out_shardings=_places(abstract(init, mesh)))


def compile_steps(
    step: Callable[[State, Batch, jax.Array], tuple[State, Metrics]],
    mesh: DeviceMesh,
    template: State,
) -> Callable[[State, Batch, jax.Array, int], tuple[State, Metrics]]:
    """K steps as one program: `(state, stack of K batches, key, first step) -> (state, metrics)`.

    The state is donated; it comes and stays where the leaves of `template` (`abstract`) say. Step i
    draws its randomness from `fold_in(key, first + i)` and the metrics are means over the K steps.
    """
    places = _places(template)

    def run(
        state: State, batches: Batch, key: jax.Array, first: int | jax.Array
    ) -> tuple[State, Metrics]:
        def one(state: State, step_and_batch: tuple[jax.Array, Batch]) -> tuple[State, Metrics]:
            index, batch = step_and_batch
            state, metrics = step(state, batch, jax.random.fold_in(key, index))
            return lax.with_sharding_constraint(state, places), metrics

        count = jax.tree.leaves(batches)[0].shape[0]
        state, metrics = lax.scan(one, state, (first + jnp.arange(count), batches))
        return state, jax.tree.map(lambda m: jnp.mean(m, axis=0), metrics)

    whole, split = _replicated(mesh), _split(mesh, axis=1)
    return jax.jit(
        run,
        donate_argnums=0,
        in_shardings=(places, split, whole, whole),
        out_shardings=(places, whole),
    )


def compile_rows(
    function: Callable[[Weights, jax.Array, Batch], Any], mesh: DeviceMesh
) -> Callable[..., Any]:
    """A function of rows, `(weights, key, rows) -> rows`, with its rows split over the devices.

    The weights are used where they lie.
    """
    whole, split = _replicated(mesh), _split(mesh)
    return jax.jit(function, in_shardings=(None, whole, split), out_shardings=split)


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
        mesh=mesh.mesh,
        in_specs=(PartitionSpec(), PartitionSpec(ROWS)),
        out_specs=PartitionSpec(ROWS),
        check_vma=False,
    )
    return jax.jit(mapped)
