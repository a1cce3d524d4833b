"""What training shows of itself on the way: validation scores, samples, coverage, distance."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator

import jax
import numpy as np

from genaug.augmentation import flat
from genaug.data.config import data_directory
from genaug.data.text_dataset import TextDataset
from genaug.data.tokens import show
from genaug.evaluation import features
from genaug.evaluation.frechet import distance_to, moments
from genaug.evaluation.manifold import NEIGHBOURS, manifold_scores
from genaug.evaluation.reference import reference_moments
from genaug.files import write_atomically
from genaug.pictures import write_grid
from genaug.runs import Prepared
from genaug.sampling import Rows, Sampler, make_sampler, make_scorer
from genaug.train import Hook
from genaug.types import GenerativeModel, LabelSpec, State

Record = Callable[[int, dict[str, float]], None]
Sampling = Callable[[State], Sampler]

RULE = f"\n{'-' * 80}\n"
"""Between two sampled texts."""


def hooks(run: Prepared, keys: dict[str, jax.Array], record: Record) -> list[Hook]:
    """All that a run's config asks for."""
    config = run.experiment.train
    sampling = _sampling(run)
    found = [Hook(config.sample_every, samples(run, sampling, keys["grid"]))]
    if len(run.splits.valid):
        found.append(Hook(config.evaluate_every, scores(run, keys["score"], record)))
    if config.coverage_samples:
        call = mode_coverage(run, sampling, keys["coverage"], record)
        found.append(Hook(config.evaluate_every, call))
    if config.distance_samples:
        call = distance(run, sampling, keys["distance"], record)
        found.append(Hook(config.evaluate_every, call))
    return found


def _sampling(run: Prepared) -> Sampling:
    """One program for every hook and every state."""
    template: list[Sampler] = []

    def sampler(state: State) -> Sampler:
        weights = run.model.weights(state)
        if not template:
            template.append(make_sampler(run.model, weights, run.mesh))
        return dataclasses.replace(template[0], weights=weights)

    return sampler


def scores(run: Prepared, key: jax.Array, record: Record) -> Callable[[int, State], None]:
    """Score the validation examples: mean and standard error of every value the family gives.

    What a byte of text takes is the sum over all rows by the sum of their bytes; a row may hold the
    end of a text alone, which is 0 bytes.
    """
    score = make_scorer(run.model, run.mesh)
    valid = run.dataset.arrays(run.splits.valid)
    one_each = np.ones(len(run.splits.valid))

    def call(step: int, state: State) -> None:
        found: dict[str, float] = {}
        for name, value in score(run.model.weights(state), key, valid).items():
            units = one_each if name != "bits_per_byte" else valid["num_bytes"].astype(np.float64)
            total, count = value.astype(np.float64) * np.maximum(units, 1.0), np.sum(units)
            mean = np.sum(total) / count
            spread = np.sqrt(np.sum((total - mean * units) ** 2)) / count
            found[f"valid_{name}"], found[f"valid_{name}_se"] = float(mean), float(spread)
        if found:
            record(step, found)

    return call


def class_cond(model: GenerativeModel, labels: np.ndarray) -> dict[str, np.ndarray]:
    """Conditions of as many rows as there are labels, with the labels where the family reads them.

    A family that is conditional in another way than the dataset's classes gets its defaults.
    """
    cond: dict[str, np.ndarray] = {"index": np.arange(len(labels), dtype=np.int32)}
    field = model.cond.get("label")
    if field and isinstance(field.spec, LabelSpec):
        cond["label"] = labels.astype(np.int32)
    return cond


def samples(
    run: Prepared, sampling: Sampling, key: jax.Array, columns: int = 10
) -> Callable[[int, State], None]:
    """Samples in `samples/`: a row per class, always from the same noise."""
    classes = np.arange(min(max(len(run.dataset.class_names), 1), 20))
    cond = class_cond(run.model, np.repeat(classes, columns))

    def call(step: int, state: State) -> None:
        rows = sampling(state)(key, cond)
        path = run.directory / "samples" / f"step_{step:06d}"
        if isinstance(run.dataset, TextDataset):
            texts = show(rows["tokens"], rows["segments"], run.dataset.tokenizer)
            write_atomically(path.with_suffix(".txt"), RULE.join(texts) + "\n")
        else:
            write_grid(path.with_suffix(".png"), rows["image"], columns)

    return call


def mode_coverage(
    run: Prepared, sampling: Sampling, key: jax.Array, record: Record
) -> Callable[[int, State], None]:
    """Coverage of the training images by as many samples, class by class, in pixel space.

    A generator that collapses onto few modes of a class reaches few of its images: the class's
    figure falls towards 0 when it happens. Perfect is about 0.95, not 1 (`manifold_scores`).
    """
    groups = list(_groups(run))
    cond = class_cond(run.model, np.concatenate([np.full(len(x), c) for c, x in groups]))

    def call(step: int, state: State) -> None:
        rows = sampling(state)(key, cond)
        made = np.split(flat(rows["image"]), np.cumsum([len(x) for _, x in groups])[:-1])
        found = {
            f"coverage_{run.dataset.class_names[c]}" if "label" in cond else "coverage_all": float(
                manifold_scores(real, fake, mesh=run.mesh).coverage
            )
            for (c, real), fake in zip(groups, made, strict=True)
        }
        record(step, {**found, "coverage": float(np.mean(list(found.values())))})

    return call


def distance(
    run: Prepared, sampling: Sampling, key: jax.Array, record: Record
) -> Callable[[int, State], None]:
    """The Fréchet distance of samples to the training images, of their class mix.

    Beside it stands what as many validation images score, where there are that many. Watch it fall;
    it says nothing of copies, and `evaluation.audit` measures against images that were held out.
    """
    config, mesh = run.experiment.train, run.mesh
    shape = run.dataset.spec["image"].shape
    in_pixels = config.distance_features == "pixels"
    net = features.pixels() if in_pixels else features.efflite0_for(shape, mesh=mesh)
    train, valid = (run.dataset.arrays(rows) for rows in (run.splits.train, run.splits.valid))
    folder = data_directory(run.experiment.data.directory) / "moments"
    reference = distance_to(reference_moments(train["image"], net, folder))
    count = config.distance_samples
    chosen = np.random.Generator(np.random.PCG64(0)).integers(len(train["label"]), size=count)
    cond = class_cond(run.model, train["label"][chosen])
    name = net.distance_name.replace("/", "_")
    floor = {}
    if len(valid["image"]) >= count:
        floor[f"{name}_floor"] = reference(moments(net.apply(valid["image"][:count])))

    def call(step: int, state: State) -> None:
        made = sampling(state)(key, cond)["image"]
        record(step, {name: reference(moments(net.apply(made))), **floor})

    return call


def _groups(run: Prepared) -> Iterator[tuple[int, np.ndarray]]:
    """Training images to be covered, as rows in [0, 1]: by class where the model knows classes."""
    count = run.experiment.train.coverage_samples
    train: Rows = run.dataset.arrays(run.splits.train)
    labels = (
        train["label"] if "label" in run.model.cond else np.zeros(len(train["label"]), np.int32)
    )
    order = np.random.Generator(np.random.PCG64(0)).permutation(len(labels))
    for c in np.unique(labels):
        chosen = order[labels[order] == c][:count]
        if len(chosen) > NEIGHBOURS:
            yield int(c), flat(train["image"][chosen])
