"""Texts on disk: a TFDS dataset in ArrayRecord, written once, in a directory keyed by content."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import numpy as np

from genaug.data.config import data_directory
from genaug.data.sources import open_builder
from genaug.data.store import dataset_name, write_examples
from genaug.data.text import TextData
from genaug.data.text_sources import BUILT_IN, Texts, check, read_texts
from genaug.types import DataError, UserError


def read_prepared(config: TextData) -> tuple[Texts, str, Path]:
    """The texts as the data directory holds them, their fingerprint, and where they lie."""
    check(config)
    path = Path(config.source).expanduser()
    if config.source in BUILT_IN or not (path / "dataset_info.json").is_file():
        path = _prepare(read_texts(config), config)
    elif config.separator is not None:
        raise UserError(f"--data.separator is for .txt files, and {path} is prepared: leave it out")
    texts = _open(path)
    return texts, digest(texts), path


def digest(texts: Texts) -> str:
    """The sha256 of the texts, their names and their classes."""
    sizes = [len(text) for text in texts.texts]
    sha = hashlib.sha256(json.dumps([texts.class_names, texts.names, sizes]).encode())
    sha.update(texts.labels.tobytes())
    for text in texts.texts:
        sha.update(text)
    return sha.hexdigest()


def _prepare(texts: Texts, config: TextData) -> Path:
    """The prepared directory of these texts, written first if it is not there yet."""
    fingerprint = digest(texts)
    name = dataset_name(texts.name)
    directory = data_directory(config.directory) / name / fingerprint[:16]
    if (directory / "dataset_info.json").is_file():
        return directory
    features: dict[str, Any] = {"text": str, "id": str}
    if texts.class_names:
        features["label"] = np.int64
    rows = zip(texts.texts, texts.names, texts.labels.tolist(), strict=True)
    try:
        write_examples(
            directory,
            name=name,
            features=features,
            examples=({"text": text, "id": id_, "label": label} for text, id_, label in rows),
            class_names=texts.class_names,
            metadata={
                "fingerprint": fingerprint,
                "origin": texts.origin,
                "licence": texts.licence,
                "name": texts.name,
            },
            description=f"{texts.name}, from {texts.origin}",
            licence=texts.licence,
        )
    except UserError:
        # Equal content makes an equal name: if another process finished first, its data is ours.
        if not (directory / "dataset_info.json").is_file():
            raise
    return directory


def _open(directory: Path) -> Texts:
    """Read back what `write_examples` wrote. Raises DataError if it holds no texts."""
    builder = open_builder(directory)
    features, metadata = builder.info.features, builder.info.metadata or {}
    if "text" not in features:
        raise DataError(f"{directory} has no feature 'text'; it has {', '.join(features)}")
    try:
        records = list(builder.as_data_source("train"))
    # A damaged file speaks through ArrayRecord or protobuf, each with its own class.
    except Exception as error:
        raise DataError(
            f"the prepared data in {directory} is damaged ({type(error).__name__}: {error}); "
            "remove the directory and it is prepared again"
        ) from error
    class_names = getattr(features["label"], "names", None) if "label" in features else ()
    return Texts(
        name=metadata.get("name", builder.name),
        texts=tuple(record["text"] for record in records),
        names=tuple(
            record["id"].decode() if "id" in features else f"text {number}"
            for number, record in enumerate(records)
        ),
        labels=np.array([record["label"] if class_names else 0 for record in records], np.int32),
        class_names=tuple(class_names or ()),
        licence=metadata.get("licence", "not stated"),
        origin=metadata.get("origin", str(directory)),
    )
