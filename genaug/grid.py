"""One study for every amount of real data: does a generator help, and up to how much of it?

A cell is a whole run (or several splits of one) on so many training images a class, with a
generator of its own that saw no others. Smaller amounts are parts of the larger ones.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console

from genaug import job, replication, report_grid
from genaug.checks import check_claim, check_comparable, check_enough
from genaug.config import Experiment, rare_classes, to_json
from genaug.data.config import Data
from genaug.evaluation.intervals import Interval, holm
from genaug.evaluation.learning_curve import effective_samples, p_value
from genaug.files import read_json, write_json
from genaug.logs import lock
from genaug.processes import together
from genaug.runs import environment, prepare
from genaug.types import UserError


@dataclasses.dataclass(frozen=True)
class Cell:
    """One amount of real data."""

    budget: int  # training images of a common class
    imbalance: float | None  # times as many as of a rare one; None: the rare are as configured
    name: str  # its folder


def cells(experiment: Experiment) -> list[Cell]:
    """Every cell, the smallest amounts first: what is too little is refused at once.

    Raises:
        UserError: budgets that do not ascend, or an imbalance without classes to be rare.
    """
    study = experiment.study
    budgets, ratios = study.budgets, study.imbalances
    if any(b <= a for a, b in itertools.pairwise((0, *budgets))):
        raise UserError(f"study.budgets is {budgets}: numbers of images from 1 that ascend.")
    if ratios and not rare_classes(experiment):
        raise UserError("study.imbalances needs data.rare-classes: the classes that are rare.")
    if any(not ratio >= 1 for ratio in ratios) or len(set(ratios)) < len(ratios):
        raise UserError(f"study.imbalances is {ratios}: ratios from 1, each once.")
    return [
        Cell(budget, ratio, f"cell_{budget}" + ("" if ratio is None else f"_{ratio:g}"))
        for budget in budgets
        for ratio in ratios or (None,)
    ]


def cell_experiment(experiment: Experiment, cell: Cell) -> Experiment:
    """The run of one cell."""
    data = experiment.data
    assert isinstance(data, Data), "checked: a comparison is one of images"
    rare = data.rare_count
    if cell.imbalance is not None:
        rare = max(round(cell.budget / cell.imbalance), 1)
    elif rare is not None:
        rare = min(rare, cell.budget)
    return dataclasses.replace(
        experiment,
        name=f"{experiment.name}/{cell.name}",
        data=dataclasses.replace(data, class_count=cell.budget, rare_count=rare),
        study=dataclasses.replace(experiment.study, budgets=(), imbalances=()),
    )


def run_grid(
    experiment: Experiment, directory: Path, console: Console, shared: Path | None = None
) -> dict[str, Any]:
    """Every cell in a folder of its own, and what they say together beside them.

    A cell that is there to its report is read, not run again. `shared` is as in `runs.prepare`.

    Raises:
        UserError, DataError: as a single run; or a folder that another config made.
    """
    shared = shared or directory
    check_claim(directory, experiment)
    all_cells = cells(experiment)
    for cell in all_cells:  # Nothing is written, nor an hour spent, before all can be done.
        together(partial(_check, cell_experiment(experiment, cell), directory / cell.name))
    write_json(directory / "config.json", to_json(experiment))
    write_json(directory / "environment.json", environment())
    found = []
    for i, cell in enumerate(all_cells):
        console.print(f"cell {i + 1} of {len(all_cells)}: {shared / cell.name}")
        one, path = cell_experiment(experiment, cell), directory / cell.name
        if not (path / "report.html").is_file():
            with lock(path):
                if one.study.num_splits > 1:
                    replication.run_splits(one, path, console, shared=shared / cell.name)
                else:
                    job.run_job(prepare(one, path, shared=shared / cell.name), console)
        found.append(read_json(path / "results.json"))
    results = pool(experiment.name, all_cells, found)
    write_json(directory / "results.json", results)
    report_grid.write_report(directory)
    return results


def _check(experiment: Experiment, directory: Path) -> None:
    dataset, splits = experiment.data.read()
    check_enough(dataset, splits, experiment.train.batch_size)
    check_comparable(dataset, splits, experiment.model.make(dataset.spec), experiment.balance)
    check_claim(directory, experiment)


def pool(name: str, all_cells: Sequence[Cell], found: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """What the results of all cells say together.

    Every cell keeps its own bar and candidate, chosen on its own validation data. A gain is shown
    where its p-value, adjusted for the number of cells (Holm 1979), is below 1 - level. What it is
    worth in real data is read off the bars of the cells of the same imbalance.
    """
    metric, level = found[0]["metric"], found[0]["level"]
    rows = [_row(cell, results, metric) for cell, results in zip(all_cells, found, strict=True)]
    adjusted = holm([row["p_value"] for row in rows])
    for row, p in zip(rows, adjusted.tolist(), strict=True):
        same = [other for other in rows if other["imbalance"] == row["imbalance"]]
        row["p_adjusted"] = p
        row["gain_shown"] = row["use"] and p < 1 - level
        row["worth"] = None
        if len(same) > 1:
            reached = Interval(*(row["bar_score"] + value for value in row["gain"]))
            curve = [r["budget"] for r in same], [r["bar_score"] for r in same]
            worth = effective_samples(*curve, row["budget"], reached)
            row["worth"] = [value if np.isfinite(value) else None for value in worth]
    shown = [row for row in rows if row["gain_shown"]]
    words = f"a gain of {metric.replace('_', ' ')} is shown in {len(shown)} of {len(rows)} cells"
    if shown:
        words += f" ({'; '.join(_words(row) for row in shown)})"
    return {
        "format": 1,
        "name": name,
        "data": found[0]["data"],
        "metric": metric,
        "level": level,
        "num_splits": found[0]["num_splits"],
        "num_seeds": found[0]["num_seeds"],
        "cells": rows,
        "verdict": {
            "use": bool(shown),
            "sentence": f"{'USE IT' if shown else 'DO NOT USE IT'}: {words}, after Holm's "
            f"correction for {len(rows)}.",
        },
    }


def _row(cell: Cell, results: dict[str, Any], metric: str) -> dict[str, Any]:
    arms = {arm["name"]: arm for arm in results["arms"]}
    gain = Interval(*arms[results["candidate"]]["against_bar"][metric])

    def score(name: str) -> float:
        return float(np.mean(arms[name]["test"][metric]))

    return {
        "budget": cell.budget,
        "imbalance": cell.imbalance,
        "directory": cell.name,
        "bar": results["bar"],
        "bar_score": score(results["bar"]),
        "candidate": results["candidate"],
        "candidate_score": score(results["candidate"]),
        "plain_score": score("none"),
        "gain": list(gain),
        "p_value": p_value(gain, results["level"], results["num_splits"]),
        "use": results["verdict"]["use"],
        "sentence": results["verdict"]["sentence"],
    }


def _words(row: dict[str, Any]) -> str:
    ratio = row["imbalance"]
    of_rare = "" if ratio is None else f", {ratio:g} times as many as of a rare one"
    return f"{row['budget']} images a class{of_rare}"
