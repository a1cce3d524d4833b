"""The contracts of the house: read this file first.

A generative model is a handful of pure functions (`GenerativeModel`), as an Optax optimiser is
two. A family's config is a frozen dataclass whose `make(spec)` binds the shapes and returns
them. Everything else (trainer, checkpoints, sampling, evaluation, export) sees a family only
through them.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any, NamedTuple, Protocol, runtime_checkable

import jax
import jax.numpy as jnp
import numpy as np

Batch = Mapping[str, jax.Array]
"""Named arrays whose leading axis is the example."""

Spec = Mapping[str, jax.ShapeDtypeStruct]
"""One example: shapes and dtypes without the batch axis."""


class LabelSpec(jax.ShapeDtypeStruct):
    """The spec of a class label: an int32 scalar from 0 to `num_classes - 1`."""

    __slots__ = ["num_classes"]

    def __init__(self, num_classes: int):
        super().__init__((), np.dtype(np.int32))
        self.num_classes = num_classes


class TokenSpec(jax.ShapeDtypeStruct):
    """The spec of a row of token ids: int32 [length].

    Ids from 0 are the tokeniser's `num_text`; `end` opens and closes a text; `end + 1 + c` opens a
    text of class c in its place, where texts have classes.
    """

    __slots__ = ["num_classes", "num_text"]

    def __init__(self, length: int, num_text: int, num_classes: int = 0):
        super().__init__((length,), np.dtype(np.int32))
        self.num_text = num_text
        self.num_classes = num_classes

    @property
    def end(self) -> int:
        """The id that ends a text, and opens one without a class."""
        return self.num_text

    @property
    def vocab_size(self) -> int:
        """How many ids there are."""
        return self.num_text + 1 + self.num_classes


class CondField(NamedTuple):
    """One condition that a family's `sample` reads, a value per row.

    spec:     one row's shape and dtype; a LabelSpec or TokenSpec bounds its values.
    default:  what rows get where `cond` lacks it; None where there is no default.
    optional: whether `cond` may lack it without a default: `sample` is then another program.
    low, high: what values may be, both included.
    """

    spec: jax.ShapeDtypeStruct
    default: float | None = None
    optional: bool = False
    low: float = -math.inf
    high: float = math.inf


Metrics = dict[str, jax.Array]
"""Named float32 values: scalars from `step`, one per example from `score`."""

State = Any
"""All that training carries: a pytree of arrays, opaque to everyone but the family."""

Weights = Any
"""What sampling needs of a State: parameters (their EMA) and statistics."""


class GenerativeModel(NamedTuple):
    """A family, bound to one example's shapes.

    init:    `(key) -> State`. No data needed.
    step:    `(State, Batch, key) -> (State, Metrics)`. One update of any number of networks. What
             an example draws depends on its `batch["index"]`, as in `sample`: its place in the
             whole batch, wherever it is computed.
    weights: `(State) -> Weights`.
    sample:  `(Weights, key, cond) -> Batch`. `cond["index"]: int32[n]` is always there and row i
             depends only on `(weights, key, cond[i])`: its key is `fold_in(key, index[i])`.
             The rows have the keys, shapes, dtypes and units of the dataset's raw examples.
    score:   `(Weights, Batch, key) -> Metrics`, values of shape [n] (elbo, nll); or `no_score`.
    cond:    what `sample` reads besides "index", by name.
    falls:   the metric of `step` that falls as the model learns (of two networks, no loss need).
    """

    init: Callable[[jax.Array], State]
    step: Callable[[State, Batch, jax.Array], tuple[State, Metrics]]
    weights: Callable[[State], Weights]
    sample: Callable[[Weights, jax.Array, Batch], Batch]
    score: Callable[[Weights, Batch, jax.Array], Metrics]
    cond: Mapping[str, CondField] = MappingProxyType({})
    falls: str = "loss"


@runtime_checkable
class ModelConfig(Protocol):
    """A family's frozen dataclass: hyper-parameters in, functions out."""

    def make(self, spec: Spec) -> GenerativeModel:
        """Bind the shapes of one example (`spec`) and return the functions."""
        ...


def row_index(rows: Batch) -> jax.Array:
    """The address of every row; rows without an index are counted from 0."""
    return rows["index"] if "index" in rows else jnp.arange(len(jax.tree.leaves(rows)[0]))


def row_keys(key: jax.Array, rows: Batch) -> jax.Array:
    """The key of every row: `fold_in(key, index)`."""
    return jax.vmap(lambda index: jax.random.fold_in(key, index))(row_index(rows))


def split_keys(keys: jax.Array, count: int) -> list[jax.Array]:
    """`count` independent keys for every key of [n]."""
    return list(jnp.swapaxes(jax.vmap(lambda key: jax.random.split(key, count))(keys), 0, 1))


def row_normal(keys: jax.Array, shape: tuple[int, ...]) -> jax.Array:
    """Standard normal values [n, *shape], every row by its own key."""
    return jax.vmap(lambda key: jax.random.normal(key, shape))(keys)


def row_uniform(keys: jax.Array, shape: tuple[int, ...] = ()) -> jax.Array:
    """Values from 0 to 1 [n, *shape], every row by its own key."""
    return jax.vmap(lambda key: jax.random.uniform(key, shape))(keys)


def no_score(weights: Weights, batch: Batch, key: jax.Array) -> Metrics:
    """The score of a family that has none: no metrics."""
    del weights, batch, key
    return {}


class UserError(Exception):
    """Something the user can mend: one line naming the thing and the fix. Exit code 2."""

    exit_code = 2


class DataError(UserError):
    """Data that is missing, unreadable or not what it was declared to be. Exit code 3."""

    exit_code = 3
