"""Write a sampler as a bundle (`genaug.bundle` has its files), of a model, a run or a bundle."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import jax.export
import jax.numpy as jnp
import numpy as np
from safetensors.numpy import save as save_safetensors

import genaug
from genaug import bundle, layouts
from genaug.files import read_json, without_folders
from genaug.types import CondField, DataError, GenerativeModel, Spec, UserError, Weights


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
    tokenizer: str | None = None,
) -> None:
    """Write the bundle whole or not at all.

    about:     (config, data, licence) goes into bundle.json as it is.
    tokenizer: the text of a tokenizer.json, of a model of trained tokens.
    """
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
    exported = jax.export.export(jax.jit(sample), platforms=bundle.PLATFORMS)(*abstract)
    description = {
        "format": bundle.FORMAT,
        "genaug": genaug.__version__,
        "jax": jax.__version__,
        "calling_convention": exported.calling_convention_version,
        "platforms": list(bundle.PLATFORMS),
        "spec": bundle.spec_to_json(spec),
        "conditions": bundle.conditions_to_json(read),
        "weights_digest": digest(weights),
        **about,
    }
    files = {
        "bundle.json": json.dumps(description, indent=1).encode(),
        "sampler.stablehlo": bytes(exported.serialize()),
        "weights.safetensors": save_safetensors(
            {name: np.asarray(leaf) for name, leaf in named(weights).items()}
        ),
        **({bundle.TOKENIZER: tokenizer.encode()} if tokenizer is not None else {}),
    }
    partial_folder = directory.with_name(f".{directory.name}.partial")
    shutil.rmtree(partial_folder, ignore_errors=True)
    partial_folder.mkdir(parents=True)
    for name, content in {**files, bundle.SUMS: bundle.sums(files)}.items():
        (partial_folder / name).write_bytes(content)
    shutil.rmtree(directory, ignore_errors=True)
    partial_folder.rename(directory)


def about_run(directory: Path) -> dict[str, Any]:
    """What a bundle says of the run that it comes from: config, data, and what was measured."""
    data = read_json(directory / "data.json")
    kept = ("name", "licence", "origin", "fingerprint", "class_names", "counts", "tokenizer",
            "sound")  # fmt: skip
    about = {
        "config": without_folders(read_json(directory / "config.json")),
        "data": without_folders({name: data[name] for name in kept if name in data}),
    }
    if (path := directory / "results.json").is_file():
        results = read_json(path)
        arms = {arm["name"]: arm for arm in results["arms"]}
        about["verdict"] = results["verdict"]
        about["measured"] = {
            "metric": results["metric"],
            "bar": results["bar"],
            "candidate": results["candidate"],
            "gain": arms[results["candidate"]]["against_bar"][results["metric"]],
            "level": results["level"],
            "interval": results["interval"],
            "audit": results["audit"],
            "drawn": results["drawn"],
        }
    return about


def export_run(run: Path, out: Path) -> None:
    """A bundle of what a run trained."""
    from genaug import runs

    trained = runs.open_run(run)
    tokenizer = run / bundle.TOKENIZER
    write_bundle(
        out,
        trained.model,
        trained.weights,
        trained.spec,
        about_run(run),
        tokenizer.read_text(encoding="utf-8") if tokenizer.is_file() else None,
    )


def export_again(source: Path, out: Path) -> None:
    """A bundle for the JAX that is here, of another's weights and config; its program is not read.

    Raises:
        DataError: a bundle that is damaged, or was made without its experiment's config.
    """
    from genaug.config import experiment_from_json

    files = bundle.read_files(source)
    description = bundle.describe(source, files)
    if "config" not in description:
        raise DataError(f"{source} was written without its config: export it where it was trained.")
    experiment = experiment_from_json(description["config"], str(source / "bundle.json"))
    spec = bundle.spec_from_json(description["spec"])
    model = experiment.model.make(spec)
    shapes = jax.eval_shape(lambda key: model.weights(model.init(key)), jax.random.key(0))
    found = bundle.read_weights(source, files)
    expected = {name: leaf.shape for name, leaf in named(shapes).items()}
    if expected != {name: array.shape for name, array in found.items()}:
        raise DataError(
            f"the weights of {source} are not those of its config under genaug "
            f"{genaug.__version__}: use genaug {description['genaug']}."
        )
    weights = jax.tree.unflatten(jax.tree.structure(shapes), [found[name] for name in expected])
    kept = ("config", "data", "verdict", "measured")
    about = {name: description[name] for name in kept if name in description}
    tokenizer = files.get(bundle.TOKENIZER)
    write_bundle(out, model, weights, spec, about, tokenizer.decode() if tokenizer else None)


def export(source: Path, out: Path, card: bool) -> str:
    """What `genaug export` does; returns what it says."""
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise UserError(f"{out} is there already: name another folder.")
    is_bundle = (source / "bundle.json").is_file()
    (export_again if is_bundle else export_run)(source, out)
    if card:
        from genaug.card import write_card

        write_card(out)
    size = sum(path.stat().st_size for path in out.iterdir())
    return f"{out}: {size / 2**20:.1f} MiB; genaug.load_sampler({str(out)!r}) draws from it"
