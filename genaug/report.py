"""One self-contained HTML page.

`write_report` turns a run folder into `report.html`. Python works out every number, text and
position; the template lays them out. Charts are SVG with all coordinates in percent of the plot,
so that they fit any width while their text keeps its size.
"""

from __future__ import annotations

import base64
import math
import re
import shlex
import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jinja2
import numpy as np
from jaxtyping import UInt8

from genaug import report_audit
from genaug.charts import Axis, axis, change, dots, floats, line, mean_sd, number, points
from genaug.files import read_json, write_atomically
from genaug.pictures import grid, png
from genaug.types import UserError

METRICS = {
    "balanced_accuracy": (
        "balanced accuracy",
        "the share of a class's images that is recognised, averaged over the classes: a rare class "
        "counts as much as a common one",
    ),
    "accuracy": ("accuracy", "the share of all images that is recognised"),
    "macro_f1": (
        "macro F1",
        "the mean of the classes' F1, which falls with missed images and with false alarms",
    ),
    "rare_recall": (
        "rare-class recall",
        "the share of a rare class's images that is recognised, averaged over the rare classes",
    ),
    "ece": (
        "calibration error",
        "how far the classifier's confidence is from how often it is right; less is better",
    ),
}
"""The scores of an arm that the page shows: name and meaning."""

# ANSI sequences, control characters, marks that turn the text's direction, lone surrogates.
_UNPRINTABLE = re.compile(
    "\x1b\\[[0-?]*[ -/]*[@-~]|[\x00-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069\ud800-\udfff]"
)


def write_report(directory: Path) -> Path:
    """Write `report.html` into a finished run folder: one page that loads nothing from elsewhere.

    Raises:
        UserError: a run that is not finished, or a file of it that cannot be read.
    """
    if not (directory / "results.json").is_file():
        raise UserError(f"{directory} has no results.json yet: finish the run first.")
    results, config, environment = (
        clean(read_json(directory / f"{name}.json"))
        for name in ("results", "config", "environment")
    )
    page = template("report.html").render(
        **_summary(results),
        rows=_arm_rows(results),
        panels=_panels(results),
        sweeps=_sweeps(results),
        recall=_recall(results),
        drawn=_drawn(results),
        audit=report_audit.view(results["audit"]),
        curves=_curves(results.get("training") or []),
        config=_flat(config),
        environment=_flat(environment),
        command=again(directory),
        **_pictures(directory / "study" / "pictures.npz", results),
    )
    path = directory / "report.html"
    write_atomically(path, page)
    return path


def template(name: str) -> jinja2.Template:
    """A page's template, which escapes what it is given."""
    jinja = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    jinja.filters.update(number=number, points=points, change=change)
    return jinja.get_template(name)


def again(directory: Path) -> str:
    """The command that repeats a run."""
    return f"genaug run --from-run {shlex.quote(clean(directory.resolve().name))}"


def clean(value: Any) -> Any:
    """JSON without characters that could not be shown, or would change how others are shown."""
    if isinstance(value, str):
        return _UNPRINTABLE.sub("", value)
    if isinstance(value, list):
        return [clean(item) for item in value]
    if isinstance(value, dict):
        return {clean(key): clean(item) for key, item in value.items()}
    return value


def _short(name: str, length: int = 60) -> str:
    return name if len(name) <= length else f"{name[: length - 1]}…"


def _summary(results: Mapping[str, Any]) -> dict[str, Any]:
    """Name, data, verdict and the numbers behind it."""
    data, metric = results["data"], results["metric"]
    arms = {arm["name"]: arm for arm in results["arms"]}
    names = [_short(name) for name in data["class_names"]]
    rare = [names[c] for c in results.get("rare_classes") or []]
    headline, _, sentence = results["verdict"]["sentence"].partition(": ")
    columns = [m for m in METRICS if any(m in arm["test"] for arm in results["arms"])]
    return {
        "name": results["name"],
        "data_name": data["name"],
        "licence": data.get("licence"),
        "origin": data.get("origin"),
        "num_classes": len(names),
        "counts": {split: sum(counts) for split, counts in data["counts"].items()},
        "rare": rare[:8] + ([f"{len(rare) - 8} more"] if len(rare) > 8 else []),
        "use": bool(results["verdict"]["use"]),
        "headline": headline if sentence else "",
        "sentence": sentence or headline,
        "metric": metric,
        "metrics": {m: METRICS[m] for m in columns},
        "metric_name": METRICS[metric][0],
        "metric_meaning": METRICS[metric][1],
        "plain_arm": _plain_arm(results),
        "bar": arms[results["bar"]],
        "candidate": arms[results["candidate"]],
        "gain": [
            number(100 * v, signed=True)
            for v in floats(arms[results["candidate"]]["against_bar"][metric])
        ],
        "level": number(100 * results["level"], 0),
        "num_seeds": results["num_seeds"],
        "num_splits": results.get("num_splits", 1),
        "splits": _splits(results, arms[results["candidate"]]),
        "arms": [arm | {"role": _role(arm["name"], results)} for arm in results["arms"]],
    }


def _splits(results: Mapping[str, Any], candidate: Mapping[str, Any]) -> list[dict[str, Any]]:
    """What every split of a run over several says of the pooled candidate, and said by itself."""
    return [
        split | {"gain": number(100 * gain, signed=True)}
        for split, gain in zip(
            results.get("splits", []), candidate.get("by_split", []), strict=True
        )
    ]


def _plain_arm(results: Mapping[str, Any]) -> str:
    """The arm that nothing was done for."""
    names = [arm["name"] for arm in results["arms"]]
    return "none" if "none" in names else names[0]


def _role(name: str, results: Mapping[str, Any]) -> str:
    """What the study made of an arm."""
    if name == results["bar"]:
        return "bar to beat"
    if name == results["candidate"]:
        return "candidate"
    generative = {arm["name"] for arm in results["arms"] if arm["generative"]}
    return "chosen weight" if name in generative & {*results["chosen"].values()} else ""


def _differences(results: Mapping[str, Any]) -> dict[str, list[float]]:
    """Arm -> difference to the bar, low, high, in points of the chosen metric; the best first."""
    found = {
        arm["name"]: [100 * v for v in floats(arm["against_bar"][results["metric"]])]
        for arm in results["arms"]
    }
    return dict(sorted(found.items(), key=lambda item: -np.nan_to_num(item[1][0], nan=-1e9)))


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


def _panels(results: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Titles and ticks of the interval chart."""
    return [
        {"title": title, "zero": x.at(0.0), "ticks": x.ticks(signed=True)}
        for title, x in _axes(results)
    ]


def _arm_rows(results: Mapping[str, Any]) -> list[dict[str, Any]]:
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
            "role": _role(name, results),
            "score": points(arms[name]["test"][results["metric"]]),
            "marks": [mark(x, interval) for _, x in _axes(results)],
        }
        for name, interval in _differences(results).items()
    ]


def _sweeps(results: Mapping[str, Any]) -> list[dict[str, Any]]:
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


def _recall(results: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Per class: its recall in every arm, and the candidate's difference to the bar."""
    data, arms = results["data"], {arm["name"]: arm for arm in results["arms"]}
    against = arms[results["candidate"]]["against_bar"]
    main = (_plain_arm(results), results["bar"], results["candidate"])

    def of(arm: Mapping[str, Any], c: int) -> str:
        return points([seed[c] for seed in arm["test"].get("recall") or []])

    return [
        {
            "name": _short(name),
            "rare": c in (results.get("rare_classes") or []),
            "train": data["counts"]["train"][c],
            "main": [of(arms[arm], c) for arm in main],
            "all": [of(arm, c) for arm in results["arms"]],
            "change": change(against[f"recall/{c}"]) if f"recall/{c}" in against else "–",
        }
        for c, name in enumerate(data["class_names"])
    ]


def _drawn(results: Mapping[str, Any]) -> dict[str, Any]:
    """Per class that needed examples: how many were wanted, drawn, refused and kept."""
    found = results.get("drawn") or {"wanted": [], "drawn": [], "kept": [], "refused": {}}
    names = results["data"]["class_names"]
    rows = [
        {
            "name": _short(names[c]),
            "wanted": wanted,
            "drawn": found["drawn"][c],
            "kept": found["kept"][c],
            "refused": [counts[c] for counts in found["refused"].values()],
        }
        for c, wanted in enumerate(found["wanted"])
        if wanted or found["drawn"][c]
    ]
    return {"rows": rows, "reasons": list(found["refused"])}


def _curves(training: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
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


def _flat(value: Any, path: str = "") -> list[tuple[str, str]]:
    """Nested settings as rows: dotted name, value."""
    if isinstance(value, dict) and value:
        parts = (_flat(v, f"{path}.{k}" if path else str(k)) for k, v in value.items())
        return [row for part in parts for row in part]
    if isinstance(value, list):
        return [(path, ", ".join(map(str, value)) or "–")]
    return [(path, "–" if value is None else str(value))]


def _pictures(path: Path, results: Mapping[str, Any]) -> dict[str, Any]:
    """Strips of real and generated images of each class; samples beside their neighbours."""
    if not path.is_file():
        return {"strips": [], "pairs": []}
    try:
        with np.load(path, allow_pickle=False) as file:
            arrays = dict(file)
    except (OSError, ValueError, zipfile.BadZipFile) as error:
        raise UserError(f"{path} cannot be read ({error}): remove it and run again.") from None
    names = results["data"]["class_names"]

    def strip(kind: str, c: int) -> str | None:
        images = arrays[kind][arrays[f"{kind}_labels"] == c]
        return _uri(images, min(10, len(images))) if len(images) else None

    strips = [
        {"name": _short(name), "rare": c in (results.get("rare_classes") or []),
         "real": strip("real", c), "generated": strip("generated", c)}
        for c, name in enumerate(names)
    ]  # fmt: skip
    pairs = [
        {"name": _short(names[int(label)], 20), "distance": number(float(distance), 2),
         "generated": _uri(generated[None], 1), "train": _uri(train[None], 1)}
        for generated, train, label, distance in zip(
            *(arrays[f"closest_{key}"] for key in ("generated", "train", "labels", "distance")),
            strict=True,
        )
    ]  # fmt: skip
    return {"strips": [s for s in strips if s["real"] or s["generated"]], "pairs": pairs}


def _uri(images: UInt8[np.ndarray, "n h w c"], columns: int) -> str:
    """A grid as a data URI."""
    return "data:image/png;base64," + base64.b64encode(png(grid(images, columns))).decode()
