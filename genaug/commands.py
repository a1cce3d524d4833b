"""What the smaller commands do: sample, data list."""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from PIL import Image, PngImagePlugin

from genaug import export, runs
from genaug.config import nearest_name
from genaug.data import Data, catalogue
from genaug.data.folder import decode
from genaug.data.raw import shape_image
from genaug.data.tokens import show
from genaug.files import save_arrays, write_atomically
from genaug.logs import plain, plain_lines
from genaug.pictures import write_grid
from genaug.sampling import make_sampler
from genaug.types import CondField, TokenSpec, UserError


def sample(options: argparse.Namespace, conditions: Sequence[str]) -> str:
    """Draw from a run's model: a folder of PNGs, JSON lines or an .npz; returns where they are.

    conditions: what the sampler reads, as `--name value`.
    """
    if options.n < 1 or options.first < 0:
        raise UserError("--n must be at least 1 and --first at least 0.")
    run = runs.open_run(options.run)
    names = run.about_data["class_names"]
    cond = _cond(options, conditions, run, names)
    out = options.out or options.run / ("drawn" if run.tokenizer is None else "drawn.jsonl")
    if out.is_file() or (out.is_dir() and any(out.iterdir())):
        raise UserError(f"{out} is there already: name another with --out.")
    sampler = make_sampler(run.model, run.weights, run.mesh)
    rows = sampler(jax.random.key(options.seed), cond)
    if out.suffix == ".npz":
        save_arrays(out, {**rows, "index": cond["index"], "class_names": np.array(names)})
        return f"{options.n} examples in {out}"
    provenance = {"seed": options.seed, "model": export.digest(jax.device_get(run.weights))}
    labels = cond.get("label")
    if run.tokenizer is None:
        folders = folder_names(names)
        of_each = ["images"] * options.n if labels is None else [folders[c] for c in labels]
        return _write_images(out, rows["image"], of_each, cond["index"], provenance)
    texts = show(rows["tokens"], rows["segments"], run.tokenizer)
    classes = None if labels is None else [names[c] for c in labels]
    return _write_texts(out, texts, classes, cond["index"], provenance)


def _write_images(
    out: Path,
    images: np.ndarray,
    folders: Sequence[str],
    index: np.ndarray,
    provenance: Mapping[str, Any],
) -> str:
    """A PNG for every image in its folder, with its provenance inside, and a grid of the first."""
    for folder, image, address in zip(folders, images, index, strict=True):
        (out / folder).mkdir(parents=True, exist_ok=True)
        text = PngImagePlugin.PngInfo()
        for key, value in {"synthetic": "genaug", **provenance, "index": address}.items():
            text.add_text(key, str(value))
        picture = Image.fromarray(image[:, :, 0] if image.shape[-1] == 1 else image)
        picture.save(out / folder / f"{address:06d}.png", pnginfo=text)
    write_grid(out / "grid.png", images[:100], columns=10)
    return f"{len(images)} images in {out}, the first of them in {out / 'grid.png'}"


def _write_texts(
    out: Path,
    texts: Sequence[str],
    labels: Sequence[str] | None,
    index: np.ndarray,
    provenance: Mapping[str, Any],
) -> str:
    """JSON lines, one a text, with its class and provenance."""
    lines = [
        {"text": text, **({"label": labels[i]} if labels else {}), "synthetic": "genaug"}
        | {**provenance, "index": int(index[i])}
        for i, text in enumerate(texts)
    ]
    write_atomically(out, "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines))
    return f"{len(texts)} texts in {out}; the first:\n{plain_lines(texts[0])}"


def folder_names(names: Sequence[str]) -> list[str]:
    """Class names as names of folders; two that would be one get their position."""
    safe = [
        "".join(c if c.isalnum() or c in " .-_" else "_" for c in name).strip(" .") or "_"
        for name in names
    ]
    return [name if safe.count(name) == 1 else f"{name}_{i}" for i, name in enumerate(safe)]


def _cond(
    options: argparse.Namespace, conditions: Sequence[str], run: runs.Trained, names: list[str]
) -> dict[str, Any]:
    """The conditions that the options ask for, one row per image."""
    count, reads = options.n, run.model.cond
    index = np.arange(options.first, options.first + count)
    cond: dict[str, Any] = {"index": index.astype(np.int32)}
    if "label" in reads:
        labels = index % len(names)
        if options.class_name is not None:
            if options.class_name not in names:
                raise UserError(
                    f"There is no class {options.class_name}."
                    f"{nearest_name(options.class_name, names)} Classes: {', '.join(names)}."
                )
            labels = np.full(count, names.index(options.class_name))
        cond["label"] = labels.astype(np.int32)
    elif options.class_name is not None:
        raise UserError("--class: this model was trained without classes and cannot draw one.")
    given = dict(_pairs(conditions, reads))
    if "toward" in given and "near" not in given:
        raise UserError("--toward needs --near: the image to start from.")
    for name, text in given.items():
        for field, value in _value(name, text, reads[name].spec, run).items():
            cond[field] = np.broadcast_to(value, (count, *value.shape))
    if "toward" in cond and "fraction" not in cond:
        cond["fraction"] = np.linspace(0.0, 1.0, count, dtype=np.float32)
    return cond


def _pairs(words: Sequence[str], reads: Mapping[str, CondField]) -> Iterator[tuple[str, str]]:
    """`--name value` and `--name=value` as pairs of names that the sampler reads."""
    known = [f"--{name.replace('_', '-')}" for name in reads if name != "label"]
    rest = list(words)
    while rest:
        flag, equals, value = rest.pop(0).partition("=")
        if flag.replace("_", "-") not in known:
            raise UserError(
                f"There is no option {flag} for this model.{nearest_name(flag, known)} "
                f"Its sampler reads {', '.join(known) or 'nothing'}."
            )
        if not equals:
            if not rest:
                raise UserError(f"{flag} needs a value.")
            value = rest.pop(0)
        yield flag[2:].replace("-", "_"), value


def _value(
    name: str, text: str, spec: jax.ShapeDtypeStruct, run: runs.Trained
) -> dict[str, np.ndarray]:
    """What an option says, as rows of conditions.

    Text becomes tokens and their number, an image's shape wants a file; the rest are numbers.
    """
    flag = f"--{name.replace('_', '-')}"
    if isinstance(spec, TokenSpec) and run.tokenizer is not None:
        ids, length = run.tokenizer.encode(text), spec.shape[0]
        if len(ids) > length - 2:
            raise UserError(
                f"{flag} has {len(ids)} tokens; this model's context has room for {length - 2} "
                "and one more to say: give a shorter one."
            )
        padded = np.zeros(length, np.int32)
        padded[: len(ids)] = ids
        return {name: padded, f"{name}_length": np.asarray(len(ids), np.int32)}
    if spec.shape:
        return {name: _read_image(Path(text), spec.shape)}
    try:
        value = np.asarray(float(text) if spec.dtype == np.float32 else int(text), spec.dtype)
    except (ValueError, OverflowError):
        kind = "a number" if spec.dtype == np.float32 else "a whole number"
        raise UserError(f"{flag} is {text!r}; expected {kind}.") from None
    return {name: value}


def _read_image(path: Path, shape: tuple[int, ...]) -> np.ndarray:
    """An image file in the shape that a model was trained on."""
    height, _, channels = shape
    image = shape_image(decode(path, 255), Data(image_size=height, channels=channels))
    if image.shape != shape:
        raise UserError(f"{path} becomes {image.shape} and the model draws {shape}: crop it first.")
    return image


def data_list() -> str:
    """Every dataset within reach, and how to get what is not."""
    lines = []
    for entry in catalogue():
        state = "found" if entry.found else "not found"
        lines.append(plain(f"{entry.name}  ({entry.kind}, {state})"))
        for title, value in (
            ("where", entry.where),
            ("size", entry.size),
            ("licence", entry.licence),
            ("how", entry.how),
        ):
            if value:
                lines.append(plain(f"    {title:8}{value}"))
    return "\n".join(lines)
