"""One network's training state, its optimiser, and `from_loss`: a loss lifted into a model."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from types import MappingProxyType
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float

from genaug.types import (
    Batch,
    CondField,
    GenerativeModel,
    Metrics,
    State,
    UserError,
    Weights,
    no_score,
)

Params = Any
Variables = dict[str, Any]
"""A Linen module's variables: "params", and "batch_stats" or the like where it has them."""

Loss = Callable[[Variables, Batch, jax.Array], tuple[Float[Array, ""], tuple[Metrics, Variables]]]
"""`(variables, batch, key) -> (loss, (metrics, new statistics))`: a mean over the examples, each of
which draws by its own key (`row_keys`): what is drawn by `key` itself, devices would draw alike."""


@dataclass(frozen=True, kw_only=True)
class Adam:
    """Adam (Kingma & Ba 2015), with decoupled weight decay, and clipping if asked."""

    learning_rate: float = 1e-3
    b1: float = 0.9
    b2: float = 0.999
    weight_decay: float = 0.0
    clip_norm: float | None = None  # largest global norm of a gradient
    warmup_steps: int = 0  # linear from zero
    decay_steps: int | None = None  # cosine to zero at this step; None = constant

    def make(self) -> optax.GradientTransformationExtraArgs:
        """The Optax transformation; its update takes `keep`."""
        rate = _schedule(self.learning_rate, self.warmup_steps, self.decay_steps)
        adam = optax.chain(
            _scale_by_adam(self.b1, self.b2),
            optax.add_decayed_weights(self.weight_decay, _decays),
            _kept(optax.scale_by_learning_rate(rate)),
        )
        return _clipped(adam, self.clip_norm)


@dataclass(frozen=True, kw_only=True)
class SGD:
    """Stochastic gradient descent. With momentum 0, an update is linear in the gradient."""

    learning_rate: float = 1e-2
    momentum: float = 0.0
    clip_norm: float | None = None  # largest global norm of a gradient
    warmup_steps: int = 0  # linear from zero
    decay_steps: int | None = None  # cosine to zero at this step; None = constant

    def make(self) -> optax.GradientTransformationExtraArgs:
        """The Optax transformation; its update takes `keep`."""
        rate = _schedule(self.learning_rate, self.warmup_steps, self.decay_steps)
        return _clipped(_kept(optax.sgd(rate, self.momentum or None)), self.clip_norm)


Optimizer = Adam | SGD


def _decays(params: Params) -> Any:
    """Which parameters decay: not biases, nor the gains of norms (Radford et al. 2018, 4.1)."""
    return jax.tree_util.tree_map_with_path(
        lambda path, _: (
            jax.tree_util.keystr(path[-1:], simple=True) not in ("bias", "scale", "gain")
        ),
        params,
    )


def _schedule(peak: float, warmup_steps: int, decay_steps: int | None) -> optax.Schedule | float:
    if not warmup_steps and decay_steps is None:
        return peak
    if decay_steps is not None and decay_steps <= warmup_steps:
        raise UserError(
            f"decay-steps is {decay_steps} and warmup-steps {warmup_steps}: the rate decays from "
            "the end of the warm-up, so give more decay-steps, or none."
        )
    if decay_steps is None:
        return optax.linear_schedule(0.0, peak, warmup_steps)
    return optax.warmup_cosine_decay_schedule(
        0.0 if warmup_steps else peak, peak, warmup_steps, decay_steps
    )


def _clipped(
    transformation: optax.GradientTransformationExtraArgs, norm: float | None
) -> optax.GradientTransformationExtraArgs:
    if norm is None:
        return transformation
    return optax.chain(optax.clip_by_global_norm(norm), transformation)


Keep = Callable[[Any, Any], Any]
"""`(new, old) -> new`, or `old` where an update is left out; pytrees alike."""


def _always(new: Any, old: Any) -> Any:
    return new


def _kept(inner: optax.GradientTransformation) -> optax.GradientTransformationExtraArgs:
    """The transformation, its state that of `keep`."""

    def update(
        updates: Params, state: Any, params: Params | None = None, *, keep: Keep = _always
    ) -> tuple[Params, Any]:
        updates, new = inner.update(updates, state, params)
        return updates, keep(new, state)

    return optax.GradientTransformationExtraArgs(inner.init, update)


ADAM_EPSILON = 1e-8  # Kingma & Ba 2015, algorithm 1


def _apart(tree: Any) -> Any:
    """On a CPU, arrays that XLA shares with nothing else; elsewhere `tree`."""
    return jax.lax.platform_dependent(
        tree, cpu=jax.lax.optimization_barrier, default=lambda tree: tree
    )


def gradient_norm(grads: Params) -> Float[Array, ""]:
    """The Euclidean norm over all arrays, as a metric."""
    # Of squares that are Adam's too, XLA would write an array before it sums them.
    return optax.tree.norm(_apart(grads))


def _scale_by_adam(b1: float, b2: float) -> optax.GradientTransformationExtraArgs:
    """Optax's, but that the direction is of the moments that are kept.

    So nothing reads moments that are left out, and XLA needs no place for them.
    """
    adam = _kept(optax.scale_by_adam(b1, b2))

    def update(
        grads: Params, state: Any, params: Params | None = None, *, keep: Keep = _always
    ) -> tuple[Params, Any]:
        # XLA would compute them again where they are read, from copies of the old ones.
        kept = _apart(adam.update(grads, state, params, keep=keep)[1])
        mean = optax.tree.bias_correction(kept.mu, b1, state.count + 1)
        square = optax.tree.bias_correction(kept.nu, b2, state.count + 1)
        return jax.tree.map(lambda m, v: m / (jnp.sqrt(v) + ADAM_EPSILON), mean, square), kept

    return optax.GradientTransformationExtraArgs(adam.init, update)


Rows = Any
"""A pytree of arrays [n, ...]: a batch, or what a loss reads of one."""

Shared = Any
"""A pytree of what every row's loss reads besides: keys, statistics, other networks' parameters."""

RowsLoss = Callable[[Params, Rows, Shared], tuple[Float[Array, ""], Any]]
"""`(params, rows, shared) -> (mean over the rows, anything else)`: every term is a mean over the
rows. A loss reads no arrays but these, for devices may take a share of the rows each."""

RowsGrad = Callable[[Params, Rows, Shared], tuple[tuple[Float[Array, ""], Any], Params]]
"""`(params, rows, shared) -> ((loss, anything else), gradient)`."""

Grad = Callable[[RowsLoss], RowsGrad]


def value_and_grad(loss: RowsLoss) -> RowsGrad:
    """Plain gradients, of all rows at once."""
    return jax.value_and_grad(loss, has_aux=True)


def accumulated(grad: Grad, parts: int) -> Grad:
    """The same gradients, one part of the rows after another: activations of a part at a time.

    Part i holds every `parts`-th row from i on, so that every device has its share of each.
    """
    if parts == 1:
        return grad

    def of(loss: RowsLoss) -> RowsGrad:
        one = grad(loss)

        def split(x: Array) -> Array:
            if x.shape[0] % parts:
                raise UserError(
                    f"{x.shape[0]} examples an update do not divide into train.accumulate {parts} "
                    "parts: use another --train.accumulate or --train.batch-size."
                )
            return jnp.swapaxes(x.reshape(x.shape[0] // parts, parts, *x.shape[1:]), 0, 1)

        def run(params: Params, rows: Rows, shared: Shared) -> Any:
            stack = jax.tree.map(split, rows)
            shapes = jax.eval_shape(one, params, jax.tree.map(lambda x: x[0], stack), shared)
            zeros = jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), shapes)

            def add(total: Any, part: Rows) -> tuple[Any, None]:
                return jax.tree.map(jnp.add, total, one(params, part, shared)), None

            total, _ = jax.lax.scan(add, zeros, stack)
            return jax.tree.map(lambda x: x / parts, total)

        return run

    return of


def _as_it_is(tree: Params) -> Params:
    return tree


@flax.struct.dataclass
class NetworkState:
    """One network in training.

    variables: parameters under "params", and its statistics (batch norm's) if it has any.
    ema:       exponential moving average of `variables["params"]`, what sampling uses.
    in_use:    what is done to parameters before they are computed with (`used`).
    grad:      how gradients are taken, of parameters as they are kept.
    good:      whether an update counts, from all its metrics; None once that is done, or nobody
               asks. The trainer puts the three there while a step is traced: what is spread over
               which devices, in how many parts a batch is taken, what is left out, is its affair.
    """

    step: Any  # int32 []; a template holds shapes instead of arrays, in every field
    variables: Variables
    ema: Params
    opt_state: optax.OptState
    in_use: Callable[[Params], Params] = flax.struct.field(pytree_node=False, default=_as_it_is)
    grad: Grad = flax.struct.field(pytree_node=False, default=value_and_grad)
    good: Callable[[Metrics], Array] | None = flax.struct.field(pytree_node=False, default=None)

    @property
    def used(self) -> Variables:
        """The variables, to compute with; `grad` takes parameters as they are kept."""
        return {**self.variables, "params": self.in_use(self.variables["params"])}

    @property
    def statistics(self) -> Variables:
        """The variables but for the parameters."""
        return {name: value for name, value in self.variables.items() if name != "params"}


def create(variables: Variables, optimizer: optax.GradientTransformation) -> NetworkState:
    """A network before its first update; its EMA starts at the parameters."""
    params = variables["params"]
    return NetworkState(
        step=jnp.zeros((), jnp.int32),
        variables=variables,
        ema=jax.tree.map(jnp.copy, params),
        opt_state=optimizer.init(params),
    )


def started_from(fresh: State, old: State) -> State:
    """The state in which training goes on from another run's result with a new optimiser.

    Every network of `fresh` gets the EMA of its counterpart in `old` as parameters; step counts and
    optimisers begin anew. The trees must be alike.
    """

    def one(new: Any, found: Any) -> Any:
        if not isinstance(new, NetworkState):
            return found
        variables = {**found.variables, "params": jax.tree.map(jnp.copy, found.ema)}
        return dataclasses.replace(new, variables=variables, ema=found.ema)

    return jax.tree.map(one, fresh, old, is_leaf=lambda node: isinstance(node, NetworkState))


def apply_gradients(
    state: NetworkState,
    grads: Params,
    statistics: Variables,
    optimizer: optax.GradientTransformationExtraArgs,
    ema_decay: float,
    metrics: Metrics | None = None,
) -> NetworkState:
    """One optimiser step, and one of the EMA.

    The decay starts at 1/10 and grows to `ema_decay` as (1 + step) / (10 + step), so that the
    average of a short run is not dominated by its initial values.

    metrics: all of the update, if known by now: then it is left out here, if it is to be. What
             follows from a value is computed from what is kept of it, so nothing is kept twice.
    """
    keep = _always
    if metrics is not None and state.good is not None:
        good = state.good(metrics)
        keep = partial(jax.tree.map, lambda new, old: jnp.where(good, new, old))
    params = state.variables["params"]
    updates, opt_state = optimizer.update(grads, state.opt_state, params, keep=keep)
    params = keep(optax.apply_updates(params, updates), params)
    decay = jnp.minimum(ema_decay, (1.0 + state.step) / (10.0 + state.step))
    ema = jax.tree.map(lambda e, p: e + (1.0 - decay).astype(p.dtype) * (p - e), state.ema, params)
    old_statistics = {name: state.variables[name] for name in statistics}
    return dataclasses.replace(
        state,
        step=keep(state.step + 1, state.step),
        variables={**state.variables, **keep(statistics, old_statistics), "params": params},
        ema=keep(ema, state.ema),
        opt_state=opt_state,
        good=state.good if metrics is None else None,
    )


def from_loss(
    init: Callable[[jax.Array], Variables],
    loss: Loss,
    sample: Callable[[Weights, jax.Array, Batch], Batch],
    optimizer: Optimizer,
    *,
    score: Callable[[Weights, Batch, jax.Array], Metrics] = no_score,
    ema_decay: float = 0.999,
    cond: Mapping[str, CondField] = MappingProxyType({}),
) -> GenerativeModel:
    """The model of a family with one network and one loss.

    Weights are the variables with the EMA in place of the parameters. Gradients are taken by
    `NetworkState.grad`: the place for accumulation, `pmean`, DP-SGD.
    """
    transformation = optimizer.make()

    def step(state: NetworkState, batch: Batch, key: jax.Array) -> tuple[NetworkState, Metrics]:
        def of_params(params: Params, rows: Batch, shared: Shared) -> tuple[Float[Array, ""], Any]:
            statistics, key = shared
            return loss({**statistics, "params": params}, rows, key)

        (value, (metrics, statistics)), grads = state.grad(of_params)(
            state.variables["params"], batch, (state.statistics, key)
        )
        metrics = {"loss": value, **metrics, "grad_norm": gradient_norm(grads)}
        new = apply_gradients(state, grads, statistics, transformation, ema_decay, metrics)
        return new, metrics

    return GenerativeModel(
        init=lambda key: create(init(key), transformation),
        step=step,
        weights=lambda state: {**state.variables, "params": state.ema},
        sample=sample,
        score=score,
        cond=cond,
    )
