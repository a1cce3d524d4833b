"""One self-contained HTML page.

`write_report` turns a run folder into `report.html`. Python works out every number, text and
position; the template lays them out. Charts are SVG with all coordinates in percent of the plot,
so that they fit any width while their text keeps its size.
"""

from __future__ import annotations

import base64
import re
import shlex
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jinja2
import numpy as np
from jaxtyping import UInt8

from genaug import report_audit, report_charts
from genaug.charts import change, floats, number, points
from genaug.data.config import Sound
from genaug.files import read_json, without_folders, write_atomically
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

_HEARD = 5  # sounds of a class that a player has

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
    needs = ("name", "data", "arms", "bar", "candidate", "verdict", "audit")
    results = clean(read_json(directory / "results.json", needs))
    config, environment = (
        clean(read_json(directory / f"{name}.json")) for name in ("config", "environment")
    )
    page = template("report.html").render(
        **_summary(results),
        rows=report_charts.arm_rows(results),
        panels=report_charts.panels(results),
        sweeps=report_charts.sweeps(results),
        recall=_recall(results),
        drawn=_drawn(results),
        audit=report_audit.view(results["audit"]),
        curves=report_charts.curves(results.get("training") or []),
        config=_flat(without_folders(config)),
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
        "origin": without_folders(data.get("origin")),
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
        "arms": [
            arm | {"role": report_charts.role(arm["name"], results)} for arm in results["arms"]
        ],
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
    sound = results["data"].get("sound")

    def player(kind: str, c: int) -> str | None:
        images = arrays[kind][arrays[f"{kind}_labels"] == c][:_HEARD]
        return _sounds_uri(images, Sound(**sound)) if sound and len(images) else None

    def strip(kind: str, c: int) -> str | None:
        images = arrays[kind][arrays[f"{kind}_labels"] == c]
        return _uri(images, min(10, len(images))) if len(images) else None

    strips = [
        {"name": _short(name), "rare": c in (results.get("rare_classes") or []),
         "real": strip("real", c), "generated": strip("generated", c),
         "sounds": {kind: player(kind, c) for kind in ("real", "generated")}}
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


def _sounds_uri(images: UInt8[np.ndarray, "n h w 1"], config: Sound) -> str:
    """Sounds of these pictures, one after another, as a data URI."""
    from genaug.data.sound_files import wav
    from genaug.transforms.sounds import to_sound

    heard = np.asarray(to_sound(images, config))
    pauses = np.zeros((len(heard), config.sample_rate // 4), np.int16)
    content = wav(np.concatenate([heard, pauses], axis=1).ravel(), config.sample_rate, {})
    return "data:audio/wav;base64," + base64.b64encode(content).decode()


def _uri(images: UInt8[np.ndarray, "n h w c"], columns: int) -> str:
    """A grid as a data URI."""
    return "data:image/png;base64," + base64.b64encode(png(grid(images, columns))).decode()
