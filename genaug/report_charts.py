"""The report's charts of a study: positions in percent of the plot, and the texts beside them."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from genaug.charts import Axis, axis, dots, floats, line, mean_sd, number, points


def panels(results: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Titles and ticks of the interval chart."""
    return [
        {"title": title, "zero": x.at(0.0), "ticks": x.ticks(signed=True)}
        for title, x in _axes(results)
    ]


def arm_rows(results: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Rows of the interval chart."""
    arms = {arm["name"]: arm for arm in results["arms"]}

    def mark(x: Axis, interval: list[float]) -> dict[str, Any]:
        estimate, low, high = interval
        if not all(map(math.isfinite, interval)):
            return {"off": "missing"}
        if not x.low <= estimate <= x.high:
            off = "left" if estimate < x.low else "right"
            return {"off": off, "text": number(estimate, signed=True)}
        return {"off": "", "at": x.at(estimate), "low": x.at(low), "high": x.at(high)}

    return [
        {
            "name": name,
            "generative": arms[name]["generative"],
            "role": role(name, results),
            "score": points(arms[name]["test"][results["metric"]]),
            "marks": [mark(x, interval) for _, x in _axes(results)],
        }
        for name, interval in _differences(results).items()
    ]


def _axes(results: Mapping[str, Any]) -> list[tuple[str, Axis]]:
    """An axis for all arms, and one for those near the bar where the first would hide them."""
    found = _differences(results)
    whole = axis([0.0, *(v for interval in found.values() for v in interval)])
    _, low, high = found[results["candidate"]]
    reach = max(1.5 * abs(low), 1.5 * abs(high), 0.5)
    near = axis([0.0, *(v for i in found.values() if abs(i[0]) <= reach for v in i)])
    if whole.high - whole.low < 2.5 * (near.high - near.low):
        return [("All arms", whole)]
    return [("All arms", whole), ("Close to the bar", near)]


def _differences(results: Mapping[str, Any]) -> dict[str, list[float]]:
    """Arm -> difference to the bar, low, high, in points of the chosen metric; the best first."""
    found = {
        arm["name"]: [100 * v for v in floats(arm["against_bar"][results["metric"]])]
        for arm in results["arms"]
    }
    return dict(sorted(found.items(), key=lambda item: -np.nan_to_num(item[1][0], nan=-1e9)))


def role(name: str, results: Mapping[str, Any]) -> str:
    """What the study made of an arm."""
    if name == results["bar"]:
        return "bar to beat"
    if name == results["candidate"]:
        return "candidate"
    generative = {arm["name"] for arm in results["arms"] if arm["generative"]}
    return "chosen weight" if name in generative & {*results["chosen"].values()} else ""


def sweeps(results: Mapping[str, Any]) -> list[dict[str, Any]]:
    """A chart for each generative family: score against weight, on validation and test data."""
    charts, by_name = [], {arm["name"]: arm for arm in results["arms"]}
    for family, chosen in results["chosen"].items():
        arms = [arm for arm in results["arms"] if arm["family"] == family]
        first = by_name[arms[0]["base"]]  # what the family is at weight 0
        arms = [first, *sorted(arms, key=lambda arm: arm["weight"])]
        scores = {
            split: [(arm["weight"], *mean_sd(arm[split][results["metric"]])) for arm in arms]
            for split in ("valid", "test")
        }
        known = [(w, mean, np.nan_to_num(sd)) for s in scores.values() for w, mean, sd in s]
        x = Axis(0.0, max(w for w, _, _ in known) or 1.0)
        y = axis(mean + sign * sd for _, mean, sd in known for sign in (-1, 1))
        series = []
        for split, rows in scores.items():
            upper = [(w, mean + np.nan_to_num(sd)) for w, mean, sd in rows]
            lower = [(w, mean - np.nan_to_num(sd)) for w, mean, sd in reversed(rows)]
            middle = [(w, mean) for w, mean, _ in rows]
            series.append({"kind": split, "line": line(middle, x, y), "dots": dots(middle, x, y),
                           "band": line(upper + lower, x, y)})  # fmt: skip
        weight = next(arm["weight"] for arm in arms if arm["name"] == chosen)
        charts.append(
            {
                "title": family,
                "start": first["name"],
                "weight": number(weight, 2).rstrip("0").rstrip("."),
                "x": [(x.at(w), f"{w:g}") for w, _, _ in scores["test"]],
                "y": y.ticks(),
                "mark": x.at(weight),
                "series": series,
            }
        )
    return charts


def curves(training: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """A chart for each value of the training log, with its validation value where there is one."""
    found: dict[str, list[tuple[float, float]]] = {}
    for entry in training:
        for key in (k for k in entry if k != "step" and not k.endswith("_se")):
            found.setdefault(key, []).append((float(entry["step"]), floats([entry[key]])[0]))
    names = {key.removeprefix("valid_") for key in found}
    last = max((line["step"] for line in training), default=0)
    x = Axis(0.0, float(last or 1))
    charts = []
    for name in sorted(names, key=lambda n: (f"valid_{n}" not in found, n != "loss", n)):
        lines = {kind: found.get(f"{prefix}{name}", []) for kind, prefix in
                 (("train", ""), ("valid", "valid_"))}  # fmt: skip
        # The first updates are often so far off that they would flatten everything after them.
        later = [v for points in lines.values() for step, v in points if step >= 0.1 * last]
        y = axis(later)
        series = []
        for kind, all_points in lines.items():
            some = all_points[:: max(1, len(all_points) // 200)]
            series.append({"kind": kind, "line": line(some, x, y), "band": "",
                           "dots": dots(some, x, y) if kind == "valid" else []})  # fmt: skip
        title = name.replace("_", " ")
        charts.append({"title": title, "x": x.ticks(3), "y": y.ticks(), "mark": None,
                       "note": _best_step(name, lines["valid"]),
                       "series": [s for s in series if s["line"]]})  # fmt: skip
    return [chart for chart in charts if chart["series"]]


def _best_step(name: str, values: Sequence[tuple[float, float]]) -> str:
    """Where a validation value was best, if it is known which way is better."""
    sign = {
        "elbo": 1,
        "iwae": 1,
        "nll": -1,
        "loss": -1,
        "bits_per_dim": -1,
        "bits_per_byte": -1,
    }.get(name)
    known = [(step, sign * value) for step, value in values if sign and math.isfinite(value)]
    if len(known) < 2:
        return ""
    best, last = max(known, key=lambda point: point[1])[0], known[-1][0]
    return f"Validation is best at update {best:,.0f} of {last:,.0f}."
