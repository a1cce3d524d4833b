"""What was drawn, as files that others read: each written whole or not at all, a part at a time."""

from __future__ import annotations

import io
import json
import os
import shutil
import zipfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from PIL import Image, PngImagePlugin

from genaug.data.config import Sound
from genaug.data.sound_files import wav
from genaug.data.store import Feature, write_examples
from genaug.data.tokens import Tokenizer, show
from genaug.files import replacing
from genaug.logs import plain_lines
from genaug.pictures import write_grid
from genaug.sampling import Rows
from genaug.transforms import sounds
from genaug.types import Spec, UserError

_SOUNDS_AT_ONCE = 64  # made of their pictures together, in memory

Parts = Callable[[], Iterator[Rows]]
"""The parts in order, from the first, as often as asked: arrays of one part fit into memory."""


class About(NamedTuple):
    """What is true of all that was drawn."""

    spec: Spec
    class_names: tuple[str, ...]
    tokenizer: Tokenizer | None  # of texts
    total: int
    seed: int
    model: str  # the digest of the weights
    licence: str
    fingerprint: str  # of the data that the model was trained on
    sound: Sound | None  # how images are sounds

    def texts(self, rows: Rows) -> list[str]:
        """Rows of tokens as texts."""
        assert self.tokenizer is not None, "asked of texts alone"
        return show(rows["tokens"], rows["segments"], self.tokenizer)


MARK = b"synthetic: genaug"
"""The comment of an .npz file of examples that were drawn."""


def folder_names(names: Sequence[str]) -> list[str]:
    """Class names as names of folders; two that would be one get their position."""
    safe = [
        "".join(c if c.isalnum() or c in " .-_" else "_" for c in name).strip(" .") or "_"
        for name in names
    ]
    return [name if safe.count(name) == 1 else f"{name}_{i}" for i, name in enumerate(safe)]


def write_folder(out: Path, parts: Parts, about: About) -> str:
    """A PNG for every image in its class's folder, with its provenance inside, and a grid."""
    if about.tokenizer is not None:
        raise UserError("--format folder is for images: texts go to jsonl, arrayrecord or npz.")

    def pngs(rows: Rows) -> Iterator[bytes]:
        for i, image in enumerate(rows["image"]):
            text, file = PngImagePlugin.PngInfo(), io.BytesIO()
            for key, value in _provenance(about, rows, i).items():
                text.add_text(key, str(value))
            picture = Image.fromarray(image[:, :, 0] if image.shape[-1] == 1 else image)
            picture.save(file, "PNG", pnginfo=text)
            yield file.getvalue()

    grid = _write_files(out, parts, about, "images", ".png", pngs)
    return f"{about.total} images in {out}, the first of them in {grid}"


def write_wav(out: Path, parts: Parts, about: About) -> str:
    """A .wav file for every sound in its class's folder, with its provenance inside, and a grid."""
    if about.sound is None:
        raise UserError("--format wav is for sounds: this model was trained on none.")
    config = about.sound

    def wavs(rows: Rows) -> Iterator[bytes]:
        for start in range(0, len(rows["image"]), _SOUNDS_AT_ONCE):
            heard = sounds.to_sound(rows["image"][start : start + _SOUNDS_AT_ONCE], config)
            for i, sound in enumerate(np.asarray(heard), start):
                yield wav(sound, config.sample_rate, _provenance(about, rows, i))

    grid = _write_files(out, parts, about, "sounds", ".wav", wavs)
    return f"{about.total} sounds in {out}, pictures of the first in {grid}"


def _write_files(
    out: Path,
    parts: Parts,
    about: About,
    kind: str,
    ending: str,
    encoded: Callable[[Rows], Iterator[bytes]],
) -> Path:
    """A file for every row in its class's folder (in `kind`, without classes), and the grid."""
    folders = folder_names(about.class_names)
    first: list[np.ndarray] = []
    with _replacing_folder(out) as partial:
        for rows in parts():
            if not first:
                first.append(rows["image"][:100])
            for i, content in enumerate(encoded(rows)):
                folder = partial / (folders[rows["label"][i]] if "label" in rows else kind)
                folder.mkdir(exist_ok=True)
                (folder / f"{rows['index'][i]:06d}{ending}").write_bytes(content)
        write_grid(partial / "grid.png", first[0], columns=10)
    return out / "grid.png"


def write_jsonl(out: Path, parts: Parts, about: About) -> str:
    """JSON lines, one a text, with its class and provenance."""
    if about.tokenizer is None:
        raise UserError("--format jsonl is for texts: images go to folder, arrayrecord or npz.")
    shown = ""
    with replacing(out) as file:
        for rows in parts():
            texts = about.texts(rows)
            shown = shown or texts[0]
            for i, text in enumerate(texts):
                label = {"label": about.class_names[rows["label"][i]]} if "label" in rows else {}
                line = {"text": text, **label, **_provenance(about, rows, i)}
                file.write((json.dumps(line, ensure_ascii=False) + "\n").encode())
    return f"{about.total} texts in {out}; the first:\n{plain_lines(shown)}"


def write_npz(out: Path, parts: Parts, about: About) -> str:
    """The arrays, whole, with their addresses and the names of the classes."""
    first = next(parts())
    with replacing(out) as file, zipfile.ZipFile(file, "w", zipfile.ZIP_STORED) as archive:
        for name, example in first.items():
            shape = (about.total, *example.shape[1:])
            header = {"descr": example.dtype.str, "fortran_order": False, "shape": shape}
            with archive.open(f"{name}.npy", "w", force_zip64=True) as entry:
                np.lib.format.write_array_header_1_0(entry, header)
                for rows in parts():
                    entry.write(np.ascontiguousarray(rows[name]).tobytes())
        archive.comment = MARK  # as a PNG's text: whose they are, for who judges them
        with archive.open("class_names.npy", "w") as entry:
            np.lib.format.write_array(entry, np.array(about.class_names), allow_pickle=False)
    return f"{about.total} examples in {out}"


def write_arrayrecord(out: Path, parts: Parts, about: About) -> str:
    """A prepared dataset that `tfds.builder_from_directory` reads, and `--data.source` takes."""
    is_text = about.tokenizer is not None
    features: dict[str, Feature] = {
        **({"text": str} if is_text else {"image": about.spec["image"]}),
        "label": np.int64,
        "synthetic": bool,
        "seed": np.int64,
        "index": np.int64,
        "model_digest": str,
    }

    def examples() -> Iterator[dict[str, Any]]:
        for rows in parts():
            values: Iterable[Any] = about.texts(rows) if is_text else rows["image"]
            for i, value in enumerate(values):
                yield {
                    "text" if is_text else "image": value,
                    "label": int(rows["label"][i]) if "label" in rows else 0,
                    "synthetic": True,
                    "seed": about.seed,
                    "index": int(rows["index"][i]),
                    "model_digest": about.model,
                }

    if out.is_dir():
        out.rmdir()  # it is empty
    write_examples(
        out,
        name="synthetic",
        features=features,
        examples=examples(),
        class_names=about.class_names,
        metadata={"data_fingerprint": about.fingerprint, "filters": "none"},
        licence=about.licence,
        description="Synthetic examples drawn by genaug.",
    )
    return f"{about.total} examples in {out}"


def _provenance(about: About, rows: Rows, i: int) -> dict[str, Any]:
    return {
        "synthetic": "genaug",
        "seed": about.seed,
        "model": about.model,
        "index": int(rows["index"][i]),
    }


@contextmanager
def _replacing_folder(out: Path) -> Iterator[Path]:
    partial = out.with_name(f".{out.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    try:
        partial.mkdir(parents=True)
        yield partial
        if out.is_dir():
            out.rmdir()  # it is empty
        os.replace(partial, out)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
