"""A sampler as a folder that a program with nothing but JAX can run.

    sampler.stablehlo    jax.export of `sample`: (weights, key data, cond) -> rows, any batch size,
                         for CPU, CUDA and TPU; weights are an argument, not part of it
    weights.safetensors  the weights, named by their path
    bundle.json          spec, conditions, config, versions, licence of the data, file digests

The digests are checked before anything is deserialised.
"""

from __future__ import annotations

import hashlib
import json
import math
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import jax.export
import jax.numpy as jnp
import numpy as np
from safetensors.numpy import load as load_safetensors
from safetensors.numpy import save as save_safetensors

import genaug
from genaug import layouts
from genaug.files import write_atomically
from genaug.sampling import check_cond
from genaug.types import (
    CondField,
    DataError,
    GenerativeModel,
    LabelSpec,
    Spec,
    TokenSpec,
    Weights,
)

PLATFORMS = ("cpu", "cuda", "tpu")
FILES = ("sampler.stablehlo", "weights.safetensors")


def named(weights: Weights) -> dict[str, Any]:
    """Weights as one flat dictionary, keys being paths joined by dots."""
    leaves = jax.tree_util.tree_flatten_with_path(weights)[0]
    return {jax.tree_util.keystr(path, simple=True, separator="."): leaf for path, leaf in leaves}


def digest(weights: Weights) -> str:
    """SHA-256 of weights: names, shapes, dtypes and bytes."""
    sha = hashlib.sha256()
    for name, leaf in sorted(named(weights).items()):
        array = np.asarray(leaf)
        sha.update(f"{name} {array.dtype} {array.shape}\n".encode())
        sha.update(np.ascontiguousarray(array).tobytes())
    return sha.hexdigest()


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


def conditions(model: GenerativeModel) -> dict[str, CondField]:
    """What the exported sampler reads: all but the optional, which would be other programs."""
    index = CondField(jax.ShapeDtypeStruct((), jnp.int32))
    return {"index": index, **{k: v for k, v in model.cond.items() if not v.optional}}


def write_bundle(
    directory: Path,
    model: GenerativeModel,
    weights: Weights,
    spec: Spec,
    about: Mapping[str, Any],
) -> None:
    """Write the bundle whole or not at all. `about` (config, data, licence) goes into it as is."""
    weights = layouts.to_host(weights)
    structure = jax.tree.structure(weights)
    order = list(named(weights))

    def sample(flat: dict[str, jax.Array], key_data: jax.Array, cond: dict[str, jax.Array]) -> Any:
        tree = jax.tree.unflatten(structure, [flat[name] for name in order])
        return dict(model.sample(tree, jax.random.wrap_key_data(key_data), cond))

    read = conditions(model)
    (rows,) = jax.export.symbolic_shape("n")
    abstract = (
        {k: jax.ShapeDtypeStruct(v.shape, v.dtype) for k, v in named(weights).items()},
        jax.ShapeDtypeStruct((2,), jnp.uint32),
        {k: jax.ShapeDtypeStruct((rows, *v.spec.shape), v.spec.dtype) for k, v in read.items()},
    )
    exported = jax.export.export(jax.jit(sample), platforms=PLATFORMS)(*abstract)
    files = {
        "sampler.stablehlo": bytes(exported.serialize()),
        "weights.safetensors": save_safetensors(
            {name: np.asarray(leaf) for name, leaf in named(weights).items()}
        ),
    }
    partial = directory.with_name(f".{directory.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    for name, content in files.items():
        (partial / name).write_bytes(content)
    description = {
        "format": 1,
        "genaug": genaug.__version__,
        "jax": jax.__version__,
        "calling_convention": exported.calling_convention_version,
        "platforms": list(PLATFORMS),
        "spec": spec_to_json(spec),
        "conditions": conditions_to_json(read),
        "weights_digest": digest(weights),
        "files": {name: hashlib.sha256(content).hexdigest() for name, content in files.items()},
        **about,
    }
    write_atomically(partial / "bundle.json", json.dumps(description, indent=1))
    shutil.rmtree(directory, ignore_errors=True)
    partial.rename(directory)


@dataclass(frozen=True)
class Bundle:
    """A sampler read from a bundle: `bundle(key, cond) -> rows`, usable inside `jax.jit`."""

    exported: jax.export.Exported
    weights: Mapping[str, np.ndarray]
    description: Mapping[str, Any]

    def __call__(self, key: jax.Array, cond: Mapping[str, Any]) -> dict[str, jax.Array]:
        """One row per row of `cond`, which holds "index" and every condition without a default.

        Raises:
            UserError: a condition that the sampler does not read, one that is missing, or one out
                of bounds (where its values are known: not inside `jax.jit`).
        """
        read = conditions_from_json(self.description["conditions"])
        check_cond(cond, read)
        rows = len(cond["index"])

        def column(name: str, field: CondField) -> jax.Array:
            if name in cond:
                return jnp.asarray(cond[name], field.spec.dtype)
            assert field.default is not None, "check_cond has seen to it"
            return jnp.full((rows, *field.spec.shape), field.default, field.spec.dtype)

        full = {name: column(name, field) for name, field in read.items()}
        return self.exported.call(dict(self.weights), jax.random.key_data(key), full)


def load_sampler(directory: str | Path) -> Bundle:
    """Read a bundle, digests first. DataError names a file that is missing or altered."""
    directory = Path(directory)
    path = directory / "bundle.json"
    if not path.is_file():
        raise DataError(f"{directory} is no sampler bundle: it has no bundle.json.")
    try:
        description = json.loads(path.read_text(encoding="utf-8"))
        digests = {name: description["files"][name] for name in FILES}
    except (ValueError, KeyError, TypeError):
        raise DataError(f"{path} is damaged: export the bundle again from its run.") from None
    content = {}
    for name, expected in digests.items():
        file = directory / name
        content[name] = file.read_bytes() if file.is_file() else b""
        if hashlib.sha256(content[name]).hexdigest() != expected:
            state = "has been altered" if file.is_file() else "is missing"
            raise DataError(f"{file} {state}: export the bundle again from its run.")
    return Bundle(
        exported=jax.export.deserialize(bytearray(content["sampler.stablehlo"])),
        weights=load_safetensors(content["weights.safetensors"]),
        description=description,
    )
