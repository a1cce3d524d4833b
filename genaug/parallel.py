"""Devices: the mesh, where arrays live on it, and functions compiled over it.

Nothing else in the house knows about devices. The mesh has three axes. Along "data" and "fsdp" the
rows of a batch are split. States are copied along "data"; along "fsdp" every large array of a state
is split (fully sharded data parallelism: Rajbhandari et al. 2020, ZeRO stage 3): parameters are
gathered to be used, and each device updates and keeps its share. Along "tensor" the matrices of a
transformer's layers are split, and so is the work on them (Shoeybi et al. 2019, section 3). Values
do not depend on the mesh, up to the rounding of sums taken in another order.
"""

from __future__ import annotations

import dataclasses
import math
import os
import re
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.experimental import mesh_utils, multihost_utils
from jax.sharding import AxisType, NamedSharding, PartitionSpec
from jaxtyping import Int64

from genaug.nets import flash
from genaug.state import NetworkState, RowsLoss, accumulated, value_and_grad
from genaug.types import Batch, Metrics, State, UserError, Weights

AXES = ("data", "fsdp", "tensor")
ROWS = ("data", "fsdp")
"""The axes that the rows of a batch are split over."""

Rule = tuple[str, int]
"""A regular expression searched for in an array's path, and the axis of it that is split."""

TRANSFORMER_RULES: tuple[Rule, ...] = (
    (r"layers?(_\d+)?/(qkv|mlp_in)/(kernel|bias)$", -1),
    (r"layers?(_\d+)?/(out|mlp_out)/kernel$", -2),
)
"""What a layer computes first is split by what comes out, what it computes next by what goes in: in
between no device needs another's (Shoeybi et al. 2019, section 3)."""


@dataclass(frozen=True, kw_only=True)
class Mesh:
    """How the devices share the work: their number is data x fsdp x tensor."""

    data: int = -1  # groups of devices that hold a copy of the state each; -1 = all there are
    fsdp: int = 1  # devices over which the arrays of a copy are split for keeping
    tensor: int = 1  # devices over which matrices are split for work, by the rules
    rules: tuple[Rule, ...] = TRANSFORMER_RULES  # paths of arrays, and the axis to split
    min_split: int = 2**12  # elements; fsdp leaves smaller arrays whole
    strategy: Literal["jit", "pmap"] = "jit"  # one program over global arrays, or one per device


class DeviceMesh(NamedTuple):
    """The devices that share the work, and how; the rest of the house hands it on."""

    devices: jax.sharding.Mesh
    config: Mesh

    @property
    def size(self) -> int:
        """Over how many groups of devices the rows of a batch are split."""
        return math.prod(self.devices.shape[axis] for axis in ROWS)

    @property
    def platform(self) -> str:
        """What the devices are: "cpu", "gpu" or "tpu"."""
        return next(self.devices.devices.flat).platform


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
    """The mesh a config asks for, of the devices of all processes; refused if there are fewer."""
    found, processes = jax.devices(), jax.process_count()
    machine = f"all {processes} processes" if processes > 1 else "this machine"
    shape = _shape(config, len(found), machine)
    if processes > 1 and math.prod(shape) < len(found):
        raise UserError(
            f"mesh.data is {config.data}, which leaves some of the {len(found)} devices of "
            f"{processes} processes idle: use --mesh.data -1, or start fewer processes."
        )
    return _arranged(found, shape, config, machine)


def mesh_elsewhere(config: Mesh, name: str, libtpu: tuple[str, dict[str, Any]]) -> DeviceMesh:
    """The mesh a config asks for, of TPUs that are not here: to compile for, not to run on.

    name: what the machine is called in a message. The slices of a machine of several lie along
    "data": what is summed over them is gradients alone.

    Raises:
        UserError: of a config that does not fit, or a machine that libtpu does not know.
    """
    from jax.experimental import topologies

    try:
        found = topologies.get_topology_desc(libtpu[0], "tpu", **libtpu[1]).devices
    except Exception as error:  # libtpu raises whatever the part that refuses raises
        line = str(error).split("\n")[0][:200]
        raise UserError(f"--topology {name}: libtpu makes no such machine ({line}).") from error
    return _arranged(found, _shape(config, len(found), name), config, name)


def _arranged(
    found: list[jax.Device], shape: tuple[int, int, int], config: Mesh, name: str
) -> DeviceMesh:
    """Devices in the order that suits their network: neighbours along the inner axes.

    pmap has an order of its own. Slices of TPUs, joined by a slower network, lie along "data".
    """
    slices = len({getattr(device, "slice_index", 0) for device in found})
    _check_slices(shape, len(found), slices, name)
    if math.prod(shape) < len(found) or config.strategy == "pmap":
        return _device_mesh(np.array(found[: math.prod(shape)]).reshape(shape), config)
    if slices > 1:
        within = (shape[0] // slices, *shape[1:])
        devices = mesh_utils.create_hybrid_device_mesh(
            within, (slices, 1, 1), devices=found, allow_split_physical_axes=True
        )
    else:
        devices = mesh_utils.create_device_mesh(
            shape, devices=found, allow_split_physical_axes=True
        )
    return _device_mesh(devices, config)


def _device_mesh(devices: np.ndarray, config: Mesh) -> DeviceMesh:
    return DeviceMesh(jax.sharding.Mesh(devices, AXES, axis_types=(AxisType.Auto,) * 3), config)


def _shape(config: Mesh, available: int, machine: str) -> tuple[int, int, int]:
    for name, count in (("fsdp", config.fsdp), ("tensor", config.tensor)):
        if count < 1:
            raise UserError(f"mesh.{name} is {count}; it must be at least 1.")
    group = config.fsdp * config.tensor
    if config.strategy == "pmap" and group > 1:
        raise UserError(
            f"mesh.strategy pmap copies the state to every device, but mesh.fsdp is {config.fsdp} "
            f"and mesh.tensor {config.tensor}: use --mesh.strategy jit, or 1 for both."
        )
    most = available // group
    if not most:
        raise UserError(
            f"mesh.fsdp {config.fsdp} x mesh.tensor {config.tensor} is {group}, but {machine} "
            f"has {available} device(s): their product must be from 1 to {available}."
        )
    data = most if config.data == -1 else config.data
    if not 1 <= data <= most:
        each = f" and fsdp x tensor is {group}" if group > 1 else ""
        raise UserError(
            f"mesh.data is {config.data}, but {machine} has {available} device(s){each}: "
            f"use --mesh.data -1 for all of them, or a number from 1 to {most}."
        )
    if config.data == -1 and available % group:
        raise UserError(
            f"mesh.fsdp x mesh.tensor is {group}, which does not divide the {available} devices of "
            f"{machine}: use a divisor, or --mesh.data {data} to leave {available % group} idle."
        )
    return data, config.fsdp, config.tensor


def _check_slices(shape: tuple[int, int, int], available: int, slices: int, machine: str) -> None:
    if slices > 1 and math.prod(shape) < available:
        raise UserError(f"{machine}: use all devices of its {slices} slices (--mesh.data -1).")
    if shape[0] % slices:
        raise UserError(
            f"mesh.data is {shape[0]} on {machine}, whose {slices} slices lie along it: make it a "
            "multiple, with a smaller --mesh.fsdp or --mesh.tensor."
        )


def check_batch_size(batch_size: int, mesh: DeviceMesh, accumulate: int = 1) -> None:
    """Refuse a batch that the devices cannot share equally, each of its parts."""
    _check_rows(batch_size, mesh.size, accumulate)


def check_elsewhere(
    config: Mesh, available: int, slices: int, machine: str, batch_size: int, accumulate: int
) -> None:
    """Refuse a mesh or batch that the devices of a machine that is not here cannot share."""
    shape = _shape(config, available, machine)
    _check_slices(shape, available, slices, machine)
    _check_rows(batch_size, shape[0] * shape[1], accumulate)


def _check_rows(batch_size: int, size: int, accumulate: int) -> None:
    groups = size * accumulate
    if batch_size < 1 or batch_size % groups:
        below = max(batch_size // groups, 1) * groups
        parts = f" times train.accumulate {accumulate}" if accumulate > 1 else ""
        raise UserError(
            f"train.batch-size {batch_size} is not divisible by the {size} devices of the "
            f"mesh (data x fsdp){parts}: use {below} or {below + groups}, or --mesh.data with a "
            "divisor of it."
        )


def _whole(mesh: DeviceMesh) -> NamedSharding:
    return NamedSharding(mesh.devices, PartitionSpec())


def _split(mesh: DeviceMesh, axis: int = 0) -> NamedSharding:
    return NamedSharding(mesh.devices, PartitionSpec(*[None] * axis, ROWS))


def _name(path: Any) -> str:
    return jax.tree_util.keystr(path, simple=True, separator="/")


def _is_statistic(path: Any) -> bool:
    """Whether an array of a state is none of parameters, averages and the optimiser's."""
    return not re.search(r"(^|/)(params|ema|opt_state)/", _name(path))


def _in_use(mesh: DeviceMesh, path: Any, leaf: Any) -> NamedSharding:
    """Where an array is while it is computed with: whole, or split over "tensor" by the rules."""
    spec: list[str | None] = [None] * len(leaf.shape)
    parts, name = mesh.config.tensor, _name(path)
    for pattern, axis in mesh.config.rules if parts > 1 else ():
        if re.search(pattern, name):
            if not -len(spec) <= axis < len(spec) or leaf.shape[axis] % parts:
                raise UserError(
                    f"mesh.tensor {parts} does not divide axis {axis} of {name}, which has the "
                    f"shape {tuple(leaf.shape)}: use a divisor, or other --mesh.rules."
                )
            spec[axis] = "tensor"
    return NamedSharding(mesh.devices, PartitionSpec(*spec))


def _kept(mesh: DeviceMesh, path: Any, leaf: Any) -> NamedSharding:
    """Where an array of a state is kept: as in use, and split along its largest axis left.

    "fsdp" must divide that axis. An array that is small, or has none, is kept as it is used, and so
    is what is no parameter, average or optimiser's: a network's statistics.
    """
    parts, sharding = mesh.config.fsdp, _in_use(mesh, path, leaf)
    if _is_statistic(path):
        return sharding
    spec = [*sharding.spec, *[None] * (len(leaf.shape) - len(sharding.spec))]
    axes = [i for i, n in enumerate(leaf.shape) if n % parts == 0 and spec[i] is None]
    if parts == 1 or not axes or math.prod(leaf.shape) < mesh.config.min_split:
        return sharding
    spec[max(axes, key=lambda i: leaf.shape[i])] = "fsdp"
    return NamedSharding(mesh.devices, PartitionSpec(*spec))


def _places(place: Callable[..., NamedSharding], tree: Any, mesh: DeviceMesh) -> Any:
    return jax.tree_util.tree_map_with_path(partial(place, mesh), tree)


def place(state: State, mesh: DeviceMesh) -> State:
    """A state that lies elsewhere, on the devices as training keeps it."""
    return jax.device_put(state, _places(_kept, state, mesh))


def local_rows(batch_size: int, mesh: DeviceMesh) -> Int64[np.ndarray, " n"]:
    """Positions in a batch of the rows that this process's devices compute with, ascending."""
    held = _split(mesh).addressable_devices_indices_map((batch_size,))
    return np.unique(np.concatenate([np.arange(batch_size)[rows] for rows in held.values()]))


def split_rows(batch: Any, mesh: DeviceMesh, axis: int = 0) -> Any:
    """A batch (or, with axis 1, a stack of batches) with its examples split over the devices.

    Each process gives its `local_rows`.
    """
    if jax.process_count() == 1:
        return jax.device_put(batch, _split(mesh, axis))
    if mesh.config.strategy == "pmap":
        return batch  # pmap takes what is this process's own
    sharding = _split(mesh, axis)
    return jax.tree.map(partial(jax.make_array_from_process_local_data, sharding), batch)


def to_host(tree: Any) -> Any:
    """Arrays from wherever they lie, whole, as NumPy's, on every process; all must ask."""
    if jax.process_count() == 1:
        return jax.device_get(tree)
    return multihost_utils.process_allgather(tree, tiled=True)


def abstract(init: Callable[[jax.Array], State], mesh: DeviceMesh) -> State:
    """The state's shapes, dtypes and places, without computing it: a template to restore into.

    Raises:
        UserError: with mesh.tensor above 1, a rule that no array of the state answers to.
    """
    shapes = jax.eval_shape(init, jax.eval_shape(lambda: jax.random.key(0)))
    _check_rules(shapes, mesh.config)
    return _placed(shapes, mesh)


def abstract_weights(
    weights: Callable[[State], Weights], template: State, mesh: DeviceMesh
) -> Weights:
    """The shapes, dtypes and places of what sampling needs of a state that lies as `template`."""
    return _placed(jax.eval_shape(weights, template), mesh)


def _placed(shapes: Any, mesh: DeviceMesh) -> Any:
    return jax.tree.map(
        lambda s, place: jax.ShapeDtypeStruct(s.shape, s.dtype, sharding=place),
        shapes,
        _places(_kept, shapes, mesh),
    )


def share_bytes(tree: Any) -> int:
    """Bytes that one device keeps of arrays that lie as their shardings say."""
    return sum(
        math.prod(leaf.sharding.shard_shape(leaf.shape)) * leaf.dtype.itemsize
        for leaf in jax.tree.leaves(tree)
    )


def _check_rules(state: State, config: Mesh) -> None:
    leaves = jax.tree_util.tree_leaves_with_path(state)
    names = [_name(path) for path, _ in leaves]
    for pattern, _ in config.rules if config.tensor > 1 else ():
        if not any(re.search(pattern, name) for name in names):
            some = ", ".join(
                name for name in names if "params/" in name and name.endswith("kernel")
            )
            raise UserError(
                f"mesh.tensor is {config.tensor}, but the rule {pattern!r} matches no array of "
                f"this model: use --mesh.tensor 1, or --mesh.rules over its paths ({some[:200]})."
            )


def compile_init(init: Callable[[jax.Array], State], mesh: DeviceMesh) -> Callable:
    """`init(key)`, its state made in place on the devices."""
    return jax.jit(init, out_shardings=jax.tree.map(lambda s: s.sharding, abstract(init, mesh)))


Tree = Callable[[Any], Any]
"""A function of a pytree that changes where its arrays are, or averages them over devices."""


def _told(state: State, in_use: Tree, reduced: Tree, accumulate: int) -> State:
    """The state, its networks told how to get at parameters and at gradients."""

    def grad(loss: RowsLoss) -> Callable[..., Any]:
        one = accumulated(value_and_grad, accumulate)(loss)
        return lambda params, rows: reduced(one(params, rows))

    def one(node: Any) -> Any:
        if not isinstance(node, NetworkState):
            return node
        return dataclasses.replace(node, in_use=in_use, grad=grad)

    return jax.tree.map(one, state, is_leaf=lambda node: isinstance(node, NetworkState))


def compile_steps(
    step: Callable[[State, Batch, jax.Array], tuple[State, Metrics]],
    mesh: DeviceMesh,
    template: State,
    accumulate: int = 1,
) -> Callable[[State, Batch, jax.Array, int], tuple[State, Metrics]]:
    """K steps as one program: `(state, stack of K batches, key, first step) -> (state, metrics)`.

    The state is donated; it comes and stays where `template` (`abstract`) says. Step i draws its
    randomness from `fold_in(key, first + i)` and the metrics are means over the K steps. Gradients
    are taken of `accumulate` parts of a batch in turn.
    """
    compiler = _under_pmap if mesh.config.strategy == "pmap" else _under_jit
    return compiler(step, mesh, template, accumulate)


def _loop(
    step: Callable[[State, Batch, jax.Array], tuple[State, Metrics]],
    tell: Tree,
    settle: Callable[[State, Metrics], tuple[State, Metrics]],
    offset: Callable[[int], Any],
) -> Callable[[State, Batch, jax.Array, Any], tuple[State, Metrics]]:
    """K steps in a scan. `offset(n)` is the place in the batch of the first of n examples here."""

    def run(
        state: State, batches: Batch, key: jax.Array, first: int | jax.Array
    ) -> tuple[State, Metrics]:
        count, rows = jax.tree.leaves(batches)[0].shape[:2]

        def one(state: State, step_and_batch: tuple[jax.Array, Batch]) -> tuple[State, Metrics]:
            number, batch = step_and_batch
            batch = {**batch, "index": offset(rows) + jnp.arange(rows)}
            return settle(*step(tell(state), batch, jax.random.fold_in(key, number)))

        state, metrics = lax.scan(one, state, (first + jnp.arange(count), batches))
        return state, jax.tree.map(lambda m: jnp.mean(m, axis=0), metrics)

    return run


def kernels(mesh: DeviceMesh) -> flash.Kernels:
    """How kernels, which XLA does not split, are spread over the mesh."""
    names = {"rows": ROWS, "heads": "tensor", None: None}

    def split(axes: flash.Axes) -> PartitionSpec:
        return PartitionSpec(*(names[axis] for axis in axes))

    def spread(kernel: Any, operands: tuple[flash.Axes, ...], result: flash.Axes) -> Any:
        places = tuple(map(split, operands))
        return jax.shard_map(
            kernel, mesh=mesh.devices, in_specs=places, out_specs=split(result), check_vma=False
        )

    return flash.Kernels(spread, mesh.size, mesh.config.tensor)


def _with_kernels(function: Callable[..., Any], mesh: DeviceMesh) -> Callable[..., Any]:
    """A function that finds kernels while it is traced, where the devices have them."""
    if mesh.platform != "tpu":
        return function

    def run(*arguments: Any) -> Any:
        with flash.kernels(kernels(mesh)):
            return function(*arguments)

    return run


def _under_jit(step: Any, mesh: DeviceMesh, template: State, accumulate: int) -> Any:
    """One program over the global arrays; XLA puts the communication in."""

    def in_use(tree: Any) -> Any:
        return lax.with_sharding_constraint(tree, _places(_in_use, tree, mesh))

    def reduced(found: Any) -> Any:
        # Said out loud: XLA would otherwise split activations as gradients are going to be kept.
        return found[0], in_use(found[1])

    def settle(state: State, metrics: Metrics) -> tuple[State, Metrics]:
        leaves = zip(jax.tree.leaves(state), jax.tree.leaves(template), strict=True)
        kept = [lax.with_sharding_constraint(leaf, place.sharding) for leaf, place in leaves]
        return jax.tree.unflatten(jax.tree.structure(template), kept), metrics

    whole, split = _whole(mesh), _split(mesh, axis=1)
    kept = jax.tree.map(lambda leaf: leaf.sharding, template)
    loop = _loop(step, lambda s: _told(s, in_use, reduced, accumulate), settle, lambda rows: 0)
    return jax.jit(
        _with_kernels(loop, mesh),
        donate_argnums=0,
        in_shardings=(kept, split, whole, whole),
        out_shardings=(kept, whole),
    )


def _under_pmap(step: Any, mesh: DeviceMesh, template: State, accumulate: int) -> Any:
    """The same program on every device, each with its rows; gradients are averaged by `pmean`.

    Statistics are each device's own, averaged after every step: batch norm normalises by the
    moments of a device's share of the batch.
    """
    mean = partial(lax.pmean, axis_name="data")

    def settle(state: State, metrics: Metrics) -> tuple[State, Metrics]:
        state = jax.tree_util.tree_map_with_path(
            lambda path, x: mean(x) if _is_statistic(path) and x.dtype == jnp.float32 else x, state
        )
        state = jax.tree.unflatten(jax.tree.structure(template), jax.tree.leaves(state))
        return state, mean(metrics)

    program = jax.pmap(
        _loop(
            step,
            lambda s: _told(s, lambda tree: tree, mean, accumulate),
            settle,
            lambda rows: lax.axis_index("data") * rows,
        ),
        axis_name="data",
        in_axes=(None, 1, None, None),
        out_axes=None,
        donate_argnums=0,
        devices=list(mesh.devices.devices.flat),
    )

    devices = len(mesh.devices.local_devices)

    def run(state: State, batches: Batch, key: jax.Array, first: int) -> tuple[State, Metrics]:
        def by_device(x: jax.Array) -> jax.Array:
            return x.reshape(x.shape[0], devices, -1, *x.shape[2:])

        found = program(state, jax.tree.map(by_device, batches), key, first)
        return found if jax.process_count() == 1 else jax.tree.map(on_all, found)

    def on_all(x: jax.Array) -> jax.Array:
        """What pmap leaves as each process's own, as one array over the devices of all."""
        parts = [shard.data for shard in x.addressable_shards]
        return jax.make_array_from_single_device_arrays(x.shape, _whole(mesh), parts)

    return run


def _of_rows(function: Callable[..., Any], mesh: DeviceMesh, **options: Any) -> Callable[..., Any]:
    """A program whose last argument and result are rows, split over the devices.

    With several processes each gives all rows, and gets all: a program's result may then be read
    by any of them.
    """
    split = _split(mesh)
    if jax.process_count() == 1:
        return jax.jit(function, out_shardings=split, **options)
    program = jax.jit(function, out_shardings=_whole(mesh), **options)

    def spread(rows: Any) -> jax.Array:
        return jax.make_array_from_callback(np.shape(rows), split, lambda at: rows[at])

    return lambda *arguments: program(*arguments[:-1], jax.tree.map(spread, arguments[-1]))


def compile_rows(
    function: Callable[[Weights, jax.Array, Batch], Any], mesh: DeviceMesh
) -> Callable[..., Any]:
    """A function of rows, `(weights, key, rows) -> rows`, with its rows split over the devices.

    The weights may lie anywhere; they are gathered to be used.
    """

    def run(weights: Weights, key: jax.Array, rows: Batch) -> Any:
        used = lax.with_sharding_constraint(weights, _places(_in_use, weights, mesh))
        return function(used, key, rows)

    program = _with_kernels(run, mesh)
    return _of_rows(program, mesh, in_shardings=(None, _whole(mesh), _split(mesh)))


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
        mesh=mesh.devices,
        in_specs=(PartitionSpec(), PartitionSpec(ROWS)),
        out_specs=PartitionSpec(ROWS),
        check_vma=False,
    )
    return _of_rows(mapped, mesh)
