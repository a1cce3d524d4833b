"""A sampler as a folder that a program with nothing but JAX can run, and reading it back.

    sampler.stablehlo    jax.export of `sample`: (weights, key data, cond) -> rows, any batch size,
                         for CPU, CUDA and TPU; weights are an argument, not part of it
    weights.safetensors  the weights, named by their path
    bundle.json          spec, conditions, config, versions, licence of the data
    tokenizer.json       where it draws tokens of a trained tokenizer
    SHA256SUMS           of all of these; `sha256sum -c` reads it too

The digests are checked before anything is deserialised.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import jax
import jax.export
import jax.numpy as jnp
import numpy as np
from jax.custom_batching import custom_vmap
from safetensors import SafetensorError
from safetensors.numpy import load as load_safetensors

from genaug.data.synthetic import SyntheticSource
from genaug.foreign import compile_over_rows, on_all, over_rows
from genaug.sampling import Rows, Sampler, check_cond
from genaug.types import CondField, DataError, LabelSpec, Spec, TokenSpec, UserError

FORMAT = 1
PLATFORMS = ("cpu", "cuda", "tpu")
FILES = ("bundle.json", "sampler.stablehlo", "weights.safetensors")
TOKENIZER = "tokenizer.json"
SUMS = "SHA256SUMS"
_CONVENTIONS = (
    jax.export.minimum_supported_calling_convention_version,
    jax.export.maximum_supported_calling_convention_version,
)


def spec_to_json(spec: Spec) -> dict[str, Any]:
    """A spec as JSON."""
    bounds = ("num_classes", "num_text")
    return {
        name: {
            "shape": list(value.shape),
            "dtype": str(value.dtype),
            **{bound: getattr(value, bound) for bound in bounds if hasattr(value, bound)},
        }
        for name, value in spec.items()
    }


def spec_from_json(value: Mapping[str, Any]) -> Spec:
    """The inverse of `spec_to_json`."""

    def one(entry: Mapping[str, Any]) -> jax.ShapeDtypeStruct:
        if "num_text" in entry:
            return TokenSpec(entry["shape"][0], entry["num_text"], entry["num_classes"])
        if "num_classes" in entry:
            return LabelSpec(entry["num_classes"])
        return jax.ShapeDtypeStruct(tuple(entry["shape"]), entry["dtype"])

    return {name: one(entry) for name, entry in value.items()}


def conditions_to_json(read: Mapping[str, CondField]) -> dict[str, Any]:
    """Conditions as JSON: a spec, and a default and bounds where there are any."""
    specs = spec_to_json({name: field.spec for name, field in read.items()})

    def stated(field: CondField) -> dict[str, Any]:
        bounds = {"low": field.low, "high": field.high}
        found = {name: value for name, value in bounds.items() if math.isfinite(value)}
        return found if field.default is None else {"default": field.default, **found}

    return {name: specs[name] | stated(field) for name, field in read.items()}


def conditions_from_json(value: Mapping[str, Any]) -> dict[str, CondField]:
    """The inverse of `conditions_to_json`."""
    names = ("default", "low", "high")
    return {
        name: CondField(spec, **{k: value[name][k] for k in names if k in value[name]})
        for name, spec in spec_from_json(value).items()
    }


def sums(files: Mapping[str, bytes]) -> bytes:
    """The content of SHA256SUMS for these files."""
    lines = (f"{hashlib.sha256(files[name]).hexdigest()}  {name}\n" for name in sorted(files))
    return "".join(lines).encode()


def read_files(directory: Path) -> dict[str, bytes]:
    """The files of a bundle, as they were written. DataError names one that is missing or altered.

    Nothing is parsed: what SHA256SUMS should be is computed and compared byte by byte.
    """
    if not (directory / "bundle.json").is_file() and not (directory / SUMS).is_file():
        raise DataError(f"{directory} is no sampler bundle: it has no bundle.json.")
    names = [*FILES, *(TOKENIZER for _ in [0] if (directory / TOKENIZER).is_file())]
    for name in (*names, SUMS):
        if not (directory / name).is_file():
            raise DataError(f"{directory / name} is missing: export the bundle again.")
    files = {name: (directory / name).read_bytes() for name in names}
    written = (directory / SUMS).read_bytes()
    if written == sums(files):
        return files
    for name, content in files.items():
        if sums({name: content}) not in written:
            raise DataError(f"{directory / name} has been altered: export the bundle again.")
    raise DataError(f"{directory / SUMS} has been altered: export the bundle again.")


def describe(directory: Path, files: Mapping[str, bytes]) -> dict[str, Any]:
    """bundle.json of files that `read_files` read. DataError if it is not what genaug writes."""
    try:
        description = json.loads(files["bundle.json"])
        form = description["format"]
        if form == FORMAT:
            spec_from_json(description["spec"])
            conditions_from_json(description["conditions"])
            known = {"jax": str, "calling_convention": int, "platforms": list, "genaug": str}
            sound = all(isinstance(description[name], kind) for name, kind in known.items())
            sound = sound and all(isinstance(name, str) for name in description["platforms"])
    except (ValueError, KeyError, TypeError, AttributeError, IndexError, RecursionError):
        form, sound = FORMAT, False
    if form != FORMAT:
        raise DataError(
            f"{directory} has format {form!r} and this genaug reads {FORMAT}: install the genaug "
            "that wrote it."
        )
    if not sound:
        raise DataError(f"{directory / 'bundle.json'} is damaged: export the bundle again.")
    return description


def load_sampler(directory: str | Path, mesh: Any = None) -> Bundle:
    """Read a bundle: `sampler(key_or_seed, cond) -> rows`, usable inside any JAX program.

    mesh: a `jax.sharding.Mesh` whose devices share the rows, each with a copy of the weights;
          without one, rows are drawn where the program that calls it runs.

    Raises:
        DataError: a file that is missing or altered (found before anything is deserialised), or
            a program that this version or platform of JAX does not run.
    """
    directory = Path(directory)
    files = read_files(directory)
    description = describe(directory, files)
    again = f"write it again with `genaug export {directory} NEW`, which needs genaug alone."
    made = f"{directory} was exported by jax {description['jax']}"
    version, (low, high) = description["calling_convention"], _CONVENTIONS
    if not low <= version <= high:
        raise DataError(
            f"{made} with calling convention {version}, and jax {jax.__version__} runs {low} to "
            f"{high}: {again}"
        )
    if (platform := jax.export.default_export_platform()) not in description["platforms"]:
        raise DataError(
            f"{made} for {', '.join(description['platforms'])}, and JAX runs on {platform} here: "
            f"{again}"
        )
    try:
        exported = jax.export.deserialize(bytearray(files["sampler.stablehlo"]))
    except Exception as error:  # of XLA's own kinds, for a program of a version it does not know
        raise DataError(
            f"{made}, and jax {jax.__version__} cannot read it ({str(error)[:100]}): {again}"
        ) from error
    weights = read_weights(directory, files)
    return Bundle(on_all(weights, mesh), _Program(exported, description, mesh))


def read_weights(directory: Path, files: Mapping[str, bytes]) -> dict[str, np.ndarray]:
    """The weights of files that `read_files` read, by name. DataError if they cannot be."""
    try:
        return load_safetensors(files["weights.safetensors"])
    except (SafetensorError, ValueError, KeyError) as error:
        path = directory / "weights.safetensors"
        raise DataError(f"{path} cannot be read ({error}): export the bundle again.") from error


@dataclass(frozen=True, eq=False)
class _Program:
    """What of a sampler is no array; equal to itself alone, so JAX compiles a sampler once."""

    exported: jax.export.Exported
    description: Mapping[str, Any]
    mesh: Any

    @cached_property
    def call(self) -> Callable[..., dict[str, Any]]:
        """(weights, key data, conditions) to rows; compiled once for every number of rows."""
        return jax.jit(_vmappable(over_rows(self.exported.call, self.mesh)))


@jax.tree_util.register_dataclass
@dataclass(frozen=True, eq=False)
class Bundle:
    """A sampler read from a bundle: `sampler(key_or_seed, cond) -> rows`.

    Row i depends on the key and on row i of `cond` alone. It is a pytree of its weights: close over
    it inside `jax.jit`, or hand it in as an argument, which keeps large weights out of the program.
    Under `jax.vmap` rows are drawn as one batch, keys one after another.
    """

    weights: dict[str, jax.Array]
    program: _Program = field(metadata={"static": True})

    @property
    def description(self) -> Mapping[str, Any]:
        """bundle.json."""
        return self.program.description

    @property
    def reads(self) -> dict[str, CondField]:
        """What `cond` may hold."""
        return conditions_from_json(self.description["conditions"])

    def __call__(
        self, key_or_seed: jax.Array | int | np.integer, cond: Mapping[str, Any]
    ) -> dict[str, Any]:
        """One row per row of `cond`, which holds "index" and every condition without a default.

        Raises:
            UserError: a condition that the sampler does not read, one that is missing, or one out
                of bounds (where its values are known: not inside `jax.jit`); a key of another kind.
        """
        read = self.reads
        check_cond(cond, read)
        rows = len(cond["index"])

        def column(name: str, field: CondField) -> jax.Array:
            if name in cond:
                return jnp.asarray(cond[name], field.spec.dtype)
            assert field.default is not None, "check_cond has seen to it"
            return jnp.full((rows, *field.spec.shape), field.default, field.spec.dtype)

        full = {name: column(name, field) for name, field in read.items()}
        return self.program.call(self.weights, _key_data(key_or_seed), full)

    def blocks(self, block_size: int = 256) -> Sampler:
        """The same sampler for any number of rows, in NumPy, drawn in blocks of one size."""

        def draw(weights: Any, key: jax.Array, rows: Any) -> dict[str, Any]:
            return Bundle(weights, self.program)(key, rows)

        size = self.program.mesh.size if self.program.mesh else 1
        block_size = -(-block_size // size) * size
        program = compile_over_rows(draw, self.program.mesh)
        return Sampler(program, self.weights, block_size, self.reads)

    def source(self, plan: int | Rows, seed: int = 0) -> SyntheticSource:
        """Synthetic examples as a random-access source for Grain: see `Sampler.source`."""
        return self.blocks().source(plan, seed)


def _key_data(key: Any) -> jax.Array:
    """The two words of a key, which a seed makes as `jax.random.key` does."""
    if isinstance(key, int | np.integer):
        key = jax.random.key(key, impl="threefry2x32")
    if jnp.issubdtype(key.dtype, jax.dtypes.prng_key):
        key = jax.random.key_data(key)
    if key.shape != (2,) or key.dtype != jnp.uint32:
        raise UserError(
            f"The sampler's key is {key.dtype}{list(key.shape)}; it takes a seed or one key of "
            'jax.random.key(seed, impl="threefry2x32").'
        )
    return key


def _vmappable(call: Any) -> Any:
    """A function of (weights, key, rows) that `jax.vmap` may run, which `Exported.call` is not."""
    mapped = custom_vmap(call)

    @mapped.def_vmap
    def _rule(size: int, batched: Any, weights: Any, key: Any, rows: Any) -> Any:
        of_weights, of_key, of_rows = batched
        each = jax.tree.map(
            lambda is_batched, column: column if is_batched else jnp.stack([column] * size),
            of_rows,
            rows,
        )
        if of_key or any(jax.tree.leaves(of_weights)):
            several = (of_weights, of_key)

            def one(i: jax.Array) -> Any:
                weights_and_key = jax.tree.map(
                    lambda is_batched, leaf: leaf[i] if is_batched else leaf,
                    several,
                    (weights, key),
                )
                return call(*weights_and_key, jax.tree.map(lambda column: column[i], each))

            drawn = jax.lax.map(one, jnp.arange(size))
        else:
            merged = jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:]), each)
            drawn = jax.tree.map(
                lambda x: x.reshape(size, -1, *x.shape[1:]), call(weights, key, merged)
            )
        return drawn, jax.tree.map(lambda _: True, drawn)

    return mapped
