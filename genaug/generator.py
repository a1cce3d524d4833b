"""The first stage of a job: the generator, trained, or found trained, in its run folder."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import jax
import numpy as np
from rich.console import Console

from genaug import checkpoint, layouts, parallel
from genaug.checks import allowed_fields, check_resumed
from genaug.config import to_json as config_to_json
from genaug.data import Dataset, batches, pipeline
from genaug.hooks import hooks
from genaug.logs import MetricLog, bar, plain
from genaug.runs import Prepared, fraction_text
from genaug.train import fit
from genaug.types import Weights


def keys(seed: int) -> dict[str, jax.Array]:
    """Independent keys of the job's random stages."""
    root = jax.random.key(seed)
    names = ("train", "sample", "score", "grid", "coverage", "distance")
    return {name: jax.random.fold_in(root, i) for i, name in enumerate(names)}


def heldout(metrics: Mapping[str, float]) -> list[str]:
    """The first held-out figure there is: what is worth a look while training."""
    return [name for name in metrics if name.startswith(("valid_", "coverage"))][:1]


def announce(run: Prepared, console: Console) -> None:
    """Which data goes where."""
    data, splits = run.dataset, run.splits
    cut = plain(fraction_text(run.experiment.data))
    unit = "images" if "image" in data.spec else "rows of text"
    classes = f" of {len(data.class_names)} classes" if data.class_names else ""
    console.print(
        f"data   {plain(data.name)}, {len(data):,} {unit}{classes}: "
        f"train {len(splits.train):,}{cut} · valid {len(splits.valid):,} · "
        f"test {len(splits.test):,} untouched"
    )


def kept_on_devices(run: Prepared) -> Callable[[dict[str, np.ndarray]], Any] | None:
    """Examples that fit are copied to accelerators once; the memory of a CPU is the host's own."""
    mesh, dataset = run.mesh, run.dataset
    if mesh.platform == "cpu" or mesh.config.strategy == "pmap":
        return None
    if not isinstance(dataset, Dataset) or not dataset.in_memory:
        return None
    return parallel.compile_lookup(dataset.arrays(np.arange(len(dataset))), mesh)


def described(run: Prepared, step: int) -> dict[str, Any]:
    """What training goes on with after an update: config, data and the examples that come next."""
    experiment = run.experiment
    order = pipeline(
        run.dataset,
        run.splits.train,
        batch_size=experiment.train.batch_size,
        seed=experiment.seed,
        balance=experiment.train.class_balance,
        positions=True,
    )
    return {
        "config": config_to_json(experiment),
        "data": run.dataset.fingerprint,
        "next_batch": hashlib.sha256(order[step]["position"].tobytes()).hexdigest(),
    }


def train(run: Prepared, console: Console, title: str = "train") -> Weights:
    """Train the generator (or find it trained) and return what sampling needs."""
    experiment, key = run.experiment, keys(run.experiment.seed)
    config = experiment.train
    family = type(experiment.model).__name__
    feed = kept_on_devices(run)
    stream = pipeline(
        run.dataset,
        run.splits.train,
        batch_size=config.batch_size,
        seed=experiment.seed,
        balance=config.class_balance,
        rows=layouts.local_rows(config.batch_size, run.mesh),
        positions=feed is not None,
    )
    about = partial(described, run)
    latest: dict[str, float] = {}
    log: list[MetricLog] = []
    with bar(console, f"{title} {family}", config.num_steps, "steps") as progress:

        def resumed(step: int, due: bool) -> None:
            if step:
                saved = checkpoint.about(run.checkpoints, step)
                changed = allowed_fields(run.directory)
                check_resumed(saved, about(step), run.checkpoints, changed)
            log.append(MetricLog(run.directory, step, due))
            progress.start_at(step)

        def record(step: int, metrics: dict[str, float]) -> None:
            log[0].write(step, metrics)
            latest.update(metrics)
            shown = [f"{k} {latest[k]:.4g}" for k in ("loss", *heldout(latest)) if k in latest]
            progress.advance(step, " ".join(shown))

        state = fit(
            run.model,
            partial(batches, stream, ahead=config.steps_per_call),
            config,
            key=key["train"],
            mesh=run.mesh,
            feed=feed,
            checkpoints=run.checkpoints,
            start=run.start,
            hooks=hooks(run, key, record),
            log=record,
            resumed=resumed,
            about=about,
        )
        log[0].close()
    return run.model.weights(state)
