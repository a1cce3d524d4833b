"""Results as plain text tables: what a command prints, and the README shows."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

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


def audit_table(results: Sequence[Mapping[str, Any]]) -> str:
    """Every audit figure with its interval and the real-vs-real floor beside it."""
    rows = [["", "value", "95 % interval", "real data", "better", "n"]]
    for row in results:
        floor = "" if row["floor"] is None else f"{row['floor']:.3f}"
        rows.append(
            [
                row["name"],
                f"{row['value']:.3f}",
                f"{row['low']:.3f} to {row['high']:.3f}",
                floor,
                row["better"],
                str(row["n"]),
            ]
        )
    return aligned(rows)
