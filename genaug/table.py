"""Results as plain text tables: what a command prints, and the README shows."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from genaug import report_grid
from genaug.evaluation.results import Result, by_remark
from genaug.evaluation.study import points
from genaug.logs import plain

COLUMNS = (
    ("accuracy", "accuracy"),
    ("balanced_accuracy", "balanced"),
    ("macro_f1", "macro F1"),
    ("rare_recall", "rare recall"),
    ("ece", "calib. error"),
)


def aligned(rows: Sequence[Sequence[str]]) -> str:
    """Columns as wide as they need to be; the first to the left, the rest to the right."""
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    lines = []
    for row in rows:
        first, *rest = (
            cell.ljust(width) if i == 0 else cell.rjust(width)
            for i, (cell, width) in enumerate(zip(row, widths, strict=True))
        )
        lines.append("  ".join([first, *rest]).rstrip())
    return "\n".join(lines)


def spread(values: Sequence[float]) -> str:
    """Mean and standard deviation over seeds, in points."""
    points = 100 * np.asarray(values, np.float64)
    deviation = points.std(ddof=1) if len(points) > 1 else 0.0
    return f"{points.mean():.1f} ± {deviation:.1f}"


def results_table(results: Mapping[str, Any]) -> str:
    """Every arm: test scores in points, mean ± sd over seeds, and the difference to the bar.

    Over several splits of the data the seeds are those of all of them.
    """
    metric = results["metric"]
    columns = [(key, title) for key, title in COLUMNS if key in results["arms"][0]["test"]]
    marks = {results["bar"]: "bar to beat", results["candidate"]: "candidate"}
    for arm in results["arms"]:
        if arm["generative"] and arm["name"] in results["chosen"].values():
            marks.setdefault(arm["name"], "chosen weight")
    level, num_splits = f"{100 * results['level']:g} %", results.get("num_splits", 1)
    if num_splits > 1:
        level += f", t over {num_splits} splits"
    head = [
        f"test scores, {f'{num_splits} splits x ' if num_splits > 1 else ''}"
        f"{results['num_seeds']} seeds",
        *(title for _, title in columns),
        f"{dict(COLUMNS)[metric]} vs bar ({level})",
        "",
    ]
    rows = [head]
    for arm in results["arms"]:
        gain, low, high = (points(value) for value in arm["against_bar"][metric])
        rows.append(
            [
                plain(arm["name"]),
                *(spread(arm["test"][key]) for key, _ in columns),
                "" if arm["name"] == results["bar"] else f"{gain} [{low}, {high}]",
                marks.get(arm["name"], ""),
            ]
        )
    return aligned(rows)


def grid_table(results: Mapping[str, Any]) -> str:
    """Every amount of real data: the best without and with a generator, and what that is worth."""
    level = f"{100 * results['level']:g} %"
    head = ["images a class", "common : rare", "without", "with", f"gain ({level})", "p (Holm)",
            "worth"]  # fmt: skip
    rows = [head]
    for cell in results["cells"]:
        gain, low, high = (points(value) for value in cell["gain"])
        rows.append(
            [
                str(cell["budget"]),
                "" if cell["imbalance"] is None else f"{cell['imbalance']:g}",
                f"{100 * cell['bar_score']:.1f}",
                f"{100 * cell['candidate_score']:.1f}",
                f"{gain} [{low}, {high}]",
                f"{cell['p_adjusted']:.2g}",
                report_grid.worth(cell),
            ]
        )
    return aligned(rows)


def audit_table(
    results: Sequence[Result], changes: Mapping[tuple[str, str | None], str] | None = None
) -> str:
    """Every figure with its interval and the real-vs-real floor beside it; then by class.

    changes: by metric and class, a last column.
    """
    last = ["change"] if changes is not None else []
    rows = [["", "value", "95 % interval", "real data", "better", "n", *last]]
    for each in (result for result in results if result.group is None):
        changed = [(changes or {}).get((each.name, None), "")] if last else []
        rows.append([each.name, *_figures(each), each.better, str(each.n), *changed])
    some = [result for result in results if result.group is not None]
    if not some:
        return aligned(rows)
    names = list(dict.fromkeys(result.name for result in some))
    of_classes = [["by class (real data)", *names]]
    for group in dict.fromkeys(result.group for result in some):
        cells = {each.name: each for each in some if each.group == group}
        of_classes.append([plain(str(group)), *(_cell(cells.get(name)) for name in names)])
    return f"{aligned(rows)}\n\n{aligned(of_classes)}"


def audit_remarks(results: Sequence[Result]) -> list[str]:
    """What the reader must know, once each, with the metrics and classes that it is about."""
    return [f"{_subjects(about)}: {plain(remark)}" for remark, about in by_remark(results).items()]


def _subjects(results: Sequence[Result]) -> str:
    """Names of metrics; of one that was not measured on the whole sets, the classes too."""
    groups: dict[str, list[str | None]] = {}
    for each in results:
        groups.setdefault(each.name, []).append(each.group)
    return ", ".join(
        name if None in some else f"{name} of {', '.join(plain(str(group)) for group in some)}"
        for name, some in groups.items()
    )


def _figures(result: Result) -> list[str]:
    floor = "" if result.floor is None else f"{result.floor:.3g}"
    return [f"{result.value:.3g}", f"{result.low:.3g} to {result.high:.3g}", floor]


def _cell(result: Result | None) -> str:
    if result is None:
        return ""
    value, interval, floor = _figures(result)
    return f"{value} [{interval}] ({floor})"
