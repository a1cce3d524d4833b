"""The page of a study over amounts of real data: learning curves, and every cell."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from genaug.charts import Axis, axis, change, dots, line, number
from genaug.files import read_json, write_atomically
from genaug.report import METRICS, again, clean, template

KINDS = {"plain": "plain_score", "bar": "bar_score", "cand": "candidate_score"}
"""The lines of a chart, and what of a cell they show."""


def write_report(directory: Path) -> Path:
    """Write `report.html` into the folder of a finished grid (`genaug.grid`)."""
    results = clean(read_json(directory / "results.json"))
    metric = METRICS[results["metric"]]
    page = template("grid.html").render(
        name=results["name"],
        data=results["data"],
        verdict=results["verdict"],
        metric_name=metric[0],
        metric_meaning=metric[1],
        level=number(100 * results["level"], 0),
        num_splits=results["num_splits"],
        num_seeds=results["num_seeds"],
        charts=_charts(results["cells"]),
        cells=[cell | {"words": worth(cell)} for cell in results["cells"]],
        change=change,
        command=again(directory),
    )
    path = directory / "report.html"
    write_atomically(path, page)
    return path


def worth(cell: Mapping[str, Any]) -> str:
    """What a gain is worth in real data, in words: "×2.1 (1.3 to beyond)".

    Beyond is more than the largest amount that was tried.
    """
    if cell["worth"] is None:
        return "–"
    estimate, low, high = (
        "beyond" if value is None else number(value, 1) for value in cell["worth"]
    )
    if estimate == "beyond":
        return "beyond" + ("" if low == "beyond" else f" (from ×{low})")
    return f"×{estimate} ({low} to {high})"


def _charts(cells: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """A learning curve for every imbalance, on a logarithmic axis of images.

    The band is the interval of the gain, set on the best score without a generator.
    """
    charts = []
    scores = [100 * cell[key] for cell in cells for key in KINDS.values()]
    scores += [100 * (cell["bar_score"] + end) for cell in cells for end in cell["gain"][1:]]
    y = axis(scores)
    for ratio in dict.fromkeys(cell["imbalance"] for cell in cells):
        some = [cell for cell in cells if cell["imbalance"] == ratio]
        logs = [math.log(cell["budget"]) for cell in some]
        room = 0.06 * (logs[-1] - logs[0]) or 0.5
        x = Axis(logs[0] - room, logs[-1] + room)
        series = []
        for kind, key in KINDS.items():
            points = [(at, 100 * cell[key]) for at, cell in zip(logs, some, strict=True)]
            ends = [(at, *(100 * (cell["bar_score"] + end) for end in cell["gain"][1:]))
                    for at, cell in zip(logs, some, strict=True)]  # fmt: skip
            band = [(at, low) for at, low, _ in ends] + [(at, high) for at, _, high in ends[::-1]]
            series.append({"kind": kind, "line": line(points, x, y),
                           "band": line(band, x, y) if kind == "cand" else "",
                           "dots": dots(points, x, y)})  # fmt: skip
        ticks = [(x.at(at), f"{cell['budget']:,}") for at, cell in zip(logs, some, strict=True)]
        title = "Images a class" if ratio is None else f"1 rare image to {ratio:g} common ones"
        charts.append({"title": title, "x": ticks, "y": y.ticks(), "mark": None, "series": series})
    return charts
