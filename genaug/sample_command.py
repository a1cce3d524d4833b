"""What `genaug sample` does: rows of a run's model or of a bundle, into files."""

from __future__ import annotations

import argparse
import shutil
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from rich.console import Console

from genaug import bundle, export, layouts, outputs, processes, runs
from genaug.config import nearest_name
from genaug.data import Data
from genaug.data.config import Sound
from genaug.data.folder import SOUNDS, decode
from genaug.data.raw import ONE_CLASS, shape_image
from genaug.data.sound_files import picture
from genaug.data.tokens import Bytes, Tokenizer, bpe
from genaug.devices import own_mesh
from genaug.drawing import Conditions, draw_parts, part_rows
from genaug.files import load_arrays
from genaug.logs import bar
from genaug.sampling import Sampler, make_sampler
from genaug.types import CondField, LabelSpec, Spec, TokenSpec, UserError

WRITERS = {
    "folder": outputs.write_folder,
    "wav": outputs.write_wav,
    "jsonl": outputs.write_jsonl,
    "npz": outputs.write_npz,
    "arrayrecord": outputs.write_arrayrecord,
}


WHOLE_FOLDERS = ("folder", "wav", "arrayrecord")


class Opened(NamedTuple):
    """Whatever draws: a run's newest checkpoint or a bundle."""

    sampler: Sampler
    spec: Spec
    data: Mapping[str, Any]  # what is known of the data it was trained on
    tokenizer: Tokenizer | None
    sound: Sound | None
    digest: str  # of the weights


def sample(options: argparse.Namespace, words: Sequence[str], console: Console) -> str:
    """Draw rows into a folder of PNGs, JSON lines, an .npz or a dataset; returns where they are.

    words: what the sampler reads, as `--name value`.
    """
    if options.n < 1 or options.first < 0 or options.first + options.n > 2**31:
        raise UserError("--n must be at least 1, --first at least 0, and their sum at most 2^31.")
    opened = processes.together(partial(_open, options.run))
    form, out = _form_and_place(options, opened)
    conditions = _conditions(options, words, opened)
    folder = out.with_name(f".{out.name}.parts")
    request = {"model": opened.digest, "seed": options.seed, "words": list(words)}
    with bar(console, "draw", options.n, "examples") as progress:
        files = draw_parts(
            opened.sampler,
            jax.random.key(options.seed),
            conditions,
            range(options.first, options.first + options.n),
            part_rows(opened.spec),
            folder,
            request,
            progress,
        )
    if not processes.is_first():
        return ""
    drawn = WRITERS[form](out, lambda: map(load_arrays, files), _about(options, opened))
    shutil.rmtree(folder)
    return drawn


def _open(source: Path) -> Opened:
    if (source / "bundle.json").is_file():
        return _open_bundle(source)
    run = runs.open_run(source)
    weights, mesh = run.weights, run.mesh
    if jax.process_count() > 1:  # each draws parts of its own, on its own devices
        weights, mesh = layouts.to_host(weights), own_mesh()
    return Opened(
        sampler=make_sampler(run.model, weights, mesh),
        spec=run.spec,
        data=run.about_data,
        tokenizer=run.tokenizer,
        sound=_sound(run.about_data),
        digest=export.digest(layouts.to_host(weights)),
    )


def _open_bundle(source: Path) -> Opened:
    sampler = bundle.load_sampler(source, own_mesh().devices)
    description, files = sampler.description, bundle.read_files(source)
    data = description.get("data", {})
    texts = "tokens" in description["spec"]
    trained = files.get(bundle.TOKENIZER)
    return Opened(
        sampler=sampler.blocks(),
        spec=bundle.spec_from_json(description["spec"]),
        data=data,
        tokenizer=(bpe(trained.decode()) if trained else Bytes()) if texts else None,
        sound=_sound(data),
        digest=description["weights_digest"],
    )


def _sound(data: Mapping[str, Any]) -> Sound | None:
    return Sound(**data["sound"]) if "sound" in data else None


def _class_names(opened: Opened) -> tuple[str, ...]:
    """Of the classes that can be asked for; what has none is of one."""
    if "label" not in opened.sampler.reads:
        return (ONE_CLASS,)
    spec = opened.sampler.reads["label"].spec
    assert isinstance(spec, LabelSpec)
    return tuple(opened.data.get("class_names") or map(str, range(spec.num_classes)))


def _about(options: argparse.Namespace, opened: Opened) -> outputs.About:
    return outputs.About(
        spec=opened.spec,
        class_names=_class_names(opened),
        tokenizer=opened.tokenizer,
        total=options.n,
        seed=options.seed,
        model=opened.digest,
        licence=opened.data.get("licence", "not stated"),
        fingerprint=opened.data.get("fingerprint", "not stated"),
        sound=opened.sound,
    )


def _form_and_place(options: argparse.Namespace, opened: Opened) -> tuple[str, Path]:
    """Which kind of files, and where; refused before anything is drawn."""
    by_ending = {".npz": "npz", ".jsonl": "jsonl"}
    natural = "jsonl" if opened.tokenizer else "wav" if opened.sound else "folder"
    ending = options.out.suffix if options.out else ""
    form = options.format or by_ending.get(ending, natural)
    theirs = {"jsonl": opened.tokenizer, "wav": opened.sound, "folder": opened.tokenizer is None}
    if not theirs.get(form, True):
        kind = "texts" if opened.tokenizer else "sounds" if opened.sound else "images"
        raise UserError(f"--format {form}: this model draws {kind}; use {natural}, arrayrecord or "
                        "npz.")  # fmt: skip
    out = options.out or options.run / f"drawn{'' if form in WHOLE_FOLDERS else '.' + form}"
    if out.is_file() or (out.is_dir() and (form not in WHOLE_FOLDERS or any(out.iterdir()))):
        raise UserError(f"{out} is there already: name another with --out.")
    return form, out


def _conditions(options: argparse.Namespace, words: Sequence[str], opened: Opened) -> Conditions:
    """What the options ask for, for any addresses."""
    reads, names = opened.sampler.reads, list(_class_names(opened))
    chosen = _chosen_class(options, reads, names)
    given = dict(_pairs(words, reads))
    if "toward" in given and "near" not in given:
        raise UserError("--toward needs --near: the image to start from.")
    fixed = {
        field: value
        for name, text in given.items()
        for field, value in _value(name, text, reads[name].spec, opened).items()
    }

    def conditions(index: np.ndarray) -> dict[str, np.ndarray]:
        cond = {name: np.broadcast_to(v, (len(index), *v.shape)) for name, v in fixed.items()}
        if "label" in reads:
            in_turn = index % len(names)
            cond["label"] = (in_turn if chosen is None else np.full_like(index, chosen)).astype(
                np.int32
            )
        if "toward" in cond and "fraction" not in cond:
            way = (index - options.first) / max(options.n - 1, 1)
            cond["fraction"] = way.astype(np.float32)
        return {"index": index.astype(np.int32), **cond}

    return conditions


def _chosen_class(
    options: argparse.Namespace, reads: Mapping[str, CondField], names: list[str]
) -> int | None:
    if options.class_name is None:
        return None
    if "label" not in reads:
        raise UserError("--class: this model was trained without classes and cannot draw one.")
    if options.class_name not in names:
        raise UserError(
            f"There is no class {options.class_name}."
            f"{nearest_name(options.class_name, names)} Classes: {', '.join(names)}."
        )
    return names.index(options.class_name)


def _pairs(words: Sequence[str], reads: Mapping[str, CondField]) -> Iterator[tuple[str, str]]:
    """`--name value` and `--name=value` as pairs of names that the sampler reads."""
    known = [f"--{name.replace('_', '-')}" for name in reads if name not in ("label", "index")]
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
    name: str, text: str, spec: jax.ShapeDtypeStruct, opened: Opened
) -> dict[str, np.ndarray]:
    """What an option says, as rows of conditions.

    Text becomes tokens and their number, an image's shape wants a file; the rest are numbers.
    """
    flag = f"--{name.replace('_', '-')}"
    if isinstance(spec, TokenSpec) and opened.tokenizer is not None:
        ids, length = opened.tokenizer.encode(text), spec.shape[0]
        if len(ids) > length - 2:
            raise UserError(
                f"{flag} has {len(ids)} tokens; this model's context has room for {length - 2} "
                "and one more to say: give a shorter one."
            )
        padded = np.zeros(length, np.int32)
        padded[: len(ids)] = ids
        return {name: padded, f"{name}_length": np.asarray(len(ids), np.int32)}
    if spec.shape:
        return {name: _read_image(Path(text), spec.shape, opened.sound)}
    try:
        value = np.asarray(float(text) if spec.dtype == np.float32 else int(text), spec.dtype)
    except (ValueError, OverflowError):
        kind = "a number" if spec.dtype == np.float32 else "a whole number"
        raise UserError(f"{flag} is {text!r}; expected {kind}.") from None
    return {name: value}


def _read_image(path: Path, shape: tuple[int, ...], sound: Sound | None) -> np.ndarray:
    """An image file, or a sound's picture, in the shape that a model was trained on."""
    if sound and path.suffix.lower() in SOUNDS:
        return picture(path, sound)[0]
    height, _, channels = shape
    image = shape_image(decode(path, 255), Data(image_size=height, channels=channels))
    if image.shape != shape:
        raise UserError(f"{path} becomes {image.shape} and the model draws {shape}: crop it first.")
    return image
