"""What a run refuses before it begins: values, data and models that it could not use."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import jax
import numpy as np

from genaug import layouts, parallel, train
from genaug.augmentation import Balance, require_labels, wanted
from genaug.bounds import check_numbers
from genaug.config import Experiment, from_json, nearest_name, rare_classes, to_json
from genaug.data.config import Data
from genaug.data.dataset import Dataset
from genaug.data.splits import Splits
from genaug.data.text_dataset import TextDataset
from genaug.devices import DeviceMesh
from genaug.evaluation import efficientnet
from genaug.evaluation.manifold import NEIGHBOURS
from genaug.evaluation.study import require_smote
from genaug.export import named
from genaug.files import differences, read_json
from genaug.logs import plain
from genaug.types import DataError, GenerativeModel, Spec, UserError

if TYPE_CHECKING:
    from genaug.runs import Trained


def check(experiment: Experiment) -> None:
    """Refuse values that no run can use, before data is read."""
    train.check(experiment.train)
    balance, filters, study = experiment.balance, experiment.filters, experiment.study
    least: dict[str, tuple[float | None, float]] = {
        "seed": (experiment.seed, 0),
        "train.coverage-samples": (experiment.train.coverage_samples, 0),
        "train.distance-samples": (experiment.train.distance_samples, 0),
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
    check_numbers(experiment)
    if study.imbalances and not study.budgets:
        raise UserError("study.imbalances needs study.budgets: how many images a common class has.")
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
    samples, features = experiment.train.distance_samples, experiment.train.distance_features
    if samples and not isinstance(experiment.data, Data):
        raise UserError("train.distance-samples is of images: leave it at 0 for texts.")
    if samples == 1:
        raise UserError("train.distance-samples is 1, and one sample has no spread: use 2 or more.")
    if samples and features == "efflite0":
        efficientnet.require_installed()
    if study.metric == "rare_recall" and not rare_classes(experiment):
        raise UserError("study.metric rare_recall needs data.rare-classes: the classes it is of.")


LATER = ("synthetic.npz", "study", "results.json", "split_*", "cell_*")
"""What a run leaves after training: of the config that it was trained with."""


def config_changes(directory: Path, experiment: Experiment) -> list[str]:
    """The fields in which an experiment differs from the one that a run folder was made with."""
    return differences(_as_now(read_json(directory / "config.json")), to_json(experiment))


def _as_now(config: Any) -> Any:
    """A config that was written before there were some fields, with their defaults."""
    try:
        return to_json(from_json(config))
    except UserError:  # What differs is then said field by field.
        return config


def allowed_fields(directory: Path) -> list[str]:
    """Fields that were changed by name (--allow-change) since a run was begun."""
    path = directory / "changes.json"
    return list(read_json(path)) if path.is_file() else []


def check_allowed(experiment: Experiment, allowed: Sequence[str]) -> None:
    """Refuse names that are no fields of the experiment."""

    def fields(value: Any, where: str = "") -> list[str]:
        if not isinstance(value, dict):
            return [where]
        return [
            name
            for key, one in value.items()
            for name in fields(one, f"{where}.{key}".lstrip(".").replace("_", "-"))
        ]

    known = fields(to_json(experiment))
    for name in allowed:
        if name not in known:
            raise UserError(
                f"--allow-change {name}: there is no such field.{nearest_name(name, known)}"
            )


def field(change: str) -> str:
    """The field of a line of `differences`."""
    return change.partition(": ")[0]


def check_claim(directory: Path, experiment: Experiment, allowed: Sequence[str] = ()) -> None:
    """Refuse a run folder that another config made, or that something else lives in.

    allowed: fields that may differ, as "train.num-steps", as long as training is all that was done.
    """
    if re.match(r"[a-z0-9]+:/", str(directory)):
        raise UserError(
            f"--run-dir {directory} is an address: use a folder, where a bucket is mounted "
            "(`genaug launch` mounts one)."
        )
    path = directory / "config.json"
    if path.is_file():
        changed = config_changes(directory, experiment)
        if refused := [line for line in changed if field(line) not in allowed]:
            raise UserError(
                f"{directory} belongs to a run of another config ({'; '.join(refused)}): "
                "use another --run-dir, or the config it was made with (--from-run), or name what "
                f"may change while it is trained: --allow-change {field(refused[0])}."
            )
        later = [one.name for pattern in LATER for one in sorted(directory.glob(pattern))]
        if changed and later:
            raise UserError(
                f"{directory} holds {later[0]}, which was made with another config "
                f"({'; '.join(changed)}): use another --run-dir."
            )
    elif directory.exists() and not directory.is_dir():
        raise UserError(f"{directory} is a file: use another --run-dir.")
    elif directory.exists() and any(p.name != ".lock" for p in directory.iterdir()):
        raise UserError(f"{directory} is not empty and holds no run: use another --run-dir.")


def check_resumed(
    saved: dict[str, Any], here: dict[str, Any], where: Path, allowed: Sequence[str] = ()
) -> None:
    """Refuse to go on from a checkpoint with another config, other data or another order of them.

    saved, here: `generator.described` as it was when the checkpoint was written, and as it is.
    allowed:     fields of the config that were changed by name. With another config the order of
                 the examples is another, and with other fields of the data the data.
    """
    if not saved:  # by a genaug that did not say
        return
    saved = {**saved, "config": _as_now(saved.get("config"))}
    config = [field(line) for line in differences(saved["config"], here["config"])]
    dropped = {f"config.{name}" for name in allowed}
    dropped |= {"next-batch"} if config else set()
    dropped |= {"data"} if any(name.startswith("data.") for name in config) else set()
    lines = differences({name: saved.get(name) for name in here}, here)
    changed = [line for line in lines if field(line) not in dropped]
    if changed:
        raise UserError(
            f"{where} was saved by a run that differs ({'; '.join(changed)}): use another "
            "--run-dir, or the config, data and genaug it was made with."
        )


def check_enough(dataset: Dataset | TextDataset, splits: Splits, batch_size: int) -> None:
    """Refuse a batch of more examples than there are to train on."""
    if len(splits.train) < batch_size:
        raise UserError(
            f"train.batch-size is {batch_size}, but {plain(dataset.name)} has only "
            f"{len(splits.train)} training examples: use a smaller --train.batch-size."
        )


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


def check_step(model: GenerativeModel, spec: Spec, config: train.Train, mesh: DeviceMesh) -> None:
    """Let family and mesh refuse what they cannot take: an update is traced, not run."""
    key = jax.eval_shape(lambda: jax.random.key(0))
    stack = {
        name: jax.ShapeDtypeStruct((1, config.batch_size, *one.shape), one.dtype)
        for name, one in spec.items()
    }
    template = layouts.abstract(model.init, mesh)
    steps = parallel.compile_steps(model.step, mesh, template, config.accumulate)
    jax.eval_shape(steps, template, stack, key, 0)


def check_coverage(dataset: Dataset | TextDataset, splits: Splits, model: GenerativeModel) -> None:
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
    "class_count",
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
