"""The main job over several splits of the data, and what they say together.

One split says how far a result could move with other test images and other seeds; how far it moves
with other rare images and another generator, only other splits can say. Every split is an ordinary
run in a folder of its own, so a stopped one goes on where it was.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console

from genaug import job, report
from genaug.checks import check_claim
from genaug.config import Experiment
from genaug.evaluation import study as studies
from genaug.evaluation.intervals import Interval, paired_t
from genaug.files import read_json, replacing, write_json
from genaug.logs import lock
from genaug.runs import prepare

Results = Mapping[str, Any]  # a results.json
OfSplits = list[dict[str, Any]]  # one arm of results.json, from every split

AUDIT_LEVEL = 0.95
"""Of the audit's intervals, as within one split."""


def run_splits(
    experiment: Experiment, directory: Path, console: Console, shared: Path | None = None
) -> dict[str, Any]:
    """`study.num_splits` runs in `split_0/`, `split_1/`, ... and the pooled results beside them.

    A split that is there to its report is read, not run again. `shared` is as in `runs.prepare`.

    Raises:
        UserError, DataError: as a single run; or a folder that another config made.
    """
    shared = shared or directory
    prepare(experiment, directory)
    found = []
    for i in range(experiment.study.num_splits):
        one, path = split_experiment(experiment, i), directory / f"split_{i}"
        console.print(f"split {i + 1} of {experiment.study.num_splits}: {shared / path.name}")
        check_claim(path, one)
        if not (path / "report.html").is_file():
            with lock(path):
                job.run_job(prepare(one, path, shared=shared / path.name), console)
        found.append(read_json(path / "results.json"))
    results = pool(experiment.name, found)
    with replacing(directory / "study" / "pictures.npz") as file:
        file.write((directory / "split_0" / "study" / "pictures.npz").read_bytes())
    write_json(directory / "results.json", results)
    report.write_report(directory)
    return results


def split_experiment(experiment: Experiment, i: int) -> Experiment:
    """The run of split i: its own split, and its own seed for the generator and its samples."""
    return dataclasses.replace(
        experiment,
        name=f"{experiment.name}/split_{i}",
        data=dataclasses.replace(experiment.data, split_seed=experiment.data.split_seed + i),
        study=dataclasses.replace(experiment.study, num_splits=1),
        seed=experiment.seed + i,
    )


def pool(name: str, found: Sequence[Results]) -> dict[str, Any]:
    """The results of at least 2 splits as one, in the shape of a single run's.

    Arms of one name are one arm, whose scores are those of all splits in turn. What is chosen is
    chosen by the mean validation score over all splits, among the arms that every split trained
    alike. A generative family may have been put on another classical arm in every split, each time
    the one that the split's validation data chose: then that procedure is what is compared. What
    the family is at weight 0 is then shown as an arm of its own; validation scores flatter it, as
    it was chosen by them, so it is never the bar.

    A difference to the bar is the mean over splits of the difference of the means over seeds, with
    Student's t interval over splits (`paired_t`). Splits are random draws from one set of images,
    so that is how far it could move with other splits of these images; where the source has a test
    set of its own, all splits share that.
    """
    first, metric, level = found[0], found[0]["metric"], found[0]["level"]
    arms = _by_name(found)
    bases, chosen_by_split = _bases(arms)
    all_arms = arms | chosen_by_split

    def valid(name: str) -> float:
        return float(np.mean([_mean(arm, "valid", metric) for arm in all_arms[name]]))

    bar = max((n for n, arm in arms.items() if not arm[0]["generative"]), key=valid)
    generative = [n for n, arm in arms.items() if arm[0]["generative"]]
    candidate = max(generative, key=valid)
    chosen = {
        family: max([base, *(n for n in generative if arms[n][0]["family"] == family)], key=valid)
        for family, base in bases.items()
    }
    joined = [
        _joined(of_splits, all_arms[bar], metric, level)
        | ({"base": bases[of_splits[0]["family"]]} if of_splits[0]["generative"] else {})
        for of_splits in sorted(all_arms.values(), key=lambda arm: bool(arm[0]["generative"]))
    ]
    drawn = _sum([results["drawn"] for results in found])
    gain = next(arm for arm in joined if arm["name"] == candidate)["against_bar"][metric]
    answer = studies.verdict(
        candidate,
        bar,
        Interval(*gain),
        metric=metric,
        level=level,
        prefers_none=chosen[arms[candidate][0]["family"]] not in generative,
        num_generated=sum(drawn["kept"]),
        num_splits=len(found),
    )
    return {
        **first,  # data and training log are the first split's
        "name": name,
        "interval": f"t over {len(found)} splits",
        "num_splits": len(found),
        "drawn": drawn,
        "arms": joined,
        "bar": bar,
        "chosen": chosen,
        "candidate": candidate,
        "verdict": {"use": answer.use, "sentence": answer.sentence},
        "audit": _audit([results["audit"] for results in found]),
        "splits": [
            {"name": f"split_{i}", "seed": results["seed"]}
            | {"verdict": results["verdict"]["sentence"]}
            for i, results in enumerate(found)
        ],
    }


def _by_name(found: Sequence[Results]) -> dict[str, OfSplits]:
    splits = [{arm["name"]: arm for arm in results["arms"]} for results in found]
    return {name: [split[name] for split in splits] for name in splits[0]}


def _bases(arms: Mapping[str, OfSplits]) -> tuple[dict[str, str], dict[str, OfSplits]]:
    """Generative family -> name of its arm at weight 0; and the arms that differ by split."""
    bases: dict[str, str] = {}
    by_split: dict[str, OfSplits] = {}
    for of_splits in arms.values():
        family, names = of_splits[0]["family"], [arm["base"] for arm in of_splits]
        if not of_splits[0]["generative"]:
            continue
        bases[family] = names[0]
        if len(set(names)) > 1:
            name = f"{family.partition(f' + {studies.GENERATED}')[0]}, chosen by split"
            own = {"name": name, "family": name, "base": name}
            bases[family] = name
            by_split[name] = [arms[base][i] | own for i, base in enumerate(names)]
    return bases, by_split


def _mean(arm: Mapping[str, Any], part: str, metric: str) -> float:
    """The mean over the seeds of one split; `recall/3` is the recall of class 3."""
    name, _, label = metric.partition("/")
    values = arm[part][name]
    return float(np.mean([seed[int(label)] for seed in values] if label else values))


def _joined(arm: OfSplits, bar: OfSplits, metric: str, level: float) -> dict[str, Any]:
    """One arm over all splits."""

    def differences(name: str) -> np.ndarray:
        pairs = zip(arm, bar, strict=True)
        return np.array([_mean(a, "test", name) - _mean(b, "test", name) for a, b in pairs])

    shared = [name for name in arm[0]["against_bar"] if all(name in a["against_bar"] for a in arm)]
    return {
        **arm[0],
        **{
            part: {name: [seed for a in arm for seed in a[part][name]] for name in arm[0][part]}
            for part in ("valid", "test")
        },
        "against_bar": {n: list(paired_t(differences(n), level)[:3]) for n in shared},
        "by_split": differences(metric).tolist(),
    }


def _sum(values: Sequence[Any]) -> Any:
    """Sums of numbers, position by position and name by name."""
    first = values[0]
    if isinstance(first, dict):
        return {name: _sum([value[name] for value in values]) for name in first}
    if isinstance(first, list):
        return [_sum(list(of_class)) for of_class in zip(*values, strict=True)]
    return sum(values)


def _audit(found: Sequence[Sequence[Mapping[str, Any]]]) -> list[dict[str, Any]]:
    """Means over splits of the figures that all of them have, with Student's t interval."""
    splits = [{(entry["name"], entry["group"]): entry for entry in entries} for entries in found]
    note = (
        f"A mean over {len(found)} splits with Student's t interval; sizes, and the real examples "
        "named, are the first split's."
    )
    rows = []
    for kind, entry in splits[0].items():
        same = [split[kind] for split in splits if kind in split]
        if len(same) < len(found):
            continue
        floors = [each["floor"] for each in same]
        value, low, high, _ = paired_t(np.array([each["value"] for each in same]), AUDIT_LEVEL)
        rows.append(
            {
                **entry,
                "value": value,
                # Kernel distances and C_T may lie below 0: the splits say which figures do.
                "low": low if min(each["low"] for each in same) < 0 else max(low, 0.0),
                "high": min(high, 1.0) if entry["share"] else high,
                "floor": None if None in floors else float(np.mean(floors)),
                "remarks": [*entry["remarks"], note],
            }
        )
    return rows
