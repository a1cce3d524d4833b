"""`genaug run` and `genaug train`: an experiment, its run folder, and what is done in it."""

from __future__ import annotations

import argparse
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import jax
from rich.console import Console

from genaug import __version__, checks, config, processes, runs
from genaug.arguments import options_of
from genaug.config import Experiment
from genaug.files import read_json
from genaug.logs import lock
from genaug.types import UserError


def run(options: argparse.Namespace, fields: list[str], console: Console) -> None:
    """Train, or do the whole job, as the command says; what was begun goes on.

    Raises:
        UserError, DataError: a mistake; of a run folder that was not there nothing is left.
    """
    began = time.monotonic()
    experiment = processes.together(lambda: _checked(options, fields))
    directory = options.run_dir or Path("runs") / experiment.name
    runs.agree_on_start(experiment, directory)
    _say_where(console, experiment, directory)
    with _claimed(directory) as folder:
        for line in runs.accept_changes(folder, experiment, options.allow_change):
            console.print(f"changed {line}")
        if options.command == "train":
            _train(experiment, directory, folder, console)
        else:
            _main_job(experiment, directory, folder, console)
    console.print(f"{time.monotonic() - began:.0f} s")


def _checked(options: argparse.Namespace, fields: list[str]) -> Experiment:
    """The experiment, and that its values and its run folder can be used."""
    experiment = _experiment(options, fields)
    checks.check(experiment)
    directory = options.run_dir or Path("runs") / experiment.name
    checks.check_allowed(experiment, options.allow_change)
    checks.check_claim(directory, experiment, options.allow_change)
    return experiment


def _experiment(options: argparse.Namespace, fields: list[str]) -> Experiment:
    if (options.experiment is None) == (options.from_run is None):
        raise UserError("Name an experiment file, or --from-run DIR (and not both).")
    known = options_of(options.command)
    if options.from_run is None:
        return config.override(config.load(options.experiment), fields, known)
    path = options.from_run / "config.json"
    if not path.is_file():
        raise UserError(f"{options.from_run} is no run folder: it has no config.json.")
    found = config.experiment_from_json(read_json(path), str(path))
    return config.override(found, fields, known)


def _say_where(console: Console, experiment: Experiment, directory: Path) -> None:
    of = f" in {jax.process_count()} processes" if jax.process_count() > 1 else ""
    console.print(
        f"genaug {__version__} · {jax.devices()[0].platform} x{jax.device_count()}{of} · "
        f"jax {jax.__version__} · run {directory} (seed {experiment.seed})"
    )


def _train(experiment: Experiment, directory: Path, folder: Path, console: Console) -> None:
    from genaug import generator

    run = runs.prepare(experiment, folder, shared=directory, compare=False)
    generator.announce(run, console)
    generator.train(run, console)
    console.print(f"trained: {directory}/checkpoints, {directory}/samples")


def _main_job(experiment: Experiment, directory: Path, folder: Path, console: Console) -> None:
    from genaug import grid, job, replication
    from genaug.table import grid_table, results_table

    show = grid_table if experiment.study.budgets else results_table
    if experiment.study.budgets:
        results = grid.run_grid(experiment, folder, console, shared=directory)
        samplers = f"{directory}/cell_*/"
    elif experiment.study.num_splits > 1:
        results = replication.run_splits(experiment, folder, console, shared=directory)
        samplers = f"{directory}/split_*/export/"
    else:
        results = job.run_job(runs.prepare(experiment, folder, shared=directory), console)
        samplers = f"{directory}/export/"
    console.print()
    console.print(show(results))
    console.print(f"\n{results['verdict']['sentence']}\n")
    console.print(f"Report   {directory}/report.html")
    console.print(f"Sampler  {samplers}")


@contextmanager
def _claimed(directory: Path) -> Iterator[Path]:
    """The run folder, kept from other runs; on all processes but the first, a copy of it."""
    existed = directory.exists()
    with ExitStack() as stack:
        if processes.is_first():
            stack.callback(_remove_if_unused, directory, existed)
        processes.together(
            lambda: stack.enter_context(lock(directory)) if processes.is_first() else None
        )
        yield stack.enter_context(processes.own_copy(directory))


def _remove_if_unused(directory: Path, existed: bool) -> None:
    """Bad input leaves nothing behind, not even an empty run folder."""
    if existed or not directory.is_dir() or any(p.name != ".lock" for p in directory.iterdir()):
        return
    (directory / ".lock").unlink(missing_ok=True)
    directory.rmdir()
    if directory.parent.name == "runs" and not any(directory.parent.iterdir()):
        directory.parent.rmdir()
