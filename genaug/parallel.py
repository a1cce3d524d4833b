"""Functions compiled over the devices; values do not depend on the mesh, up to the rounding of sums
taken in another order.

With `devices` (which there are), `layouts` (where arrays lie), `shares` (what is kept in parts) and
`foreign` (meshes that are not ours) all in the house that knows of more than one device.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.sharding import PartitionSpec

from genaug import layouts, shares
from genaug.devices import DeviceMesh
from genaug.guard import Guard, Usual, Watched
from genaug.nets import flash
from genaug.nets.looped import fetching
from genaug.state import NetworkState, RowsGrad, RowsLoss, accumulated, value_and_grad
from genaug.types import Batch, Metrics, State, Weights


def compile_init(init: Callable[[jax.Array], State], mesh: DeviceMesh) -> Callable:
    """`init(key)`, its state made in place on the devices."""
    template = layouts.abstract(init, mesh)
    return jax.jit(init, out_shardings=jax.tree.map(lambda leaf: leaf.sharding, template))


Tree = Callable[[Any], Any]
"""A function of a pytree that changes where its arrays are, or averages them over devices."""


Good = Callable[[Metrics], jax.Array]
"""Whether an update counts, pred [], from all its metrics."""


def _told(
    state: State,
    good: Good | None,
    in_use: Tree,
    over_all: Callable[[RowsGrad], RowsGrad],
    accumulate: int,
) -> State:
    """The state, its networks told how to get at parameters and at gradients, and what counts.

    over_all: from gradients of the rows at hand to those over all devices' rows.
    """

    def grad(loss: RowsLoss) -> RowsGrad:
        return over_all(accumulated(value_and_grad, accumulate)(loss))

    def one(node: Any) -> Any:
        if not isinstance(node, NetworkState):
            return node
        return dataclasses.replace(node, in_use=in_use, grad=grad, good=good)

    return jax.tree.map(one, state, is_leaf=lambda node: isinstance(node, NetworkState))


def memory_needed(program: Callable[..., Any], *arguments: Any) -> int | None:
    """Bytes that a device takes beyond what the arguments take already; None where nothing says.

    The program is compiled for it, and not again when it is called with such arguments.
    """
    if not hasattr(program, "lower"):  # pmap is several programs
        return None
    found = program.lower(*arguments).compile().memory_analysis()
    if found is None:
        return None
    made = found.output_size_in_bytes - found.alias_size_in_bytes
    return int(found.temp_size_in_bytes + made)


def compile_steps(
    step: Callable[[State, Batch, jax.Array], tuple[State, Metrics]],
    mesh: DeviceMesh,
    template: State,
    accumulate: int = 1,
    guard: Guard | None = Guard(),  # noqa: B008
) -> Callable[[State, Batch, jax.Array, int], tuple[State, Metrics]]:
    """K steps as one program: `(state, stack of K batches, key, first step) -> (state, metrics)`.

    The state is donated; it comes and stays where `template` (`abstract`) says. Under a guard that
    looks for spikes it is `Watched`: the state, and what is usual for its gradients. Step i draws
    its randomness from `fold_in(key, first + i)`. Gradients are taken of `accumulate` parts of a
    batch in turn.

    guard: which steps are left out: the state stays as it was before them. The metrics are means
           over the others, and `metrics["good"]`, float32 [K, metrics by name], is 0 where a metric
           was the reason. None leaves out no step, and tells of none.
    """
    compiler = _under_pmap if mesh.config.strategy == "pmap" else _under_jit
    return compiler(step, mesh, template, accumulate, guard)


def _loop(
    step: Callable[[State, Batch, jax.Array], tuple[State, Metrics]],
    tell: Callable[[State, Good | None], State],
    settle: Callable[[State, Metrics], tuple[State, Metrics]],
    offset: Callable[[int], Any],
    guard: Guard | None,
) -> Callable[[State, Batch, jax.Array, Any], tuple[State, Metrics]]:
    """K steps in a scan. `offset(n)` is the place in the batch of the first of n examples here."""

    watching = guard is not None and guard.spike_factor is not None

    def guarded(held: State, batch: Batch, key: jax.Array) -> tuple[State, Metrics]:
        old, usual = held if watching else (held, None)

        def counts(metrics: Metrics) -> jax.Array:
            assert guard is not None
            return jnp.all(guard(metrics, usual)[0] > 0)

        new, metrics = step(tell(old, counts if guard else None), batch, key)
        decided = isinstance(new, NetworkState) and new.good is None
        new, metrics = settle(new, metrics)
        if guard is None or not metrics:
            return new, metrics
        if not decided:
            leaves = zip(jax.tree.leaves(new), jax.tree.leaves(old), strict=True)
            kept = [jnp.where(counts(metrics), one, other) for one, other in leaves]
            new = jax.tree.unflatten(jax.tree.structure(new), kept)
        good, usual = guard(metrics, usual)
        return Watched(new, usual) if usual else new, {**metrics, "good": good}

    def mean(metrics: Metrics) -> Metrics:
        if "good" not in metrics:
            return jax.tree.map(lambda m: jnp.mean(m, axis=0), metrics)
        good = metrics.pop("good")
        every = jnp.all(good > 0, axis=1)

        def of(m: jax.Array) -> jax.Array:
            return jnp.sum(jnp.where(every, m, 0.0)) / jnp.sum(every)

        return {**jax.tree.map(of, metrics), "good": good}

    def run(
        state: State, batches: Batch, key: jax.Array, first: int | jax.Array
    ) -> tuple[State, Metrics]:
        count, rows = jax.tree.leaves(batches)[0].shape[:2]

        def one(state: State, step_and_batch: tuple[jax.Array, Batch]) -> tuple[State, Metrics]:
            number, batch = step_and_batch
            batch = {**batch, "index": offset(rows) + jnp.arange(rows)}
            return guarded(state, batch, jax.random.fold_in(key, number))

        state, metrics = lax.scan(one, state, (first + jnp.arange(count), batches))
        return state, mean(metrics)

    return run


def compile_lookup(
    examples: Mapping[str, np.ndarray], mesh: DeviceMesh
) -> Callable[[dict[str, np.ndarray]], dict[str, jax.Array]]:
    """A copy of all examples on every device: `{"position": [k, b]} -> stack of k batches`.

    What crosses to the devices is then where a batch's examples are, not the examples.
    """
    kept = {name: layouts.spread(array, layouts.whole(mesh)) for name, array in examples.items()}

    @partial(jax.jit, out_shardings=layouts.split(mesh, axis=1))
    def look(kept: dict[str, jax.Array], position: jax.Array) -> dict[str, jax.Array]:
        return {name: array[position] for name, array in kept.items()}

    return lambda stack: look(kept, layouts.split_rows(stack["position"], mesh, axis=1))


def kernels(mesh: DeviceMesh, own_rows: bool = False) -> flash.Kernels:
    """How kernels, which XLA does not split, are spread over the mesh.

    own_rows: within a function of each device's own rows, and so over its heads alone.
    """
    names = {"rows": None if own_rows else mesh.rows, "heads": "tensor", None: None}

    def split(axes: flash.Axes) -> PartitionSpec:
        return PartitionSpec(*(names[axis] for axis in axes))

    def spread(kernel: Any, operands: tuple[flash.Axes, ...], result: flash.Axes) -> Any:
        return jax.shard_map(
            kernel,
            mesh=None if own_rows else mesh.devices,
            in_specs=tuple(map(split, operands)),
            out_specs=split(result),
            axis_names={"tensor"} if own_rows else set(mesh.devices.axis_names),
            check_vma=False,
        )

    return flash.Kernels(spread, 1 if own_rows else mesh.size, mesh.config.tensor)


def _with_kernels(
    function: Callable[..., Any], mesh: DeviceMesh, own_rows: bool = False
) -> Callable[..., Any]:
    """A function that finds kernels while it is traced, where the devices have them."""
    if mesh.platform != "tpu":
        return function

    def run(*arguments: Any) -> Any:
        with flash.kernels(kernels(mesh, own_rows)):
            return function(*arguments)

    return run


def _under_jit(
    step: Any, mesh: DeviceMesh, template: State, accumulate: int, guard: Guard | None
) -> Any:
    """One program over the global arrays; of gradients, `shares` says what devices send."""

    def settle(state: State, metrics: Metrics) -> tuple[State, Metrics]:
        leaves = zip(jax.tree.leaves(state), jax.tree.leaves(template), strict=True)
        kept = [lax.with_sharding_constraint(leaf, place.sharding) for leaf, place in leaves]
        return jax.tree.unflatten(jax.tree.structure(template), kept), metrics

    whole, split = layouts.whole(mesh), layouts.split(mesh, axis=1)
    kept = jax.tree.map(lambda leaf: leaf.sharding, template)
    if guard and guard.spike_factor is not None:
        kept = Watched(kept, Usual(whole, whole))  # type: ignore[arg-type]

    def over_all(grad: RowsGrad) -> RowsGrad:
        return shares.over_all(grad, _with_kernels(grad, mesh, own_rows=True), mesh, accumulate)

    in_use = partial(shares.in_use, mesh=mesh)
    tell = partial(_told, in_use=in_use, over_all=over_all, accumulate=accumulate)
    loop = _loop(step, tell, settle, lambda rows: 0, guard)
    return jax.jit(
        _with_kernels(loop, mesh),
        donate_argnums=0,
        in_shardings=(kept, split, whole, whole),
        out_shardings=(kept, whole),
    )


def _under_pmap(
    step: Any, mesh: DeviceMesh, template: State, accumulate: int, guard: Guard | None
) -> Any:
    """The same program on every device, each with its rows; gradients are averaged by `pmean`.

    Statistics are each device's own, averaged after every step: batch norm normalises by the
    moments of a device's share of the batch. Kernels stay XLA's own: `kernels` is for jit.
    """
    mean = partial(lax.pmean, axis_name="data")

    def averaging(grad: RowsGrad) -> RowsGrad:
        return lambda params, rows, shared: mean(grad(params, rows, shared))

    def settle(state: State, metrics: Metrics) -> tuple[State, Metrics]:
        def averaged(path: Any, x: jax.Array) -> jax.Array:
            return mean(x) if layouts.is_statistic(path) and x.dtype == jnp.float32 else x

        state = jax.tree_util.tree_map_with_path(averaged, state)
        state = jax.tree.unflatten(jax.tree.structure(template), jax.tree.leaves(state))
        return state, mean(metrics)

    program = jax.pmap(
        _loop(
            step,
            lambda state, good: _told(state, good, lambda tree: tree, averaging, accumulate),
            settle,
            lambda rows: lax.axis_index("data") * rows,
            guard,
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
        return jax.make_array_from_single_device_arrays(x.shape, layouts.whole(mesh), parts)

    return run


def _of_rows(function: Callable[..., Any], mesh: DeviceMesh, **options: Any) -> Callable[..., Any]:
    """A program whose last argument and result are rows, split over the devices.

    With several processes each gives all rows, and gets all: a program's result may then be read
    by any of them.
    """
    split = layouts.split(mesh)
    if jax.process_count() == 1:
        return jax.jit(function, out_shardings=split, **options)
    program = jax.jit(function, out_shardings=layouts.whole(mesh), **options)
    onto = partial(layouts.spread, sharding=split)
    return lambda *arguments: program(*arguments[:-1], jax.tree.map(onto, arguments[-1]))


def compile_rows(
    function: Callable[[Weights, jax.Array, Batch], Any], mesh: DeviceMesh, looped: bool = False
) -> Callable[..., Any]:
    """A function of rows, `(weights, key, rows) -> rows`, with its rows split over the devices.

    The weights may lie anywhere; they are gathered to be used: all at once, or with `looped` those
    of layers in a loop when it comes to them, which suits what passes through a net but once.
    """

    def run(weights: Weights, key: jax.Array, rows: Batch) -> Any:
        lie, gather = shares.lying(weights, mesh), shares.by_xla(mesh)
        weights = shares.gathered(weights, lie, gather, looped)
        with fetching(shares.fetch(lie, gather) if looped else None):
            return function(weights, key, rows)

    program = _with_kernels(run, mesh)
    return _of_rows(program, mesh, in_shardings=(None, layouts.whole(mesh), layouts.split(mesh)))


def compile_draws(
    sample: Callable[[Weights, jax.Array, Batch], Batch], mesh: DeviceMesh
) -> Callable[..., Any]:
    """A model's `sample` with its rows split over the devices, each of which waits for no other: a
    loop that goes on until all rows are done ends for a device with its own.

    Where "tensor" splits the weights, devices speak with each other in such a loop, and XLA nowhere
    promises that some may leave it earlier: there all go on together.
    """
    if mesh.shape["tensor"] > 1:
        return compile_rows(sample, mesh)
    program = shares.drawn(_with_kernels(sample, mesh, own_rows=True), mesh)
    return _of_rows(program, mesh, in_shardings=(None, layouts.whole(mesh), layouts.split(mesh)))


def compile_replicas(
    function: Callable[[Any, Any], Any], mesh: DeviceMesh
) -> Callable[[Any, Any], Any]:
    """Independent runs of one function as one program: `(shared, rows) -> rows`.

    Every device takes its share of the rows one after another. (Under `vmap` the convolutions of
    runs with different weights become grouped ones: 3 times slower on XLA's CPU backend,
    benchmarks/CHOICES.md.) The number of rows must be a multiple of the number of devices.
    """

    def on_each_device(shared: Any, rows: Any) -> Any:
        return lax.map(lambda row: function(shared, row), rows)

    mapped = jax.shard_map(
        on_each_device,
        mesh=mesh.devices,
        in_specs=(PartitionSpec(), PartitionSpec(mesh.rows)),
        out_specs=PartitionSpec(mesh.rows),
        check_vma=False,
    )
    return _of_rows(mapped, mesh)
