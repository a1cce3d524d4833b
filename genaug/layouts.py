"""Where arrays lie on the devices: the rows of a batch, and the arrays of a state.

Along "data" and "fsdp" the rows of a batch are split. States are copied along "data"; along "fsdp"
every large array of a state is split (fully sharded data parallelism: Rajbhandari et al. 2020, ZeRO
stage 3): parameters are gathered to be used (`shares`), and each device updates and keeps its
share. Along "tensor" the matrices of a transformer's layers are split, and so is the work on them
(Shoeybi et al. 2019, section 3).
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import NamedSharding, PartitionSpec
from jaxtyping import Int64

from genaug.devices import DeviceMesh, Mesh
from genaug.nets.looped import STACKS
from genaug.types import State, UserError, Weights


def whole(mesh: DeviceMesh) -> NamedSharding:
    """A copy on every device."""
    return NamedSharding(mesh.devices, PartitionSpec())


def split(mesh: DeviceMesh, axis: int = 0) -> NamedSharding:
    """Rows, along this axis, split over the devices."""
    return NamedSharding(mesh.devices, PartitionSpec(*[None] * axis, mesh.rows))


def _name(path: Any) -> str:
    return jax.tree_util.keystr(path, simple=True, separator="/")


def is_statistic(path: Any) -> bool:
    """Whether an array of a state is none of parameters, averages and the optimiser's."""
    return not re.search(r"(^|/)(params|ema|opt_state)/", _name(path))


def sharding(mesh: DeviceMesh, *spec: Any) -> NamedSharding:
    """Every axis of an array split along these axes of the mesh, or None."""
    return NamedSharding(mesh.devices, PartitionSpec(*spec))


def by_layer(mesh: DeviceMesh, path: Any) -> bool:
    """Whether an array is split layer by layer: it holds those of a stack along its first axis."""
    return mesh.shape["fsdp"] > 1 and any(part in STACKS for part in _name(path).split("/"))


def in_use(mesh: DeviceMesh, path: Any, leaf: Any) -> NamedSharding:
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
    return sharding(mesh, *spec)


def kept(mesh: DeviceMesh, path: Any, leaf: Any) -> NamedSharding:
    """Where an array of a state is kept: `in_shares`, but a network's statistics as in use."""
    return in_use(mesh, path, leaf) if is_statistic(path) else in_shares(mesh, path, leaf)


def in_shares(mesh: DeviceMesh, path: Any, leaf: Any) -> NamedSharding:
    """Where a parameter, an average, a gradient or an array of the optimiser's is kept: as in use,
    and split over "fsdp" along the axes left.

    Along the largest that all its devices divide; where they divide none, along several, each
    prime factor of their number along the axis that it leaves the largest pieces of, and not along
    any where it divides none. A small array is kept as it is used, and of a stack every layer is
    split, for they are used one by one.
    """
    used = in_use(mesh, path, leaf)
    if mesh.shape["fsdp"] == 1 or math.prod(leaf.shape) < mesh.config.min_split:
        return used
    spec = list(used.spec)
    free = range(1 if by_layer(mesh, path) else 0, len(spec))
    left = {i: leaf.shape[i] for i in free if spec[i] is None}
    for i, axes in _dealt(left, mesh).items():
        spec[i] = axes
    return sharding(mesh, *spec)


def _dealt(lengths: dict[int, int], mesh: DeviceMesh) -> dict[int, tuple[str, ...]]:
    """Which axes of the mesh's "fsdp" split which axes of an array, given how long those are."""
    if whole := [i for i, n in lengths.items() if n % mesh.shape["fsdp"] == 0]:
        return {max(whole, key=lengths.__getitem__): mesh.fsdp}
    left, ways_of = dict(lengths), mesh.devices.shape
    factors: dict[int, list[int]] = {}
    for ways in map(ways_of.__getitem__, mesh.fsdp):
        if fit := [i for i, n in left.items() if n % ways == 0]:
            longest = max(fit, key=left.__getitem__)
            left[longest] //= ways
            factors.setdefault(longest, []).append(ways)
    # Devices that share an axis of the array are neighbours, as far as may be.
    free = list(mesh.fsdp)
    found: dict[int, tuple[str, ...]] = {}
    for i in sorted(factors):
        for ways in factors[i]:
            axis = next(name for name in free if ways_of[name] == ways)
            free.remove(axis)
            found[i] = (*found.get(i, ()), axis)
    return found


def places(place: Callable[..., NamedSharding], tree: Any, mesh: DeviceMesh) -> Any:
    """Of every array of a tree, by its path: `in_use`, `in_shares` or `kept`."""
    return jax.tree_util.tree_map_with_path(partial(place, mesh), tree)


def place(state: State, mesh: DeviceMesh) -> State:
    """A state that lies elsewhere, on the devices as training keeps it."""
    return jax.device_put(state, places(kept, state, mesh))


def local_rows(batch_size: int, mesh: DeviceMesh) -> Int64[np.ndarray, " n"]:
    """Positions in a batch of the rows that this process's devices compute with, ascending."""
    held = split(mesh).addressable_devices_indices_map((batch_size,))
    return np.unique(np.concatenate([np.arange(batch_size)[rows] for rows in held.values()]))


def split_rows(batch: Any, mesh: DeviceMesh, axis: int = 0) -> Any:
    """A batch (or, with axis 1, a stack of batches) with its examples split over the devices.

    Each process gives its `local_rows`.
    """
    if jax.process_count() == 1:
        return jax.device_put(batch, split(mesh, axis))
    if mesh.config.strategy == "pmap":
        return batch  # pmap takes what is this process's own
    sharding = split(mesh, axis)
    return jax.tree.map(partial(jax.make_array_from_process_local_data, sharding), batch)


def spread(array: np.ndarray, sharding: NamedSharding) -> jax.Array:
    """What every process has whole, onto the devices."""
    return jax.make_array_from_callback(np.shape(array), sharding, lambda at: array[at])


def copied(array: np.ndarray, mesh: DeviceMesh | None) -> jax.Array:
    """What every process has whole, on every device; without a mesh, on JAX's default device."""
    return jnp.asarray(array) if mesh is None else spread(array, whole(mesh))


def shared_out(array: np.ndarray, mesh: DeviceMesh | None) -> jax.Array:
    """What every process has whole, its rows split over the devices; without a mesh as `copied`."""
    return jnp.asarray(array) if mesh is None else spread(array, split(mesh))


def gathered(array: jax.Array, mesh: DeviceMesh | None) -> np.ndarray:
    """What was computed of arrays that lie as `copied` and `shared_out` say, whole."""
    return np.asarray(array) if mesh is None else to_host(array)


def on_rows(function: Callable[[Any, Any], Any], mesh: DeviceMesh | None) -> Callable[..., Any]:
    """`(shared, rows) -> rows` within a program: each device computes with its share of the rows
    (as `shared_out` lays them) and needs nothing of the others."""
    if mesh is None:
        return function
    rows = split(mesh).spec
    return jax.shard_map(
        function,
        mesh=mesh.devices,
        in_specs=(PartitionSpec(), rows),
        out_specs=rows,
        check_vma=False,
    )


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
        places(kept, shapes, mesh),
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
