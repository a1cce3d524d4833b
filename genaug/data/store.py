"""Examples on disk: a TFDS dataset in ArrayRecord, written once, whole or not at all.

Any TFDS reads it back without our code: `tfds.builder_from_directory(d).as_data_source("train")`.
TensorFlow is neither used nor imported.
"""

from __future__ import annotations

import dataclasses
import errno
import hashlib
import itertools
import json
import os
import re
import shutil
import time
import uuid
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

from genaug.data.config import Data, data_directory
from genaug.data.raw import Raw
from genaug.types import DataError, UserError

VERSION = "1.0.0"
_SHARD_EXAMPLES = 100_000
_STALE_SECONDS = 24 * 3600
_SHAPING_FIELDS = ("image_size", "channels", "background", "float_range")

Feature = jax.ShapeDtypeStruct | type
"""A tensor's shape and dtype, or the type of a scalar: np.int64, np.float32, bool, str."""


def write_examples(
    directory: Path,
    *,
    name: str,
    features: Mapping[str, Feature],
    examples: Iterable[Mapping[str, Any]],
    class_names: Sequence[str] = (),
    metadata: Mapping[str, Any] | None = None,
    description: str = "",
    licence: str = "",
) -> Path:
    """Write examples, in the order given, as the split "train" of a TFDS dataset in `directory`.

    `features` gives each key's shape and dtype; uint8 tensors are stored compressed. Where
    `class_names` are given the feature "label" (an integer) carries them. `metadata` must be JSON;
    `genaug_format` and, unless given, `fingerprint` are added: the SHA-256 of all that was written,
    of each example by the names of its features in alphabetical order (in format 1 as given).
    The directory appears complete or not at all. Raises UserError if it is not empty or cannot be
    written, DataError if there are no examples or a class name cannot be stored.
    """
    import tensorflow_datasets as tfds

    directory = Path(directory)
    if directory.exists() and (not directory.is_dir() or any(directory.iterdir())):
        raise UserError(f"{directory} is not empty: choose another directory or remove it")
    _check_class_names(class_names)
    partial = directory.with_name(f".{directory.name}.{uuid.uuid4().hex[:8]}.partial")
    try:
        partial.mkdir(parents=True)
        _remove_stale(directory.parent)
        info = tfds.core.DatasetInfo(
            builder=_identity(partial, name),
            description=description,
            features=_features(features, class_names),
            metadata=tfds.core.MetadataDict({**(metadata or {}), "genaug_format": 2}),
            license=licence or None,
            disable_shuffling=True,  # the order is part of the data
        )
        _write(info, examples)
        os.replace(partial, directory)
    except OSError as error:
        if error.errno in (errno.ENOTEMPTY, errno.EEXIST):  # another process was first
            raise UserError(f"{directory} is not empty: it was written meanwhile") from error
        raise UserError(
            f"cannot write {directory}: {error.strerror or error}; choose a writable place "
            "(--data.directory or GENAUG_DATA_DIR)"
        ) from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return directory


def prepare(raw: Raw, config: Data) -> Path:
    """The prepared directory of these examples, written first if it is not there yet."""
    fingerprint = digest(raw)
    sound = {"sound": dataclasses.asdict(raw.sound)} if raw.sound else {}
    fields = [getattr(config, field) for field in _SHAPING_FIELDS]
    shaping = json.dumps([fingerprint, raw.name, *fields, *sound.values()])
    key = hashlib.sha256(shaping.encode()).hexdigest()[:16]
    name = dataset_name(raw.name)
    directory = data_directory(config.directory) / name / key
    if (directory / "dataset_info.json").is_file():
        return directory
    features: dict[str, Feature] = {
        "image": jax.ShapeDtypeStruct(raw.images.shape[1:], np.uint8),
        "label": np.int64,
        "id": np.int64,
    }
    if raw.preset_test is not None:
        features["preset_test"] = bool
    try:
        write_examples(
            directory,
            name=name,
            features=features,
            examples=_examples(raw),
            class_names=raw.class_names,
            metadata={
                "fingerprint": fingerprint,
                "origin": raw.origin,
                "licence": raw.licence,
                "name": raw.name,
                **dict(zip(_SHAPING_FIELDS, fields, strict=True)),
                **sound,
            },
            description=f"{raw.name}, from {raw.origin}",
            licence=raw.licence,
        )
    except UserError:
        # Equal content makes an equal name: if another process finished first, its data is ours.
        if not (directory / "dataset_info.json").is_file():
            raise
    return directory


def digest(raw: Raw) -> str:
    """The sha256 of everything that makes these examples what they are."""
    head = json.dumps([raw.images.shape, raw.class_names, raw.preset_test is not None])
    sha = hashlib.sha256(head.encode())
    for start in range(0, len(raw.images), 4096):
        sha.update(raw.images[start : start + 4096].tobytes())
    for array in (raw.labels, raw.ids, raw.preset_test):
        sha.update(b"" if array is None else array.tobytes())
    return sha.hexdigest()


def dataset_name(name: str) -> str:
    """A name that TFDS accepts in its file names."""
    return re.sub(r"\W+", "_", name, flags=re.ASCII).strip("_").lower() or "data"


def _examples(raw: Raw) -> Iterator[dict[str, Any]]:
    for i in range(len(raw.images)):
        example = {"image": raw.images[i], "label": int(raw.labels[i]), "id": int(raw.ids[i])}
        if raw.preset_test is not None:
            example["preset_test"] = bool(raw.preset_test[i])
        yield example


def _write(info: Any, examples: Iterable[Mapping[str, Any]]) -> None:
    import tensorflow_datasets as tfds

    iterator = iter(examples)
    first = next(iterator, None)
    if first is None:
        raise DataError("there are no examples to write")
    sha = hashlib.sha256()

    def plain() -> Iterator[dict[str, Any]]:
        for example in itertools.chain([first], iterator):
            row = {key: _plain(example[key]) for key in sorted(info.features)}
            for key, value in row.items():
                sha.update(key.encode() + np.asarray(value).tobytes())
            yield row

    writer = tfds.core.SequentialWriter(info, _SHARD_EXAMPLES, file_format="array_record")
    writer.initialize_splits(["train"])
    writer.add_examples({"train": plain()})
    info.metadata.setdefault("fingerprint", sha.hexdigest())
    writer.close_splits(["train"])


def _plain(value: Any) -> Any:
    """Scalars as Python's own, which every TFDS feature takes; arrays as NumPy's."""
    if isinstance(value, str | bytes):
        return value
    array = np.asarray(value)
    return array.item() if array.ndim == 0 else array


def _features(features: Mapping[str, Feature], class_names: Sequence[str]) -> Any:
    import tensorflow_datasets as tfds

    def one(key: str, feature: Feature) -> Any:
        if key == "label" and class_names:
            return tfds.features.ClassLabel(names=list(class_names))
        if feature is str:
            return tfds.features.Text()
        if isinstance(feature, type):
            return tfds.features.Scalar(np.dtype(feature))
        if feature.shape == ():
            return tfds.features.Scalar(np.dtype(feature.dtype))
        encoding = "zlib" if feature.dtype == np.uint8 else "none"
        return tfds.features.Tensor(
            shape=feature.shape, dtype=np.dtype(feature.dtype), encoding=encoding
        )

    return tfds.features.FeaturesDict({key: one(key, f) for key, f in features.items()})


def _identity(directory: Path, name: str) -> Any:
    import tensorflow_datasets as tfds
    from tensorflow_datasets.core.dataset_info import DatasetIdentity

    return DatasetIdentity(
        name=dataset_name(name),
        version=tfds.core.Version(VERSION),
        data_dir=str(directory),
        module_name="genaug",
    )


def _check_class_names(names: Sequence[str]) -> None:
    """TFDS keeps class names one a line and strips them: what would not come back is refused."""
    for name in names:
        if not name or name != name.strip() or len(name.splitlines()) != 1:
            raise DataError(f"class name {name!r} is empty or has spaces around it or line breaks")
    if len(set(names)) != len(names):
        raise DataError(f"class names are not distinct: {', '.join(names)}")


def _remove_stale(parent: Path) -> None:
    """Clear what killed runs left behind; a day is longer than any run writes."""
    for path in parent.glob(".*.partial"):
        try:
            if time.time() - path.stat().st_mtime > _STALE_SECONDS:
                shutil.rmtree(path, ignore_errors=True)
        except OSError:
            continue
