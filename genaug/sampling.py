"""A `Sampler`: a trained family's weights bound to its `sample`, over any number of rows."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from genaug import parallel
from genaug.data.synthetic import SyntheticSource
from genaug.devices import DeviceMesh
from genaug.types import CondField, GenerativeModel, LabelSpec, TokenSpec, UserError, Weights

Rows = Mapping[str, np.ndarray]


@dataclass(frozen=True)
class Sampler:
    """`sampler(key, cond) -> rows` in NumPy; row i depends on the key and on cond's row i alone.

    Rows are drawn in blocks of one size, so there is one program, whatever their number.
    """

    program: Callable[..., Any]
    weights: Weights
    block_size: int
    reads: Mapping[str, CondField]

    def __call__(self, key: jax.Array, cond: Rows) -> dict[str, np.ndarray]:
        """One row per row of `cond`: "index" int32 [n], and what else the family reads."""
        check_cond(cond, self.reads)
        return map_blocks(lambda rows: self.program(self.weights, key, rows), cond, self.block_size)

    def source(self, plan: int | Rows, seed: int = 0) -> SyntheticSource:
        """Synthetic examples as a random-access source for Grain, drawn as they are read.

        plan: how many; or conditions, one row an example, as {"label": int32 [n]}. Example i has
              the address i, or plan["index"][i].

        Raises:
            UserError: conditions that the model does not read, lacks, or that are out of bounds.
        """
        columns = {} if isinstance(plan, int) else dict(plan)
        count = plan if isinstance(plan, int) else len(next(iter(columns.values()), ()))
        if count < 1:
            raise UserError(f"The plan is for {count} examples; it must be for at least 1.")
        columns.setdefault("index", np.arange(count, dtype=np.int32))
        check_cond(columns, self.reads)
        return SyntheticSource(
            partial(self, jax.random.key(seed)), columns, block_size=self.block_size
        )


def check_cond(cond: Mapping[str, Any], reads: Mapping[str, CondField]) -> None:
    """Refuse conditions that a family does not read, lacks, or that are out of bounds.

    Inside `jax.jit` values are not known yet, so their names and shapes alone are looked at.
    """
    if "index" not in cond:
        raise UserError("cond lacks 'index', the address of every row.")
    count = len(cond["index"])
    for name, value in cond.items():
        if len(value) != count:
            raise UserError(f"cond[{name!r}] has {len(value)} rows and cond['index'] {count}.")
    for name in cond.keys() - reads.keys() - {"index"}:
        known = ", ".join(key for key in reads if key != "index") or "nothing"
        raise UserError(f"This model takes no {name!r}: it reads {known} besides the index.")
    for name, field in reads.items():
        if name not in cond and field.default is None and not field.optional:
            raise UserError(f"cond lacks {name!r}, which this model needs for every row.")
        if name not in cond:
            continue
        spec, shape = field.spec, jnp.shape(cond[name])[1:]
        if shape != spec.shape:
            raise UserError(f"cond[{name!r}] has rows of shape {shape}, not {spec.shape}.")
        if isinstance(cond[name], jax.core.Tracer):
            continue
        values = np.asarray(cond[name])
        if not np.all(np.isfinite(values)):
            bad = values[~np.isfinite(values)].flat[0]
            raise UserError(f"{name} is {bad}; it must be finite.")
        low, high = field.low, field.high
        if isinstance(spec, LabelSpec | TokenSpec):
            count = spec.num_classes if isinstance(spec, LabelSpec) else spec.vocab_size
            low, high = 0, count - 1
        outside = values[(values < low) | (values > high)]
        if outside.size:
            allowed = f"at least {low:g}" if high == math.inf else f"from {low:g} to {high:g}"
            raise UserError(f"{name} is {outside.flat[0]:g}; it must be {allowed}.")


def make_sampler(
    model: GenerativeModel, weights: Weights, mesh: DeviceMesh, block_size: int = 256
) -> Sampler:
    """The sampler of a model over a mesh."""
    block_size = -(-block_size // mesh.size) * mesh.size
    return Sampler(parallel.compile_draws(model.sample, mesh), weights, block_size, model.cond)


def make_scorer(
    model: GenerativeModel, mesh: DeviceMesh, block_size: int = 256
) -> Callable[[Weights, jax.Array, Rows], dict[str, np.ndarray]]:
    """The model's per-example scores of any number of examples, in blocks of one size."""
    program = parallel.compile_rows(
        lambda weights, key, rows: model.score(weights, rows, key), mesh, looped=True
    )
    block_size = -(-block_size // mesh.size) * mesh.size

    def score(weights: Weights, key: jax.Array, rows: Rows) -> dict[str, np.ndarray]:
        return map_blocks(lambda block: program(weights, key, block), rows, block_size)

    return score


def map_blocks(
    function: Callable[[dict[str, Any]], Mapping[str, jax.Array]],
    rows: Rows,
    block_size: int,
) -> dict[str, np.ndarray]:
    """Apply a function of rows block by block; the last block is padded with its first row."""
    count = len(next(iter(rows.values())))
    if count == 0:
        raise UserError("There is nothing to draw or score: 0 rows were asked for.")
    outputs = []
    for start in range(0, count, block_size):
        block = {
            name: np.asarray(value[start : start + block_size]) for name, value in rows.items()
        }
        missing = block_size - len(next(iter(block.values())))
        if missing:
            block = {k: np.concatenate([v, np.repeat(v[:1], missing, 0)]) for k, v in block.items()}
        outputs.append(jax.device_get(function(block)))
    return {
        name: np.concatenate([output[name] for output in outputs])[:count] for name in outputs[0]
    }
