"""The run folder: claimed by one config, and opened again to sample from what it trained."""

from __future__ import annotations

import json
import math
import os
import platform
import re
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from importlib import metadata
from pathlib import Path
from typing import Any

import jax
import numpy as np

import genaug
from genaug import checkpoint, layouts, parallel, train
from genaug.augmentation import Balance, require_labels, wanted
from genaug.config import Experiment, differences, experiment_from_json, to_json
from genaug.data.config import Data
from genaug.data.dataset import Dataset
from genaug.data.splits import Splits
from genaug.data.text import TextData
from genaug.data.text_dataset import TextDataset
from genaug.data.tokens import BPE, Tokenizer, read_tokenizer
from genaug.devices import DeviceMesh, Mesh, check_batch_size, make_mesh
from genaug.evaluation.manifold import NEIGHBOURS
from genaug.evaluation.study import require_smote
from genaug.export import named, spec_from_json, spec_to_json
from genaug.files import read_json, write_atomically, write_json
from genaug.logs import plain
from genaug.processes import gathered, together
from genaug.state import started_from
from genaug.types import DataError, GenerativeModel, Spec, State, UserError, Weights

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


def rare_classes(experiment: Experiment) -> tuple[str, ...]:
    """The classes that are cut, by name; texts have none."""
    return experiment.data.rare_classes if isinstance(experiment.data, Data) else ()


def check_claim(directory: Path, experiment: Experiment) -> None:
    """Refuse a run folder that another config made, or that something else lives in."""
    if re.match(r"[a-z0-9]+:/", str(directory)):
        raise UserError(
            f"--run-dir {directory} is an address: use a folder, where a bucket is mounted "
            "(`genaug launch` mounts one)."
        )
    path = directory / "config.json"
    if path.is_file():
        changed = differences(read_json(path), to_json(experiment))
        if changed:
            raise UserError(
                f"{directory} belongs to a run of another config ({'; '.join(changed[:5])}): "
                "use another --run-dir, or the config it was made with (--from-run)."
            )
    elif directory.exists() and not directory.is_dir():
        raise UserError(f"{directory} is a file: use another --run-dir.")
    elif directory.exists() and any(p.name != ".lock" for p in directory.iterdir()):
        raise UserError(f"{directory} is not empty and holds no run: use another --run-dir.")


def check(experiment: Experiment) -> None:
    """Refuse values that no run can use, before data is read."""
    train.check(experiment.train)
    balance, filters, study = experiment.balance, experiment.filters, experiment.study
    least: dict[str, tuple[float | None, float]] = {
        "seed": (experiment.seed, 0),
        "train.coverage-samples": (experiment.train.coverage_samples, 0),
        "balance.factor": (balance.factor, 1),
        "balance.max-draws": (balance.max_draws, 1),
        "study.num-splits": (study.num_splits, 1),
        "study.num-seeds": (study.num_seeds, 1),
        "study.bootstrap-draws": (study.bootstrap_draws, 2),
        "study.classifier.num-steps": (study.classifier.num_steps, 1),
        "study.classifier.batch-size": (study.classifier.batch_size, 1),
        "study.classifier.hidden": (study.classifier.hidden, 1),
    }
    for name, (value, low) in least.items():
        if value is not None and not value >= low:
            raise UserError(f"{name} is {value}; it must be at least {low}.")
    shares: list[tuple[str, float | None]] = [
        ("train.class-balance", experiment.train.class_balance),
        ("filters.label", filters.label),
        ("filters.closeness", filters.closeness),
        ("filters.duplicate", filters.duplicate),
        ("study.level", study.level),
        *(("study.weights", weight) for weight in study.weights),
        *(("study.checks", check) for check in study.checks),
    ]
    for name, value in shares:
        if value is not None and not 0 <= value <= 1:
            raise UserError(f"{name} is {value}; it must lie from 0 to 1.")
    if not study.weights or 0 in study.weights:
        raise UserError("study.weights must name at least one share, each above 0.")
    if not study.checks:
        raise UserError("study.checks must name at least one probability; 0 uses every image.")
    for times in study.strengths:
        if not 0 < times < math.inf:
            raise UserError(f"study.strengths is {times}; it must be above 0, and finite.")
    if 1.0 not in study.strengths:
        raise UserError("study.strengths must contain 1: the arm that checks labels is of it.")
    for name in ("strengths", "weights", "checks"):
        values = getattr(study, name)
        if len({f"{value:g}" for value in values}) < len(values):
            raise UserError(f"study.{name} names {values} with a value twice: leave one out.")
    if study.level in (0, 1):
        raise UserError(f"study.level is {study.level}; use a share between 0 and 1, as 0.95.")
    if 0 < experiment.train.coverage_samples <= NEIGHBOURS:
        raise UserError(
            f"train.coverage-samples is {experiment.train.coverage_samples}; coverage looks at "
            f"{NEIGHBOURS} neighbours: use {NEIGHBOURS + 1} or more, or 0 for none."
        )
    if experiment.train.coverage_samples and not isinstance(experiment.data, Data):
        raise UserError("train.coverage-samples is of images: leave it at 0 for texts.")
    if study.metric == "rare_recall" and not rare_classes(experiment):
        raise UserError("study.metric rare_recall needs data.rare-classes: the classes it is of.")


def check_comparable(
    dataset: Dataset | TextDataset, splits: Splits, model: GenerativeModel, balance: Balance
) -> None:
    """Refuse at the start what the comparison would stop at after hours of training."""
    if not isinstance(dataset, Dataset):
        raise UserError(
            f"{plain(dataset.name)} holds texts, and the comparison is one of image classifiers: "
            "use `genaug train`, and read the bits per byte."
        )
    if len(dataset.class_names) < 2:
        raise DataError(
            f"{plain(dataset.name)} has the class {plain(dataset.class_names[0])} alone, and a "
            "comparison of classifiers needs two: add classes, or use `genaug train`."
        )
    for name, rows in (("valid", splits.valid), ("test", splits.test)):
        if not len(rows):
            raise UserError(
                f"There are no images to compare arms on: use a --data.{name}-fraction above 0."
            )
    counts = np.bincount(dataset.labels[splits.train], minlength=len(dataset.class_names))
    if not wanted(counts, balance).any():
        raise UserError(
            f"The balance plan asks for nothing: every class has {np.min(counts)} training images "
            f"or more. Use --balance.per-class {2 * np.max(counts)}, or --balance.factor 2."
        )
    require_smote()
    require_labels(model.cond)


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
    if len(splits.train) < experiment.train.batch_size:
        raise UserError(
            f"train.batch-size is {experiment.train.batch_size}, but {plain(dataset.name)} has "
            f"only {len(splits.train)} training examples: use a smaller --train.batch-size."
        )
    model = experiment.model.make(dataset.spec)
    _check_step(model, dataset.spec, experiment.train, mesh)
    if experiment.train.coverage_samples:
        _check_coverage(dataset, splits, model)
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
    if path.is_file() and read_json(path) != about:
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


def agree_on_start(experiment: Experiment, directory: Path) -> None:
    """Refuse processes that were started differently."""
    agree("another start", {"run-dir": str(directory), **versions(), **to_json(experiment)})


def agree(what: str, value: Any) -> None:
    """Refuse to go on where processes would do different things: `value` is JSON, alike on all."""
    said = [json.loads(text) for text in gathered(json.dumps(value))]
    for i, other in enumerate(said):
        if changed := differences(said[0], other):
            raise UserError(
                f"Process {i} has {what} than process 0 ({'; '.join(changed[:5])}): start all "
                "processes with the same command, versions and data."
            )


def _start(base: State, fresh: State) -> State:
    return started_from(fresh, base)


def _check_step(model: GenerativeModel, spec: Spec, config: train.Train, mesh: DeviceMesh) -> None:
    """Let family and mesh refuse what they cannot take: an update is traced, not run."""
    key = jax.eval_shape(lambda: jax.random.key(0))
    stack = {
        name: jax.ShapeDtypeStruct((1, config.batch_size, *one.shape), one.dtype)
        for name, one in spec.items()
    }
    template = layouts.abstract(model.init, mesh)
    steps = parallel.compile_steps(model.step, mesh, template, config.accumulate)
    jax.eval_shape(steps, template, stack, key, 0)


def _check_coverage(dataset: Dataset | TextDataset, splits: Splits, model: GenerativeModel) -> None:
    """Refuse to watch the coverage of classes that are all too small for it."""
    labels = dataset.labels[splits.train]
    largest = np.bincount(labels).max() if "label" in model.cond else len(labels)
    if largest <= NEIGHBOURS:
        raise UserError(
            f"train.coverage-samples looks at {NEIGHBOURS} neighbours, and no class has more than "
            f"{largest} training images: leave it at 0."
        )


SPLIT_FIELDS = (
    "split_seed",
    "test_fraction",
    "valid_fraction",
    "holdout",
    "rare_classes",
    "rare_count",
)


def check_base(
    base: Trained, experiment: Experiment, model: GenerativeModel, about: dict[str, Any]
) -> None:
    """Refuse to start from another family, shape or vocabulary, or from what saw the held-out data.

    Raises:
        UserError: naming what differs.
    """
    name = f"train.start-from {experiment.train.start_from}"
    mine, other = type(experiment.model).__name__, type(base.experiment.model).__name__
    if mine != other:
        raise UserError(f"{name} is a run of {other}, and this is a {mine}: start from its kind.")
    if about.get("tokenizer") != base.about_data.get("tokenizer"):
        raise UserError(
            f"{name} was trained on another vocabulary: use its tokenizer (--data.tokenizer "
            f"{experiment.train.start_from}/tokenizer.json, or bytes)."
        )
    key = jax.eval_shape(lambda: jax.random.key(0))
    trees = [jax.eval_shape(init, key) for init in (base.model.init, model.init)]
    shapes = [{path: leaf.shape for path, leaf in named(tree).items()} for tree in trees]
    for path in [*shapes[0], *shapes[1]]:
        there, here = (found.get(path, "absent") for found in shapes)
        if there != here:
            raise UserError(
                f"{name} is of another shape: {path} is {there} there and {here} here. "
                "Use the same --model.* and --data.* shapes."
            )
    if about["fingerprint"] == base.about_data["fingerprint"]:
        old, new = ({f: getattr(e.data, f, None) for f in SPLIT_FIELDS}
                    for e in (base.experiment, experiment))  # fmt: skip
        for line in differences(old, new):
            raise UserError(
                f"{name} was trained on the same data under another split (data.{line}): what is "
                "held out here may have been seen there. Split alike."
            )


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
        **({"tokenizer": dataset.tokenizer.digest} if isinstance(dataset, TextDataset) else {}),
    }


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
    if not found and (splits := sorted(directory.glob("split_*"))):
        raise UserError(f"{directory} holds a run for every split: name one, as {splits[0]}.")
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
    return experiment_from_json(read_json(path), str(path)), read_json(directory / "data.json")


def _tokenizer(directory: Path) -> Tokenizer:
    trained = directory / "tokenizer.json"
    return read_tokenizer(str(trained) if trained.is_file() else "bytes")


def fraction_text(config: Data | TextData) -> str:
    """The cut in words, or nothing."""
    if not isinstance(config, Data) or not config.rare_classes or config.rare_count is None:
        return ""
    return f" ({', '.join(config.rare_classes)} cut to {config.rare_count})"
