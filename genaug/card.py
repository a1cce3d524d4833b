"""A model card beside a bundle, as model hubs read it: what it draws, of what, and what it is for.

Everything that comes from data or config is escaped: a class name is shown and never obeyed.
"""

from __future__ import annotations

import html
import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import jinja2
import numpy as np

from genaug.bundle import Bundle, load_sampler
from genaug.files import write_atomically, write_json
from genaug.logs import plain
from genaug.pictures import write_grid
from genaug.types import LabelSpec

_PER_CLASS = 10


def write_card(directory: Path) -> None:
    """README.md, config.json and samples.png beside the bundle in `directory`."""
    sampler = load_sampler(directory)
    about = sampler.description
    write_json(directory / "config.json", about.get("config", {}))
    pictured = "image" in about["spec"]
    if pictured:
        write_grid(directory / "samples.png", _samples(sampler), columns=_PER_CLASS)
    write_atomically(directory / "README.md", card(about, pictured))


def card(about: Mapping[str, Any], pictured: bool) -> str:
    """The text of README.md."""
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("genaug", "."),
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
        autoescape=False,  # it is Markdown: `escaped` is what makes text of data harmless
        undefined=jinja2.StrictUndefined,
    )
    environment.filters |= {"escaped": escaped, "yaml": _yaml, "figures": _figures}
    config = about.get("config", {})
    return environment.get_template("card.md.j2").render(
        about=about,
        data=about.get("data", {}),
        name=config.get("name", "sampler"),
        family=str(config.get("model", {}).get("type", "")).rpartition(":")[2],
        train=config.get("train", {}),
        measured=about.get("measured"),
        verdict=about.get("verdict"),
        classes=_classes(about),
        pictured=pictured,
        reads={k: v for k, v in about["conditions"].items() if k != "index"},
    )


def escaped(text: Any) -> str:
    """Text that Markdown and HTML show as it is, on one line."""
    line = " ".join(plain(str(text)).split())
    return re.sub(r"([\\`*_{}\[\]#|~$])", r"\\\1", html.escape(line, quote=False))


def _yaml(text: Any) -> str:
    """A string as YAML, which takes JSON's."""
    return json.dumps(plain(str(text)))


def _figures(values: list[float | int | None]) -> str:
    return ", ".join("–" if value is None else f"{value:.4g}" for value in values)


def _classes(about: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Of each class, how many there were, and what became of what was drawn."""
    data, drawn = about.get("data", {}), about.get("measured", {}).get("drawn")
    names = data.get("class_names", [])
    counts = data.get("counts", {}).get("train", [None] * len(names))
    return [
        {
            "name": name,
            "train": counts[i],
            "drawn": drawn["drawn"][i] if drawn else None,
            "kept": drawn["kept"][i] if drawn else None,
        }
        for i, name in enumerate(names)
    ]


def _samples(sampler: Bundle) -> np.ndarray:
    """Ten of each class, or a hundred."""
    cond = {"index": np.arange(100, dtype=np.int32)}
    spec = sampler.reads["label"].spec if "label" in sampler.reads else None
    if isinstance(spec, LabelSpec):
        labels = np.repeat(np.arange(min(spec.num_classes, 20), dtype=np.int32), _PER_CLASS)
        cond = {"index": np.arange(len(labels), dtype=np.int32), "label": labels}
    return sampler.blocks()(jax.random.key(0), cond)["image"]
