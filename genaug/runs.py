"""The run folder: claimed by one config, and opened again to sample from what it trained."""

from __future__ import annotations

import dataclasses
import os
import platform
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from importlib import metadata
from pathlib import Path
from typing import Any

import jax
import numpy as np

import genaug
from genaug import checkpoint, layouts
from genaug.bundle import spec_from_json, spec_to_json
from genaug.checks import (
    allowed_fields,
    check,
    check_base,
    check_claim,
    check_comparable,
    check_coverage,
    check_enough,
    check_step,
    config_changes,
    field,
)
from genaug.config import Experiment, experiment_from_json, rare_classes, to_json
from genaug.data.config import Data
from genaug.data.dataset import Dataset
from genaug.data.splits import Splits
from genaug.data.text import TextData
from genaug.data.text_dataset import TextDataset
from genaug.data.tokens import BPE, Tokenizer, read_tokenizer
from genaug.devices import DeviceMesh, Mesh, check_batch_size, make_mesh
from genaug.files import read_json, write_atomically, write_json
from genaug.logs import plain
from genaug.processes import agree, together
from genaug.state import started_from
from genaug.types import (
    DataError,
    GenerativeModel,
    ModelConfig,
    Spec,
    State,
    UserError,
    Weights,
)

LIBRARIES = ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "grain", "numpy", "scipy")


@dataclass(frozen=True, kw_only=True)
class Prepared:
    """An experiment with its data and model: all that its stages share."""

    experiment: Experiment
    directory: Path
    checkpoints: Path
    dataset: Dataset | TextDataset
    splits: Splits
    model: GenerativeModel
    mesh: DeviceMesh
    start: Callable[[State], State] = lambda fresh: fresh

    @property
    def rare(self) -> tuple[int, ...]:
        """The positions of the rare classes."""
        names = list(self.dataset.class_names)
        return tuple(names.index(name) for name in rare_classes(self.experiment))


def prepare(
    experiment: Experiment,
    directory: Path,
    *,
    shared: Path | None = None,
    compare: bool = True,
) -> Prepared:
    """Read the data, bind the model and claim the folder. Nothing is written on bad input.

    shared:  the run folder that all processes see, where `directory` is a process's own copy.
    compare: whether the run is to go on to the comparison after training.
    """
    check(experiment)
    check_claim(directory, experiment)
    mesh = make_mesh(experiment.mesh)
    check_batch_size(experiment.train.batch_size, mesh, experiment.train.accumulate)
    read: Callable[[], tuple[Dataset | TextDataset, Splits]] = experiment.data.read
    dataset, splits = together(read)
    check_enough(dataset, splits, experiment.train.batch_size)
    model = _made(experiment.model, dataset.spec, dataset.name)
    check_step(model, dataset.spec, experiment.train, mesh)
    if experiment.train.coverage_samples:
        check_coverage(dataset, splits, model)
    if compare:
        check_comparable(dataset, splits, model, experiment.balance)
    about = describe_data(dataset, splits)
    start: Callable[[State], State] = lambda fresh: fresh  # noqa: E731
    if experiment.train.start_from:
        base = open_run(Path(experiment.train.start_from))
        check_base(base, experiment, model, about)
        about["started_from"] = {
            "run": experiment.train.start_from,
            "fingerprint": base.about_data["fingerprint"],
            "step": base.step,
        }
        start = partial(_start, base.state)
    agree("other data", about)
    path = directory / "data.json"
    changed = any(name.startswith("data.") for name in allowed_fields(directory))
    if path.is_file() and read_json(path) != about and not changed:
        raise DataError(
            f"The data of {experiment.data.source} is not what {directory} was made with: "
            "use another --run-dir."
        )
    write_json(path, about)
    write_json(directory / "config.json", to_json(experiment))
    write_json(directory / "environment.json", environment())
    if isinstance(dataset, TextDataset) and isinstance(dataset.tokenizer, BPE):
        write_atomically(directory / "tokenizer.json", dataset.tokenizer.json)
    return Prepared(
        experiment=experiment,
        directory=directory,
        checkpoints=(shared or directory) / "checkpoints",
        dataset=dataset,
        splits=splits,
        model=model,
        mesh=mesh,
        start=start,
    )


def _made(config: ModelConfig, spec: Spec, name: str) -> GenerativeModel:
    """The model of a data set; refused where its examples lack what the family reads."""
    try:
        return config.make(spec)
    except KeyError as error:
        if not error.args or error.args[0] in spec:
            raise
        raise UserError(
            f"{type(config).__name__} needs {error} of every example, and those of {plain(name)} "
            f"have {', '.join(spec)}: use another model, or other data."
        ) from error


def accept_changes(directory: Path, experiment: Experiment, allowed: Sequence[str]) -> list[str]:
    """Take an experiment that differs in fields that were named as that of a run folder.

    Returns what changed. Which fields were is kept in changes.json.

    Raises:
        UserError: of a field that was not named, or a folder that holds more than training.
    """
    if not allowed or not (directory / "config.json").is_file():
        return []
    check_claim(directory, experiment, allowed)
    changed = config_changes(directory, experiment)
    if changed:
        fields = [*allowed_fields(directory), *map(field, changed)]
        write_json(directory / "changes.json", sorted(set(fields)))
        write_json(directory / "config.json", to_json(experiment))
    return changed


def agree_on_start(experiment: Experiment, directory: Path) -> None:
    """Refuse processes that were started differently."""
    agree("another start", {"run-dir": str(directory), **versions(), **to_json(experiment)})


def _start(base: State, fresh: State) -> State:
    return started_from(fresh, base)


def describe_data(dataset: Dataset | TextDataset, splits: Splits) -> dict[str, Any]:
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
        **_kind(dataset),
    }


def _kind(dataset: Dataset | TextDataset) -> dict[str, Any]:
    """How rows are to be read as texts, or images as sounds."""
    if isinstance(dataset, TextDataset):
        return {"tokenizer": dataset.tokenizer.digest}
    return {"sound": dataclasses.asdict(dataset.sound)} if dataset.sound else {}


def versions() -> dict[str, str]:
    """Of the software that a run's results depend on."""
    return {
        "genaug": genaug.__version__,
        "python": platform.python_version(),
        **{name: metadata.version(name) for name in LIBRARIES},
    }


def environment() -> dict[str, Any]:
    """Versions and devices."""
    return {
        **versions(),
        "machine": platform.machine(),
        "system": platform.system(),
        "cpu_cores": os.cpu_count(),
        "processes": jax.process_count(),
        "devices": [f"{d.platform} {d.device_kind}" for d in jax.devices()],
    }


@dataclass(frozen=True, kw_only=True)
class Trained:
    """What a run folder's newest checkpoint samples with."""

    experiment: Experiment
    about_data: dict[str, Any]
    spec: Spec
    model: GenerativeModel
    state: State
    weights: Weights
    step: int
    mesh: DeviceMesh
    tokenizer: Tokenizer | None  # of a model of text


def open_run(directory: Path) -> Trained:
    """A run's trained model, without its data."""
    experiment, about = together(partial(_described, directory))
    spec = spec_from_json(about["spec"])
    model = experiment.model.make(spec)
    try:
        mesh = make_mesh(experiment.mesh)
    except UserError:  # It was trained on more devices than there are here.
        mesh = make_mesh(Mesh())
    found = checkpoint.restore(directory / "checkpoints", layouts.abstract(model.init, mesh))
    if not found and checkpoint.steps(directory / "checkpoints"):
        raise DataError(
            f"{directory} has no checkpoint that is whole: see `genaug verify {directory}`, and "
            "train again."
        )
    if not found:
        raise UserError(f"{directory} has no checkpoint yet: train first, with the same command.")
    state, step = found
    return Trained(
        experiment=experiment,
        about_data=about,
        spec=spec,
        model=model,
        state=state,
        weights=model.weights(state),
        step=step,
        mesh=mesh,
        tokenizer=_tokenizer(directory) if "tokenizer" in about else None,
    )


def _described(directory: Path) -> tuple[Experiment, dict[str, Any]]:
    path = directory / "config.json"
    if not path.is_file():
        raise UserError(f"{directory} is no run folder: it has no config.json.")
    for part, of in (("split", "split"), ("cell", "amount of data")):
        if runs := sorted(directory.glob(f"{part}_*")):
            raise UserError(f"{directory} holds a run for every {of}: name one, as {runs[0]}.")
    about = read_json(directory / "data.json", needs=("spec", "fingerprint", "class_names"))
    return experiment_from_json(read_json(path), str(path)), about


def _tokenizer(directory: Path) -> Tokenizer:
    trained = directory / "tokenizer.json"
    return read_tokenizer(str(trained) if trained.is_file() else "bytes")


def fraction_text(config: Data | TextData) -> str:
    """The cut in words, or nothing."""
    if not isinstance(config, Data) or not config.rare_classes or config.rare_count is None:
        return ""
    return f" ({', '.join(config.rare_classes)} cut to {config.rare_count})"
