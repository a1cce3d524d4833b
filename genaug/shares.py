"""Gradients over all devices, and draws: each device computes with its own rows and keeps a copy or
a share of the parameters.

Copies: the gradients are summed once, when they are whole. Shares: they are gathered to be computed
with, and their gradients summed into shares again (fully sharded data parallelism: Rajbhandari et
al. 2020, ZeRO stage 3); of a stack of layers in a loop, one layer at a time (`nets.looped`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import jax
from jax import lax
from jax.sharding import PartitionSpec

from genaug import layouts
from genaug.devices import DeviceMesh
from genaug.nets.looped import Fetch, fetching
from genaug.nets.rows import spread
from genaug.state import Params, Rows, RowsGrad, Shared

Spec = tuple[Any, ...]
"""For every axis of an array, along which axes of the mesh it is split."""


@dataclass(frozen=True)
class Lying:
    """How an array of parameters lies."""

    shape: tuple[int, ...]
    kept: Spec
    used: Spec
    looped: bool  # it holds a stack of layers, which are fetched in a loop

    @property
    def split(self) -> Iterator[tuple[int, tuple[str, ...]]]:
        """Axes of the array that are put together for use, and those of the mesh they lie along."""
        for i, (names, whole) in enumerate(zip(self.kept, self.used, strict=True)):
            if names != whole:
                yield i, names if isinstance(names, tuple) else (names,)


def lying(params: Any, mesh: DeviceMesh) -> Any:
    """How every array of parameters lies."""

    def one(path: Any, leaf: Any) -> Lying:
        kept, used = layouts.in_shares(mesh, path, leaf), layouts.in_use(mesh, path, leaf)
        return Lying(leaf.shape, tuple(kept.spec), tuple(used.spec), layouts.by_layer(mesh, path))

    return jax.tree_util.tree_map_with_path(one, params)


Gather = Callable[[jax.Array, Lying], jax.Array]
"""An array as it is used, from the array as it is kept."""


def by_xla(mesh: DeviceMesh) -> Gather:
    """Of whole arrays, whose places XLA is told: it puts the communication in.

    What is split along several axes comes together along one after another, and that is said out
    loud: XLA for TPUs would otherwise sum copies filled up with zeros, which sends twice as much.
    """

    def gather(leaf: jax.Array, lies: Lying) -> jax.Array:
        spec = list(lies.kept)
        for i, _ in list(lies.split)[:0:-1]:
            spec[i] = None
            leaf = lax.with_sharding_constraint(leaf, layouts.sharding(mesh, *spec))
        return lax.with_sharding_constraint(leaf, layouts.sharding(mesh, *lies.used))

    return gather


def by_device(share: jax.Array, lies: Lying) -> jax.Array:
    """On each device, of its share; what is split along "tensor" stays XLA's affair.

    The gradient of a share is the sum of all devices' gradients of that part of the array.
    """
    if share.shape == lies.shape:  # of a network that is whole: no gradient is taken of it
        return share
    for i, names in lies.split:
        share = lax.all_gather(share, names, axis=i, tiled=True)
    return share


def gathered(params: Any, lie: Any, gather: Gather, looped: bool = False) -> Any:
    """Parameters as they are used; with `looped` a stack of layers as it is kept, for `fetch`."""
    return jax.tree.map(
        lambda x, lies: x if looped and lies.looped else gather(x, lies), params, lie
    )


def fetch(lie: Any, gather: Gather) -> Fetch:
    """How the parameters of a layer are gathered when the loop comes to it."""

    def of_a_layer(lies: Lying) -> Lying:
        return Lying(lies.shape[1:], lies.kept[1:], lies.used[1:], looped=False)

    def run(name: str, layer: Any) -> Any:
        structure: Any
        leaves, structure = jax.tree.flatten(layer)
        for stack in _called(name, lie):
            one, same = jax.tree.flatten(jax.tree.map(of_a_layer, stack))
            if structure == same and all(map(_fits, leaves, one)):
                return jax.tree.unflatten(structure, map(gather, leaves, one))
        return layer  # of another network, which is whole

    return run


def _fits(leaf: jax.Array, lies: Lying) -> bool:
    """Whether an array may be that which lies so, or a share of it."""
    divided = [i for i, _ in lies.split]
    return leaf.ndim == len(lies.shape) and all(
        n == whole or (i in divided and whole % n == 0)
        for i, (n, whole) in enumerate(zip(leaf.shape, lies.shape, strict=True))
    )


def _called(name: str, tree: Any) -> Iterator[Any]:
    """All of a tree that bears a name, wherever it is."""
    for key, value in tree.items() if isinstance(tree, Mapping) else ():
        if key == name:
            yield value
        else:
            yield from _called(name, value)


def averaged(grads: Any, lie: Any, mesh: DeviceMesh) -> Any:
    """On each device: its shares of the mean of all devices' gradients of parameters `gathered`
    with `looped`: those of layers that were fetched have been summed over who shared them."""

    def one(grad: jax.Array, lies: Lying) -> jax.Array:
        left = tuple(name for name in mesh.rows if mesh.devices.shape[name] > 1)
        for i, names in lies.split:
            left = tuple(name for name in left if name not in names)
            if not lies.looped:
                grad = lax.psum_scatter(grad, names, scatter_dimension=i, tiled=True)
        return (lax.psum(grad, left) if left else grad) / mesh.size

    return jax.tree.map(one, grads, lie)


def in_use(params: Params, mesh: DeviceMesh) -> Params:
    """Within a program: parameters as they are used, all of them."""
    return gathered(params, lying(params, mesh), by_xla(mesh))


def over_all(grad: RowsGrad, own: RowsGrad, mesh: DeviceMesh, parts: int) -> RowsGrad:
    """Gradients over all devices' rows, of parameters as they are kept, and kept alike.

    own:   `grad` again, as each device may compute it of rows of its own.
    parts: in how many it takes rows; where devices cannot share each alike, XLA shares the work.
    """

    def of_all(params: Params, rows: Rows, shared: Shared) -> Any:
        found, grads = grad(in_use(params, mesh), rows, shared)
        # Said out loud: XLA would else split activations as gradients are kept.
        places = layouts.places(layouts.in_use, grads, mesh)
        return found, lax.with_sharding_constraint(grads, places)

    def run(params: Params, rows: Rows, shared: Shared) -> Any:
        split = mesh.size > 1 and len(jax.tree.leaves(rows)[0]) % (mesh.size * parts) == 0
        found, grads = (_of_own(own, mesh) if split else of_all)(params, rows, shared)
        places = layouts.places(layouts.in_shares, grads, mesh)
        return found, lax.with_sharding_constraint(grads, places)

    return run


def _of_own(grad: RowsGrad, mesh: DeviceMesh) -> RowsGrad:
    """The same, each device with its own rows: it gathers parameters that are in shares, and keeps
    its share of the mean over all devices.

    What devices send each other is said here rather than found by XLA, which sums a gradient in
    pieces where it comes from several sides, would split activations as parameters are kept, and
    sum all of a gradient where a share of it is kept.
    """

    def run(params: Params, rows: Rows, shared: Shared) -> Any:
        lie = lying(params, mesh)
        fetch_layer = fetch(lie, by_device) if mesh.shape["fsdp"] > 1 else None

        def on_each(params: Params, rows: Rows, shared: Shared) -> Any:
            params = gathered(params, lie, by_device, looped=True)
            with spread(mesh.rows), fetching(fetch_layer):
                found, grads = grad(params, rows, shared)
            return lax.pmean(found, mesh.rows), averaged(grads, lie, mesh)

        return _on_devices(on_each, mesh, lie, (PartitionSpec(), _kept(lie)))(params, rows, shared)

    return run


Draw = Callable[[Any, jax.Array, Any], Any]
"""`(weights, key, rows) -> rows`, a row of which depends on its index and on no other row."""


def drawn(draw: Draw, mesh: DeviceMesh) -> Draw:
    """The same on all devices, each with its own rows, of weights in shares or not: no device asks
    another for anything but its share of the weights."""

    def run(weights: Any, key: jax.Array, rows: Any) -> Any:
        lie = lying(weights, mesh)

        def on_each(weights: Any, rows: Any, key: jax.Array) -> Any:
            return draw(gathered(weights, lie, by_device), key, rows)

        return _on_devices(on_each, mesh, lie, PartitionSpec(mesh.rows))(weights, rows, key)

    return run


def _kept(lie: Any) -> Any:
    """How parameters are split over the devices that have rows of their own."""

    def one(lies: Lying) -> PartitionSpec:
        return PartitionSpec(*(None if name == "tensor" else name for name in lies.kept))

    return jax.tree.map(one, lie)


def _on_devices(function: Callable[..., Any], mesh: DeviceMesh, lie: Any, results: Any) -> Any:
    """`(parameters, rows, what all share)` on every device: what it keeps of the first two."""
    return jax.shard_map(
        function,
        mesh=mesh.devices,
        in_specs=(_kept(lie), PartitionSpec(mesh.rows), PartitionSpec()),
        out_specs=results,
        axis_names=set(mesh.rows),
        check_vma=False,
    )
