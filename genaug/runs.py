"""The run folder: claimed by one config, and opened again to sample from what it trained."""

from __future__ import annotations

import json
import os
import platform
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

import jax
import numpy as np

import genaug
from genaug import checkpoint, parallel
from genaug.checkpoint import write_atomically
from genaug.config import Experiment, differences, from_json, to_json
from genaug.data import Data, Dataset, Splits, load, split
from genaug.export import spec_from_json, spec_to_json
from genaug.types import DataError, GenerativeModel, Spec, UserError, Weights

LIBRARIES = ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "grain", "numpy", "scipy")


@dataclass(frozen=True, kw_only=True)
class Prepared:
    """An experiment with its data and model: all that its stages share."""

    experiment: Experiment
    directory: Path
    dataset: Dataset
    splits: Splits
    model: GenerativeModel
    mesh: Any

    @property
    def rare(self) -> tuple[int, ...]:
        """The positions of the rare classes."""
        names = list(self.dataset.class_names)
        return tuple(names.index(name) for name in self.experiment.data.rare_classes)


def read_json(path: Path) -> Any:
    """A JSON file's content; a damaged one is a UserError."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, json.JSONDecodeError) as error:
        raise UserError(
            f"{path} cannot be read as JSON ({error}): use another --run-dir."
        ) from None


def write_json(path: Path, value: Any) -> None:
    """Write JSON whole or not at all."""
    write_atomically(path, json.dumps(value, indent=1) + "\n")


def check_claim(directory: Path, experiment: Experiment) -> None:
    """Refuse a run folder that another config made, or that something else lives in."""
    path = directory / "config.json"
    if path.is_file():
        changed = differences(read_json(path), to_json(experiment))
        if changed:
            raise UserError(
                f"{directory} belongs to a run of another config ({'; '.join(changed[:5])}): "
                "use another --run-dir, or the config it was made with (--from-run)."
            )
    elif directory.exists() and any(p.name != ".lock" for p in directory.iterdir()):
        raise UserError(f"{directory} is not empty and holds no run: use another --run-dir.")


def prepare(experiment: Experiment, directory: Path) -> Prepared:
    """Read the data, bind the model and claim the folder. Nothing is written on bad input."""
    check_claim(directory, experiment)
    mesh = parallel.make_mesh(experiment.mesh)
    parallel.check_batch_size(experiment.train.batch_size, mesh)
    dataset = load(experiment.data)
    splits = split(dataset, experiment.data)
    model = experiment.model.make(dataset.spec)
    about = describe_data(dataset, splits)
    path = directory / "data.json"
    if path.is_file() and read_json(path) != about:
        raise DataError(
            f"The data of {experiment.data.source} is not what {directory} was made with: "
            "use another --run-dir."
        )
    write_json(path, about)
    write_json(directory / "config.json", to_json(experiment))
    write_json(directory / "environment.json", environment())
    return Prepared(
        experiment=experiment,
        directory=directory,
        dataset=dataset,
        splits=splits,
        model=model,
        mesh=mesh,
    )


def describe_data(dataset: Dataset, splits: Splits) -> dict[str, Any]:
    """What the run folder keeps of the data: enough to sample without it, and to know it again."""

    def counts(rows: np.ndarray) -> list[int]:
        return np.bincount(dataset.labels[rows], minlength=len(dataset.class_names)).tolist()

    return {
        "name": dataset.name,
        "licence": dataset.licence,
        "origin": dataset.origin,
        "fingerprint": dataset.fingerprint,
        "spec": spec_to_json(dataset.spec),
        "class_names": list(dataset.class_names),
        "counts": {name: counts(rows) for name, rows in splits._asdict().items()},
    }


def environment() -> dict[str, Any]:
    """Versions and devices."""
    return {
        "genaug": genaug.__version__,
        "python": platform.python_version(),
        "machine": platform.machine(),
        "system": platform.system(),
        "cpu_cores": os.cpu_count(),
        "devices": [f"{d.platform} {d.device_kind}" for d in jax.devices()],
        **{name: metadata.version(name) for name in LIBRARIES},
    }


@dataclass(frozen=True, kw_only=True)
class Trained:
    """What a run folder's newest checkpoint samples with."""

    experiment: Experiment
    about_data: dict[str, Any]
    spec: Spec
    model: GenerativeModel
    weights: Weights
    step: int
    mesh: Any


def open_run(directory: Path) -> Trained:
    """A run's trained model, without its data."""
    if not (directory / "config.json").is_file():
        raise UserError(f"{directory} is no run folder: it has no config.json.")
    experiment = from_json(read_json(directory / "config.json"))
    about = read_json(directory / "data.json")
    spec = spec_from_json(about["spec"])
    model = experiment.model.make(spec)
    mesh = parallel.make_mesh(experiment.mesh)
    found = checkpoint.restore(directory / "checkpoints", parallel.abstract(model.init, mesh))
    if not found:
        raise UserError(f"{directory} has no checkpoint yet: train first, with the same command.")
    state, step = found
    return Trained(
        experiment=experiment,
        about_data=about,
        spec=spec,
        model=model,
        weights=model.weights(state),
        step=step,
        mesh=mesh,
    )


def fraction_text(config: Data) -> str:
    """The cut in words, or nothing."""
    if not config.rare_classes or config.rare_count is None:
        return ""
    return f" ({', '.join(config.rare_classes)} cut to {config.rare_count})"
