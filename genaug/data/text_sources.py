"""From the name of a source to its texts: UTF-8 bytes, each with a name, some with a class."""

from __future__ import annotations

import dataclasses
import difflib
import os
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from absl import logging
from jaxtyping import Int32

from genaug.data.folder import refuse_escape, refuse_lookalikes, subfolders_of
from genaug.data.text import TextData
from genaug.data.text_files import SUFFIXES, Found, between, read_file, text_at
from genaug.types import DataError, UserError

FORTUNES = Path("/usr/share/games/fortunes")
FORTUNES_LICENCE = "BSD (as the package says; see /usr/share/doc/fortunes/copyright)"
PYDOC_LICENCE = "PSF-2.0 (comes with Python)"
FORMS = (
    "pydoc_topics",
    "fortunes",
    "a file .txt, .jsonl or .csv",
    "a folder of .txt files, or of class folders of them",
    "a prepared directory",
)


@dataclass(frozen=True, kw_only=True)
class Texts:
    """All texts of a source, in its own order.

    texts:       UTF-8, never empty.
    names:       where each stood: a topic, a relative path, a file and line.
    labels:      positions in `class_names`; all 0 where there are no classes.
    class_names: () where the texts have no classes.
    """

    name: str
    texts: tuple[bytes, ...]
    names: tuple[str, ...]
    labels: Int32[np.ndarray, " n"]
    class_names: tuple[str, ...]
    licence: str
    origin: str


def read_texts(config: TextData) -> Texts:
    """All texts that `config.source` names. Raises UserError or DataError."""
    check(config)
    if config.source in BUILT_IN:
        return BUILT_IN[config.source](config)
    path = Path(config.source).expanduser()
    if path.is_dir():
        return _collect(path.resolve().name, _folder(path, config), config, f"text folder {path}")
    if path.is_file() and path.suffix.lower() in SUFFIXES:
        return _collect(path.stem, read_file(path, path.name, config), config, f"text file {path}")
    if path.is_file():
        raise DataError(f"{path} is not a text file; accepted are: {', '.join(FORMS)}")
    near = difflib.get_close_matches(config.source, BUILT_IN, n=1, cutoff=0.5)
    guess = f" (did you mean {near[0]!r}?)" if near else ""
    raise DataError(f"no text source {config.source!r}{guess}; accepted are: {', '.join(FORMS)}")


def check(config: TextData) -> None:
    """Raises UserError for a config that no text can satisfy."""
    if config.context < 1:
        raise UserError(f"--data.context is {config.context}; expected 1 or more tokens")
    if config.stride is not None and not 1 <= config.stride <= config.context:
        raise UserError(
            f"--data.stride is {config.stride}; expected 1 to --data.context {config.context}"
        )
    shares = {"test": config.test_fraction, "valid": config.valid_fraction}
    for name, share in shares.items():
        if not 0 <= share < 1:
            raise UserError(f"--data.{name}-fraction is {share}; expected 0 or more and below 1")
    if sum(shares.values()) >= 1:
        raise UserError(
            f"--data.test-fraction {config.test_fraction} and --data.valid-fraction "
            f"{config.valid_fraction} leave nothing to train on; their sum must be below 1"
        )
    if config.split_seed < 0:
        raise UserError(f"--data.split-seed is {config.split_seed}; expected 0 or more")
    if config.packing == "stream" and config.too_long != "error":
        raise UserError(
            f"--data.too-long {config.too_long} is for --data.packing whole; under stream no text "
            "is too long: leave it out"
        )
    if config.packing == "whole" and config.holdout == "tail":
        raise UserError(
            "--data.holdout tail cuts every text, and --data.packing whole keeps texts whole: "
            "choose --data.packing stream or --data.holdout texts"
        )
    if config.packing == "whole" and config.stride is not None:
        raise UserError("--data.stride is for --data.packing stream: leave it out")
    _check_columns(config)


def _check_columns(config: TextData) -> None:
    """Options that say how to read one form of source have no meaning for another."""
    suffix = Path(config.source).suffix.lower()
    table = suffix in (".jsonl", ".csv")
    if not table and (config.label_column is not None or config.text_column != "text"):
        flag = "--data.text-column" if config.label_column is None else "--data.label-column"
        raise UserError(
            f"{flag} is for a .jsonl or .csv, and --data.source is {config.source}: leave it out"
        )
    if config.separator is not None and (table or config.source in BUILT_IN):
        raise UserError(
            f"--data.separator is for .txt files, and --data.source is {config.source}: leave it "
            "out"
        )
    if config.separator is not None and (
        not config.separator.strip() or len(config.separator.splitlines()) != 1
    ):
        raise UserError(
            f"--data.separator is {config.separator!r}; expected a line of text, e.g. '%'"
        )


def read_pydoc_topics(config: TextData) -> Texts:
    """The topics of Python's own help, in order of name: English prose and code, no classes."""
    from pydoc_data import topics

    found = (Found(name, text.encode()) for name, text in sorted(topics.topics.items()))
    texts = _collect("pydoc_topics", found, config, f"Python {sys.version.split()[0]}, pydoc_data")
    return dataclasses.replace(texts, licence=PYDOC_LICENCE)


def read_fortunes(config: TextData) -> Texts:
    """Debian's fortune cookies: a class a file, texts between lines of "%", empty ones left out."""
    files = fortune_files()
    if not files:
        raise DataError(f"fortunes is not installed: no files in {FORTUNES}; apt install fortunes")

    def found() -> Iterator[Found | DataError]:
        for path in files:
            data = path.read_bytes()
            for number, (start, stop) in enumerate(between(data, "%"), 1):
                if data[start:stop].strip():  # some files as shipped hold "%" twice in a row
                    name = f"{path.name} {number}"
                    yield text_at(path, data, start, stop, name, path.name)

    texts = _collect("fortunes", found(), config, f"Debian fortunes, {FORTUNES}")
    return dataclasses.replace(texts, licence=FORTUNES_LICENCE)


def fortune_files() -> list[Path]:
    """Debian's files of cookies; beside each lie its index (.dat) and a link to it (.u8)."""
    if not FORTUNES.is_dir():
        return []
    return sorted(path for path in FORTUNES.iterdir() if path.is_file() and not path.suffix)


BUILT_IN: dict[str, Callable[[TextData], Texts]] = {
    "pydoc_topics": read_pydoc_topics,
    "fortunes": read_fortunes,
}


def _collect(name: str, found: Iterator[Found | DataError], config: TextData, origin: str) -> Texts:
    """The good texts, with their classes numbered in sorted order."""
    kept: list[Found] = []
    for item in found:
        if isinstance(item, Found):
            kept.append(item)
        elif config.skip_bad:
            logging.warning("left out: %s", item)
        else:
            raise item
    if not kept:
        raise DataError(f"no texts in {origin}: it is empty or every text was left out")
    class_names = tuple(sorted({item.label for item in kept if item.label is not None}))
    number = {label: i for i, label in enumerate(class_names)}
    return Texts(
        name=name,
        texts=tuple(item.text for item in kept),
        names=tuple(item.name for item in kept),
        labels=np.array([number[i.label] if i.label is not None else 0 for i in kept], np.int32),
        class_names=class_names,
        licence="not stated",
        origin=origin,
    )


def _folder(root: Path, config: TextData) -> Iterator[Found | DataError]:
    """All .txt files: directly in `root`, or one subfolder a class, at any depth in it."""
    classes = subfolders_of(root, root)
    direct = _text_files(root, root, deep=False)
    if direct and classes:
        raise DataError(
            f"{root} holds .txt files ({direct[0].name}) beside folders ({classes[0].name}): keep "
            "either texts without classes, or one folder a class"
        )
    if not direct and not classes:
        raise DataError(f"{root} holds no .txt file and no class folders of them")
    if {"train", "test"} <= {path.name for path in classes}:
        raise DataError(
            f"{root} holds train/ and test/, which are no classes: give {root / 'train'} as "
            "--data.source (validation texts are split off it)"
        )
    refuse_lookalikes(tuple(path.name for path in classes), root)
    for path in direct:
        yield from read_file(path, path.name, config)
    for folder in classes:
        files = _text_files(folder, root, deep=True)
        if not files:
            raise DataError(
                f"class {folder.name!r} has no texts: {folder} holds no .txt file; add some or "
                "remove the folder"
            )
        for path in files:
            yield from read_file(path, str(path.relative_to(root)), config, label=folder.name)


def _text_files(folder: Path, root: Path, *, deep: bool) -> list[Path]:
    """Sorted .txt files; what is hidden is passed over, other files are logged."""
    found, others = [], 0
    for parent, subfolders, names in os.walk(folder):
        subfolders[:] = sorted(n for n in subfolders if deep and not n.startswith("."))
        for path in (Path(parent, name) for name in sorted(names)):
            if path.name.startswith("."):
                continue
            refuse_escape(path, root)
            if path.suffix.lower() == ".txt":
                found.append(path)
            else:
                others += 1
    if others:
        logging.warning("%s: %d files that are not .txt were passed over", folder, others)
    return found
